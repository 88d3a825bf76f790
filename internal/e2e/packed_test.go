package e2e

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

// packedLayout is a fleet on the packed layout: a first deploy with what the plain layout cannot carry, a change that
// links what stays, a newcomer, a rollback, and a plain release in between.
func packedLayout(t *testing.T, w *world) {
	s := newSite(t, w)
	fleet := []*agent{s.startAgent("i-0"), s.startAgent("i-1")}
	s.awaitPhase(joinTime, "serve", fleet...)

	s.tree(files("1"))
	check(t, os.Mkdir(filepath.Join(s.app, "cache"), 0o755))
	check(t, os.Symlink("index.php", filepath.Join(s.app, "home.php")))
	s.write("app/bin/run", "#!/bin/sh")
	check(t, os.Chmod(filepath.Join(s.app, "bin/run"), 0o755))
	packed := func() outcome {
		o, r := s.rollOut(0, "-deploy="+s.app, "-layout=packed")
		if o.Outcome != "done" || o.Members != len(fleet) {
			t.Fatalf("want done on %d members: %s", len(fleet), r)
		}
		return o
	}
	first := packed()
	for _, a := range fleet {
		serving(t, a, "1")
		if target, err := os.Readlink(filepath.Join(a.root, "active", "home.php")); err != nil || target != "index.php" {
			t.Errorf("%s: home.php points to %q: %v", a.id, target, err)
		}
		for name, mode := range map[string]os.FileMode{"cache": 0o755 | os.ModeDir, "bin/run": 0o755, "index.php": 0o644} {
			if info, err := os.Lstat(filepath.Join(a.root, "active", name)); err != nil || info.Mode() != mode {
				t.Errorf("%s: %s has mode %v, want %v: %v", a.id, name, info, mode, err)
			}
		}
	}

	s.write("app/index.php", "2")
	second := packed()
	for _, a := range fleet {
		serving(t, a, "2")
		if n := linksOf(t, filepath.Join(a.root, "active", "lib/a.php")); n != 2 {
			t.Errorf("%s: an unchanged file has %d links, want one in each of two releases", a.id, n)
		}
	}
	fleet = append(fleet, s.startAgent("late"))
	s.awaitLive(joinTime, second.Release, fleet[2])
	serving(t, fleet[2], "2")

	o, r := s.rollOut(0, "-rollback")
	if o.Release != first.Release || o.Outcome != "done" {
		t.Fatalf("rolled back to %s, want %s: %s", o.Release, first.Release, r)
	}
	for _, a := range fleet {
		serving(t, a, "1")
	}
	s.live(len(fleet), files("3"), "-layout=plain")
	s.tree(files("4"))
	packed()
	for _, a := range fleet {
		serving(t, a, "4")
	}
	if r := s.push("-manifest"); r.code != 0 {
		t.Errorf("push -manifest: %s", r)
	}
}

func linksOf(t *testing.T, path string) uint64 {
	t.Helper()
	info, err := os.Stat(path)
	check(t, err)
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		t.Fatalf("stat of %s is a %T", path, info.Sys())
	}
	return uint64(st.Nlink)
}
