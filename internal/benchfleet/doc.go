// Package benchfleet measures fleets, as tests: how long a rollout takes from 3 to 10,000 instances, how far apart the flips lie,
// what it costs in requests of DynamoDB, and what an idle instance costs a month.
//
// Up to 200 instances are real agents on real disks in one process, with DynamoDB Local. Above that the protocol's real nodes run in
// virtual time on a table that counts what DynamoDB would ([meter]): a key may take 1,000 write units and 3,000 read units
// a second. `make bench-fleet` runs everything and writes the results into docs/benchmarks.md; `make test` runs what is quick.
package benchfleet
