package e2e

import (
	"strings"
	"testing"
)

// freezes: a frozen site refuses a deploy before anything is uploaded, takes joiners and rollbacks, and thaws by itself.
func freezes(t *testing.T, w *world) {
	s := newSite(t, w)
	a := s.startAgent("i-0")
	s.awaitPhase(joinTime, "serve", a)
	one := s.live(1, files("one"))
	two := s.live(1, files("two"))
	if r := s.push("-freeze=black friday", "-for=1h"); r.code != 0 {
		t.Fatalf("push -freeze: %s", r)
	}
	before := s.push("-releases").stdout
	s.tree(files("three"))
	if r := s.push("-deploy=" + s.app); r.code != 5 || !strings.Contains(r.stderr, "the site is frozen by ") || !strings.Contains(r.stderr, ": black friday") {
		t.Errorf("a deploy to a frozen site: %s", r)
	}
	if after := s.push("-releases").stdout; after != before {
		t.Errorf("it was uploaded all the same: %s", after)
	}
	s.await(joinTime, "the agent to say so", func() string { return a.saying("frozen by ", "black friday") })
	b := s.startAgent("i-1")
	s.awaitLive(joinTime, two.Release, b)
	s.awaitPhase(joinTime, "serve", b)
	if o, r := s.rollOut(0, "-rollback"); o.Outcome != "done" || o.Release != one.Release {
		t.Errorf("a rollback in a freeze: %s", r)
	}
	s.awaitLive(joinTime, one.Release, a, b)

	if r := s.push("-freeze=shortly", "-for=3s"); r.code != 0 {
		t.Fatalf("push -freeze: %s", r)
	}
	s.await(joinTime, "the freeze to end by itself", func() string {
		if st := s.push("-status").stdout; strings.Contains(st, "frozen") {
			return st
		}
		return ""
	})
	s.await(joinTime, "one to say that it lifted it", func() string { return missing(a.logged("freeze is over")+b.logged("freeze is over"), 1) })
	s.live(2, files("three"))
	if n := a.logged("freeze is over") + b.logged("freeze is over"); n != 1 {
		t.Errorf("%d agents lifted it", n)
	}
}
