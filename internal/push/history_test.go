package push

import (
	"fmt"
	"testing"
	"time"
)

// TestAHundredSmallPushesLeaveAFreshSyncCheap is about push's own code, from the scan to the manifest, on the real server:
// at every push a fresh instance needs at most 2x + 8 of the requests that a first push of the same tree would cost it, and at
// least three quarters of what it fetches is live.
func TestAHundredSmallPushesLeaveAFreshSyncCheap(t *testing.T) {
	const files, pushes = 300, 100
	tree := map[string]string{"media/film": noise(200, 5<<20)}
	for i := range files {
		tree[fmt.Sprintf("d%d/f%d.php", i%12, i)] = noise(byte(i), 4000+i*200)
	}
	r := newPackedRig(t, tree)
	r.deploy()
	first := r.manifest(r.pointer()).FreshCost().Requests
	now := time.Now().UTC().Truncate(time.Second)
	baselines := 0
	for n := range pushes {
		for i := range 1 + n%5 { // a few files each time, some of them always the same
			k := (n*7 + i*61) % files
			if i == 0 {
				k = 3
			}
			r.write(fmt.Sprintf("d%d/f%d.php", k%12, k), noise(byte(n+i+1), 4000+k*200))
		}
		r.wire.take()
		_, err := r.session(t.Context(), func(s *session) {
			now = now.Add(time.Second)
			s.clock = func() time.Time { return now } // a push a second, without waiting for it
		}, "-deploy="+r.dir)
		if err != nil {
			t.Fatal(err)
		}
		requests := r.wire.take()
		m := r.manifest(r.pointer())
		c := m.FreshCost()
		t.Logf("push %3d: %2d requests; a fresh sync: %2d requests (of a first push: %d), %.1f %% of %d bytes live, %d sources",
			n, len(requests), c.Requests, first, 100*float64(c.Live)/float64(c.Fetched), c.Fetched, len(m.Sources))
		if c.Requests > 2*first+8 || 4*c.Live < 3*c.Fetched {
			t.Errorf("push %d: a fresh sync takes %d requests and %d bytes, of which %d are live", n, c.Requests, c.Fetched, c.Live)
		}
		if len(requests) > 4 {
			baselines++
		}
	}
	if baselines == 0 || baselines > pushes/4 {
		t.Errorf("%d of %d pushes stored everything anew", baselines, pushes)
	}
	r.pull()
}
