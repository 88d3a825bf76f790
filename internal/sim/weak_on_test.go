//go:build weakened

package sim

import (
	"testing"

	"s3pulldeploy/internal/fleet"
)

var rule string

func weakened() string { return rule }

// hints are where to begin to look for what takes many seeds to happen; any change of the protocol moves them, and then the
// search only takes longer.
var hints = map[string]uint64{"M3": 1640, "M6": 520}

// TestEachWeakenedRuleIsCaught is the test of the test: with one safety rule switched off, some seed must violate an invariant.
func TestEachWeakenedRuleIsCaught(t *testing.T) {
	for _, r := range []string{"M1", "M2", "M3", "M4", "M5", "M6", "M7", "M9", "M10", "M11", "M12", "M13", "M14", "M15", "M16"} {
		t.Run(r, func(t *testing.T) {
			rule = r
			fleet.Weaken(r)
			defer func() { rule = ""; fleet.Weaken("") }()
			start := hints[r]
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

// TestAgentsCatchWeakenedRulesToo: the simulation of real agents sees as much. These are the rules that it notices soon.
func TestAgentsCatchWeakenedRulesToo(t *testing.T) {
	dir := workshop(t)
	for _, r := range []string{"M4", "M7", "M10"} {
		t.Run(r, func(t *testing.T) {
			rule = r
			fleet.Weaken(r)
			defer func() { rule = ""; fleet.Weaken("") }()
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
