package fleet

import (
	"context"
	"errors"
	"fmt"
	"time"

	"s3pulldeploy/internal/release"
	"s3pulldeploy/internal/weak"
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
	swept, lap       time.Duration // when the rows were last read, and how long after the time before that
	failed           int           // sweeps in a row
	tally            Tally
	waits            string        // what it waits for, as the head is to show it
	healthy          bool          // all that the wave has reached are, since
	baking           time.Duration // then
	early            []Member      // weakened builds only: a sweep from before the opening
}

// stand lets the time since the sweep before this one not count: nobody is waited for.
func (c *coordination) stand() { c.since += c.lap }

func (n *Node) lead(h Head, s *Silence) {
	n.coord = &coordination{epoch: h.Epoch, fence: h.Fence, since: n.now, swept: n.now, silence: s, renewAt: n.now + renewEvery}
	n.observe(h, true, false)
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
	if n.now >= c.renewAt || c.waits != n.head.Waits && n.head.State.Open() {
		c.renewAt = n.now + renewEvery
		h, err := n.o.Ledger.Renew(ctx, n.head, c.waits)
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
	c.lap, c.swept = n.now-c.swept, n.now
	c.sweepAt = n.now + HeadInterval(int(n.head.Members))
	rows, err := n.o.Ledger.Members(ctx)
	if !n.note("table", err) {
		c.sweepAt = n.now + n.backOff(HeadInterval(int(n.head.Members)), c.failed)
		c.failed++
		return // a partial sweep counts for nothing
	}
	c.failed = 0
	if weak.Rule == "M3" && c.early != nil {
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
	if c := n.coord; errors.Is(err, ErrOvertaken) && h.Epoch == c.epoch && h.Fence == c.fence {
		n.observe(h, true, true) // still ours: it was frozen meanwhile
		return false
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

// decide judges a sweep of an open epoch, and writes the decision, or begins the next wave, when it is time to.
func (n *Node) decide(ctx context.Context, rows []Member) {
	c, h := n.coord, n.head
	silent := func(m Member) bool { return c.silence.Silent(m) || m.Phase != Serve && n.still(m) }
	c.tally = Count(h, rows, silent)
	o := Outcome{Now: n.o.Clock.Now(), Members: c.tally.Members, Excluded: len(c.tally.Excluded)}
	guard, err := n.guard(ctx)
	if err != nil {
		if o.Reason = n.blind(err); o.Reason != "" {
			if o.Reason != reasonByHand {
				o.Retry = retryAfter(h)
			}
			n.conclude(ctx, o, rows)
		}
		return
	}
	ruling := c.tally.Rule(guard)
	wave := n.watchWave(h, rows, guard)
	c.waits = wave.waits
	busy, failed := n.watchOnce(ctx, h, rows)
	if n.coord == nil {
		return
	}
	switch {
	case h.byHand():
		o.Reason = reasonByHand
	case failed != "":
		o.Reason = failed
	case busy:
		c.stand()
		return
	case n.superseded():
		o.Reason = reasonSuperseded
	case wave.spoilt:
		o.Reason, o.Bad = wave.reason, true
	case ruling == Refuse:
		o.Reason = c.tally.Refused
	case ruling == TooMany:
		o.Reason, o.Retry = c.tally.tooMany(), retryAfter(h)
	case ruling == Go && h.Frozen != nil && h.Kind != KindRollback:
		c.waits = "frozen " + h.Frozen.String()
		c.stand() // it goes on when the freeze is over
		return
	case ruling == Go && !wave.unhealthy:
		c.stand() // nobody is waited for but the bake and a person
		if m := n.onceDue(h, rows); m != nil {
			n.beginOnce(ctx, m)
			return
		}
		if !n.goOn(ctx, rows, &o) {
			return
		}
	case n.now-c.since >= n.o.PrepareTimeout:
		o.Reason, o.Bad, o.Retry = n.timedOut(), wave.failed, retryAfter(h)
		if wave.unhealthy {
			o.Reason = wave.reason
		}
	default:
		return
	}
	n.conclude(ctx, o, rows)
}

// byHand says that a person wants the epoch aborted.
func (h Head) byHand() bool { return h.Hold == h.Sequence && h.Again != h.Sequence }

// blind is why an epoch whose note cannot be read is aborted all the same; "" while the next sweep is to read again.
func (n *Node) blind(err error) string {
	switch {
	case n.head.byHand():
		return reasonByHand
	case n.now-n.coord.since >= n.o.PrepareTimeout:
		return fmt.Sprintf("timed out after %v: %v", n.o.PrepareTimeout, err)
	}
	return ""
}

// conclude writes the decision.
func (n *Node) conclude(ctx context.Context, o Outcome, rows []Member) {
	c, h := n.coord, n.head
	o.FlipDelay = FlipDelay(len(rows) - lostOf(rows))
	if !n.fenced(n.o.Ledger.Decide(ctx, h, o)) {
		return
	}
	n.log.Info("decided", "epoch", h.Epoch, "commit", o.Commit, "reason", o.Reason, "yes", len(c.tally.Yes), "excluded", len(c.tally.Excluded))
	n.countMissed(ctx)
	if o.Commit {
		c.since, c.sweepAt = n.now, n.now+o.FlipDelay
		return
	}
	outcome := string(Abort)
	if o.Bad {
		outcome = RolledBack
	}
	n.writeLog(ctx, n.head, c.tally, outcome, o.Reason)
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

// superseded says that a newer pointer is waiting, and may open; one epoch after a superseded one is let through, and so is a rollback that
// the fleet began by itself: what is served is broken, and the newer release is not known to be the cure.
func (n *Node) superseded() bool {
	return !n.head.Automatic() && n.offered != nil && n.offered.Sequence > n.head.Sequence && n.head.Superseded == 0 && n.welcome(*n.offered)
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

// guard is the pointer's max_excluded, or the default where that says nothing. A rollback that the fleet began by itself waits
// for nobody who is ill. On an error nothing is known that anybody could be judged by.
func (n *Node) guard(ctx context.Context) (Guard, error) {
	if n.head.Automatic() {
		return Guard{release.Share{N: 100, Percent: true}}, nil
	}
	note, err := n.noteOf(ctx, n.head.Sequence)
	if err != nil {
		return Guard{}, err
	}
	g, err := ParseGuard(note.Pointer.Policy.MaxExcluded)
	if err != nil {
		g, _ = ParseGuard("")
	}
	return g, nil
}
