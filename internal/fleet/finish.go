package fleet

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"s3pulldeploy/internal/release"
)

// fate is what the members have made of a commit.
type fate struct {
	served          int
	failed, pending []string
	groups          map[string]score
}

// score is what the members of one group have made of it; checks counts failures of those that say so for a rollback.
type score struct{ served, pending, checks int }

// judge sorts the members that voted yes by what they report; pending are those that are to be waited for.
func judge(h Head, rows []Member, wait func(Member) bool) fate {
	f := fate{groups: map[string]score{}}
	for _, m := range rows {
		g := f.groups[m.Group]
		switch {
		case !m.voted(h, true):
			continue
		case m.Active.Epoch >= h.Epoch:
			f.served++
			g.served++
		case m.Failed >= h.Epoch:
			f.failed = append(f.failed, m.Instance+": "+m.Error)
			// Out, or still on another release: it could not even flip, which says nothing about this one.
			if m.Rollback && m.Phase != Out && m.Active.Epoch == 0 {
				g.checks++
			}
		case m.Phase != Leaving && wait(m):
			f.pending = append(f.pending, m.Instance)
			g.pending++
		default:
			continue
		}
		f.groups[m.Group] = g
	}
	return f
}

// spoilt says that the release does not work: that more failed checks than the guard allows to go missing, or all of a group. In
// a fleet of one group without waves that is all of the first wave, too.
func (f fate) spoilt(g Guard) bool {
	checks := 0
	for _, s := range f.groups {
		if s.checks > 0 && s.served == 0 && s.pending == 0 {
			return true
		}
		checks += s.checks
	}
	return !g.Allows(checks, f.counted())
}

func (f fate) counted() int { return f.served + len(f.failed) + len(f.pending) }

func (m Member) alive() bool { return m.Missed == 0 }

// healthy says that the commit may be rolled back to later: most serve it, and the guard allows for the others.
func (f fate) healthy(g Guard) bool {
	return len(f.pending) == 0 && f.served > len(f.failed) && g.Allows(len(f.failed), f.served+len(f.failed))
}

// reason is for people. Of how many it was is the number that the guard is asked about: those still to report are part of it.
func (f fate) reason() string {
	switch {
	case len(f.failed) > 0:
		return fmt.Sprintf("%d of %d failed after the flip: %s", len(f.failed), f.counted(), some(f.failed))
	case len(f.pending) > 0:
		return "not reported in time: " + some(f.pending)
	}
	return ""
}

// finish ends a committed epoch when everybody who voted yes and is alive has reported, or the time is up.
func (n *Node) finish(ctx context.Context, rows []Member) {
	c, h := n.coord, n.head
	if c.tally.Members == 0 { // another made the decision: whom it left out is told all the same
		c.tally = Count(h, rows, c.silence.Silent)
	}
	f := judge(h, rows, func(m Member) bool { return !m.Lost() && !c.silence.Silent(m) })
	late := n.now-c.since >= n.o.PrepareTimeout
	guard, err := n.guard(ctx)
	if err != nil && !late {
		return // shown; the next sweep reads again
	}
	spoilt := err == nil && h.Kind != KindRollback && f.spoilt(guard)
	if back, ok := h.back(); spoilt && ok {
		n.goBack(ctx, back, f.reason())
		return
	}
	if len(f.pending) > 0 && !late {
		return
	}
	reason := f.reason()
	if err != nil {
		reason = strings.TrimPrefix(reason+"; "+err.Error(), "; ")
	}
	if spoilt {
		reason = "no good release to go back to; " + reason
	}
	f.pending = nil // listed; they do not make the release a bad one
	if !n.fenced(n.o.Ledger.Done(ctx, h, err == nil && f.healthy(guard), reason)) {
		return
	}
	n.log.Info("done", "epoch", h.Epoch, "release", string(h.Release), "served", f.served, "failed", len(f.failed))
	n.writeLog(ctx, n.head, c.tally, string(Done), reason)
	n.coord = nil
}

// writeLog writes an epoch's log and has people told of it, once for the whole fleet: best effort.
func (n *Node) writeLog(ctx context.Context, h Head, t Tally, outcome, reason string) {
	log := Log{
		Epoch: h.Epoch, Outcome: outcome, Kind: h.Kind, Release: h.Release, Sequence: h.Proposed().Note(), Reason: reason,
		Members: h.Members, Excluded: t.LeftOut, Nos: t.Nos, At: n.o.Clock.Now().Unix(),
	}
	first, err := n.o.Ledger.PutLog(ctx, log, n.o.Clock.Now())
	if err != nil {
		n.log.Warn("epoch log not written", "epoch", h.Epoch, "error", err)
	}
	if !first || n.o.Told == nil {
		return
	}
	var p release.Pointer
	if note := n.notes[log.Sequence]; note != nil {
		p = note.Pointer
	}
	n.o.Told(log, p)
}

// writeMissed writes the log of an epoch that ended whose coordinator died before it could; where there is one already it stays. A
// head that was re-seeded had no coordinator and is no rollout, and the log of an old push may have been there and expired.
func (n *Node) writeMissed(ctx context.Context, h Head) {
	if h.State != Abort && h.State != Done || h.Coordinator == "" || n.o.Clock.Now().Unix()-h.Sequence >= int64(logTTL.Seconds()) {
		return
	}
	outcome := string(h.State)
	if h.State == Abort && h.IsBad(h.Sequence) && !h.Automatic() {
		outcome = RolledBack
	}
	n.writeLog(ctx, h, Tally{}, outcome, h.Reason)
}

// stillAfter: a row that stood still for so long has missed its slowest beat and two leases.
const stillAfter = beatIdle + 2*Lease

// sight remembers since when each row stands still, over all epochs: of rows that nobody waits for, no single epoch lasts long
// enough to find out that they are dead.
func (n *Node) sight(rows []Member) {
	seen := make(map[string]rival, len(rows))
	for _, m := range rows {
		was := n.sightings[m.Instance]
		if was.incarnation != m.Incarnation || was.beat != m.Beat {
			was = rival{m.Incarnation, m.Beat, n.o.Clock.Boot()}
		}
		seen[m.Instance] = was
	}
	n.sightings = seen
}

func (n *Node) still(m Member) bool {
	was, ok := n.sightings[m.Instance]
	return ok && n.now-was.since >= stillAfter
}

// countMissed counts the epoch against the silent, best effort: a count that is lost only makes the next epoch wait.
func (n *Node) countMissed(ctx context.Context) {
	silent := n.coord.tally.Silent
	err := n.o.Ledger.each(len(silent), func(i int) error {
		if m := silent[i]; !m.Lost() && m.MissedEpoch < n.head.Epoch {
			return n.o.Ledger.CountMissed(ctx, m, n.head.Epoch, n.o.Clock.Now())
		}
		return nil
	})
	if err != nil {
		n.log.Warn("missed epochs not counted", "error", err)
	}
}

// some names the first few of a list.
func some(list []string) string {
	list = slices.Clone(list)
	slices.Sort(list)
	if len(list) > 3 {
		return fmt.Sprintf("%s and %d more", strings.Join(list[:3], ", "), len(list)-3)
	}
	return strings.Join(list, ", ")
}
