package fleet_test

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"s3pulldeploy/internal/fleet"
)

// tenant is one instance's view of the turn "room" of a shared table.
func (r *rig) tenant(id string, t fleet.Table) *fleet.Turn {
	return fleet.NewLedger(t, scope, r.token).Turn("room", id, bubbleClock{r.start})
}

func TestTurnIsHeldByOneAtATime(t *testing.T) {
	fleetTest(t, func(r *rig) {
		var inside, most, ran atomic.Int64
		done := make(chan struct{})
		for _, id := range ids(5) {
			l := r.tenant(id, r.mem)
			go func() {
				defer func() { done <- struct{}{} }()
				for {
					did, err := l.Try(r.t.Context(), func(context.Context) error {
						most.Store(max(most.Load(), inside.Add(1)))
						defer inside.Add(-1)
						time.Sleep(2 * time.Minute) // many renewals
						ran.Add(1)
						return nil
					})
					if err != nil {
						t.Error(err)
					}
					if did {
						return
					}
					time.Sleep(time.Second)
				}
			}()
		}
		for range ids(5) {
			<-done
		}
		if most.Load() != 1 || ran.Load() != 5 {
			t.Errorf("%d at a time, %d ran; want 1 and 5", most.Load(), ran.Load())
		}
	})
}

func TestTurnOfADeadHolderIsTakenAfterElevenTenthsOfALease(t *testing.T) {
	fleetTest(t, func(r *rig) {
		ctx, die := context.WithCancel(r.t.Context())
		cut := &cutTable{Table: r.mem}
		began := make(chan struct{})
		over := make(chan struct{})
		go func() {
			defer close(over)
			_, _ = r.tenant("dead", cut).Try(ctx, func(ctx context.Context) error {
				close(began)
				<-ctx.Done()
				return nil
			})
		}()
		<-began
		cut.off.Store(true)
		die()
		<-over
		heir, since := r.tenant("heir", r.mem), time.Now()
		for {
			ran, err := heir.Try(r.t.Context(), func(context.Context) error { return nil })
			if err != nil {
				t.Fatal(err)
			}
			if ran {
				break
			}
			time.Sleep(time.Second)
		}
		if took := time.Since(since); took < 33*time.Second || took > 35*time.Second {
			t.Errorf("taken over after %v, want 33 s", took)
		}
	})
}

func TestWorkUnderATurnEndsBeforeTheTurnLooksSilent(t *testing.T) {
	fleetTest(t, func(r *rig) {
		cut := &cutTable{Table: r.mem}
		since := time.Now()
		ran, err := r.tenant("a", cut).Try(r.t.Context(), func(ctx context.Context) error {
			cut.off.Store(true)
			<-ctx.Done()
			return context.Cause(ctx)
		})
		if !ran || !errors.Is(err, fleet.ErrTurnLost) {
			t.Errorf("ran %v, %v; want a lost turn", ran, err)
		}
		if took := time.Since(since); took > 20*time.Second {
			t.Errorf("the work ended %v after the last renewal; others take the lease after 33 s", took)
		}
	})
}

func TestOnesOwnEarlierLifeLosesTheTurnAtOnce(t *testing.T) {
	fleetTest(t, func(r *rig) {
		lost := make(chan error, 1)
		began := make(chan struct{})
		go func() {
			_, err := r.tenant("a", r.mem).Try(r.t.Context(), func(ctx context.Context) error {
				close(began)
				<-ctx.Done()
				return context.Cause(ctx)
			})
			lost <- err
		}()
		<-began
		ran, err := r.tenant("a", r.mem).Try(r.t.Context(), func(context.Context) error {
			time.Sleep(6 * time.Second) // the earlier life renews meanwhile
			return nil
		})
		if !ran || err != nil {
			t.Errorf("ran %v, %v", ran, err)
		}
		if err := <-lost; !errors.Is(err, fleet.ErrTurnLost) {
			t.Errorf("the earlier life ended with %v, want a lost turn", err)
		}
		synctest.Wait()
	})
}

// cutTable does not answer any more, and does nothing, once it is off.
type cutTable struct {
	fleet.Table
	off atomic.Bool
}

func (c *cutTable) Get(ctx context.Context, k fleet.Key, consistent bool) (fleet.Item, error) {
	if c.off.Load() {
		return nil, fleet.ErrUnavailable
	}
	return c.Table.Get(ctx, k, consistent)
}

func (c *cutTable) Write(ctx context.Context, k fleet.Key, w fleet.Write) (fleet.Item, error) {
	if c.off.Load() {
		return nil, fleet.ErrUnavailable
	}
	return c.Table.Write(ctx, k, w)
}
