package sim

import (
	"flag"
	"slices"
	"testing"
)

var liveSeeds = flag.Uint64("live-seeds", 40, "how many `seeds` to simulate with real agents and disks")

// Whole agents: see [realm].
func TestSimulateAgents(t *testing.T) {
	dir := workshop(t)
	epochs, commits, runs, mended := int64(0), 0, 0, 0
	for seed := *first; seed < *first+*liveSeeds; seed++ {
		r := live(t, seed, dir)
		if len(r.violate) > 0 {
			t.Fatalf("%s\nreplay: go test ./internal/sim -run TestSimulateAgents -first=%d -live-seeds=1", r.report(), seed)
		}
		epochs += r.truth.head.Epoch
		commits += len(r.truth.commits)
		runs += r.ran / 2
		if r.tables != nil {
			mended += r.tables.done
		}
	}
	t.Logf("%d seeds, %d epochs, %d commits, %d runs of fleet_once, %d heads restored and mended", *liveSeeds, epochs, commits, runs, mended)
	if commits < int(*liveSeeds) {
		t.Errorf("only %d commits in %d seeds: the simulation does not reach what it is to test", commits, *liveSeeds)
	}
}

func TestAnAgentSeedReplaysExactly(t *testing.T) {
	dir := workshop(t)
	for seed := *first; seed < *first+10; seed++ {
		a, b := live(t, seed, dir), live(t, seed, dir)
		for i := range max(len(a.story), len(b.story)) {
			if i >= len(a.story) || i >= len(b.story) || a.story[i] != b.story[i] {
				t.Fatalf("seed %d, after %d of %d and %d requests:\n%s\nthe second time:\n%s", seed, i, len(a.story), len(b.story),
					a.story[max(0, i-5):min(i+3, len(a.story))], b.story[max(0, i-5):min(i+3, len(b.story))])
			}
		}
		if !slices.Equal(a.trace, b.trace) || len(a.story) < 100 {
			t.Errorf("seed %d: another trace, or none", seed)
		}
	}
}
