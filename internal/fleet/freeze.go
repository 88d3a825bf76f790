package fleet

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// clockTrust is how far an agent's clock may be off the table's for it to say that a freeze is over.
const clockTrust = 60 * time.Second

// Over says whether the freeze has ended by a clock.
func (f *Freeze) Over(now time.Time) bool { return f.Until > 0 && now.Unix() >= f.Until }

// String says who froze the site, until when and why.
func (f *Freeze) String() string {
	until := "until it is lifted"
	if f.Until > 0 {
		until = "until " + time.Unix(f.Until, 0).UTC().Format(time.RFC3339)
	}
	return fmt.Sprintf("by %s %s: %s", f.By, until, f.Why)
}

// Freeze stops new epochs and waves of the site until it is lifted or over. Condition: the head is at the epoch that was read.
func (l *Ledger) Freeze(ctx context.Context, h Head, f Freeze) (Head, error) {
	return l.Request(ctx, h, Item{"frozen": Item{"by": cut(f.By), "why": cut(f.Why), "until": f.Until}})
}

// Thaw lifts the freeze that h shows. Condition: nothing was written to the head since it was read, so that a freeze which
// somebody has just made is not lifted in its place; fails with [ErrOvertaken] then.
func (l *Ledger) Thaw(ctx context.Context, h Head) (Head, error) {
	return l.writeHead(ctx, "lift the freeze", Write{
		Set: Item{}, Remove: []string{"frozen"}, If: And{Compare{"epoch", Eq, h.Epoch}, Compare{"token", Eq, h.Token}},
	})
}

// thaw lifts a freeze whose time is over, if this clock and the table's agree on what time it is.
func (n *Node) thaw(ctx context.Context) {
	f, now := n.head.Frozen, n.o.Clock.Now()
	if f == nil || !f.Over(now) {
		n.thawAt = 0
		n.problem("freeze", false, "")
		return
	}
	var date time.Time
	if n.o.TableDate != nil {
		date = n.o.TableDate()
	}
	if off := now.Sub(date).Abs(); date.IsZero() || off > clockTrust {
		n.problem("freeze", true, "its time is over by this clock, which is too far from the table's to be believed")
		return
	}
	if n.thawAt == 0 {
		n.thawAt = n.now + 1 + time.Duration(n.o.Random()*float64(spread(int(n.head.Members))))
	}
	if n.now < n.thawAt {
		return
	}
	n.thawAt = 0
	h, err := n.o.Ledger.Thaw(ctx, n.head)
	overtaken := errors.Is(err, ErrOvertaken)
	if overtaken {
		err = nil
	}
	if n.note("table", err) && h.Epoch > 0 {
		n.observe(h, true, true)
		if !overtaken {
			n.log.Info("freeze is over", "was", f.String())
		}
	}
}
