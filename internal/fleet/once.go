package fleet

import (
	"context"
	"fmt"

	"s3pulldeploy/internal/weak"
)

// Ran is how the run of fleet_once that a member was last asked for ended: the fence that it was asked under.
type Ran struct {
	Fence int64
	OK    bool
	Error string
}

// onceRuns says that fleet_once was begun under a fence by an incarnation, and is not known to be over.
func (h Head) onceRuns() (fence int64, who string, runs bool) {
	n, _ := fmt.Sscanf(h.Once, "running %d %s", &fence, &who)
	return fence, who, n == 2
}

// onceOver is what the head says when fleet_once has run for its sequence.
func (h Head) onceOver() string { return fmt.Sprintf("ok %d", h.Sequence) }

// Once notes who runs fleet_once, or that it is over. Condition: epoch, fence, a lower beat, state prepare, and
// `once` is as read.
func (l *Ledger) Once(ctx context.Context, h Head, text string) (Head, error) {
	beat := h.Beat + 1
	return l.writeHead(ctx, "note fleet_once", Write{
		Set: Item{"once": text, "beat": beat},
		If:  append(held(h), Compare{"beat", Lt, beat}, Compare{"state", Eq, string(Prepare)}, asRead("once", h.Once)),
	})
}

// onceDue is the member that is to run fleet_once before a commit; nil when nobody is, or it is over. The coordinator is preferred.
func (n *Node) onceDue(h Head, rows []Member) *Member {
	if h.State != Prepare || h.Kind == KindRollback || h.Once == h.onceOver() || weak.Rule == "M16" {
		return nil
	}
	var due *Member
	for i, m := range rows {
		if !m.Once || !m.voted(h, true) || m.Phase != Serve || m.Lost() || n.coord.silence.Silent(m) {
			continue
		}
		if due == nil || m.Instance == n.o.Instance || due.Instance != n.o.Instance && m.Instance < due.Instance {
			due = &rows[i]
		}
	}
	return due
}

// beginOnce asks a member to run fleet_once.
func (n *Node) beginOnce(ctx context.Context, m *Member) {
	n.log.Info("fleet_once", "epoch", n.head.Epoch, "on", m.Instance)
	n.fenced(n.o.Ledger.Once(ctx, n.head, fmt.Sprintf("running %d %s", n.coord.fence, m.Incarnation)))
}

// watchOnce looks after a run of fleet_once. busy: it goes on, or its end was just noted, and only a later sweep may decide. failed
// says why the epoch is over: nobody knows how far a run came whose member or coordinator is gone.
func (n *Node) watchOnce(ctx context.Context, h Head, rows []Member) (busy bool, failed string) {
	fence, who, runs := h.onceRuns()
	if !runs {
		return false, ""
	}
	c := n.coord
	if fence != c.fence && weak.Rule == "M18" {
		return false, ""
	}
	if fence != c.fence {
		return false, "the coordinator changed while fleet_once ran: nobody knows how far it came"
	}
	for _, m := range rows {
		switch {
		case m.Incarnation != who:
		case m.Ran.Fence == fence && m.Ran.OK:
			n.fenced(n.o.Ledger.Once(ctx, h, h.onceOver()))
			return true, ""
		case m.Ran.Fence == fence:
			return false, m.Instance + ": " + m.Ran.Error
		case m.Phase == Leaving || m.Lost() || c.silence.Silent(m):
			return false, m.Instance + " is silent or leaving while it runs fleet_once: nobody knows how far it came"
		default:
			c.waits = "fleet_once on " + m.Instance
			return true, ""
		}
	}
	return false, "the agent that ran fleet_once is gone: nobody knows how far it came"
}

// once asks for fleet_once where the head names this very process and it has not run it yet.
func (n *Node) once(ctx context.Context) Want {
	h := n.head
	fence, who, runs := h.onceRuns()
	if !runs || !n.haveHead || n.lost || h.State != Prepare || who != n.o.Incarnation || n.ran.Fence == fence {
		return Want{}
	}
	note, err := n.noteOf(ctx, h.Sequence)
	if err != nil {
		return Want{}
	}
	return Want{Task: Once, Epoch: h.Epoch, Note: *note, Commit: h.Proposed(), Fence: fence}
}

// OnceDone reports the end of fleet_once, whatever the head says by now: it was run, and is not run again.
func (n *Node) OnceDone(w Want, err error) {
	n.ran = Ran{Fence: w.Fence, OK: err == nil}
	if err != nil {
		n.ran.Error = cut(err.Error())
	}
	n.dirty = true
	n.log.Info("fleet_once is over", "epoch", w.Epoch, "ok", n.ran.OK, "reason", n.ran.Error)
}
