package fleet

import (
	"time"

	"s3pulldeploy/internal/weak"
)

// rewatch is how often a member that a wave took ahead checks its health again, until the epoch is decided.
const rewatch = 10 * time.Second

// goAhead persists that the wave under way takes this member along: one in the quorum that is on the committed release and has
// voted yes.
func (n *Node) goAhead() {
	h, v := n.head, n.state.Vote
	yes := v.Yes && v.Epoch == h.Epoch && v.Release == h.Release
	d := n.state.Decision
	if n.state.Ahead.Epoch >= h.Epoch || n.phase != Serve || !yes && weak.Rule != "M13" || d.Epoch == 0 || n.state.Flipped.Epoch != d.Epoch {
		return
	}
	if !h.Reaches(n.o.Instance, n.o.Group) && (weak.Rule != "M14" || h.State != Wave) {
		return
	}
	was := n.state.Ahead
	n.state.Ahead = h.Proposed()
	if n.save() != nil {
		n.state.Ahead = was
		return
	}
	n.flipAt = n.flipTime()
}

// goal is the release that this machine should be on: what was decided, or what a wave took it to while that epoch is open. Without
// a head it stays where it is.
func (n *Node) goal() Commitment {
	a, d := n.state.Ahead, n.state.Decision
	switch {
	case a.Epoch <= d.Epoch:
		return d
	case weak.Rule == "M15" && n.state.Flipped.Epoch == a.Epoch:
		return a
	case !n.haveHead || n.lost:
		if n.state.Flipped.Epoch == a.Epoch {
			return a
		}
	case n.head.Epoch == a.Epoch && n.head.State == Wave:
		return a
	}
	return d
}

// watched says whether the health of what was flipped to is to be checked again: the next wave depends on it.
func (n *Node) watched() bool {
	return n.haveHead && n.head.State == Wave && n.state.Flipped.Epoch == n.head.Epoch && n.now >= n.settleAt
}

// flipTime is the moment, on the boot clock, that the head says: advice, and never further away than the flip delay.
func (n *Node) flipTime() time.Duration {
	wait := time.UnixMilli(n.head.FlipAt).Sub(n.o.Clock.Now())
	return n.o.Clock.Boot() + min(max(wait, 0), time.Duration(n.head.FlipDelay)*time.Millisecond)
}
