package instance

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"unicode"
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

// maxReason bounds a reason, bytes; what EC2 says takes less than half of it.
const maxReason = 200

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
	l := read(state, notice)
	if err := cmp.Or(stateErr, noticeErr); err != nil && !l.Away() {
		return Lifecycle{}, fmt.Errorf("ask whether the instance is going: %w", err)
	}
	return l, nil
}

// read is what a target state and a spot notice, each empty where there is none, mean.
func read(state, notice string) Lifecycle {
	why := oneLine("auto scaling: target state " + state)
	switch {
	case state == "Terminated" || state == "Warmed:Terminated":
		return Lifecycle{Going: true, Reason: why}
	case notice != "":
		return Lifecycle{Going: true, Reason: oneLine(spotReason(notice))}
	case strings.HasPrefix(state, "Warmed:"): // Stopped, Hibernated, Running
		return Lifecycle{Warm: true, Reason: why}
	}
	return Lifecycle{}
}

// oneLine is a text of somebody else's as a status line takes it.
func oneLine(text string) string {
	text = strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return ' '
	}, text)
	return strings.ToValidUTF8(text[:min(len(text), maxReason)], "")
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
