package sim

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	"s3pulldeploy/internal/fleet"
	"s3pulldeploy/internal/release"
)

// people are who asks more of a fleet than to push, in every third seed: they hold what is newest and have it tried again, forget
// machines that are off, and overwrite a release in the bucket; there are two groups of machines then. They draw from their own source,
// so that all other seeds stay what they are.
type people struct {
	s   *scene
	rng *rand.Rand
	did [acts]int
}

// acts is how many kinds of things people do.
const acts = 4

func newPeople(s *scene) *people { return &people{s: s, rng: rand.New(rand.NewPCG(s.seed, 13))} }

func (p *people) between(lo, hi time.Duration) time.Duration {
	return lo + time.Duration(p.rng.Float64()*float64(hi-lo))
}

// act does one thing, if there is anything to do it to.
func (p *people) act() {
	kind := p.rng.IntN(acts)
	if [acts]func() bool{p.hold, p.again, p.forget, p.overwrite}[kind]() {
		p.did[kind]++
	}
}

// lost says that nobody asks anything of the fleet: there is no head, or only an old one.
func (p *people) lost() bool {
	return p.s.truth.head.Epoch == 0 || p.s.lost()
}

// hold is push -abort.
func (p *people) hold() bool {
	h, s := p.s.truth.head, p.s.sequence
	if p.lost() || s <= h.CommittedSequence {
		return false
	}
	p.s.note("hold %d", s)
	if now, err := p.s.ledger().Hold(context.Background(), h, s); err == nil {
		p.s.truth.head = now
	}
	if h.Sequence != s || !h.State.Open() {
		p.s.truth.held[s] = true
	}
	return true
}

// again is push -retry.
func (p *people) again() bool {
	h, s := p.s.truth.head, p.s.sequence
	ours := h.Automatic() && h.State == fleet.Abort
	if p.lost() || h.State.Open() || h.Frozen != nil || (s <= h.CommittedSequence || h.IsBad(s)) && !ours {
		return false
	}
	p.s.note("again %d", s)
	p.s.ask(h, fleet.Item{"again": s, "hint": s})
	delete(p.s.truth.held, s)
	return true
}

// forget is push -forget, of a machine that is off.
func (p *people) forget() bool {
	for _, m := range p.s.machines {
		row := p.s.truth.row(m.id)
		if m.up || m.serving || row.Instance == "" {
			continue
		}
		p.s.note("forget %s", m.id)
		if err := p.s.ledger().Forget(context.Background(), row); err != nil {
			p.s.fail("forget %s: %v", m.id, err)
		}
		delete(p.s.truth.rows, m.id)
		m.forgotten = true
		return true
	}
	return false
}

// overwrite has the bucket show other contents under a release's name. Real disks have their own damage.
func (p *people) overwrite() bool {
	id := p.s.pushed[p.s.sequence]
	if id == "" || p.s.altered == nil {
		return false
	}
	p.s.note("%s is overwritten", id)
	p.s.altered[id]++
	return true
}

// machine makes the n-th machine, which is off.
func (s *scene) machine(n int) *machine {
	m := &machine{id: fmt.Sprintf("i%d", n), group: "web", disk: map[release.ID]bool{}, digests: map[release.ID]string{}}
	if s.people != nil && s.fateOf(m.id, "group").chance(0.4) {
		m.group = "cron"
	}
	return m
}
