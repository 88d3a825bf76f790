package fleet

import (
	"context"
	"errors"
)

// back is the good release to go back to when the checks of the head's fail; ok is false when there is none.
func (h Head) back() (t Target, ok bool) {
	for _, t := range []Target{h.Good, h.Before} {
		if t.Release != "" && t.Release != h.Release && !h.IsBad(t.Sequence) {
			return t, true
		}
	}
	return Target{}, false
}

// goBack leaves a committed release whose checks fail, or an aborted attempt to: the next epoch is a rollback to the target. The
// log of the one that failed is written by whoever opened it.
func (n *Node) goBack(ctx context.Context, to Target, why string) {
	note, err := n.noteOf(ctx, to.Sequence)
	if err != nil {
		return // shown, and tried again by the next sweep
	}
	prev := n.head
	var tally Tally
	if n.coord != nil {
		tally = n.coord.tally
	}
	opened, err := n.o.Ledger.GoBack(ctx, prev, *note, n.o.Instance, why)
	if errors.Is(err, ErrOvertaken) {
		if opened.Epoch != prev.Epoch || opened.Fence != prev.Fence { // else it is still ours: something was held or asked for meanwhile
			n.coord = nil
		}
		n.observe(opened, opened.Epoch > 0, true)
		return
	}
	if !n.note("table", err) {
		return
	}
	n.log.Warn("rolling back", "epoch", opened.Epoch, "from", string(prev.Release), "to", string(opened.Release), "why", why)
	n.lead(opened, NewSilence("", 0))
	if prev.State == Commit {
		n.writeLog(ctx, prev, tally, RolledBack, why)
	}
	n.writeMissed(ctx, prev)
}

// goBackAgain opens an automatic rollback once more that was aborted for a reason that may pass.
func (n *Node) goBackAgain(ctx context.Context) {
	if !n.mayGoBack() {
		n.openAt = 0
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
	if n.lost || !n.mayGoBack() || !n.vet(ctx) || !n.mayGoBack() {
		return
	}
	n.goBack(ctx, Target{n.head.Release, n.head.Source}, n.head.Why)
}

func (n *Node) mayGoBack() bool {
	h := n.head
	if !n.haveHead || h.State != Abort || !h.Automatic() || h.Held(h.Sequence) {
		return false
	}
	return h.RetryAt > 0 && n.o.Clock.Now().Unix() >= h.RetryAt || h.Again == h.Sequence
}
