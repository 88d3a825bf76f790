package fleet

import (
	"cmp"
	"context"
	"errors"
	"time"

	"s3pulldeploy/internal/failpoint"
	"s3pulldeploy/internal/weak"
)

func (n *Node) register(ctx context.Context) {
	if n.registered {
		return
	}
	n.row.Beat++
	n.compose()
	if !n.note("table", n.o.Ledger.Register(ctx, n.row)) {
		return
	}
	n.touch()
	n.registered, n.vetted, n.strong, n.headAt = true, false, true, 0
	n.acked, n.serveMark, n.dirty = n.row, -1, false
	n.beaten = n.now
	n.log.Info("registered", "instance", n.o.Instance, "incarnation", n.o.Incarnation)
}

// enter moves the member into service: phase serve first, then a strong read of the head that agrees (I8).
func (n *Node) enter(ctx context.Context) {
	if !n.registered || !n.everRead || n.lost {
		return
	}
	g := n.goal()
	current := g.Epoch >= n.target().Epoch && n.state.Flipped.Epoch == g.Epoch && n.state.Settled == g.Epoch
	if (n.phase == Join || n.phase == Out && !n.head.State.Open()) && current {
		n.setPhase(Serve)
	}
	if n.phase != Serve || n.inService || n.serveMark < 0 || n.strongReads <= n.serveMark {
		return
	}
	votedHere := n.acked.voted(n.head, true)
	if current && !n.vetted && weak.Rule != "M6" && (n.away || !n.vet(ctx)) {
		return
	}
	if current && (!n.head.State.Open() || votedHere || weak.Rule == "M1") {
		n.inService = true
		n.log.Info("in service", "epoch", n.state.Flipped.Epoch, "release", string(n.state.Flipped.Release))
	}
}

func (n *Node) setPhase(p Phase) {
	if n.phase == p {
		return
	}
	n.log.Info("phase", "from", string(n.phase), "to", string(p))
	if p == Out && n.phase == Serve && n.head.State.Open() {
		n.left = n.head.Epoch
	}
	n.phase, n.dirty, n.serveMark = p, true, -1
	if p != Serve {
		n.inService = false
	}
}

// compose brings the row up to date with what is known.
func (n *Node) compose() {
	r := &n.row
	r.Instance, r.Group, r.Zone, r.Version = n.o.Instance, n.o.Group, n.o.Zone, n.o.Version
	r.Incarnation, r.Phase, r.Vote = n.o.Incarnation, n.phase, n.state.Vote
	r.Proof, r.Rollback, r.Epoch, r.Left = n.o.Proof, n.o.Rollback, n.state.Epoch, n.left
	r.Once, r.Ran = n.o.Once, n.ran
	r.Failed, r.Error, r.Seen = n.state.Failed, cmp.Or(n.state.Error, n.refused), n.o.Clock.Now().Unix()
	r.Active = Active{} // between the flip and its proof nothing is claimed
	if f := n.state.Flipped; f.Epoch > 0 && (n.state.Settled == f.Epoch || weak.Rule == "M20") {
		r.Active = Active{Epoch: f.Epoch, Release: f.Release, At: n.state.FlippedAt}
	}
}

// beat writes the row when it has news or is due.
func (n *Node) beat(ctx context.Context) {
	if !n.registered || n.now < n.beatHold || !n.dirty && n.now < n.beaten+n.beatEvery() {
		return
	}
	n.row.Beat++
	n.compose()
	step := n.telling()
	err := failpoint.Hit(step)
	if err == nil {
		err = n.o.Ledger.Beat(ctx, n.row)
		failpoint.Landed(step)
	}
	switch {
	case errors.Is(err, ErrDuplicate):
		n.duplicate, n.coord, n.rival = true, nil, rival{}
		n.setPhase(Join)
		n.problem("duplicate", true, err.Error())
		return
	case errors.Is(err, ErrGone):
		n.log.Warn("row gone, registering again", "instance", n.o.Instance)
		n.registered, n.coord = false, nil
		n.setPhase(Join)
		return
	case !n.note("table", err):
		n.beatHold = n.now + time.Second
		return
	}
	n.touch()
	n.acked, n.dirty, n.beaten = n.row, false, n.now
	if n.phase == Serve && n.serveMark < 0 {
		n.serveMark = n.strongReads
		n.strong, n.headAt = true, 0
		n.inService = weak.Rule == "M2" // the head was read before phase serve was written: too early
	}
}

// telling names the failpoint of what the row has to say.
func (n *Node) telling() string {
	switch {
	case n.row.Active.Epoch > n.acked.Active.Epoch:
		return "A23"
	case n.row.Vote.Epoch > n.acked.Vote.Epoch:
		return "A12"
	}
	return "beat"
}

// rival is the other incarnation that took this instance's row.
type rival struct {
	incarnation string
	beat        int64
	since       time.Duration
}

// outlived says whether the other incarnation of a duplicate id is gone: its row is, or stood still through the slowest
// beat and a lease. It may never have lived: a registration of one's own earlier life that arrived late looks the same.
func (n *Node) outlived(ctx context.Context) bool {
	m, err := n.o.Ledger.Row(ctx, n.o.Instance)
	if !n.note("table", err) {
		return false
	}
	n.touch()
	if m != nil {
		if r := n.rival; r.incarnation != m.Incarnation || r.beat != m.Beat {
			n.rival = rival{m.Incarnation, m.Beat, n.o.Clock.Boot()}
			return false
		}
		if n.now-n.rival.since < beatIdle+silentSpan {
			return false
		}
	}
	n.log.Warn("the other agent of this id is silent, registering again", "instance", n.o.Instance)
	n.duplicate, n.registered = false, false
	n.problem("duplicate", false, "")
	return true
}

func (n *Node) beatEvery() time.Duration {
	if n.haveHead && (n.head.State.Open() || n.head.State == Commit) {
		return beatOpen
	}
	return beatIdle
}

// Leave writes phase leaving, or removes the row when the machine goes, and ends the node.
func (n *Node) Leave(ctx context.Context, remove bool) error {
	n.leaving, n.inService = true, false
	if !n.registered || n.duplicate {
		return nil
	}
	n.phase = Leaving
	n.row.Beat++
	n.compose()
	if remove {
		return n.o.Ledger.Remove(ctx, n.row)
	}
	return n.o.Ledger.Beat(ctx, n.row)
}

// Progress is shown in the member's row at its next beat.
func (n *Node) Progress(text string) { n.row.Progress = text }
