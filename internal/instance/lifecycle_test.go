package instance

import (
	"testing"
	"unicode"
	"unicode/utf8"
)

func TestTerminationSpotNoticesAndWarmPoolsTakeAMachineAway(t *testing.T) {
	const state, spot = "autoscaling/target-lifecycle-state", "spot/instance-action"
	for _, c := range []struct {
		name   string
		values map[string]string
		want   Lifecycle
		fails  bool
	}{
		{"neither", nil, Lifecycle{}, false},
		{"in service", map[string]string{state: "InService"}, Lifecycle{}, false},
		{"standby", map[string]string{state: "Standby"}, Lifecycle{}, false},
		{"detached", map[string]string{state: "Detached"}, Lifecycle{}, false},
		{"scale-in", map[string]string{state: "Terminated"}, Lifecycle{Going: true, Reason: "auto scaling: target state Terminated"}, false},
		{"scale-in of a warm pool", map[string]string{state: "Warmed:Terminated"}, Lifecycle{Going: true, Reason: "auto scaling: target state Warmed:Terminated"}, false},
		{"warm pool, stopped", map[string]string{state: "Warmed:Stopped"}, Lifecycle{Warm: true, Reason: "auto scaling: target state Warmed:Stopped"}, false},
		{"warm pool, running", map[string]string{state: "Warmed:Running"}, Lifecycle{Warm: true, Reason: "auto scaling: target state Warmed:Running"}, false},
		{"spot in a warm pool", map[string]string{state: "Warmed:Running", spot: "{}"}, Lifecycle{Going: true, Reason: "spot notice"}, false},
		{
			"spot",
			map[string]string{spot: `{"action": "terminate", "time": "2026-11-20T20:17:00Z"}`},
			Lifecycle{Going: true, Reason: "spot notice: terminate 2026-11-20T20:17:00Z"},
			false,
		},
		{"unreadable spot notice", map[string]string{spot: "soon"}, Lifecycle{Going: true, Reason: "spot notice"}, false},
		{"spot while the state is unknown", map[string]string{state: "!", spot: "{}"}, Lifecycle{Going: true, Reason: "spot notice"}, false},
		{"spot while the state is throttled", map[string]string{state: "slow down", spot: "{}"}, Lifecycle{Going: true, Reason: "spot notice"}, false},
		{"throttled", map[string]string{state: "slow down", spot: "slow down"}, Lifecycle{}, true},
		{"out of order", map[string]string{state: "!", spot: "!"}, Lifecycle{}, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newService(t, c.values)
			got, err := Look(t.Context(), s.URL)
			if got != c.want || (err != nil) != c.fails || got.Away() != (c.want.Reason != "") {
				t.Errorf("got %+v, %v", got, err)
			}
			if n := s.refused.Load(); n > 0 {
				t.Errorf("%d requests without a token", n)
			}
		})
	}
}

// FuzzLifecycle: whatever the metadata service says, a notice takes the machine away, and the reason is a line for people.
func FuzzLifecycle(f *testing.F) {
	f.Add("InService", "")
	f.Add("Terminated", "")
	f.Add("Warmed:Stopped\nWATCHDOG=trigger", "")
	f.Add("", `{"action": "terminate", "time": "2026-11-20T20:17:00Z"}`)
	f.Add("", `{"action": "stop\u001b[2J\n", "time": 1}`)
	f.Fuzz(func(t *testing.T, state, notice string) {
		l := read(state, notice)
		if l.Going && l.Warm || notice != "" && !l.Going || l.Away() != (l.Reason != "") {
			t.Fatalf("%q and %q mean %+v", state, notice, l)
		}
		if len(l.Reason) > maxReason || !utf8.ValidString(l.Reason) {
			t.Fatalf("reason %q", l.Reason)
		}
		for _, r := range l.Reason {
			if !unicode.IsPrint(r) {
				t.Fatalf("reason %q", l.Reason)
			}
		}
	})
}
