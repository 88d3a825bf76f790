package fleet

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"s3pulldeploy/internal/failpoint"
	"s3pulldeploy/internal/weak"
)

type stand struct {
	epoch, fence, beat int64
	since              time.Duration
}

// readHead reads the head when it is due, and keeps the newest.
func (n *Node) readHead(ctx context.Context) {
	if n.now < n.headAt {
		return
	}
	strong := n.strong
	n.headRead = n.now
	h, ok, err := n.o.Ledger.Head(ctx, strong && weak.Rule != "M6")
	n.headAt = n.now + n.headEvery()
	if !n.note("table", err) {
		n.headAt = n.now + n.backOff(n.headEvery(), n.headFailed)
		n.headFailed++
		return
	}
	n.headFailed = 0
	n.touch()
	n.observe(h, ok, strong)
	if strong || !n.strong { // else observe asks for a strong read at once
		n.headAt = n.now + n.headEvery()
	}
}

// mostBackOff is the longest wait between requests that fail: a fleet that is throttled must not keep itself so, and one
// that finds the table back must not be late.
const mostBackOff = 4 * time.Second

// backOff is the wait before a request that failed so often before is made again: its own pace at first, then longer, and
// never that of all others.
func (n *Node) backOff(pace time.Duration, failed int) time.Duration {
	wait := max(pace, min(pace<<min(failed, 8), mostBackOff))
	return wait/2 + time.Duration(n.o.Random()*float64(wait/2))
}

// observe takes an answer about the head. An older one than was seen is ignored (I15); if a strong read insists, the
// table was lost or restored.
func (n *Node) observe(h Head, ok, strong bool) {
	older := n.haveHead && (!ok || h.Older(n.head)) || h.Epoch < n.state.Epoch
	if !strong && n.haveHead && ok {
		older = older || h.stale(n.head)
	}
	if strong {
		n.everRead, n.lost, n.strong = true, older, older
		n.strongReads++
		n.problem("head lost", older, fmt.Sprintf(
			"head lost: the table's head is at epoch %d, the fleet has seen a later one (here: %d); push -init mends it", h.Epoch, n.state.Epoch))
	} else if older {
		n.strong, n.headAt = true, 0
	}
	if !ok || older {
		return
	}
	if h.State != n.head.State || h.Epoch != n.head.Epoch {
		n.log.Info("head", "epoch", h.Epoch, "state", string(h.State), "release", string(h.Release), "reason", h.Reason)
		n.openAt = 0
		n.dirty = n.dirty || h.Epoch != n.head.Epoch // whoever was taken for silent shows that it lives
	}
	if at := (stand{h.Epoch, h.Fence, h.Beat, 0}); at != (stand{n.stood.epoch, n.stood.fence, n.stood.beat, 0}) {
		at.since = n.o.Clock.Boot()
		n.stood, n.takeAt = at, 0
	}
	if h.Hint > n.head.Hint {
		n.hintAt = n.now
	}
	n.head, n.haveHead = h, true
	n.remember(h)
}

// remember keeps the newest epoch and the bad sequences durably; a save that fails is made up for by the next.
func (n *Node) remember(h Head) {
	news := h.Epoch > n.state.Epoch
	n.state.Epoch = max(n.state.Epoch, h.Epoch)
	for _, s := range h.Bad {
		if !contains(n.state.Bad, s) {
			n.state.Bad, news = append(n.state.Bad, s), true
		}
	}
	n.state.Bad = n.state.Bad[max(0, len(n.state.Bad)-2*badKept):]
	if news {
		_ = n.save()
	}
}

// vet compares the head with what all members report, before this node relies on it for the first time and before it opens
// an epoch: a row that knows a later epoch means that the table was lost or restored.
func (n *Node) vet(ctx context.Context) bool {
	rows, err := n.o.Ledger.Members(ctx)
	if !n.note("table", err) {
		return false
	}
	newest, who := newestOf(rows)
	if newest > n.head.Epoch { // or the head went on since it was read
		h, ok, err := n.o.Ledger.Head(ctx, true)
		if !n.note("table", err) {
			return false
		}
		n.observe(h, ok, true)
		if newest > h.Epoch {
			n.log.Error("head lost", "epoch", h.Epoch, "reported", newest, "by", who)
			n.state.Epoch = newest // what this agent knows of, too, from now on
			n.observe(h, ok, true)
			return false
		}
	}
	n.vetted, n.rows = true, rows
	return true
}

func newestOf(rows []Member) (epoch int64, who string) {
	for _, m := range rows {
		if e := m.Newest(); e > epoch {
			epoch, who = e, m.Instance
		}
	}
	return epoch, who
}

// Offer takes the pointer as it was read, with S3's Date (zero when unknown), and the newest sequence that the fleet had when the
// read began ([Node.Newest]): S3 shows no older one, whoever replays one does. A pointer that must not be acted on is an error,
// which the row shows to all, and changes nothing.
func (n *Node) Offer(text []byte, date time.Time, had int64) error {
	err := n.offer(text, date)
	if err == nil && n.state.Floor < had {
		err = fmt.Errorf("pointer of sequence %d is older than %d, which the fleet has run: %w", n.state.Floor, had, ErrStale)
	}
	was := n.refused
	n.refused = ""
	if err != nil {
		n.refused = err.Error()
	}
	n.dirty = n.dirty || n.refused != was
	return err
}

// Newest is the highest sequence that the fleet has opened an epoch for, as far as this node knows.
func (n *Node) Newest() int64 { return n.head.Sequence }

func (n *Node) offer(text []byte, date time.Time) error {
	if err := failpoint.Hit("A2"); err != nil {
		return err
	}
	note, err := n.o.Ledger.Verify(text)
	if err != nil {
		return err
	}
	sum := hexSum(text)
	if date.IsZero() {
		date = n.o.Clock.Now()
	}
	p := note.Pointer
	switch {
	case p.Sequence < n.state.Floor:
		return fmt.Errorf("pointer of sequence %d is older than %d, which was seen before: %w", p.Sequence, n.state.Floor, ErrStale)
	case p.Sequence == n.state.Floor && n.state.FloorSum != "" && sum != n.state.FloorSum:
		return fmt.Errorf("pointer of sequence %d has other contents than before: %w", p.Sequence, ErrEquivocation)
	case n.notes[p.Sequence] != nil && !bytes.Equal(n.notes[p.Sequence].Text, text): // who is new here has no floor, but the fleet's note
		return fmt.Errorf("pointer of sequence %d has other contents than the fleet's: %w", p.Sequence, ErrEquivocation)
	case p.Sequence > date.Add(maxAhead).Unix():
		return fmt.Errorf("pointer of sequence %d is more than %v ahead of %s", p.Sequence, maxAhead, date.UTC().Format(time.RFC3339))
	}
	if p.Sequence > n.state.Floor {
		was, wasSum := n.state.Floor, n.state.FloorSum
		n.state.Floor, n.state.FloorSum = p.Sequence, sum
		if err := n.save(); err != nil {
			n.state.Floor, n.state.FloorSum = was, wasSum
			return err
		}
	}
	if n.offered == nil || n.offered.Sequence != note.Sequence {
		n.offered, n.inspected, n.openAt, n.inspectAt = &note, nil, 0, 0
		n.note("pointer", nil) // what was wrong with the one before
	}
	return nil
}

// ErrStale is a pointer below the floor: a replay, or a pusher whose clock is behind.
var ErrStale = errors.New("stale pointer")

// PointerWanted says that the head hints at a newer pointer than was read.
func (n *Node) PointerWanted() bool {
	return n.haveHead && n.head.Hint > n.state.Floor && n.head.Hint > n.head.Sequence
}

// hintTime is how long S3 may take to show a pointer that push has announced: until then agents look closely.
const hintTime = 30 * time.Second

// doubt shows a pointer that was announced and does not come: S3 answers with an old one, or somebody keeps it from this machine. What
// kept this machine from inspecting a pointer is over when another has opened an epoch for it.
func (n *Node) doubt() {
	if o := n.offered; o != nil && o.Sequence <= n.head.Sequence && n.head.State != Abort {
		n.note("pointer", nil)
	}
	n.problem("hint", n.PointerWanted() && n.now-n.hintAt >= hintTime, fmt.Sprintf(
		"push has announced sequence %d, S3 still shows %d", n.head.Hint, n.state.Floor))
}

// Opening says that this node is about to open an epoch for a pointer that it read.
func (n *Node) Opening() bool { return n.offered != nil && !n.lost && n.mayOpen(*n.offered) }

// Empty says that nothing was ever committed here or in the fleet: a first push is waited for.
func (n *Node) Empty() bool { return n.head.CommittedEpoch == 0 && n.state.Decision.Epoch == 0 }

// target is what the fleet has decided to run.
func (n *Node) target() Commitment {
	if h := n.head; h.State == Commit || h.State == Done {
		return h.Proposed()
	}
	return n.head.Committed()
}

// headEvery is H while an epoch is open or a hint says that one will be, else the poll interval.
func (n *Node) headEvery() time.Duration {
	if n.haveHead && n.head.State.Open() || n.PointerWanted() && n.now-n.hintAt < hintTime {
		return min(n.o.PollInterval, HeadInterval(int(n.head.Members)))
	}
	return n.o.PollInterval
}

func hexSum(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}
