package e2e

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// littleMemory: an agent in a control group of 64 MiB, page cache and all (F71), brings up a large release, first as a fresh instance and
// then as one that has the last release, and is not killed for it.
func littleMemory(t *testing.T, w *world) {
	b := watchedSite(t, w)
	a := b.breakAgent("i-0")
	group, limit := memoryGroup(t)
	check(t, os.WriteFile(filepath.Join(group, limit), []byte(strconv.Itoa(64<<20)), 0o644))
	a.under = []string{"/bin/sh", "-c", `echo $$ > "$0" && exec "$@"`, filepath.Join(group, "cgroup.procs")}
	b.version = large
	b.begin()
	pid := a.Pid()
	b.deployed(b.deployNext()())
	b.converged(healTime)
	if a.Pid() != pid {
		t.Error("it was started again")
	}
	text, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cgroup")
	check(t, err)
	if !strings.Contains(string(text), filepath.Base(group)) {
		t.Errorf("it was not in the group: %s", text)
	}
}

// memoryGroup makes a control group for memory and says which of its files is the limit. The test's end removes it.
func memoryGroup(t *testing.T) (dir, limit string) {
	t.Helper()
	top, limit := "/sys/fs/cgroup/memory", "memory.limit_in_bytes"
	if _, err := os.Stat("/sys/fs/cgroup/cgroup.controllers"); err == nil {
		top, limit = "/sys/fs/cgroup", "memory.max"
		_ = os.WriteFile("/sys/fs/cgroup/cgroup.subtree_control", []byte("+memory"), 0o644) // it may be on
	}
	dir, err := os.MkdirTemp(top, "s3-pull-deploy-")
	check(t, err)
	t.Cleanup(func() {
		var err error
		for range 50 { // its processes have ended, or are about to
			if err = os.Remove(dir); err == nil {
				return
			}
			time.Sleep(100 * time.Millisecond)
		}
		t.Errorf("remove control group: %v", err)
	})
	return dir, limit
}
