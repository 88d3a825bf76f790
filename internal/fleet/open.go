package fleet

import (
	"context"
	"errors"
	"time"

	"s3pulldeploy/internal/failpoint"
	"s3pulldeploy/internal/weak"
)

// mayOpen says whether the protocol allows an epoch for a pointer, as far as the head that was read tells.
func (n *Node) mayOpen(note Note) bool {
	h, s := n.head, note.Sequence
	if weak.Rule == "M12" && h.IsBad(s) {
		return h.Decided() && s == h.Sequence
	}
	if !n.haveHead {
		return n.everRead && n.welcome(note)
	}
	retry := h.RetryAt > 0 && n.o.Clock.Now().Unix() >= h.RetryAt || h.Again == s
	return h.Decided() && n.welcome(note) && (s > h.Sequence || s == h.Sequence && h.State == Abort && retry)
}

// welcome says whether a pointer may have an epoch once none is open: nothing that was decided, and no person, keeps it out.
func (n *Node) welcome(note Note) bool {
	h, s := n.head, note.Sequence
	switch {
	case contains(n.state.Bad, s), h.IsBad(s), s < n.state.Floor, s <= h.CommittedSequence:
		return false
	case h.Held(s):
		return false
	}
	return h.Frozen == nil || note.Pointer.Kind == KindRollback
}

// myTurn waits for a short random time, so that not all of a fleet try the same write at once; it is true once when that is over.
func (n *Node) myTurn() bool {
	if n.openAt == 0 {
		n.openAt = n.now + 1 + time.Duration(n.o.Random()*float64(spread(int(n.head.Members))))
	}
	if n.now < n.openAt {
		return false
	}
	n.openAt = 0
	return true
}

// open opens the next epoch for an inspected pointer: after a short random wait, on a strong read of the head, the note
// before the head.
func (n *Node) open(ctx context.Context) {
	if n.inspected == nil || !n.mayOpen(*n.inspected) {
		n.goBackAgain(ctx)
		return
	}
	if !n.myTurn() {
		return
	}
	h, ok, err := n.o.Ledger.Head(ctx, true)
	if !n.note("table", err) {
		return
	}
	n.observe(h, ok, true)
	if n.lost || !n.mayOpen(*n.inspected) || !n.vet(ctx) || !n.mayOpen(*n.inspected) {
		return
	}
	note := *n.inspected
	if err = failpoint.Hit("A5"); err == nil {
		err = n.o.Ledger.PutNote(ctx, note)
	}
	if errors.Is(err, ErrEquivocation) {
		n.note("pointer", err)
		n.offered, n.inspected = nil, nil
		return
	}
	if !n.note("table", err) {
		return
	}
	var early []Member
	if weak.Rule == "M3" {
		early, _ = n.o.Ledger.Members(ctx)
	}
	prev, fate, healthy := n.head, judge(n.head, n.rows, Member.alive), false
	if prev.State == Commit {
		guard, err := n.guard(ctx)
		healthy = err == nil && fate.healthy(guard)
	}
	opened, err := n.o.Ledger.Open(ctx, prev, note, n.o.Instance, healthy)
	failpoint.Landed("A5")
	if errors.Is(err, ErrOvertaken) {
		n.observe(opened, opened.Epoch > 0, true)
		return
	}
	if !n.note("table", err) {
		return
	}
	n.log.Info("opened epoch", "epoch", opened.Epoch, "release", string(opened.Release), "sequence", opened.Sequence)
	n.lead(opened, NewSilence("", 0))
	n.coord.early = early
	if prev.State == Commit { // overtaken: nobody else will write its log
		reason := fate.reason()
		if !healthy && reason == "" {
			reason = "the next rollout began before all had reported"
		}
		n.writeLog(ctx, prev, Tally{}, string(Done), reason)
	}
	n.writeMissed(ctx, prev)
}
