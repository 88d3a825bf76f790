package e2e

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"s3pulldeploy/internal/testenv"
)

// lookAgain bounds the wait until an agent looks again at a pointer whose release was not complete: 30 s, as the
// default pointer_interval, and some for a busy machine.
const lookAgain = 50 * time.Second

// garbagePointer: the agent serves on, says what is wrong, and a good push mends it.
func garbagePointer(t *testing.T, w *world) {
	s := newSite(t, w)
	a := s.startAgent("i-0")
	s.awaitPhase(joinTime, "serve", a)
	first := s.live(1, files("one"))
	s.put("latest-deploy", "<html>502 Bad Gateway</html>")
	s.await(joinTime, "agent -status names the pointer", func() string { return a.saying("pointer: ", first.Release) })
	if code, err := a.get("/health", nil); code != http.StatusOK || a.active() != first.Release {
		t.Errorf("health %d (%v), active %s, want 200 and %s", code, err, a.active(), first.Release)
	}
	serving(t, a, "one")
	s.tree(files("two"))
	if r := s.push("-deploy=" + s.app); r.code != 1 || !strings.Contains(r.stderr, "pointer") {
		t.Errorf("a push over garbage without -force: %s", r)
	}
	s.live(1, files("two"), "-force")
	serving(t, a, "two")
	s.await(joinTime, "the problem is over", func() string {
		if said := a.said(); strings.Contains(said, "pointer: ") {
			return said
		}
		return ""
	})
}

// missingObject: a pointer that promises more files than there are changes nothing until they are there.
func missingObject(t *testing.T, w *world) {
	const id = "2026-02-03_04-05-06"
	s := newSite(t, w)
	a := s.startAgent("i-0")
	s.awaitPhase(joinTime, "serve", a)
	first := s.live(1, files("one"))
	s.put(id+"/index.php", "two")
	s.put(id+"/lib/a.php", "a")
	s.put("latest-deploy", fmt.Sprintf("%s\n%d\n3", id, first.Sequence+60))
	s.await(joinTime, "agent -status counts the files", func() string {
		return a.saying("serving "+first.Release+"; pointer: ", "has 2 files where the pointer says 3")
	})
	if name := a.trace(id); name != "" {
		t.Errorf("%s is on the disk", name)
	}
	if got := len(s.list(id)); got != 2 || a.active() != first.Release {
		t.Errorf("%d objects in the bucket, want 2; active is %s, want %s", got, a.active(), first.Release)
	}
	s.put(id+"/lib/deep/b.txt", "b")
	s.awaitLive(lookAgain, id, a)
	serving(t, a, "two")
}

// shortObject: contents that are not as long as the listing says are the release's fault; nothing of it stays
// under a name that could be served, and it stays in the bucket.
func shortObject(t *testing.T, w *world) {
	s := newSite(t, w)
	m := s.between()
	a := s.startAgent("i-0")
	s.awaitPhase(joinTime, "serve", a)
	first := s.live(1, files("one"))
	cut := func(key string, body []byte) []byte {
		if strings.HasSuffix(key, "/index.php") {
			return body[:len(body)-1]
		}
		return body
	}
	m.lie.Store(&cut)
	o, r := s.deploy(3, files("two"), "-layout=plain")
	if o.Outcome != "aborted" || !strings.Contains(o.Reason, "index.php") {
		t.Errorf("want aborted for index.php: %s", r)
	}
	if a.active() != first.Release {
		t.Errorf("active is %s, want %s", a.active(), first.Release)
	}
	if _, err := os.Lstat(filepath.Join(a.root, o.Release)); !os.IsNotExist(err) {
		t.Errorf("%s is on the disk: %v", o.Release, err)
	}
	if got := len(s.list(o.Release)); got != 3 {
		t.Errorf("%d objects in the bucket, want 3", got)
	}
	m.lie.Store(nil)
	s.live(1, files("three"))
	serving(t, a, "three")
}

// unfitMachines: what is wrong with one machine does not stop the others, is named, and passes.
func unfitMachines(t *testing.T, w *world) {
	testenv.Root(t, "a full disk is a small tmpfs")
	s := newSite(t, w)
	fit := s.startAgent("i-0")
	target := s.write("uploads/here", "")
	unshared := s.startAgent("i-1", fmt.Sprintf("shared: {var/uploads: %q}", filepath.Dir(target)))
	m := s.between() // only for the next one: what it downloads is counted
	full := s.newAgent("i-2")
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
	s.awaitPhase(joinTime, "serve", fit, unshared, full)
	first := s.live(3, files("one"))

	check(t, os.RemoveAll(filepath.Dir(target)))
	o, r := s.deploy(0, files("two"))
	if o.Outcome != "done" || o.Members != 2 || o.Excluded != 1 || !strings.Contains(r.stderr, "i-1 says no") || !strings.Contains(r.stderr, "shared") {
		t.Errorf("want done without i-1, for its shared target: %s", r)
	}
	serving(t, fit, "two")
	if unshared.active() != first.Release {
		t.Errorf("i-1 is on %s, want %s", unshared.active(), first.Release)
	}
	if v := unshared.view(); v.Healthy || !strings.Contains(v.Line, "shared") {
		t.Errorf("i-1 says %+v, want unhealthy for its shared target", v)
	}
	check(t, os.MkdirAll(filepath.Dir(target), 0o755))
	s.awaitLive(joinTime+10*time.Second, o.Release, fit, unshared, full)
	s.awaitPhase(joinTime, "serve", unshared)

	before := m.downloads.Load()
	big := files("three")
	big["media/film"] = strings.Repeat("x", 6<<20)
	o, r = s.deploy(0, big, "-layout=plain") // a delta is fetched before it says what it needs
	if o.Outcome != "done" || o.Members != 2 || o.Excluded != 1 || !strings.Contains(r.stderr, "i-2 says no") || !strings.Contains(r.stderr, "no space left") {
		t.Errorf("want done without i-2, for its disk: %s", r)
	}
	serving(t, full, "two")
	if n := m.downloads.Load() - before; n != 0 {
		t.Errorf("%d objects were fetched to a disk that cannot hold them", n)
	}
	if name := full.trace(o.Release); name != "" {
		t.Errorf("%s is on the full disk", name)
	}
	s.live(3, files("four"))
	serving(t, full, "four")
}

// hookRefuses: a before_flip hook that fails on one instance keeps the whole fleet on the old release.
func hookRefuses(t *testing.T, w *world) {
	s := newSite(t, w)
	picky := `hooks: {before_flip: 'grep -q broken index.php && { echo "cannot boot"; exit 7; }; exit 0'}`
	fleet := []*agent{s.startAgent("i-0"), s.startAgent("i-1", picky)}
	s.awaitPhase(joinTime, "serve", fleet...)
	first := s.live(2, files("one"))
	o, r := s.deploy(3, files("broken"))
	if o.Outcome != "aborted" || !strings.Contains(o.Reason, "i-1") || !strings.Contains(o.Reason, "before_flip") ||
		!strings.Contains(o.Reason, "cannot boot") || !strings.Contains(r.stderr, "cannot boot") {
		t.Errorf("want aborted by i-1 with what its hook printed: %s", r)
	}
	for _, a := range fleet {
		if a.active() != first.Release {
			t.Errorf("%s is on %s, want %s", a.id, a.active(), first.Release)
		}
		serving(t, a, "one")
	}
	s.live(2, files("mended"))
	serving(t, fleet[1], "mended")
}

// unhealthy: a check that fails after the flip is reported by push, by the instance and to the load balancer.
func unhealthy(t *testing.T, w *world) {
	s := newSite(t, w)
	var ill atomic.Bool
	site := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) {
		if ill.Load() {
			http.Error(rw, "no database", http.StatusInternalServerError)
		}
	}))
	t.Cleanup(site.Close)
	a := s.startAgent("i-0", fmt.Sprintf("health_check: {url: %q, attempts: 2, timeout: 30s, rollback: false}", site.URL))
	s.awaitPhase(joinTime, "serve", a)
	s.live(1, files("one"))
	ill.Store(true)
	o, r := s.deploy(1, files("two"))
	if o.Outcome != "done" || o.Members != 0 || !strings.Contains(r.stderr, "not healthy") || !strings.Contains(o.Reason, "health check") || !strings.Contains(o.Reason, "500") {
		t.Errorf("want exit 1 for the health check: %s", r)
	}
	if told := o.Release + " is flipped to, and 1 of 1 instance failed the check: i-0\n"; !strings.Contains(r.stderr, told) || strings.Contains(r.stderr, "is live") {
		t.Errorf("want %q, and nothing called live: %s", told, r)
	}
	if m := s.status().member(a.id); !strings.Contains(m.Reason, "health check") {
		t.Errorf("the row says %+v", m)
	}
	if code, err := a.get("/health", nil); code != http.StatusServiceUnavailable {
		t.Errorf("health is %d (%v), want 503", code, err)
	}
	ill.Store(false)
	s.await(joinTime, "healthy again", func() string {
		if code, err := a.get("/health", nil); code != http.StatusOK {
			return fmt.Sprint(code, err, a.view())
		}
		return ""
	})
	s.live(1, files("three"))
}
