package fleet

import (
	"time"

	"s3pulldeploy/internal/release"
	"s3pulldeploy/internal/weak"
)

// View is what the node shows about itself.
type View struct {
	Instance, Group string
	Phase           Phase
	Head            Head
	HaveHead        bool
	Flipped         Commitment
	Settled         int64
	Vote            Vote
	Error           string
	Problems        map[string]string
	// Ready: in service, or nothing was ever committed and the fleet agrees. Isolated: it serves from its disk, or nothing yet,
	// since the table has not answered.
	Ready, Isolated, Waiting, Duplicate, Coordinates bool
	// Behind says that the fleet committed to something that this instance does not serve. Pending says that it is only
	// about to: it is in service, holds the release, and neither the flip nor the check after it has failed.
	Behind, Pending bool
	Target          Commitment
	// Silent is how long the table has not answered; before its first answer, since the start.
	Silent time.Duration
}

// View returns a copy of what the node knows.
func (n *Node) View() View {
	v := View{
		Instance: n.o.Instance, Group: n.o.Group, Phase: n.phase, Head: n.head, HaveHead: n.haveHead,
		Flipped: n.state.Flipped, Settled: n.state.Settled, Vote: n.state.Vote, Error: n.state.Error,
		Problems: map[string]string{}, Duplicate: n.duplicate, Coordinates: n.coord != nil, Target: n.target(),
	}
	for k, t := range n.problems {
		v.Problems[k] = t
	}
	silent := n.o.Clock.Boot() - max(n.answered, n.started)
	known := n.goal()
	f := n.state.Flipped // a wave took it there with the digest at hand, which a commit that was read later does not have
	onDisk := known.Epoch > 0 && f.Epoch == known.Epoch && f.Release == known.Release
	v.Silent = silent
	nothing := known.Epoch == 0 && n.inService // it waits for a first push, which may have been meanwhile
	v.Isolated = silent >= isolatedAfter && (onDisk || nothing) && !n.duplicate
	v.Ready = n.inService || v.Isolated
	v.Waiting = n.inService && n.Empty()
	if n.haveHead && v.Target.Epoch > known.Epoch {
		known = v.Target
	}
	v.Behind = known.Epoch > 0 && (n.state.Flipped.Epoch != known.Epoch || n.state.Settled != known.Epoch)
	if weak.Rule == "M19" {
		v.Behind = false
	}
	v.Pending = v.Behind && n.inService && n.holds(known) && n.state.Failed != known.Epoch
	return v
}

// State returns what the node holds durable, or is about to.
func (n *Node) State() State { return n.state }

// Keep lists the releases that must stay on the disk: decided, flipped, voted for, named by the head.
func (n *Node) Keep() []release.ID {
	return []release.ID{
		n.state.Decision.Release, n.state.Ahead.Release, n.state.Flipped.Release, n.state.Vote.Release,
		n.head.Release, n.head.CommittedRelease, n.head.Good.Release, n.head.Before.Release,
	}
}
