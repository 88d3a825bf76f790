package fleet

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// ErrTurnLost is the cause of a [Turn]'s context that ended because the lease could not be renewed in time, or was taken.
var ErrTurnLost = errors.New("turn lost")

// turnGood is how long a holder believes in a lease after the start of the last request that renewed it: well before
// anybody else can have seen it stand still for 1.1 leases.
const turnGood = Lease / 2

// Turn lets one instance of a scope at a time do some work that only disturbs when several do it at once, such as
// making room in opcache. It is one item, (scope, "turn#"+name): `owner` (empty: free), `fence`, `beat`. No clock but each
// machine's own boot clock counts: a holder whose beat stands still for 1.1 leases under somebody's eyes is taken over.
//
// It saves work and spreads load; it is no safety condition of the protocol: a holder that is stopped in the middle and
// wakes up later finds its context ended, but not before it runs again. A Turn is not safe for concurrent use.
type Turn struct {
	ledger *Ledger
	name   string
	owner  string
	clock  Clock
	seen   turnItem
	since  time.Duration // when seen was first seen
}

type turnItem struct {
	owner       string
	fence, beat int64
}

// Turn returns the lock of a name as this owner (an instance id) sees it. It asks the table nothing.
func (l *Ledger) Turn(name, owner string, clock Clock) *Turn {
	return &Turn{ledger: l, name: name, owner: owner, clock: clock}
}

// Try takes the turn if it is free, runs work under it, and frees it. ran is false, without an error, when another instance
// holds it: call again later, at least every few seconds until it is free, since a dead holder is found out by calls that see it
// stand still for 33 s; one's own earlier life is replaced at once. The context of work ends with cause
// [ErrTurnLost] when the turn cannot be renewed; work must end soon then. err is of the table, or what work returned.
func (t *Turn) Try(ctx context.Context, work func(context.Context) error) (ran bool, err error) {
	asked := t.clock.Boot()
	held, err := t.take(ctx)
	if err != nil || held.owner == "" {
		return false, err
	}
	working, cancel := context.WithCancelCause(ctx)
	ended, kept := make(chan struct{}), make(chan turnItem, 1)
	go func() { kept <- t.keep(working, cancel, ended, held, asked) }()
	defer func() {
		close(ended)
		held := <-kept
		cancel(nil)
		err = errors.Join(err, t.free(ctx, held))
	}()
	return true, work(working)
}

// keep renews until the work has ended, and ends the work when it cannot.
func (t *Turn) keep(ctx context.Context, cancel context.CancelCauseFunc, ended <-chan struct{}, held turnItem, renewed time.Duration) turnItem {
	tick := time.NewTicker(renewEvery)
	defer tick.Stop()
	for {
		select {
		case <-ended:
			return held
		case <-ctx.Done():
			<-ended
			return held
		case <-tick.C:
		}
		asked := t.clock.Boot()
		next := turnItem{t.owner, held.fence, held.beat + 1}
		bounded, stop := context.WithTimeout(ctx, renewEvery)
		err := t.put(bounded, next, And{
			Compare{"owner", Eq, t.owner}, Compare{"fence", Eq, held.fence}, Compare{"beat", Lt, next.beat},
		})
		stop()
		held = next // also when nobody knows whether it landed: the next one must be above it
		switch {
		case err == nil:
			renewed = asked
		case errors.Is(err, ErrOvertaken) || t.clock.Boot()-renewed >= turnGood:
			cancel(fmt.Errorf("%w: %w", ErrTurnLost, err))
		}
	}
}

// take takes the lease over from nobody, from one's own earlier life, or from one who is silent; the owner of what it
// returns is empty when it is another's.
func (t *Turn) take(ctx context.Context) (turnItem, error) {
	it, err := t.ledger.table.Get(ctx, t.key(), true)
	if err != nil {
		return turnItem{}, wrap("read turn "+t.name, err)
	}
	d := decoder{item: it, what: "turn " + t.name}
	now := turnItem{d.str("owner"), d.num("fence"), d.num("beat")}
	if d.err != nil {
		return turnItem{}, d.err
	}
	if boot := t.clock.Boot(); now != t.seen {
		t.seen, t.since = now, boot
	}
	if other := now.owner != "" && now.owner != t.owner; other && t.clock.Boot()-t.since < silentSpan {
		return turnItem{}, nil
	}
	next := turnItem{t.owner, now.fence + 1, now.beat + 1}
	err = t.put(ctx, next, Or{
		Absent{"pk"},
		And{Compare{"owner", Eq, now.owner}, Compare{"fence", Eq, now.fence}, Compare{"beat", Eq, now.beat}},
	})
	if errors.Is(err, ErrOvertaken) {
		return turnItem{}, nil
	}
	if err != nil {
		return turnItem{}, err
	}
	return next, nil
}

// free gives the lease back, also after the end of ctx. What cannot be told is found out by the others.
func (t *Turn) free(ctx context.Context, held turnItem) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), renewEvery)
	defer cancel()
	err := t.put(ctx, turnItem{"", held.fence, held.beat + 1}, And{Compare{"owner", Eq, t.owner}, Compare{"fence", Eq, held.fence}})
	if errors.Is(err, ErrOvertaken) {
		return nil
	}
	return err
}

func (t *Turn) key() Key { return Key{t.ledger.scope, "turn#" + t.name} }

func (t *Turn) put(ctx context.Context, to turnItem, cond Cond) error {
	set := Item{"owner": to.owner, "fence": to.fence, "beat": to.beat, "schema": int64(Schema)}
	_, err := t.ledger.write(ctx, t.key(), Write{Set: set, If: cond})
	if refused := (*ConditionError)(nil); errors.As(err, &refused) {
		err = ErrOvertaken
	}
	return wrap("write turn "+t.name, err)
}
