package e2e

import (
	"maps"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// stepsOfPush are the named steps, the exit code of a push that fails there, and whether its release is out all the same.
var stepsOfPush = []struct {
	name string
	code int  // when the step fails; 0: push goes on
	out  bool // the pointer has been moved before the step
}{
	{"PU1", 1, false},
	{"PU2", 1, false},
	{"PU3", 1, false},
	{"PU4", 1, false},
	{"PU5", 0, true},
	{"PU6", 0, true},
	{"PU1+", -1, false},
	{"PU4+", -1, true}, // what has landed at the server; that is not a step that fails
}

// TestPushBrokenAtEachStep kills, delays and fails a push at each of its steps. Before the pointer the fleet sees nothing, and the next
// push uploads only what is missing; after it the release goes out without its pusher.
func TestPushBrokenAtEachStep(t *testing.T) {
	w := breakable(t)
	for _, step := range stepsOfPush {
		t.Run(step.name, func(t *testing.T) {
			t.Parallel()
			b := &pushed{broken: breakSite(t, w, 2), packs: strings.HasPrefix(step.name, "PU1"), written: map[string]int{}}
			b.count()
			b.pushKilled(step.name, step.out)
			b.pushSleeps(step.name)
			if step.code >= 0 {
				b.pushFails(step.name, step.code)
			}
		})
	}
}

// pushed is a site whose pushes are broken and counted.
type pushed struct {
	*broken
	packs bool // what is new is so much that it goes into packs

	mu      sync.Mutex
	written map[string]int // by key below the site, how often it was sent
}

// count puts something between push and S3 that counts.
func (b *pushed) count() {
	m := b.between()
	counts := func(key string) {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.written[key]++
	}
	m.writing.Store(&counts)
	b.write("push.yml", b.settings(m.URL, b.world.dynamodb))
}

// writes is how often each key was sent so far.
func (b *pushed) writes() map[string]int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return maps.Clone(b.written)
}

func (b *pushed) pointer() string { return b.object("latest-deploy") }

// args push the tree as it is.
func (b *pushed) args() []string {
	return []string{"-deploy=" + b.app, "-layout=packed", "-json", "-timeout=90s"}
}

// next pushes the next version.
func (b *pushed) next() result {
	b.t.Helper()
	if b.packs {
		b.version = max(b.version, large)
	}
	check(b.t, os.RemoveAll(filepath.Join(b.dir, "cache"))) // which says that there was a clean-up in this hour
	return b.deployNext()()
}

// pushKilled kills a push at a step, and pushes again.
func (b *pushed) pushKilled(step string, out bool) {
	b.t.Helper()
	before, epoch := b.pointer(), b.record.now().epoch
	b.env = []string{"S3PULLDEPLOY_FAILPOINTS=" + step + "=kill@1"}
	r := b.next()
	b.env = nil
	if r.code != -1 || !strings.Contains(r.stderr, "failpoint: "+step+" kill") {
		b.t.Fatalf("%s: want it killed: %s", step, r)
	}
	if out {
		b.converged(healTime) // the agents need no pusher
	} else {
		if now := b.pointer(); now != before {
			b.t.Errorf("%s: the pointer was moved to %q", step, now)
		}
		if now := b.record.now(); now.epoch != epoch {
			b.t.Errorf("%s: the fleet saw something: %+v", step, now)
		}
	}
	stood, sent := b.list("p"), b.writes() // an upload that was cut off does not stand
	r = b.push(b.args()...)
	if r.code != 0 || out && !strings.Contains(r.stdout, `"unchanged"`) {
		b.t.Fatalf("%s: push again: %s", step, r)
	}
	b.converged(healTime)
	if got := len(b.list("p")); b.packs && got < 1+1 { // the first version has one; how many this one has is up to the uplink
		b.t.Errorf("%s: there are %d packs, want those of two versions", step, got)
	}
	if step == "PU1+" && len(stood) < 1+1 {
		b.t.Errorf("%s: no pack had landed: %v", step, stood)
	}
	again := b.writes()
	for _, key := range stood {
		if n := again["p/"+key] - sent["p/"+key]; n != 0 {
			b.t.Errorf("%s: pack %s stood and was uploaded again", step, key)
		}
	}
	if out && !maps.Equal(again, sent) {
		b.t.Errorf("%s: nothing was missing, and push went from %v to %v", step, sent, again)
	}
}

// pushSleeps delays a push at a step, which changes nothing.
func (b *pushed) pushSleeps(step string) {
	b.t.Helper()
	b.env = []string{"S3PULLDEPLOY_FAILPOINTS=" + step + "=sleep:1500ms@1"}
	r := b.next()
	b.env = nil
	if !strings.Contains(r.stderr, "failpoint: "+step+" sleep") {
		b.t.Fatalf("%s: want it to sleep: %s", step, r)
	}
	b.deployed(r)
	b.converged(healTime)
}

// pushFails fails a push at a step; what it says is its exit code's, and the next push works.
func (b *pushed) pushFails(step string, code int) {
	b.t.Helper()
	before := b.pointer()
	b.env = []string{"S3PULLDEPLOY_FAILPOINTS=" + step + "=error:EIO"}
	r := b.next()
	b.env = nil
	if r.code != code || !strings.Contains(r.stderr, "failpoint: "+step+" error") {
		b.t.Fatalf("%s: want it to fail with code %d: %s", step, code, r)
	}
	if code == 0 {
		b.deployed(r)
		b.converged(healTime)
		return
	}
	if now := b.pointer(); now != before {
		b.t.Errorf("%s: the pointer was moved to %q", step, now)
	}
	if !strings.Contains(r.stderr, "push: ") || !strings.Contains(r.stderr, "input/output error") {
		b.t.Errorf("%s: it says %q", step, r.stderr)
	}
	b.deployed(b.push(b.args()...))
	b.converged(healTime)
}
