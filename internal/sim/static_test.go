package sim

import (
	"testing"
	"time"
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
