// Package systemtest boots a fleet of Debian machines with real systemd, made by the scripts that bake images (packer/scripts) and
// the package of `make package`, and takes it through a life: deploys, rollbacks, a killed agent, a frozen machine, reboots with and
// without AWS, a machine that joins in the middle of a rollout, an upgrade in the middle of another, removal.
//
// A machine is a container of systemd-nspawn: an overlay on one provisioned tree, a network namespace of its own, a link into the
// bridge of a namespace called the hub. The hub's addresses stand for the world outside: S3 and DynamoDB on one, the database on another,
// visitors come from a third, so that a machine can lose AWS and still be visited. S3, DynamoDB and MariaDB run outside, on loopback and a
// socket, and are passed on into the hub.
//
// It is built only with the tag `system`, needs root, and takes minutes: `make test-system`. Debian's base tree and
// the packages that apt downloads are kept in .tools. Everything else ends with the test.
package systemtest
