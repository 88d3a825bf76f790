package fleet_test

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"s3pulldeploy/internal/fleet"
	"s3pulldeploy/internal/table"
)

// ask is a request of push.
func (r *rig) ask(set fleet.Item, remove ...string) {
	r.t.Helper()
	if _, err := fleet.NewLedger(r.mem, scope, r.token).Request(r.t.Context(), r.head(), set, remove...); err != nil {
		r.t.Fatal(err)
	}
}

// slowed has r2 under way, slow on one machine, and pushes r3, held by `push -abort` before any agent has seen it.
func (r *rig) slowed() (held int64) {
	r.boot(ids(3)...)
	r.push("r1")
	r.live("r1", 40*time.Second, ids(3)...)
	r.all["i-00"].set(func() { r.all["i-00"].stageTime = 20 * time.Second })
	r.push("r2")
	r.until("open", 10*time.Second, func() bool { return r.head().State.Open() && r.head().Release == "r2" })
	held = max(r.seq+1, time.Now().Unix())
	r.ask(fleet.Item{"hold": held})
	if s := r.push("r3"); s != held {
		r.t.Fatalf("r3 is %d, and %d is held", s, held)
	}
	return held
}

func TestHeldPushDoesNotSupersedeAnOpenEpoch(t *testing.T) {
	fleetTest(t, func(r *rig) {
		held := r.slowed()
		r.live("r2", time.Minute, ids(3)...)
		time.Sleep(time.Hour)
		if h := r.head(); h.Epoch != 2 || h.Hold != held {
			t.Errorf("head %+v", h)
		}
		r.ask(fleet.Item{"again": held, "hint": held})
		r.live("r3", time.Minute, ids(3)...)
	})
}

func TestHoldOfANewerPushDoesNotLiftThatOfAnOlder(t *testing.T) {
	fleetTest(t, func(r *rig) {
		r.boot(ids(3)...)
		r.push("r1")
		r.live("r1", 40*time.Second, ids(3)...)
		held := max(r.seq+1, time.Now().Unix())
		r.ask(fleet.Item{"hold": held})
		r.push("r2")
		r.ask(fleet.Item{"hold": held + 1}) // and no agent has read that one yet
		time.Sleep(time.Hour)
		if h := r.head(); h.Epoch != 1 {
			t.Errorf("head %+v", h)
		}
		r.ask(fleet.Item{"again": held + 1, "hint": held + 1})
		time.Sleep(time.Hour)
		if h := r.head(); h.Epoch != 1 {
			t.Errorf("the newer one is tried again, and the older one went live: %+v", h)
		}
	})
}

// Between reading the head and opening, a person may hold what is about to be opened, and then a newer one as well.
func TestOpenIsRefusedWhereAHoldCameAfterTheHeadWasRead(t *testing.T) {
	fleetTest(t, func(r *rig) {
		r.boot("i-00")
		r.push("r1")
		r.live("r1", 40*time.Second, "i-00")
		r.all["i-00"].kill()
		l, read := fleet.NewLedger(r.mem, scope, r.token), r.head()
		note, err := fleet.NewNote(fmt.Appendf(nil, "r2\n%d\n3", read.Sequence+1))
		if err != nil {
			t.Fatal(err)
		}
		r.ask(fleet.Item{"hold": read.Sequence + 2})
		if h, err := l.Open(t.Context(), read, note, "i-00", false); !errors.Is(err, fleet.ErrOvertaken) || h.Hold != read.Sequence+2 {
			t.Errorf("head %+v, %v", h, err)
		}
		if h, err := l.Open(t.Context(), r.head(), note, "i-00", false); err != nil || h.Epoch != 2 {
			t.Errorf("as it stands now: %+v, %v", h, err)
		}
	})
}

// Who asks for a push once more and then holds it again leaves the hold as it was, but for what they had asked.
func TestOpenIsRefusedWhereARetryWasTakenBackAfterTheHeadWasRead(t *testing.T) {
	n := 0
	l := fleet.NewLedger(table.NewMemory(), scope, func() string { n++; return itoa(int64(n)) })
	must := func(h fleet.Head, err error) fleet.Head {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return h
	}
	note, err := fleet.NewNote([]byte("r1\n100\n3"))
	if err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	h := must(l.Open(ctx, fleet.Head{}, note, "i-1", false))
	h = must(l.Decide(ctx, h, fleet.Outcome{Reason: "no", Now: time.Unix(1000, 0)}))
	read := must(l.Request(ctx, h, fleet.Item{"again": note.Sequence}))
	must(l.Request(ctx, read, fleet.Item{"hold": note.Sequence}, "again", "retry_at"))
	if _, err := l.Open(ctx, read, note, "i-1", false); !errors.Is(err, fleet.ErrOvertaken) {
		t.Errorf("opened, although it was held again: %v", err)
	}
}

func TestAbortDoesNotLiftTheHoldOfANewerPush(t *testing.T) {
	fleetTest(t, func(r *rig) {
		held := r.slowed()
		r.all["i-00"].set(func() { r.all["i-00"].refuse = errBroken })
		r.until("aborted", time.Minute, func() bool { return r.head().State == fleet.Abort })
		r.all["i-00"].set(func() { r.all["i-00"].refuse = nil })
		time.Sleep(time.Hour)
		if h := r.head(); h.Epoch != 2 || h.Hold != held || h.CommittedRelease != "r1" {
			t.Errorf("head %+v", h)
		}
	})
}
