package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// deploysOldTool pushes as the older Python tool does: objects, then a pointer of three lines with a final newline,
// a local time for an id, and the pusher's clock.
func deploysOldTool(t *testing.T, w *world) {
	s := newSite(t, w)
	a := s.startAgent("i-0")
	s.awaitPhase(joinTime, "serve", a)
	ahead := time.Now().Add(40 * time.Minute) // a clock that goes wrong, in a zone of its own
	for n, id := range []string{"2026-01-02_03-04-05", "20260102T030406"} {
		version := fmt.Sprint("old-", n)
		for name, text := range files(version) {
			s.put(id+"/"+name, text)
		}
		s.put("latest-deploy", fmt.Sprintf("%s\n%d\n%d\n", id, ahead.Unix()+int64(n), len(files(version))))
		s.awaitLive(joinTime, id, a)
		serving(t, a, version)
	}
	o := s.live(1, files("ours"))
	if o.Sequence <= ahead.Unix()+1 {
		t.Errorf("sequence %d does not follow the older tool's %d", o.Sequence, ahead.Unix()+1)
	}
	serving(t, a, "ours")
}

// oldToolPulls does what the older tool's puller does with what we push in the plain layout. It reads the first three
// lines of a pointer, so it follows a rollback too, whose pointer has a fourth.
func oldToolPulls(t *testing.T, w *world) {
	s := newSite(t, w)
	s.tree(files("one"))
	check(t, os.Symlink("../index.php", filepath.Join(s.app, "lib", "link.php")))
	check(t, os.Symlink("lib/deep", filepath.Join(s.app, "linked")))
	o, _ := s.rollOut(0, "-deploy="+s.app, "-layout=plain")

	want := files("one")
	want["lib/link.php"], want["linked/b.txt"] = "one", "b"
	if more := s.pulled(o, want); len(more) > 0 {
		t.Errorf("the pointer of a deploy has more than three lines: %q", more)
	}
	two, _ := s.deploy(0, files("two"), "-layout=plain")
	s.pulled(two, files("two"))
	back, _ := s.rollOut(0, "-rollback="+o.Release)
	if more := s.pulled(back, want); len(more) != 1 || more[0] != `kind "rollback"` {
		t.Errorf("after three lines the pointer of a rollback has %q", more)
	}
}

// pulled does what the older tool's puller does, wants these files of this push, and returns the lines of the pointer
// that the older tool does not read.
func (s *site) pulled(o outcome, want map[string]string) []string {
	s.t.Helper()
	pointer := s.object("latest-deploy")
	lines := strings.Split(pointer, "\n")
	if len(lines) < 3 || lines[0] != o.Release || lines[1] != fmt.Sprint(o.Sequence) {
		s.t.Fatalf("the pointer is %q, want %s and %d", pointer, o.Release, o.Sequence)
	}
	count, err := strconv.Atoi(lines[2])
	check(s.t, err)
	got := map[string]string{}
	for _, name := range s.list(lines[0]) {
		got[name] = s.object(lines[0] + "/" + name)
	}
	if len(got) != count || fmt.Sprint(got) != fmt.Sprint(want) {
		s.t.Errorf("pulled %v (the pointer says %d files), want %v", got, count, want)
	}
	return lines[3:]
}
