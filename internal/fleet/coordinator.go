package fleet

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Reasons that the protocol itself asks about; all others are for people.
const (
	reasonSuperseded = "superseded by a newer push"
	reasonByHand     = "aborted by hand"
)

// coordination is what the coordinator of an epoch knows. It is worth nothing once the head shows another fence.
type coordination struct {
	epoch, fence     int64
	since            time.Duration // start of the prepare clock, later of the commit's
	silence          *Silence
	sweepAt, renewAt time.Duration
	tally            Tally
	early            []Member // weakened builds only: a sweep from before the opening
}

func (n *Node) lead(h Head, s *Silence) {
	n.coord = &coordination{epoch: h.Epoch, fence: h.Fence, since: n.now, silence: s, renewAt: n.now + renewEvery}
	n.observe(h, true, false)
}

// mayOpen says whether the protocol allows an epoch for a pointer, as far as the head that was read tells.
func (n *Node) mayOpen(note Note) bool {
	h, s := n.head, note.Sequence
	if contains(n.state.Bad, s) || s < n.state.Floor {
		return false
	}
	if !n.haveHead {
		return n.everRead
	}
	if !h.Decided() || s <= h.CommittedSequence || h.IsBad(s) || s == h.Hold && h.Again != s {
		return false
	}
	if h.Frozen != nil && note.Pointer.Kind != KindRollback {
		return false
	}
	retry := h.RetryAt > 0 && n.o.Clock.Now().Unix() >= h.RetryAt || h.Again == s
	return s > h.Sequence || s == h.Sequence && h.State == Abort && retry
}

// open opens the next epoch for an inspected pointer: after a short random wait, on a strong read of the head, the note
// before the head.
func (n *Node) open(ctx context.Context) {
	if n.inspected == nil || !n.mayOpen(*n.inspected) {
		n.openAt = 0
		return
	}
	if n.openAt == 0 {
		n.openAt = n.now + 1 + time.Duration(n.o.Random()*float64(spread(int(n.head.Members))))
	}
	if n.now < n.openAt {
		return
	}
	n.openAt = 0
	h, ok, err := n.o.Ledger.Head(ctx, true)
	if !n.note("table", err) {
		return
	}
	n.observe(h, ok, true)
	if n.lost || !n.mayOpen(*n.inspected) || !n.vet(ctx) || !n.mayOpen(*n.inspected) {
		return
	}
	note := *n.inspected
	err = n.o.Ledger.PutNote(ctx, note)
	if errors.Is(err, ErrEquivocation) {
		n.note("pointer", err)
		n.offered, n.inspected = nil, nil
		return
	}
	if !n.note("table", err) {
		return
	}
	var early []Member
	if weak == "M3" {
		early, _ = n.o.Ledger.Members(ctx)
	}
	prev, fate := n.head, judge(n.head, n.rows, Member.alive)
	healthy := prev.State == Commit && fate.healthy(n.guard(ctx))
	opened, err := n.o.Ledger.Open(ctx, prev, note, n.o.Instance, healthy)
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
}

// coordinate does a coordinator's duties, or watches over them.
func (n *Node) coordinate(ctx context.Context) {
	if c := n.coord; c != nil && (n.head.Epoch != c.epoch || n.head.Fence != c.fence || n.head.State == Abort || n.head.State == Done) {
		n.coord = nil
	}
	if n.coord == nil {
		n.takeOver(ctx)
		return
	}
	c := n.coord
	if n.now >= c.renewAt {
		c.renewAt = n.now + renewEvery
		h, err := n.o.Ledger.Renew(ctx, n.head)
		if errors.Is(err, ErrOvertaken) && h.Epoch == c.epoch && h.Fence == c.fence {
			err = nil // still ours: an earlier beat had landed after all
		}
		if !n.fenced(h, err) {
			return
		}
	}
	if n.now < c.sweepAt {
		return
	}
	began := n.o.Clock.Boot()
	c.sweepAt = n.now + HeadInterval(int(n.head.Members))
	rows, err := n.o.Ledger.Members(ctx)
	if !n.note("table", err) {
		return // a partial sweep counts for nothing
	}
	if weak == "M3" && c.early != nil {
		rows = mergeEarly(c.early, rows)
	}
	n.touch()
	c.silence.Observe(rows, began, n.o.Clock.Boot())
	n.sight(rows)
	if n.head.State.Open() {
		n.decide(ctx, rows)
	} else {
		n.finish(ctx, rows)
	}
}

// fenced takes the answer to a write under the coordinator's fence; it is false when nothing more may be done in this step.
func (n *Node) fenced(h Head, err error) bool {
	if err == nil {
		n.observe(h, true, true)
		n.touch()
		return true
	}
	if errors.Is(err, ErrOvertaken) {
		n.log.Info("no longer coordinating", "epoch", n.coord.epoch, "fence", n.coord.fence)
		n.coord = nil
		if h.Epoch > 0 {
			n.observe(h, true, true)
		}
		return false
	}
	n.note("table", err)
	return false
}

// takeOver replaces a coordinator whose beat has stood still, after a random wait and a strong read. One's own
// earlier life is replaced at once.
func (n *Node) takeOver(ctx context.Context) {
	h := n.head
	if !h.State.Open() && h.State != Commit {
		n.takeAt = 0
		return
	}
	if h.Coordinator != n.o.Instance {
		if due := n.stood.since + takeOverAfter; n.takeAt < due {
			n.takeAt = due + time.Duration(n.o.Random()*float64(spread(int(h.Members))))
		}
		if n.now < n.takeAt {
			return
		}
	}
	n.takeAt = 0
	old, since := h.Coordinator, n.stood.since
	now, ok, err := n.o.Ledger.Head(ctx, true)
	if !n.note("table", err) {
		return
	}
	n.observe(now, ok, true)
	if n.lost || !ok || now.Epoch != h.Epoch || now.Fence != h.Fence || now.Beat != h.Beat || now.State != h.State {
		return
	}
	taken, err := n.o.Ledger.TakeOver(ctx, now, n.o.Instance)
	if errors.Is(err, ErrOvertaken) {
		n.observe(taken, taken.Epoch > 0, true)
		return
	}
	if !n.note("table", err) {
		return
	}
	n.log.Warn("took over", "epoch", taken.Epoch, "fence", taken.Fence, "from", old)
	if old == n.o.Instance {
		old = ""
	}
	n.lead(taken, NewSilence(old, since))
}

// decide judges a sweep of an open epoch, and writes the decision when there is one.
func (n *Node) decide(ctx context.Context, rows []Member) {
	c, h := n.coord, n.head
	c.tally = Count(h, rows, func(m Member) bool { return c.silence.Silent(m) || m.Phase != Serve && n.still(m) })
	o := Outcome{Now: n.o.Clock.Now(), Members: c.tally.Members, Excluded: len(c.tally.Excluded)}
	ruling := c.tally.Rule(n.guard(ctx))
	switch {
	case h.Hold == h.Sequence && h.Again != h.Sequence:
		o.Reason = reasonByHand
	case n.superseded():
		o.Reason = reasonSuperseded
	case ruling == Go:
		o.Commit, o.FlipDelay = true, FlipDelay(len(rows)-lostOf(rows))
	case ruling == Refuse:
		o.Reason = c.tally.Refused
	case ruling == TooMany:
		o.Reason, o.Retry = c.tally.tooMany(), retryAfter(h)
	case n.now-c.since >= n.o.PrepareTimeout:
		o.Reason, o.Retry = n.timedOut(), retryAfter(h)
	default:
		return
	}
	if !n.fenced(n.o.Ledger.Decide(ctx, h, o)) {
		return
	}
	n.log.Info("decided", "epoch", h.Epoch, "commit", o.Commit, "reason", o.Reason, "yes", len(c.tally.Yes), "excluded", len(c.tally.Excluded))
	n.countMissed(ctx)
	if o.Commit {
		c.since, c.sweepAt = n.now, n.now+o.FlipDelay
		return
	}
	n.writeLog(ctx, n.head, c.tally, string(Abort), o.Reason)
	n.coord = nil
}

func lostOf(rows []Member) (n int) {
	for _, m := range rows {
		if m.Lost() {
			n++
		}
	}
	return n
}

// superseded says that a newer pointer is waiting; one epoch after a superseded one is let through.
func (n *Node) superseded() bool {
	return n.offered != nil && n.offered.Sequence > n.head.Sequence && n.head.Superseded == 0 &&
		!contains(n.state.Bad, n.offered.Sequence)
}

func (n *Node) timedOut() string {
	t := n.coord.tally
	if len(t.Waiting) == 0 {
		return fmt.Sprintf("timed out after %v: nobody could bring up the release", n.o.PrepareTimeout)
	}
	return fmt.Sprintf("timed out after %v waiting for %s", n.o.PrepareTimeout, some(t.Waiting))
}

func (t Tally) tooMany() string {
	why := "unfit"
	if t.BySilence {
		why = "silent"
	}
	if t.Newly == t.Members {
		return fmt.Sprintf("all members %s: %s", why, some(t.Excluded))
	}
	return fmt.Sprintf("%d of %d members %s, more than max_excluded allows: %s", t.Newly, t.Members, why, some(t.Excluded))
}

// retryAfter is the wait before an epoch of the same sequence, 0 when it has been tried often enough.
func retryAfter(h Head) time.Duration {
	if int(h.Tries) >= len(retryDelays) {
		return 0
	}
	return retryDelays[h.Tries]
}

// guard is the pointer's max_excluded, or the default.
func (n *Node) guard(ctx context.Context) Guard {
	text := ""
	if note, err := n.noteOf(ctx, n.head.Sequence); err == nil {
		text = note.Pointer.Policy.MaxExcluded
	}
	g, err := ParseGuard(text)
	if err != nil {
		g, _ = ParseGuard("")
	}
	return g
}

// fate is what the members have made of a commit.
type fate struct {
	served          int
	failed, pending []string
}

// judge sorts the members that voted yes by what they report; pending are those that are to be waited for.
func judge(h Head, rows []Member, wait func(Member) bool) fate {
	var f fate
	for _, m := range rows {
		switch {
		case !m.voted(h, true):
		case m.Active.Epoch >= h.Epoch:
			f.served++
		case m.Failed >= h.Epoch:
			f.failed = append(f.failed, m.Instance+": "+m.Error)
		case m.Phase != Leaving && wait(m):
			f.pending = append(f.pending, m.Instance)
		}
	}
	return f
}

func (m Member) alive() bool { return m.Missed == 0 }

// healthy says that the commit may be rolled back to later.
func (f fate) healthy(g Guard) bool {
	return len(f.pending) == 0 && f.served > 0 && g.Allows(len(f.failed), f.served+len(f.failed))
}

func (f fate) reason() string {
	switch {
	case len(f.failed) > 0:
		return fmt.Sprintf("%d of %d failed after the flip: %s", len(f.failed), f.served+len(f.failed), some(f.failed))
	case len(f.pending) > 0:
		return "not reported in time: " + some(f.pending)
	}
	return ""
}

// finish ends a committed epoch when everybody who voted yes and is alive has reported, or the time is up.
func (n *Node) finish(ctx context.Context, rows []Member) {
	c, h := n.coord, n.head
	f := judge(h, rows, func(m Member) bool { return !m.Lost() && !c.silence.Silent(m) })
	if len(f.pending) > 0 && n.now-c.since < n.o.PrepareTimeout {
		return
	}
	reason := f.reason()
	f.pending = nil // listed; they do not make the release a bad one
	if !n.fenced(n.o.Ledger.Done(ctx, h, f.healthy(n.guard(ctx)), reason)) {
		return
	}
	n.log.Info("done", "epoch", h.Epoch, "release", string(h.Release), "served", f.served, "failed", len(f.failed))
	n.writeLog(ctx, n.head, c.tally, string(Done), reason)
	n.coord = nil
}

// writeLog writes an epoch's log, best effort: it is for people.
func (n *Node) writeLog(ctx context.Context, h Head, t Tally, outcome, reason string) {
	log := Log{
		Epoch: h.Epoch, Outcome: outcome, Kind: h.Kind, Release: h.Release, Sequence: h.Sequence, Reason: reason,
		Members: h.Members, Excluded: t.Excluded, Nos: t.Nos, At: n.o.Clock.Now().Unix(),
	}
	if _, err := n.o.Ledger.PutLog(ctx, log, n.o.Clock.Now()); err != nil {
		n.log.Warn("epoch log not written", "epoch", h.Epoch, "error", err)
	}
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

// mergeEarly keeps the membership of an early sweep with the votes of a later one: rule M3 switched off.
func mergeEarly(early, late []Member) []Member {
	now := map[string]Member{}
	for _, m := range late {
		now[m.Instance] = m
	}
	var out []Member
	for _, m := range early {
		if l, ok := now[m.Instance]; ok {
			m.Vote, m.Beat, m.Incarnation, m.Active, m.Failed = l.Vote, l.Beat, l.Incarnation, l.Active, l.Failed
		}
		out = append(out, m)
	}
	return out
}
