package fleet_test

import (
	"errors"
	"testing"
	"time"

	"s3pulldeploy/internal/fleet"
)

// freeze freezes the site as push does, for a time or, with 0, until it is lifted.
func (r *rig) freeze(length time.Duration) {
	r.t.Helper()
	f := fleet.Freeze{By: "maria", Why: "sale"}
	if length > 0 {
		f.Until = time.Now().Add(length).Unix()
	}
	if _, err := fleet.NewLedger(r.mem, scope, r.token).Freeze(r.t.Context(), r.head(), f); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) thaw() {
	r.t.Helper()
	for {
		_, err := fleet.NewLedger(r.mem, scope, r.token).Thaw(r.t.Context(), r.head())
		if err == nil {
			return
		}
		if !errors.Is(err, fleet.ErrOvertaken) {
			r.t.Fatal(err)
		}
	}
}

func TestFreezeStopsNewEpochsButNotRollbacksNorJoiners(t *testing.T) {
	fleetTest(t, func(r *rig) {
		r.boot(ids(3)...)
		for _, id := range []string{"r1", "r2"} {
			r.push(id)
			r.live(id, 40*time.Second, ids(3)...)
		}
		r.freeze(0)
		r.push("r3")
		r.boot("late")
		r.until("a joiner comes up", 20*time.Second, func() bool { return r.all["late"].see().Ready })
		time.Sleep(time.Hour)
		if h := r.head(); h.Epoch != 2 || h.Frozen == nil {
			t.Errorf("frozen, and the head is %+v", h)
		}
		r.push("r1", `kind "rollback"`)
		r.live("r1", 20*time.Second, append(ids(3), "late")...)
		r.thaw()
		r.push("r4")
		r.live("r4", 20*time.Second, append(ids(3), "late")...)
	})
}

func TestFreezeHoldsAnOpenEpochAndItsClockUntilItIsLifted(t *testing.T) {
	fleetTest(t, func(r *rig) {
		r.boot(ids(3)...)
		r.push("r1")
		r.live("r1", 40*time.Second, ids(3)...)
		r.all["i-01"].set(func() { r.all["i-01"].stageTime = 5 * time.Second })
		r.push("r2")
		r.until("open", 10*time.Second, func() bool { return r.head().State.Open() })
		r.freeze(0)
		time.Sleep(15 * time.Minute) // above the prepare timeout
		if h := r.head(); h.State != fleet.Prepare || h.Epoch != 2 {
			t.Fatalf("frozen in prepare, and the head is %+v", h)
		}
		r.thaw()
		if took := r.live("r2", 20*time.Second, ids(3)...); took > 10*time.Second {
			t.Errorf("live %v after the thaw", took)
		}
	})
}

func TestAutomaticRollbackIsNotStoppedByAFreeze(t *testing.T) {
	fleetTest(t, func(r *rig) {
		r.boot(ids(3)...)
		r.push("r1")
		r.live("r1", 40*time.Second, ids(3)...)
		r.spoil("r2", ids(3)...)
		r.push("r2")
		r.until("committed", 20*time.Second, func() bool { return r.head().State == fleet.Commit })
		r.freeze(0)
		r.live("r1", 20*time.Second, ids(3)...)
	})
}

func TestFreezeEndsByItselfWhereTheClockAgreesWithTheTables(t *testing.T) {
	fleetTest(t, func(r *rig) {
		r.date = func() time.Time { return time.Now().Add(50 * time.Second) }
		r.boot(ids(2)...)
		r.push("r1")
		r.live("r1", 40*time.Second, ids(2)...)
		r.freeze(10 * time.Minute)
		r.push("r2")
		took := r.until("thawed", time.Hour, func() bool { return r.head().Frozen == nil })
		if took < 10*time.Minute-time.Second || took > 10*time.Minute+2*time.Second {
			t.Errorf("thawed after %v, want 10m", took)
		}
		r.live("r2", 20*time.Second, ids(2)...)
	})
}

func TestFreezeIsNotEndedByAClockThatCannotBeBelieved(t *testing.T) {
	fleetTest(t, func(r *rig) {
		r.date = func() time.Time { return time.Now().Add(-61 * time.Second) }
		r.boot(ids(2)...)
		r.push("r1")
		r.live("r1", 40*time.Second, ids(2)...)
		r.freeze(time.Minute)
		time.Sleep(time.Hour)
		if r.head().Frozen == nil {
			t.Error("thawed by a clock 61 s off the table's")
		}
		if v := r.all["i-00"].see(); v.Problems["freeze"] == "" {
			t.Error("nothing says why the freeze stays")
		}
	})
}

func TestThawDoesNotLiftAFreezeThatWasMadeMeanwhile(t *testing.T) {
	fleetTest(t, func(r *rig) {
		r.boot(ids(1)...)
		r.push("r1")
		r.live("r1", 40*time.Second, ids(1)...)
		r.freeze(time.Minute)
		old := r.head()
		r.freeze(0)
		if _, err := fleet.NewLedger(r.mem, scope, r.token).Thaw(r.t.Context(), old); !errors.Is(err, fleet.ErrOvertaken) {
			t.Errorf("thaw by an old reading: %v", err)
		}
		if r.head().Frozen == nil {
			t.Error("the newer freeze was lifted")
		}
	})
}
