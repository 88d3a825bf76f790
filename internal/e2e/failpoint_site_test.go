package e2e

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"s3pulldeploy/internal/testenv"
)

// breakable is the world with commands that have failpoints.
func breakable(t *testing.T) *world {
	w := newWorld(t)
	w.push, w.agent = testenv.Bin(t, "push", "failpoints"), testenv.Bin(t, "agent", "failpoints")
	return w
}

// healTime is how long after the end of a fault every live agent may take to be on the committed release.
const healTime = 60 * time.Second

// broken is a site whose agents can be broken, with what is known of it from outside while they are: what every instance
// serves, and what the head says.
type broken struct {
	*site
	version   int
	pushing   *pushing // the push that was started last
	witnesses []*witness
	record    *record
}

// breakSite makes a site with so many agents, on a first release.
func breakSite(t *testing.T, w *world, agents int) *broken {
	t.Helper()
	b := watchedSite(t, w)
	for n := range agents {
		b.breakAgent(fmt.Sprintf("i-%d", n))
	}
	b.begin()
	return b
}

// watchedSite makes a site that has no agents yet.
func watchedSite(t *testing.T, w *world) *broken {
	t.Helper()
	b := &broken{site: newSite(t, w)}
	b.record = b.newRecord()
	return b
}

// begin starts all agents and brings them to a first release.
func (b *broken) begin() {
	b.t.Helper()
	for _, a := range b.agents {
		a.start()
	}
	b.awaitPhase(joinTime, "serve", b.agents...)
	b.deployed(b.deployNext()())
	b.converged(joinTime)
}

// breakAgent prepares an agent that can be armed, and watches what it serves. It keeps one more release than it serves, so
// that each rollout has something to remove. It finds the services where the site says that they are now.
func (b *broken) breakAgent(id string, extra ...string) *agent {
	a := b.newAgent(id, append([]string{"keep_releases: 1", "keep_for: 0s"}, extra...)...)
	a.env = append(a.env, "S3PULLDEPLOY_FAILPOINTS="+a.armed())
	a.configure()
	b.witnesses = append(b.witnesses, b.watch(a))
	return a
}

func (a *agent) armed() string { return filepath.Join(a.dir, "armed") }

// arm says what the agent breaks at from now on; nothing disarms it. Atomically: an agent may be reading.
func (a *agent) arm(list string) {
	a.site.t.Helper()
	check(a.site.t, os.WriteFile(a.armed()+".new", []byte(list), 0o644))
	check(a.site.t, os.Rename(a.armed()+".new", a.armed()))
}

// fired counts how often something happened at a step.
func (a *agent) fired(step string) int { return a.logged("failpoint: " + step + " ") }

// awaitFired waits until a step was hit so often.
func (a *agent) awaitFired(step string, times int) {
	a.site.t.Helper()
	a.site.await(joinTime, "failpoint "+step+" on "+a.id, func() string { return missing(a.fired(step), times) })
}

// awaitDeath waits until an agent has killed itself.
func (a *agent) awaitDeath() {
	a.site.t.Helper()
	select {
	case <-a.Done():
	case <-time.After(joinTime):
		a.site.t.Fatalf("%s still runs after %v, armed for %q", a.id, joinTime, a.armed())
	}
	status, ok := a.State().Sys().(syscall.WaitStatus)
	if !ok || !status.Signaled() || status.Signal() != syscall.SIGKILL {
		a.site.t.Fatalf("%s ended by itself: %v", a.id, a.Err())
	}
}

// From the number large on versions are so large that what is new fills packs; from small on they are small.
const (
	small = 500
	large = 1000
)

// contents is the tree of a version. What is in it tells which one it is, one file is the same in all, and one is of a size.
func contents(version int) map[string]string {
	noise := rand.NewChaCha8([32]byte{byte(version), byte(version >> 8)})
	blob := make([]byte, 96<<10)
	switch {
	case version >= large:
		blob = make([]byte, 18<<20)
	case version >= small:
		blob = blob[:4<<10]
	}
	_, _ = noise.Read(blob)
	return map[string]string{
		"index.php": fmt.Sprint(version), "lib/same.php": "same", "lib/a.php": fmt.Sprintf("a of %d", version),
		"lib/deep/b.txt": fmt.Sprintf("b of %d", version), "blob": string(blob),
	}
}

// pushing is a push in the background.
type pushing struct {
	said   *said
	ended  chan struct{}
	result result // when it has ended
}

// String is what is known of the push by now.
func (p *pushing) String() string {
	select {
	case <-p.ended:
		return p.result.String()
	default:
		return "it runs, and has said: " + p.said.String()
	}
}

// failed says that the push has ended, and not well.
func (p *pushing) failed() bool {
	select {
	case <-p.ended:
		return p.result.code != 0
	default:
		return false
	}
}

// deployNext pushes the next version in the background.
func (b *broken) deployNext(args ...string) func() result {
	b.t.Helper()
	b.version++
	b.tree(contents(b.version))
	all := append([]string{"-deploy=" + b.app, "-layout=packed", "-json", "-timeout=90s"}, args...)
	p, version := &pushing{said: &said{}, ended: make(chan struct{})}, b.version
	b.pushing = p
	go func() {
		defer close(p.ended)
		p.result = b.pushSaying(p.said, all...)
	}()
	b.t.Cleanup(func() {
		if b.t.Failed() {
			b.t.Logf("push of version %d: %s", version, p)
		}
	})
	return func() result {
		<-p.ended
		return p.result
	}
}

// deployed wants a push to have seen its release live, on whoever was there.
func (b *broken) deployed(r result) {
	b.t.Helper()
	if r.code != 0 || !strings.Contains(r.stdout, `"outcome":"done"`) && !strings.Contains(r.stdout, `"outcome": "done"`) {
		b.t.Fatalf("push of version %d: want it done: %s", b.version, r)
	}
}

// converged waits until every agent serves the current version, which the head says is committed, and has nothing left to say
// or to clear up. It returns how long that took.
func (b *broken) converged(within time.Duration) time.Duration {
	b.t.Helper()
	began := time.Now()
	b.await(within, fmt.Sprintf("all on version %d", b.version), func() string {
		h := b.record.now()
		if h.state != "done" || h.release == "" || h.committed != h.release {
			return fmt.Sprintf("the head says %+v", h)
		}
		for _, a := range b.agents {
			if text := a.settled(h.committed, b.version); text != "" {
				return a.id + ": " + text
			}
		}
		return ""
	})
	return time.Since(began)
}

// settled is "" when an agent serves a release, is content, and has left nothing behind.
func (a *agent) settled(release string, version int) string {
	v := a.view()
	if on := a.active(); on != release || a.file("index.php") != fmt.Sprint(version) {
		return fmt.Sprintf("is on %q, not on %s: %s", on, release, v.Line)
	}
	if v.Phase != "serve" || !v.Ready || !v.Healthy || len(v.Problems) > 0 {
		return fmt.Sprintf("%+v", v)
	}
	if m, err := readMemory(a.stateFile()); err != nil || m.Flipped.Release != release || m.Flipped != m.Decision || m.Settled != m.Flipped.Epoch {
		return fmt.Sprintf("it remembers %+v, %v", m, err)
	}
	for _, dir := range []string{a.root, filepath.Join(a.dir, "state")} {
		entries, err := os.ReadDir(dir)
		if err != nil {
			return err.Error()
		}
		for _, e := range entries {
			if strings.HasPrefix(e.Name(), ".") {
				return fmt.Sprintf("%s is left in %s", e.Name(), dir)
			}
		}
	}
	return ""
}
