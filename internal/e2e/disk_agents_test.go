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
		"a disk that becomes read-only":                   readOnlyDisk,
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

// readOnlyDisk: a machine that can write neither releases nor its state says so at once and serves what it had; the others go without it
// (F26). It catches up when the disk is writable again.
func readOnlyDisk(t *testing.T, w *world) {
	s := newSite(t, w)
	image := testenv.NewImage(t, "ext4")
	sick := s.newAgent("i-2")
	sick.root = filepath.Join(image.Dir, "www")
	check(t, errors.Join(os.Mkdir(filepath.Join(image.Dir, "state"), 0o700), os.Symlink(filepath.Join(image.Dir, "state"), filepath.Join(sick.dir, "state"))))
	sick.configure()
	sick.start()
	rest := []*agent{s.startAgent("i-0"), s.startAgent("i-1")}
	s.awaitPhase(joinTime, "serve", s.agents...)
	first := s.live(3, files("one"))
	image.ReadOnly(t, true)
	o, r := s.deploy(0, files("two"))
	if o.Outcome != "done" || o.Members != 2 || o.Excluded != 1 {
		t.Errorf("want two live and i-2 left out: %s", r)
	}
	for _, a := range rest {
		serving(t, a, "two")
	}
	s.await(joinTime, "its row says why", func() string {
		if m := s.status().member(sick.id); m.Phase != "out" || !strings.Contains(m.Reason, "read-only file system") {
			return fmt.Sprintf("%+v", m)
		}
		return ""
	})
	if code, text, err := sick.ask("/health"); err != nil || code != 503 {
		t.Errorf("its health is %d, %q, %v, want 503: it knows of a release that it is not on", code, text, err)
	}
	serving(t, sick, "one")
	if on, left := sick.active(), sick.trace(o.Release); on != first.Release || left != "" {
		t.Errorf("i-2 serves %s, want %s, and has %q of the new one", on, first.Release, left)
	}
	image.ReadOnly(t, false)
	s.awaitLive(healTime, o.Release, s.agents...)
	s.awaitPhase(healTime, "serve", sick)
	s.live(3, files("three"))
	serving(t, sick, "three")
	sick.end() // before its disk goes
}
