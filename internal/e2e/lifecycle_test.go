package e2e

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"s3pulldeploy/internal/testenv"
)

// restartIsolated starts an agent again while S3 and DynamoDB refuse: it serves what it served, says so, and goes
// on when they are back.
func restartIsolated(t *testing.T, w *world) {
	s := newSite(t, w)
	bucket, table := testenv.NewProxy(t, w.s3.Endpoint), testenv.NewProxy(t, w.dynamodb)
	s.s3, s.table = bucket.URL(), table.URL()
	a := s.newAgent("i-0").notified(0)
	a.configure()
	a.start()
	s.awaitPhase(joinTime, "serve", a)
	first := s.live(1, files("one"))

	a.Kill()
	bucket.Refuse()
	table.Refuse()
	a.systemd.forget()
	a.start()
	s.await(30*time.Second, "READY without AWS", func() string { return a.systemd.hearing("READY=1") })
	if on := a.active(); on != first.Release {
		t.Errorf("active is %q, want %q", on, first.Release)
	}
	serving(t, a, "one")
	if v := a.view(); !v.Isolated || !v.Ready || !v.Healthy || !strings.Contains(v.Line, "isolated") {
		t.Errorf("the socket says %+v, want ready, healthy and isolated", v)
	}
	if code, err := a.get("/health", nil); code != http.StatusOK {
		t.Errorf("health is %d, %v", code, err)
	}
	s.await(5*time.Second, "isolated in the status line", func() string { return a.systemd.hearing("STATUS=isolated") })

	bucket.Restore()
	table.Restore()
	s.await(joinTime, "back in service", func() string {
		if v := a.view(); v.Isolated || v.Phase != "serve" || len(v.Problems) > 0 {
			return fmt.Sprintf("%+v", v)
		}
		return ""
	})
	s.live(1, files("two"))
	serving(t, a, "two")
}

// notifies: READY only when the committed release is live, status lines, and pings whatever a hook does.
func notifies(t *testing.T, w *world) {
	const watchdog = 3 * time.Second
	s := newSite(t, w)
	s.tree(files("one"))
	if o, r := s.rollOut(0, "-deploy="+s.app); o.Outcome != "published" {
		t.Fatalf("a push without instances: %s", r)
	}
	door := gate(filepath.Join(s.dir, "gate"))
	a := s.newAgent("i-0", fmt.Sprintf("hooks: {before_flip: %q}", door.hook())).notified(watchdog)
	a.configure()
	a.start()
	s.await(joinTime, "the first release waits in its hook", door.reached)
	steadyPings(t, s, a, watchdog)
	if ready := a.systemd.heard("READY=1"); len(ready) > 0 {
		t.Errorf("READY while the first release was not live: %+v", ready)
	}
	door.open(t)
	release := s.status().Pointer.Release
	s.await(joinTime, "READY", func() string { return a.systemd.hearing("READY=1") })
	s.await(joinTime, "STATUS of serving", func() string { return a.systemd.hearing("STATUS=serving " + release) })

	door.close(t)
	b := s.newAgent("i-1", fmt.Sprintf("hooks: {before_flip: %q}", door.hook())).notified(watchdog)
	b.configure()
	b.start()
	s.await(joinTime, "the newcomer waits in its hook", door.reached)
	steadyPings(t, s, b, watchdog)
	if text := b.systemd.hearing("STATUS=stage " + release); text != "" {
		t.Error(text)
	}
	door.open(t)
	s.await(joinTime, "READY of the newcomer", func() string { return b.systemd.hearing("READY=1") })
	for _, x := range []*agent{a, b} {
		for _, m := range x.systemd.heard("READY=1") {
			if m.active != release {
				t.Errorf("%s said READY when active was %q, want %q", x.id, m.active, release)
			}
		}
	}
	b.end()
	s.await(joinTime, "STATUS of leaving", func() string { return b.systemd.hearing("STATUS=leaving") })
}

// steadyPings wants four pings while nothing else happens.
func steadyPings(t *testing.T, s *site, a *agent, watchdog time.Duration) {
	t.Helper()
	old := len(a.systemd.heard("WATCHDOG=1"))
	s.await(10*watchdog, "pings during a hook", func() string {
		if n := len(a.systemd.heard("WATCHDOG=1")) - old; n < 4 {
			return fmt.Sprintf("%d of 4", n)
		}
		return ""
	})
}

// stopsInHook: SIGTERM during a hook that does not want to end. The fleet is told at once, the hook is ended with all its
// children, and the next start goes on where this one was.
func stopsInHook(t *testing.T, w *world) {
	s := newSite(t, w)
	child := filepath.Join(s.dir, "child")
	a := s.startAgent("i-0", fmt.Sprintf("hooks: {before_flip: 'trap \"\" TERM; sh -c \"echo \\$\\$ > %[1]s; sleep 600\"; exit 0'}", child))
	s.awaitPhase(joinTime, "serve", a)
	s.tree(files("one"))
	o, _ := s.rollOut(0, "-deploy="+s.app, "-wait=false")
	var pid int
	s.await(joinTime, "the hook runs", func() string {
		text, _ := os.ReadFile(child)
		if _, err := fmt.Sscan(string(text), &pid); err != nil {
			return "its child has not written its number"
		}
		return ""
	})
	check(t, a.Signal(syscall.SIGTERM))
	s.awaitPhase(joinTime, "leaving", a)
	a.end()
	s.await(joinTime, "the hook's child is gone", func() string {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if _, state, _ := strings.Cut(string(stat), ") "); err != nil || strings.HasPrefix(state, "Z") {
			return "" // a dead one waits for init to ask after it
		}
		return string(stat)
	})
	if a.active() != "" {
		t.Errorf("active is %s, which nobody voted for", a.active())
	}
	a.extra = nil
	a.configure()
	a.start()
	s.awaitLive(joinTime, o.Release, a)
}

// reloads: a good change of the file takes effect, a bad one changes nothing and shows, a signal works where the
// file's change cannot be seen.
func reloads(t *testing.T, w *world) {
	s := newSite(t, w)
	a := s.newAgent("i-0").notified(0)
	// Behind a link into another directory an edit goes unnoticed: that is what SIGHUP is for.
	file := filepath.Join(s.dir, "elsewhere", "config.yml")
	check(t, os.MkdirAll(filepath.Dir(file), 0o755))
	mark := filepath.Join(s.dir, "mark")
	edit := func(path, word string) {
		t.Helper()
		hook := fmt.Sprintf("hooks: {after_flip: 'echo %s >> %s'}", word, mark)
		check(t, os.WriteFile(path, []byte(a.settings(hook)), 0o644))
	}
	marks := func() string { text, _ := os.ReadFile(mark); return string(text) }
	edit(a.config, "first")
	a.start()
	s.awaitPhase(joinTime, "serve", a)
	s.live(1, files("one"))

	edit(a.config, "second")
	s.await(joinTime, "the change is in force", func() string { return missing(a.logged(`msg="settings changed"`), 1) })
	s.awaitPhase(joinTime, "serve", a)
	s.live(1, files("two"))
	if got := marks(); got != "first\nsecond\n" {
		t.Errorf("hooks wrote %q", got)
	}

	a.systemd.forget()
	check(t, os.WriteFile(a.config, []byte(a.settings("keep_release: 7")), 0o644))
	s.await(joinTime, "agent -status after a bad change", func() string {
		v := a.view()
		if !strings.Contains(v.Problems["settings"], "keep_release") || !strings.Contains(v.Line, "settings: ") {
			return fmt.Sprintf("%+v", v)
		}
		return ""
	})
	s.await(joinTime, "the bad file in the status line", func() string { return a.systemd.hearing("keep_release") })
	s.live(1, files("three"))
	if got := marks(); got != "first\nsecond\nsecond\n" {
		t.Errorf("with a bad file, hooks wrote %q", got)
	}

	edit(file, "third")
	check(t, os.Remove(a.config))
	check(t, os.Symlink(file, a.config))
	s.await(joinTime, "the bad file is gone", func() string { return missing(a.logged(`msg="settings changed"`), 2) })
	edit(file, "fourth")
	check(t, a.Signal(syscall.SIGHUP))
	s.await(joinTime, "the signal is obeyed", func() string { return missing(a.logged(`msg="settings changed"`), 3) })
	s.awaitPhase(joinTime, "serve", a)
	s.await(joinTime, "no problem is left", func() string {
		if v := a.view(); len(v.Problems) > 0 {
			return fmt.Sprintf("%+v", v)
		}
		return ""
	})
	s.live(1, files("four"))
	if got := marks(); got != "first\nsecond\nsecond\nfourth\n" {
		t.Errorf("hooks wrote %q", got)
	}
}

// missing is "" when there are as many as wanted.
func missing(got, want int) string {
	if got >= want {
		return ""
	}
	return fmt.Sprintf("%d of %d", got, want)
}

// onePass: `agent -once` does what there is to do, leaves no row and ends well.
func onePass(t *testing.T, w *world) {
	s := newSite(t, w)
	once := func(id string) *agent {
		t.Helper()
		a := s.newAgent(id)
		a.configure()
		if r := s.call(w.agent, "-config="+a.config, "-once"); r.code != 0 {
			t.Fatalf("agent -once of %s: %s", id, r)
		}
		if m := s.status().member(id); m != (member{}) {
			t.Errorf("%s left a row: %+v", id, m)
		}
		return a
	}
	if a := once("i-0"); a.active() != "" {
		t.Errorf("with nothing pushed, active is %q", a.active())
	}
	o, _ := s.deploy(0, files("one"))
	if o.Outcome != "published" {
		t.Fatalf("outcome %q", o.Outcome)
	}
	serving(t, once("i-1"), "one") // it is the fleet: it commits
	if c := s.status().Committed; c == nil || c.Release != o.Release {
		t.Fatalf("committed is %+v, want %s", c, o.Release)
	}
	epoch := s.status().epoch()
	serving(t, once("i-2"), "one") // it joins what is committed
	if now := s.status().epoch(); now != epoch {
		t.Errorf("epoch %d, want %d", now, epoch)
	}
}
