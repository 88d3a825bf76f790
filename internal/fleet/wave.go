package fleet

import (
	"context"
	"fmt"
	"time"
)

// bakeSweep is how often the rows are read while a wave bakes or a person is waited for, which may take days.
const bakeSweep = 2 * time.Second

// progress is how the wave under way goes.
type progress struct {
	spoilt    bool // its checks fail beyond what is tolerated
	unhealthy bool // it cannot pass yet: somebody whom it reached has not reported, failed, or nobody lives
	failed    bool
	reason    string
	waits     string
}

// watchWave judges those whom the wave has reached. While all of them are healthy, the coordinator's bake clock runs.
func (n *Node) watchWave(h Head, rows []Member, g Guard) (p progress) {
	if h.State != Wave {
		return p
	}
	c := n.coord
	var reached []Member
	crew, groups := 0, map[string]int{}
	for _, m := range rows {
		if !m.voted(h, true) || m.Phase != Serve && m.Phase != Out {
			continue
		}
		crew++
		groups[m.Group]++
		if m.took(h) {
			reached = append(reached, m)
		}
	}
	f := judge(h, reached, func(m Member) bool { return !m.Lost() && !c.silence.Silent(m) })
	checks := 0
	for name, s := range f.groups {
		checks += s.checks
		p.spoilt = p.spoilt || s.checks > 0 && s.checks == groups[name]
	}
	p.spoilt = p.spoilt || !g.Allows(checks, crew) || h.Wave == 1 && checks > 0 && f.served == 0 && len(f.pending) == 0
	p.failed = len(f.failed) > 0
	p.unhealthy = p.failed || len(f.pending) > 0
	p.reason = fmt.Sprintf("wave %d: %s", h.Wave, f.reason())
	if p.failed {
		c.healthy = false // the bake begins anew
	}
	if p.unhealthy {
		p.waits = fmt.Sprintf("wave %d: %d of %d healthy", h.Wave, f.served, f.served+len(f.failed)+len(f.pending))
		return p
	}
	if f.served > 0 && !c.healthy {
		c.healthy, c.baking = true, n.now
	}
	return p
}

// goOn decides to commit, or begins the next wave, once all have voted; false: nothing is to be decided now.
func (n *Node) goOn(ctx context.Context, rows []Member, o *Outcome) bool {
	plan, err := n.plan(ctx)
	if err != nil {
		return false // shown; the next sweep reads again
	}
	if len(plan.Waves) == 0 {
		o.Commit = true
		return true
	}
	c, h := n.coord, n.head
	alive := 0
	var crew []Member
	for _, m := range rows {
		if m.voted(h, true) && m.Phase == Serve && !m.Lost() && !c.silence.Silent(m) {
			crew = append(crew, m)
			if m.took(h) {
				alive++
			}
		}
	}
	from := int(h.Wave) + 1
	switch {
	case h.State == Prepare:
	case alive == 0: // all that it reached are gone: somebody else takes their place
		from = int(h.Wave)
	case !n.passed(h, plan):
		c.sweepAt = n.now + bakeSweep
		return false
	}
	next, commit, err := plan.aim(h, from, crew)
	if err != nil {
		o.Reason = err.Error()
		return true
	}
	if commit {
		o.Commit = true
		return true
	}
	n.raise(ctx, next, len(rows)-lostOf(rows))
	return false
}

// passed says whether the wave is over: healthy for the time to bake, and approved where that is asked for.
func (n *Node) passed(h Head, p Plan) bool {
	c := n.coord
	switch {
	case !c.healthy || n.now-c.baking < p.Bake:
		c.waits = fmt.Sprintf("wave %d of %d: healthy, baking for %v", h.Wave, len(p.Waves), p.Bake)
		return false
	case p.Approve && h.Approved < h.Wave:
		c.waits = fmt.Sprintf("wave %d of %d: healthy, waiting for `push -approve`", h.Wave, len(p.Waves))
		return false
	}
	return true
}

// raise begins a wave.
func (n *Node) raise(ctx context.Context, next Head, members int) {
	c := n.coord
	delay := FlipDelay(members)
	if !n.fenced(n.o.Ledger.Raise(ctx, n.head, next, delay, n.o.Clock.Now())) {
		return
	}
	n.log.Info("wave", "epoch", next.Epoch, "wave", next.Wave, "group", next.WaveGroup)
	c.healthy, c.since, c.sweepAt, c.waits = false, n.now, n.now+delay, ""
}

// plan is the pointer's, where there is something to go back to; a rollback has none.
func (n *Node) plan(ctx context.Context) (Plan, error) {
	h := n.head
	if h.Kind == KindRollback || h.CommittedEpoch == 0 {
		return Plan{}, nil
	}
	note, err := n.noteOf(ctx, h.Sequence)
	if err != nil {
		return Plan{}, err
	}
	return ParsePlan(note.Pointer.Policy)
}
