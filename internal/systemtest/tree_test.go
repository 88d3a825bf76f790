//go:build system

package systemtest

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"s3pulldeploy/internal/testenv"
	"s3pulldeploy/internal/testenv/parts"
)

// What Debian's base tree is made of; a changed line makes a new one.
const (
	suite    = "bookworm"
	packages = "systemd,systemd-sysv,dbus,ca-certificates,iproute2"
)

// require ends the test where this machine cannot run it.
func require(t *testing.T) (root string) {
	t.Helper()
	testenv.Root(t, "machines with systemd")
	for _, tool := range []string{"debootstrap", "systemd-nspawn", "ip", "mariadbd", "mariadb-install-db", "nsenter", "journalctl"} {
		if _, err := exec.LookPath(tool); err != nil {
			testenv.LeaveOut(t, fmt.Sprintf("machines with systemd: %v", err))
		}
	}
	root, err := parts.ModuleRoot()
	check(t, err)
	return root
}

// baseTree is a Debian tree with systemd, from the cache in .tools or made by debootstrap.
func baseTree(t *testing.T, root string) string {
	t.Helper()
	key := fmt.Sprintf("%x", sha256.Sum256([]byte(suite+packages)))[:8]
	tree, err := filepath.EvalSymlinks(filepath.Join(root, ".tools"))
	check(t, err)
	tree = filepath.Join(tree, "debian-"+suite+"-"+key)
	if _, err := os.Stat(tree); err == nil {
		return tree
	}
	t.Log("making Debian's base tree, once")
	check(t, os.RemoveAll(tree+".new"))
	run(t, "debootstrap", "--variant=minbase", "--include="+packages, suite, tree+".new")
	check(t, os.RemoveAll(filepath.Join(tree+".new", "var/cache/apt/archives")))
	check(t, os.MkdirAll(filepath.Join(tree+".new", "var/cache/apt/archives"), 0o755))
	check(t, os.Rename(tree+".new", tree))
	return tree
}

// overlay mounts a writable view of the lower trees (topmost first) until the end of the test, and returns its path.
func overlay(t *testing.T, dir string, lower ...string) string {
	t.Helper()
	upper, work, tree := filepath.Join(dir, "upper"), filepath.Join(dir, "work"), filepath.Join(dir, "tree")
	for _, d := range []string{upper, work, tree} {
		check(t, os.MkdirAll(d, 0o755))
	}
	run(t, "mount", "-t", "overlay", "overlay", "-o",
		fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", strings.Join(lower, ":"), upper, work), tree)
	t.Cleanup(func() {
		if out, err := exec.Command("umount", tree).CombinedOutput(); err != nil {
			t.Errorf("unmount %s: %v: %s", tree, err, out)
		}
	})
	return tree
}

// inTree runs a command in a tree that is not booted, as root and on this machine's network, and returns what it printed. env are
// NAME=value, binds are paths of this machine as source:destination.
func inTree(t *testing.T, tree string, env, binds []string, command ...string) string {
	t.Helper()
	args := []string{
		"--quiet", "--register=no", "--keep-unit", "--as-pid2", "--pipe", "--resolv-conf=copy-host", "--link-journal=no",
		"--directory=" + tree,
	}
	for _, e := range env {
		args = append(args, "--setenv="+e)
	}
	for _, b := range binds {
		args = append(args, "--bind="+b)
	}
	return run(t, "systemd-nspawn", append(args, command...)...)
}

// image runs the scripts of packer/scripts in an overlay on Debian's base tree, as Packer does in an instance, and returns the
// lower trees for overlays of machines.
func image(t *testing.T, root, deb string) []string {
	t.Helper()
	base := baseTree(t, root)
	dir := t.TempDir()
	tree := overlay(t, dir, base)

	archives := filepath.Join(filepath.Dir(base), "apt-archives") // what apt downloads, for the next run
	check(t, os.MkdirAll(filepath.Join(archives, "partial"), 0o755))
	binds := []string{
		archives + ":/var/cache/apt/archives",
		filepath.Join(root, "packer") + ":/opt/packer",
		filepath.Dir(deb) + ":/opt/dist",
	}
	env := []string{
		"SITE=" + site, "PHP_MODULES=mysql", "PACKAGES=nftables polkitd", "FILES=/opt/packer/files", "PACKAGE=/opt/dist/" + filepath.Base(deb),
	}
	for _, script := range []string{"web.sh", "agent.sh", "logs.sh"} {
		t.Logf("%s\n%s", script, lastLines(inTree(t, tree, env, binds, "/opt/packer/scripts/"+script), 3))
	}
	inTree(t, tree, nil, binds[1:], "/opt/packer/scripts/clean.sh") // without the cache, which it would empty

	for _, unit := range []string{"nginx", "php8.2-fpm"} {
		if out, err := exec.Command("systemctl", "--root="+tree, "is-enabled", unit).Output(); err == nil {
			t.Errorf("%s would start with the image: %s", unit, out)
		}
	}
	baked(t, tree)
	return []string{filepath.Join(dir, "upper"), base}
}

// baked checks that an image has what the CloudWatch agent wants to read, and nothing that belongs to one machine or must stay secret.
func baked(t *testing.T, tree string) {
	conf, err := os.ReadFile(filepath.Join(tree, "opt/aws/amazon-cloudwatch-agent/etc/amazon-cloudwatch-agent.d/s3-pull-deploy.json"))
	check(t, err)
	for _, want := range []string{"/var/log/s3-pull-deploy.log", "/var/log/nginx/access.log", "/var/log/nginx/error.log", "/s3-pull-deploy/" + site + "/"} {
		if !json.Valid(conf) || !bytes.Contains(conf, []byte(want)) {
			t.Errorf("the CloudWatch agent is not told of %s: %s", want, conf)
		}
	}
	for _, own := range []string{
		"etc/s3-pull-deploy/*", "var/lib/s3-pull-deploy/*", "etc/ssh/ssh_host_*", "root/.ssh/authorized_keys", "root/.aws", "tmp/*",
	} {
		if found, _ := filepath.Glob(filepath.Join(tree, own)); len(found) > 0 {
			t.Errorf("the image has %q", found)
		}
	}
	if id, err := os.ReadFile(filepath.Join(tree, "etc/machine-id")); err != nil || len(id) > 0 {
		t.Errorf("the image has the machine id %q (%v)", id, err)
	}
}

func lastLines(text string, n int) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}
