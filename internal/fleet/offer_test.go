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
		if err := n.Offer(pointer, time.Now(), 0); err == nil {
			t.Error("taken, although its floor could not be saved")
		}
	}
	d.full = false
	if err := n.Offer(pointer, time.Now(), 0); err != nil || d.saved.Floor != 1000 {
		t.Errorf("%v; the saved floor is %d, want 1000", err, d.saved.Floor)
	}
	if err := n.Offer([]byte("r0\n999\n3"), time.Now(), 0); !errors.Is(err, fleet.ErrStale) {
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

// Whoever keeps a new pointer from an agent keeps it on an old release: that must not go unnoticed.
func TestAPointerThatWasAnnouncedAndDoesNotComeIsShown(t *testing.T) {
	fleetTest(t, func(r *rig) {
		r.boot("i-1")
		r.push("r1")
		r.live("r1", time.Minute, "i-1")
		sees := func() string { return r.all["i-1"].see().Problems["hint"] }
		shown := r.text
		r.push("r2")
		r.mu.Lock()
		announced := r.text
		r.text = shown // S3 goes on with the old one
		r.mu.Unlock()
		if took := r.until("the problem", time.Minute, func() bool { return sees() != "" }); took < 25*time.Second {
			t.Errorf("shown after %v: S3 may take a moment", took)
		}
		r.mu.Lock()
		r.text = announced
		r.mu.Unlock()
		r.live("r2", time.Minute, "i-1")
		if text := sees(); text != "" {
			t.Errorf("still shown when it is over: %s", text)
		}
	})
}

func TestWhatKeptAMachineFromInspectingEndsWhenAnotherHasOpened(t *testing.T) {
	fleetTest(t, func(r *rig) {
		r.boot(ids(2)...)
		r.push("r1")
		r.live("r1", 40*time.Second, ids(2)...)
		for _, b := range r.all {
			b.set(func() { b.unseen = errors.New("list objects: S3 unavailable") })
		}
		r.push("r2")
		r.until("both say so", 5*time.Second, func() bool {
			return r.all["i-00"].see().Problems["pointer"] != "" && r.all["i-01"].see().Problems["pointer"] != ""
		})
		r.all["i-01"].set(func() { r.all["i-01"].unseen = nil })
		r.live("r2", time.Minute, ids(2)...)
		if p := r.all["i-00"].see().Problems; len(p) > 0 {
			t.Errorf("it serves what was pushed, and says %v", p)
		}
	})
}
