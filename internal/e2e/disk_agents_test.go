package e2e

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"s3pulldeploy/internal/testenv"
)

// TestDisks is what goes wrong with disks and directories of real agents.
func TestDisks(t *testing.T) {
	w := newWorld(t)
	for name, run := range map[string]func(*testing.T, *world){
		"two agents with one root or one state directory": sharedDirectories,
		"a machine cloned with its state directory":       clonedMachine,
		"one full disk of ten":                            oneFullDiskOfTen,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			run(t, w)
		})
	}
}

// sharedDirectories: the second agent ends with a reason that names the directory, and the first goes on.
func sharedDirectories(t *testing.T, w *world) {
	s := newSite(t, w)
	first := s.startAgent("i-0")
	s.awaitPhase(joinTime, "serve", first)
	s.live(1, files("one"))
	state := filepath.Join(first.dir, "state")
	for id, share := range map[string]func(a *agent) string{
		"i-1": func(a *agent) string { a.root = first.root; return first.root },
		"i-2": func(a *agent) string { check(t, os.Symlink(state, filepath.Join(a.dir, "state"))); return "/i-2/state" },
	} {
		second := s.newAgent(id)
		named := share(second)
		second.configure()
		second.start()
		select {
		case <-second.Done():
		case <-time.After(joinTime):
			t.Fatalf("%s runs in %s too", id, named)
		}
		if code := second.State().ExitCode(); code != 1 || second.logged("lock", named, "another agent uses this directory") != 1 {
			t.Errorf("%s: exit code %d, log %s", id, code, second.logText())
		}
		if m := s.status().member(id); m.Phase != "" {
			t.Errorf("%s became a member: %+v", id, m)
		}
	}
	s.live(1, files("two"))
	serving(t, first, "two")
}

// clonedMachine: a machine that was booted from another's disk is a member of its own, and believes nothing that it did not hash.
func clonedMachine(t *testing.T, w *world) {
	s := newSite(t, w)
	a := s.startAgent("i-0")
	s.awaitPhase(joinTime, "serve", a)
	s.live(1, files("one"))
	a.end()
	clone := s.newAgent("i-1")
	for _, dir := range []string{"www", "state"} {
		if out, err := exec.Command("cp", "-a", "-T", filepath.Join(a.dir, dir), filepath.Join(clone.dir, dir)).CombinedOutput(); err != nil {
			t.Fatalf("clone: %v: %s", err, out)
		}
	}
	page := filepath.Join(clone.root, "active", "index.php")
	info, err := os.Stat(page)
	check(t, err)
	f, err := os.OpenFile(page, os.O_WRONLY, 0)
	check(t, err)
	_, err = f.WriteAt([]byte("~"), 0)
	check(t, errors.Join(err, f.Close(), os.Chtimes(page, info.ModTime(), info.ModTime())))
	a.start()
	clone.configure()
	clone.start()
	s.awaitPhase(joinTime, "serve", a, clone)
	serving(t, clone, "one")
	if n := clone.logged("the state directory is of another instance", "was=i-0"); n != 1 {
		t.Errorf("%d lines tell of the other instance", n)
	}
	s.live(2, files("two"))
	serving(t, a, "two")
	serving(t, clone, "two")
}

// oneFullDiskOfTen: nine go live, the tenth says why not, serves what it had, and is back with the next release that fits.
func oneFullDiskOfTen(t *testing.T, w *world) {
	testenv.Root(t, "a full disk is a small tmpfs")
	s := newSite(t, w)
	full := s.newAgent("i-9")
	if err := syscall.Mount("tmpfs", full.root, "tmpfs", 0, "size=4m,mode=755"); err != nil {
		testenv.LeaveOut(t, fmt.Sprintf("mount a small tmpfs: %v", err))
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(full.root, 0); err != nil {
			t.Error(err)
		}
	})
	full.configure()
	full.start()
	var rest []*agent
	for n := range 9 {
		rest = append(rest, s.startAgent(fmt.Sprintf("i-%d", n)))
	}
	s.awaitPhase(joinTime, "serve", s.agents...)
	first := s.live(10, files("one"))
	big := files("two")
	big["film"] = strings.Repeat("x", 6<<20)
	o, r := s.deploy(0, big)
	if o.Outcome != "done" || o.Members != 9 || o.Excluded != 1 || !strings.Contains(r.stderr, "i-9 says no") {
		t.Errorf("want nine live and i-9 left out: %s", r)
	}
	for _, a := range rest {
		serving(t, a, "two")
	}
	if m := s.status().member(full.id); m.Phase != "out" || !strings.Contains(m.Reason, "no space left") {
		t.Errorf("i-9 says %+v, want out for its space", m)
	}
	if on, left := full.active(), full.trace(o.Release); on != first.Release || left != "" {
		t.Errorf("i-9 serves %s, want %s, and has %q of the new one", on, first.Release, left)
	}
	s.live(10, files("three"))
	serving(t, full, "three")
}
