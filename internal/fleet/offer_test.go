package fleet_test

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"time"

	"s3pulldeploy/internal/fleet"
	"s3pulldeploy/internal/table"
)

// fullDisk is a journal that saves only while there is room.
type fullDisk struct {
	full  bool
	saved fleet.State
}

func (d *fullDisk) Save(s fleet.State) error {
	if d.full {
		return errors.New("no space left")
	}
	d.saved = s
	return nil
}

func TestPointerIsNotTakenBeforeItsFloorIsDurable(t *testing.T) {
	d := &fullDisk{full: true}
	n := fleet.NewNode(fleet.Options{
		Scope: scope, Instance: "i-1", Ledger: fleet.NewLedger(table.NewMemory(), scope, func() string { return "t" }),
		Journal: d, Clock: bubbleClock{time.Now()}, Random: func() float64 { return 0 }, Log: slog.New(slog.DiscardHandler),
	})
	pointer := []byte("r1\n1000\n3")
	for range 2 {
		if err := n.Offer(pointer, time.Now()); err == nil {
			t.Error("taken, although its floor could not be saved")
		}
	}
	d.full = false
	if err := n.Offer(pointer, time.Now()); err != nil || d.saved.Floor != 1000 {
		t.Errorf("%v; the saved floor is %d, want 1000", err, d.saved.Floor)
	}
	if err := n.Offer([]byte("r0\n999\n3"), time.Now()); !errors.Is(err, fleet.ErrStale) {
		t.Errorf("an older one: %v", err)
	}
}

// ended is a table whose requests end with their context.
type ended struct{ fleet.Table }

func (ended) Get(ctx context.Context, _ fleet.Key, _ bool) (fleet.Item, error) {
	return nil, ctx.Err()
}

func TestEndOfTheLoopIsNoProblemOfTheTable(t *testing.T) {
	n := fleet.NewNode(fleet.Options{
		Scope: scope, Instance: "i-1", Ledger: fleet.NewLedger(ended{table.NewMemory()}, scope, func() string { return "t" }),
		Journal: &fullDisk{}, Clock: bubbleClock{time.Now()}, Random: func() float64 { return 0 }, Log: slog.New(slog.DiscardHandler),
	})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	n.Step(ctx)
	if v := n.View(); len(v.Problems) > 0 || v.HaveHead {
		t.Errorf("problems %v", v.Problems)
	}
}
