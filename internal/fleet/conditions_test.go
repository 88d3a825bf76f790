package fleet_test

import (
	"context"
	"testing"
	"time"

	"s3pulldeploy/internal/fleet"
	"s3pulldeploy/internal/release"
	"s3pulldeploy/internal/table"
)

// recorder keeps the conditions of all writes of the head.
type recorder struct {
	*table.Memory
	conds []fleet.Cond
}

func (r *recorder) Write(ctx context.Context, k fleet.Key, w fleet.Write) (fleet.Item, error) {
	if k.Sort == "head" {
		r.conds = append(r.conds, w.If)
	}
	return r.Memory.Write(ctx, k, w)
}

// names says whether a condition holds only where there is no head, or one of that epoch.
func names(c fleet.Cond, epoch int64) bool {
	switch c := c.(type) {
	case fleet.Absent:
		return c.Attr == "pk"
	case fleet.Compare:
		return c == fleet.Compare{Attr: "epoch", Op: fleet.Eq, Value: epoch}
	case fleet.And:
		for _, part := range c {
			if names(part, epoch) {
				return true
			}
		}
	case fleet.Or:
		for _, part := range c {
			if !names(part, epoch) {
				return false
			}
		}
		return len(c) > 0
	}
	return false
}

// I4: whoever writes the head says which epoch it believes in.
func TestEveryWriteOfTheHeadNamesTheEpochItBelievesIn(t *testing.T) {
	const epoch = 7
	h := fleet.Head{Epoch: epoch, State: fleet.Commit, Sequence: 100, Release: "r1", Digest: "d", Fence: 3, Beat: 9, Token: "t"}
	aborted := h
	aborted.State = fleet.Abort
	note, err := fleet.NewNote([]byte("r2\n200\n3"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, now := t.Context(), time.Unix(1000, 0)
	writes := map[string]func(*fleet.Ledger) (fleet.Head, error){
		"Open":          func(l *fleet.Ledger) (fleet.Head, error) { return l.Open(ctx, h, note, "i-1", true) },
		"Open rollback": func(l *fleet.Ledger) (fleet.Head, error) { return l.Open(ctx, h, rollbackOf(note), "i-1", false) },
		"GoBack":        func(l *fleet.Ledger) (fleet.Head, error) { return l.GoBack(ctx, h, note, "i-1", "why") },
		"GoBack again":  func(l *fleet.Ledger) (fleet.Head, error) { return l.GoBack(ctx, aborted, note, "i-1", "why") },
		"TakeOver":      func(l *fleet.Ledger) (fleet.Head, error) { return l.TakeOver(ctx, h, "i-1") },
		"Renew":         func(l *fleet.Ledger) (fleet.Head, error) { return l.Renew(ctx, h, "") },
		"Decide commit": func(l *fleet.Ledger) (fleet.Head, error) {
			return l.Decide(ctx, h, fleet.Outcome{Commit: true, Now: now})
		},
		"Decide abort": func(l *fleet.Ledger) (fleet.Head, error) { return l.Decide(ctx, h, fleet.Outcome{Bad: true, Now: now}) },
		"Raise":        func(l *fleet.Ledger) (fleet.Head, error) { return l.Raise(ctx, h, h, time.Second, now) },
		"Once":         func(l *fleet.Ledger) (fleet.Head, error) { return l.Once(ctx, h, "ok 100") },
		"Done":         func(l *fleet.Ledger) (fleet.Head, error) { return l.Done(ctx, h, true, "") },
		"Request":      func(l *fleet.Ledger) (fleet.Head, error) { return l.Request(ctx, h, fleet.Item{"hint": int64(200)}) },
		"Hold":         func(l *fleet.Ledger) (fleet.Head, error) { return l.Hold(ctx, h, 200) },
		"Freeze":       func(l *fleet.Ledger) (fleet.Head, error) { return l.Freeze(ctx, h, fleet.Freeze{By: "me"}) },
		"Thaw":         func(l *fleet.Ledger) (fleet.Head, error) { return l.Thaw(ctx, h) },
		"Reseed":       func(l *fleet.Ledger) (fleet.Head, error) { return l.Reseed(ctx, h, nil, note, now) },
	}
	for name, write := range writes {
		r := &recorder{Memory: table.NewMemory()}
		_, _ = write(fleet.NewLedger(r, scope, func() string { return "token" }))
		if len(r.conds) != 1 || !names(r.conds[0], epoch) {
			t.Errorf("%s: written on %+v, which does not name epoch %d", name, r.conds, epoch)
		}
	}
}

func rollbackOf(n fleet.Note) fleet.Note {
	n.Pointer = release.Pointer{Release: n.Pointer.Release, Sequence: n.Sequence, Kind: fleet.KindRollback}
	return n
}
