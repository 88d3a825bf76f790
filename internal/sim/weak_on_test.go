//go:build weakened

package sim

import (
	"slices"
	"strings"
	"testing"

	"s3pulldeploy/internal/weak"
)

// hints are where to begin to look for what takes many seeds to happen; any change of the protocol moves them, and then the
// search only takes longer.
var hints = map[string]uint64{"M3": 1640, "M6": 1580}

// breaks are the rules, and what each of them holds up, by the first words of what the simulation says: something else may be seen
// besides, and shows nothing.
var breaks = map[string][]string{
	"M1":  {"I5 valid commit"},
	"M2":  {"I5 valid commit"},
	"M3":  {"I5 valid commit"},
	"M4":  {"I5 valid commit"},
	"M5":  {"I3 one decision", "I4 order"},
	"M6":  {"I5 valid commit", "waves:"}, // who is shown an old head may also go back to it
	"M7":  {"I7 no early flip"},
	"M9":  {"I6 sticky vote"},
	"M10": {"I9 no silent staleness"},
	"M11": {"I6 sticky vote"},
	"M12": {"bad:"},
	"M13": {"I7 no early flip"},
	"M14": {"I7 no early flip"},
	"M15": {"waves:"},
	"M16": {"fleet_once:"},
	"M17": {"I5 valid commit"},
	"M18": {"fleet_once:"},
	"M19": {"I9 no silent staleness"},
	"M20": {"I14 honest report"},
}

// isCaught looks for a seed that breaks what a rule holds up while the rule is switched off, and passes while it is on: else it would
// be the simulation that is wrong, or the protocol.
func isCaught(t *testing.T, rule string, first, seeds uint64, run func(seed uint64) *scene) {
	t.Helper()
	t.Cleanup(func() { weak.Rule = "" })
	others := 0
	for seed := first; seed < first+seeds; seed++ {
		weak.Rule = rule
		s := run(seed)
		if len(s.violate) == 0 {
			continue
		}
		if !slices.ContainsFunc(breaks[rule], func(name string) bool { return strings.HasPrefix(s.violate[0], name) }) {
			others++
			t.Logf("seed %d: %s", seed, s.violate[0])
			continue
		}
		weak.Rule = ""
		if strong := run(seed); len(strong.violate) > 0 {
			t.Fatalf("seed %d does not pass with %s in force either: %s", seed, rule, strong.report())
		}
		t.Logf("caught after %d seeds, %d of which broke something else, by %s", seed-first+1, others, s.report())
		return
	}
	t.Errorf("%s switched off, and of %d seeds none broke %q", rule, seeds, breaks[rule])
}

// TestEachWeakenedRuleIsCaught is the test of the test: with one safety rule switched off, some seed must violate an invariant. M9 and
// M11 are about the order of agent and disk, which these machines only pretend.
func TestEachWeakenedRuleIsCaught(t *testing.T) {
	for _, r := range []string{"M1", "M2", "M3", "M4", "M5", "M6", "M7", "M10", "M12", "M13", "M14", "M15", "M16", "M17", "M18", "M19", "M20"} {
		t.Run(r, func(t *testing.T) {
			isCaught(t, r, max(hints[r], *first), 3000, func(seed uint64) *scene { return simulate(seed).scene })
		})
	}
}

// TestAgentsCatchWeakenedRulesToo: the simulation of real agents sees as much. These are the rules that it notices soon, and M9 and M11.
func TestAgentsCatchWeakenedRulesToo(t *testing.T) {
	dir := workshop(t)
	for _, r := range []string{"M4", "M7", "M9", "M10", "M11", "M19", "M20"} {
		t.Run(r, func(t *testing.T) {
			isCaught(t, r, 1, 2000, func(seed uint64) *scene { return live(t, seed, dir).scene })
		})
	}
}
