//go:build weakened

package sim

import (
	"testing"

	"s3pulldeploy/internal/weak"
)

// hints are where to begin to look for what takes many seeds to happen; any change of the protocol moves them, and then the
// search only takes longer.
var hints = map[string]uint64{"M3": 1640, "M6": 520}

// weaken switches a rule off for a test.
func weaken(t *testing.T, rule string) {
	weak.Rule = rule
	t.Cleanup(func() { weak.Rule = "" })
}

// TestEachWeakenedRuleIsCaught is the test of the test: with one safety rule switched off, some seed must violate an invariant.
func TestEachWeakenedRuleIsCaught(t *testing.T) {
	for _, r := range []string{"M1", "M2", "M3", "M4", "M5", "M6", "M7", "M10", "M12", "M13", "M14", "M15", "M16", "M17", "M18", "M19"} {
		t.Run(r, func(t *testing.T) {
			weaken(t, r)
			start := max(hints[r], 1)
			for seed := start; seed < start+3000; seed++ {
				if w := simulate(seed); len(w.violate) > 0 {
					t.Logf("caught by %s", w.report())
					return
				}
			}
			t.Errorf("%s switched off, and 3000 seeds did not notice", r)
		})
	}
}

// TestAgentsCatchWeakenedRulesToo: the simulation of real agents sees as much. These are the rules that it notices soon, and M9 and M11,
// which are about the order of agent and disk.
func TestAgentsCatchWeakenedRulesToo(t *testing.T) {
	dir := workshop(t)
	for _, r := range []string{"M4", "M7", "M9", "M10", "M11"} {
		t.Run(r, func(t *testing.T) {
			weaken(t, r)
			for seed := uint64(1); seed < 2000; seed++ {
				if w := live(t, seed, dir); len(w.violate) > 0 {
					t.Logf("caught by %s", w.report())
					return
				}
			}
			t.Errorf("%s switched off, and 2000 seeds did not notice", r)
		})
	}
}
