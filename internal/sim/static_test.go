package sim

import (
	"testing"
	"time"

	"s3pulldeploy/internal/release"
)

// I12: while neither table nor bucket answers, agents run, restart and die, and nobody serves anything else, or nothing.
func TestLosingTableAndBucketChangesNothingThatIsServed(t *testing.T) {
	for seed := uint64(1); seed <= 8; seed++ {
		w := newWorld(seed)
		for range 3 {
			w.add().start()
		}
		w.push("")
		w.calm = true
		w.runUntil(30 * time.Minute)
		was := w.truth.head
		if missing := w.truth.settled(); missing != "" && !w.spoilt[was.Release] && !w.broken[was.Release] {
			t.Fatalf("seed %d: %s", seed, missing)
		}
		back := w.now + 2*time.Hour
		served := map[string]string{}
		for _, b := range w.boxes {
			b.cut, b.s3cut = back, back
			served[b.id] = string(b.active)
		}
		w.push("")
		w.after(20*time.Minute, nil, "die", func() { w.boxes[0].die("killed") })
		w.runUntil(back)
		for _, b := range w.boxes {
			if string(b.active) != served[b.id] || b.active != "" && !b.serving {
				t.Errorf("seed %d: I12 static: %s served %q and serves %q, its web server runs: %v", seed, b.id, served[b.id], b.active, b.serving)
			}
		}
		w.runUntil(back + 30*time.Minute)
		if w.truth.head.Epoch <= was.Epoch || len(w.violate) > 0 {
			t.Errorf("seed %d: still at epoch %d after the outage: %s", seed, was.Epoch, w.report())
		}
	}
}

// The same of whole agents.
func TestAgentsServeOnWithoutTableAndBucket(t *testing.T) {
	dir := workshop(t)
	for seed := uint64(1); seed <= 2; seed++ { // one of each layout
		if r := within(t, seed, dir, (*realm).outage); len(r.violate) > 0 {
			t.Error(r.report())
		}
	}
}

// outage is a time in which nothing answers, and agents die and are restarted.
func (r *realm) outage() {
	r.locked(func() {
		r.digest, r.packed, r.calm = r.bucket.digest, r.seed%2 == 0, true
		for range 3 {
			r.addHost().later(0, (*host).start)
		}
		r.publish("")
	})
	r.settle(30 * time.Minute)
	served := map[*host]release.ID{}
	var back time.Duration
	r.locked(func() {
		back = r.now + 40*time.Minute
		for _, h := range r.hosts {
			served[h], h.cut, h.s3cut = h.active, back, back
		}
		r.publish("")
	})
	for i, h := range r.hosts {
		r.pause(4 * time.Minute)
		r.locked(func() {
			if i == 0 {
				h.sigterm(false)
			} else {
				h.crash("killed")
			}
		})
	}
	r.pause(20 * time.Minute)
	r.locked(func() {
		for h, was := range served {
			if h.look(); h.active != was || !h.serving || h.life == nil || !h.shown.Isolated {
				r.fail("I12 static: %s served %q and serves %q, its web server runs: %v, it says that it is isolated: %v", h.id, was, h.active, h.serving, h.shown.Isolated)
			}
		}
	})
	r.pause(max(0, back-time.Since(r.began)))
	r.settle(30 * time.Minute)
}
