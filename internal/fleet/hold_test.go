package fleet_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
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

// hold is push -abort of a sequence.
func (r *rig) hold(sequence int64) {
	r.t.Helper()
	if _, err := fleet.NewLedger(r.mem, scope, r.token).Hold(r.t.Context(), r.head(), sequence); err != nil {
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
	r.hold(held)
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
		r.hold(held)
		r.push("r2")
		r.hold(held + 1) // and no agent has read that one yet
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
		r.hold(read.Sequence + 2)
		if h, err := l.Open(t.Context(), read, note, "i-00", false); !errors.Is(err, fleet.ErrOvertaken) || h.Hold != read.Sequence+2 {
			t.Errorf("head %+v, %v", h, err)
		}
		if h, err := l.Open(t.Context(), r.head(), note, "i-00", false); err != nil || h.Epoch != 2 {
			t.Errorf("as it stands now: %+v, %v", h, err)
		}
	})
}

// book is a ledger of its own, whose head r1 is committed of, as sequence 100, and the good one.
type book struct {
	*fleet.Ledger
	t *testing.T
}

func newBook(t *testing.T) (*book, fleet.Head) {
	n := 0
	b := &book{fleet.NewLedger(table.NewMemory(), scope, func() string { n++; return itoa(int64(n)) }), t}
	h := b.commit(b.opened(fleet.Head{}, b.note("r1", 100)))
	return b, b.must(b.Done(t.Context(), h, true, ""))
}

func (b *book) must(h fleet.Head, err error) fleet.Head {
	b.t.Helper()
	if err != nil {
		b.t.Fatal(err)
	}
	return h
}

func (b *book) note(id string, sequence int64) fleet.Note {
	n, err := fleet.NewNote(fmt.Appendf(nil, "%s\n%d\n3", id, sequence))
	if err != nil {
		b.t.Fatal(err)
	}
	return n
}

func (b *book) opened(h fleet.Head, n fleet.Note) fleet.Head {
	b.t.Helper()
	return b.must(b.Open(b.t.Context(), h, n, "i-1", false))
}

func (b *book) commit(h fleet.Head) fleet.Head {
	b.t.Helper()
	return b.must(b.Decide(b.t.Context(), h, fleet.Outcome{Commit: true, Now: time.Unix(1000, 0)}))
}

// held is the head after an abort for good, with no more tries.
func (b *book) held(h fleet.Head) fleet.Head {
	b.t.Helper()
	return b.must(b.Decide(b.t.Context(), h, fleet.Outcome{Reason: "no", Now: time.Unix(1000, 0)}))
}

func (b *book) goBack(h fleet.Head) (fleet.Head, error) {
	return b.GoBack(b.t.Context(), h, b.note("r1", 100), "i-1", "it fails")
}

// again and abort are push -retry and push -abort.
func (b *book) again(h fleet.Head, sequence int64) fleet.Head {
	b.t.Helper()
	return b.must(b.Request(b.t.Context(), h, fleet.Item{"again": sequence}))
}

func (b *book) abort(h fleet.Head, sequence int64) fleet.Head {
	b.t.Helper()
	return b.must(b.Hold(b.t.Context(), h, sequence))
}

// Who asks for a push once more and then holds it again leaves the hold as it was, but for what they had asked.
func TestOpenIsRefusedWhereARetryWasTakenBackAfterTheHeadWasRead(t *testing.T) {
	b, h := newBook(t)
	r2 := b.note("r2", 200)
	read := b.again(b.held(b.opened(h, r2)), 200)
	b.abort(read, 200)
	if _, err := b.Open(t.Context(), read, r2, "i-1", false); !errors.Is(err, fleet.ErrOvertaken) {
		t.Errorf("opened, although it was held again: %v", err)
	}
}

// An opener that has found a commit healthy, and whose coordinator ends it as one that is not.
func TestOpenDoesNotCallACommitGoodThatEndedUnhealthyAfterTheHeadWasRead(t *testing.T) {
	b, h := newBook(t)
	read := b.commit(b.opened(h, b.note("r2", 200)))
	done := b.must(b.Done(t.Context(), read, false, "2 of 3 failed after the flip"))
	r3 := b.note("r3", 300)
	if h, err := b.Open(t.Context(), read, r3, "i-1", true); !errors.Is(err, fleet.ErrOvertaken) || h.Good.Release != "r1" {
		t.Errorf("head %+v, %v", h, err)
	}
	if h, err := b.Open(t.Context(), done, r3, "i-1", false); err != nil || h.Good.Release != "r1" {
		t.Errorf("as it stands now: %+v, %v", h, err)
	}
}

// A rollback takes the hold of its own sequence away, and only that: a newer push may be held while an agent is about to open it.
func TestGoBackIsRefusedWhereAHoldCameAfterTheHeadWasRead(t *testing.T) {
	for name, readBy := range map[string]func(*book, fleet.Head) fleet.Head{
		"of a commit that was held too late": func(b *book, h fleet.Head) fleet.Head { return b.abort(h, 200) },
		"again": func(b *book, h fleet.Head) fleet.Head {
			return b.again(b.held(b.must(b.goBack(h))), 200)
		},
	} {
		t.Run(name, func(t *testing.T) {
			b, h := newBook(t)
			read := readBy(b, b.commit(b.opened(h, b.note("r2", 200))))
			now := b.abort(read, 300) // a newer push
			if h, err := b.goBack(read); !errors.Is(err, fleet.ErrOvertaken) || h.Hold != 300 {
				t.Errorf("head %+v, %v", h, err)
			}
			if h, err := b.goBack(now); err != nil || h.Hold != 300 || h.Release != "r1" {
				t.Errorf("as it stands now: %+v, %v", h, err)
			}
		})
	}
}

func TestGoBackIsRefusedWhereARetryWasTakenBackAfterTheHeadWasRead(t *testing.T) {
	b, h := newBook(t)
	back := b.must(b.goBack(b.commit(b.opened(h, b.note("r2", 200)))))
	read := b.again(b.held(back), 200)
	b.abort(read, 200)
	if _, err := b.goBack(read); !errors.Is(err, fleet.ErrOvertaken) {
		t.Errorf("opened, although it was held again: %v", err)
	}
}

// What is live fails, the rollback was aborted and is tried again, as planned or because somebody asked for it after the last of the
// planned ones; meanwhile somebody pushes what they then abort.
func TestAbortOfANewerPushLeavesTheFleetItsWayBack(t *testing.T) {
	t.Run("as planned", func(t *testing.T) { abortsANewerPush(t, false) })
	t.Run("asked for", func(t *testing.T) { abortsANewerPush(t, true) })
}

func abortsANewerPush(t *testing.T, asked bool) {
	fleetTest(t, func(r *rig) {
		r.boot(ids(3)...)
		r.push("r1")
		r.live("r1", 40*time.Second, ids(3)...)
		r.spoil("r2", ids(3)...)
		for _, b := range r.all {
			b.set(func() { b.onRollback = errors.New("input/output error") }) // on all: nobody can vote yes
		}
		s := r.push("r2")
		r.until("aborted", time.Minute, func() bool { return r.head().Epoch == 3 && r.head().State == fleet.Abort })
		if asked {
			r.until("held", time.Hour, func() bool { return r.head().Held(s) })
		}
		for _, b := range r.all {
			b.set(func() { b.onRollback = nil })
		}
		held := max(r.seq+1, time.Now().Unix())
		if asked {
			r.ask(fleet.Item{"again": s, "hint": s})
		}
		r.hold(held)
		if r.push("r3") != held || held <= s {
			t.Fatal("what is held is not what was pushed")
		}
		r.live("r1", 5*time.Minute, ids(3)...)
		if h := r.head(); h.Hold != held || h.Sequence != s || !h.Held(held) {
			t.Errorf("head %+v", h)
		}
	})
}

func TestAbortKeepsTheRetryOfTheWayBackFromAnotherSequenceOnly(t *testing.T) {
	b, h := newBook(t)
	read := b.held(b.must(b.goBack(b.commit(b.opened(h, b.note("r2", 200))))))
	asked := b.again(read, 200)
	if _, err := b.Hold(t.Context(), read, 300); !errors.Is(err, fleet.ErrOvertaken) {
		t.Errorf("a retry that came after the head was read: %v", err)
	}
	b.again(read, 300)
	if _, err := b.Hold(t.Context(), asked, 300); !errors.Is(err, fleet.ErrOvertaken) {
		t.Errorf("a retry of the newer push, which would lift the hold: %v", err)
	}
	if h := b.abort(b.again(read, 300), 300); h.Again != 0 || !h.Held(300) {
		t.Errorf("its own retry: %+v", h)
	}
	if h := b.abort(b.again(read, 200), 300); h.Again != 200 || h.Held(200) || !h.Held(300) {
		t.Errorf("that of the way back: %+v", h)
	}
	if h := b.abort(b.again(read, 200), 200); h.Again != 0 {
		t.Errorf("the way back itself: %+v", h)
	}
}

func TestAbortTakesThePlannedRetryOfItsOwnSequenceAway(t *testing.T) {
	b, h := newBook(t)
	h = b.must(b.Decide(t.Context(), b.opened(h, b.note("r2", 200)), fleet.Outcome{Reason: "slow", Retry: time.Minute, Now: time.Unix(1000, 0)}))
	if h.RetryAt == 0 {
		t.Fatalf("no retry is planned: %+v", h)
	}
	if h := b.abort(h, 200); h.RetryAt != 0 || !h.Held(200) {
		t.Errorf("head %+v", h)
	}
}

// What is live fails while a person lets a held push go, which a freeze keeps back: the fleet goes back first, and forgets nothing.
func TestRetryOfAHeldPushOutlivesTheRollbackThatOpensFirst(t *testing.T) {
	fleetTest(t, func(r *rig) {
		r.boot(ids(3)...)
		r.push("r1")
		r.live("r1", 40*time.Second, ids(3)...)
		r.spoil("r2", ids(3)...)
		r.push("r2")
		r.until("committed", time.Minute, func() bool { return r.head().CommittedRelease == "r2" })
		r.freeze(0)
		held := max(r.seq+1, time.Now().Unix())
		r.hold(held)
		r.push("r3")
		r.ask(fleet.Item{"again": held, "hint": held})
		r.live("r1", 2*time.Minute, ids(3)...)
		if h := r.head(); !h.Automatic() || h.Held(held) {
			t.Errorf("head %+v", h)
		}
		r.thaw()
		r.live("r3", 2*time.Minute, ids(3)...)
		if h := r.head(); h.Again != 0 || h.Hold != 0 || h.Sequence != held {
			t.Errorf("head %+v", h)
		}
	})
}

func TestRollbackTakesItsOwnRetryAwayAndNotThatOfANewerPush(t *testing.T) {
	for again, want := range map[int64]int64{200: 0, 300: 300} {
		b, h := newBook(t)
		back := b.held(b.must(b.goBack(b.commit(b.opened(h, b.note("r2", 200))))))
		if h := b.must(b.goBack(b.again(back, again))); h.Again != want || h.Sequence != 200 || !h.Automatic() {
			t.Errorf("%d was asked for again, and %d is after it, want %d", again, h.Again, want)
		}
	}
}

// Of two who abort, the one who has looked at an older push must not lower the hold of the other.
func TestHoldIsRefusedWhereANewerOneCameAfterTheHeadWasRead(t *testing.T) {
	b, read := newBook(t)
	b.abort(read, 300)
	h, err := b.Hold(t.Context(), read, 200)
	if !errors.Is(err, fleet.ErrOvertaken) || !h.Held(300) {
		t.Errorf("head %+v, %v", h, err)
	}
	if h := b.abort(read, 400); h.Hold != 400 {
		t.Errorf("head %+v", h)
	}
}

// holdsInTime is a table through which somebody holds a newer push just before the fleet opens its rollback.
type holdsInTime struct {
	fleet.Table
	once sync.Once
	hold func()
}

func (h *holdsInTime) Write(ctx context.Context, k fleet.Key, w fleet.Write) (fleet.Item, error) {
	if w.Set["source"] != nil {
		h.once.Do(h.hold)
	}
	return h.Table.Write(ctx, k, w)
}

func TestCoordinatorGoesBackOnItsNextLookWhereANewerPushWasHeldMeanwhile(t *testing.T) {
	fleetTest(t, func(r *rig) {
		var fence, held int64
		r.table = &holdsInTime{Table: r.mem, hold: func() {
			h := r.head()
			fence, held = h.Fence, h.Sequence+1
			r.hold(held)
		}}
		r.boot(ids(3)...)
		r.push("r1")
		r.live("r1", 40*time.Second, ids(3)...)
		r.spoil("r2", ids(3)...)
		s := r.push("r2")
		r.until("committed", time.Minute, func() bool { return r.head().CommittedRelease == "r2" })
		r.hold(s) // too late
		r.until("back", time.Minute, func() bool { return r.head().Epoch == 3 && r.head().State == fleet.Done })
		if h := r.head(); h.Hold != held || held == 0 || h.CommittedRelease != "r1" || h.Fence != fence+1 {
			t.Errorf("the coordinator had fence %d and %d is held: head %+v", fence, held, h)
		}
	})
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
