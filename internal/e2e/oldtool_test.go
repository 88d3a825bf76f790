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

// oldToolPulls does what the older tool's puller does with what we push in the plain layout.
func oldToolPulls(t *testing.T, w *world) {
	s := newSite(t, w)
	s.tree(files("one"))
	check(t, os.Symlink("../index.php", filepath.Join(s.app, "lib", "link.php")))
	check(t, os.Symlink("lib/deep", filepath.Join(s.app, "linked")))
	o, _ := s.rollOut(0, "-deploy="+s.app)

	pointer := s.object("latest-deploy")
	lines := strings.Split(pointer, "\n")
	if len(lines) != 3 {
		t.Fatalf("the pointer has %d lines: %q", len(lines), pointer)
	}
	count, err := strconv.Atoi(lines[2])
	check(t, err)
	if lines[0] != o.Release || lines[1] != fmt.Sprint(o.Sequence) {
		t.Errorf("the pointer is %q, want %s and %d", pointer, o.Release, o.Sequence)
	}
	got := map[string]string{}
	for _, name := range s.list(lines[0]) {
		got[name] = s.object(lines[0] + "/" + name)
	}
	want := files("one")
	want["lib/link.php"], want["linked/b.txt"] = "one", "b"
	if len(got) != count || fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("pulled %v (the pointer says %d files), want %v", got, count, want)
	}
}
