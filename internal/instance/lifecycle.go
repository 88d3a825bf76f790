package instance

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"sync"
)

// Lifecycle is what becomes of this machine. The zero value is one that stays and is to serve, as far as is known.
type Lifecycle struct {
	// Going: it is about to be terminated, stopped or hibernated.
	Going bool
	// Warm: it is in a warm pool, or on its way into it: it must not serve.
	Warm bool
	// Reason says why, for people; empty when neither is so.
	Reason string
}

// Away says that the machine is to be no member of a fleet.
func (l Lifecycle) Away() bool { return l.Going || l.Warm }

// Look asks what becomes of this machine: its Auto Scaling Group's target state for it, and a spot notice. A machine
// that merely restarts its agent stays, and so does one without a metadata service, but there the error says that nobody
// answered. One in standby stays too: it is to come back on the fleet's release.
//
// One of the two is enough to be going, even when asking for the other failed.
func Look(ctx context.Context, imdsEndpoint string) (Lifecycle, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	m := newMetadata(imdsEndpoint)
	var state, notice string
	var stateErr, noticeErr error
	var wg sync.WaitGroup // both at once: one that hangs must not use up the other's time
	wg.Go(func() { state, stateErr = m.get(ctx, "autoscaling/target-lifecycle-state") })
	wg.Go(func() { notice, noticeErr = m.get(ctx, "spot/instance-action") })
	wg.Wait()
	why := "auto scaling: target state " + state
	switch {
	case state == "Terminated" || state == "Warmed:Terminated":
		return Lifecycle{Going: true, Reason: why}, nil
	case notice != "":
		return Lifecycle{Going: true, Reason: spotReason(notice)}, nil
	case strings.HasPrefix(state, "Warmed:"): // Stopped, Hibernated, Running
		return Lifecycle{Warm: true, Reason: why}, nil
	}
	if err := cmp.Or(stateErr, noticeErr); err != nil {
		return Lifecycle{}, fmt.Errorf("ask whether the instance is going: %w", err)
	}
	return Lifecycle{}, nil
}

// spotReason reads a notice like {"action": "terminate", "time": "2026-11-20T20:17:00Z"}. Whatever it
// says, that it is there means the machine goes.
func spotReason(notice string) string {
	var n struct {
		Action string `json:"action"`
		Time   string `json:"time"`
	}
	if err := json.Unmarshal([]byte(notice), &n); err != nil || n.Action == "" {
		return "spot notice"
	}
	return strings.TrimSpace(fmt.Sprintf("spot notice: %s %s", n.Action, n.Time))
}
