package fleet_test

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"s3pulldeploy/internal/fleet"
	"s3pulldeploy/internal/release"
)

var errBroken = errors.New("health check: got 500, want 200: no such table")

// spoil makes a release fail its check on these machines.
func (r *rig) spoil(id release.ID, boxes ...string) {
	for _, name := range boxes {
		b := r.all[name]
		b.set(func() { b.spoilt = map[release.ID]error{id: errBroken} })
	}
}

// logs are the outcomes of the epochs, in their order.
func (r *rig) logs() (out []string) {
	logs, err := fleet.NewLedger(r.mem, scope, r.token).Logs(r.t.Context())
	if err != nil {
		r.t.Fatal(err)
	}
	for _, l := range logs {
		out = append(out, string(l.Release)+" "+l.Outcome)
	}
	return out
}

func TestReleaseThatFailsEverywhereRollsItselfBackInOneEpoch(t *testing.T) {
	fleetTest(t, func(r *rig) {
		r.boot(ids(3)...)
		for _, id := range []string{"r1", "r2"} {
			r.push(id)
			r.live(id, 40*time.Second, ids(3)...)
		}
		r.spoil("r3", ids(3)...)
		s := r.push("r3")
		took := r.until("back", time.Minute, func() bool { return r.head().Epoch == 4 && r.head().State == fleet.Done })
		r.live("r2", time.Second, ids(3)...)
		if took > 8*time.Second {
			t.Errorf("back after %v; nothing had to be downloaded", took)
		}
		h := r.head()
		if h.Kind != fleet.KindRollback || !slices.Equal(h.Bad, []int64{s}) || h.Good.Release != "r2" || !strings.Contains(h.Why, " of 3 failed after the flip: ") || !strings.Contains(h.Why, "no such table") {
			t.Errorf("head %+v", h)
		}
		if got := strings.Join(r.logs(), ", "); got != "r1 done, r2 done, r3 rolled_back, r2 done" {
			t.Errorf("epoch log: %s", got)
		}
		for id, b := range r.all {
			b.set(func() {
				if !slices.Contains(b.state.Bad, s) {
					t.Errorf("%s has not persisted that %d is bad: %+v", id, s, b.state)
				}
			})
		}
	})
}

func TestRolledBackSequenceIsNeverPickedAgainAndANewPushIs(t *testing.T) {
	fleetTest(t, func(r *rig) {
		r.boot(ids(3)...)
		r.push("r1")
		r.live("r1", 40*time.Second, ids(3)...)
		r.spoil("r2", ids(3)...)
		s := r.push("r2")
		r.until("rolled back", time.Minute, func() bool { return r.head().Epoch == 3 && r.head().State == fleet.Done })
		r.spoil("", ids(3)...) // it would be healthy now
		r.all["i-00"].kill()
		r.all["i-00"].boot()
		r.boot("late")
		time.Sleep(time.Hour)
		if h := r.head(); h.Epoch != 3 || h.CommittedRelease != "r1" {
			t.Errorf("the rolled back sequence was picked again: %+v", h)
		}
		if got := r.all["late"].serves(); got != "r1" {
			t.Errorf("a joiner came up on %q", got)
		}
		if next := r.push("r2-again"); next <= s {
			t.Fatal("the test's push does not grow")
		}
		r.live("r2-again", 20*time.Second, append(ids(3), "late")...)
	})
}

func TestFailuresWithinTheGuardDoNotRollBack(t *testing.T) {
	fleetTest(t, func(r *rig) {
		r.boot(ids(4)...)
		r.push("r1")
		r.live("r1", 40*time.Second, ids(4)...)
		r.spoil("r2", "i-02")
		r.push("r2")
		r.until("done", time.Minute, func() bool { return r.head().Epoch == 2 && r.head().State == fleet.Done })
		if h := r.head(); h.CommittedRelease != "r2" || h.Good.Release != "r2" || !strings.Contains(h.Reason, "1 of 4 failed after the flip: i-02: health check") {
			t.Errorf("head %+v", h)
		}
	})
}

func TestHalfOfAFleetThatFailsDoesNotMakeAGoodRelease(t *testing.T) {
	fleetTest(t, func(r *rig) {
		r.boot(ids(2)...)
		r.push("r1")
		r.live("r1", 40*time.Second, ids(2)...)
		r.spoil("r2", "i-01")
		r.push("r2")
		r.until("done", time.Minute, func() bool { return r.head().Epoch == 2 && r.head().State == fleet.Done })
		if h := r.head(); h.Good.Release != "r1" {
			t.Errorf("1 of 2 failed, and the release is called good: %+v", h)
		}
	})
}

func TestAllOfAGroupThatFailsRollsTheFleetBack(t *testing.T) {
	fleetTest(t, func(r *rig) {
		r.boot(ids(9)...)
		cron := r.box("cron")
		cron.group = "cron"
		cron.boot()
		all := append(ids(9), "cron")
		r.push("r1")
		r.live("r1", 40*time.Second, all...)
		r.spoil("r2", "cron")
		r.push("r2")
		r.until("back", time.Minute, func() bool { return r.head().Epoch == 3 })
		r.live("r1", time.Minute, all...)
	})
}

func TestMoreThanTheGuardFailingRollsBackWithoutWaitingForTheSlow(t *testing.T) {
	fleetTest(t, func(r *rig) {
		r.boot(ids(10)...)
		r.push("r1")
		r.live("r1", 40*time.Second, ids(10)...)
		r.spoil("r2", "i-03", "i-04")
		slow := r.all["i-09"]
		slow.set(func() { slow.settleTime = time.Minute })
		r.push("r2")
		if took := r.until("rollback opened", time.Minute, func() bool { return r.head().Kind == fleet.KindRollback }); took > 10*time.Second {
			t.Errorf("opened after %v", took)
		}
		r.live("r1", 20*time.Minute, ids(10)...)
	})
}

func TestRollbackTakesUnfitAndSilentMembersAlongWithoutAGuard(t *testing.T) {
	fleetTest(t, func(r *rig) {
		r.boot(ids(6)...)
		r.push("r1")
		r.live("r1", 40*time.Second, ids(6)...)
		r.spoil("r2", ids(6)...)
		for _, id := range ids(2) {
			b := r.all[id]
			b.set(func() { b.onRollback = errors.New("input/output error") })
		}
		r.push("r2")
		r.until("rollback opened", time.Minute, func() bool { return r.head().Kind == fleet.KindRollback })
		r.all["i-05"].kill() // and now one more than the guard
		if r.all["i-05"].id == r.head().Coordinator {
			r.all["i-05"].boot()
		}
		r.until("back", 3*time.Minute, func() bool { return r.head().State == fleet.Done && r.head().CommittedRelease == "r1" })
		r.live("r1", time.Second, ids(6)[2:5]...)
	})
}

func TestRollbackThatFailsItsCheckIsNotRolledBack(t *testing.T) {
	fleetTest(t, func(r *rig) {
		r.boot(ids(3)...)
		for _, id := range []string{"r1", "r2"} {
			r.push(id)
			r.live(id, 40*time.Second, ids(3)...)
		}
		for _, b := range r.all {
			b.set(func() { b.unhealthy = errBroken }) // the database is away: nothing is healthy
		}
		r.push("r3")
		r.until("back", time.Minute, func() bool { return r.head().Epoch == 4 && r.head().State == fleet.Done })
		time.Sleep(time.Hour)
		h := r.head()
		if h.Epoch != 4 || h.CommittedRelease != "r2" || !strings.Contains(h.Reason, "3 of 3 failed") {
			t.Errorf("head %+v", h)
		}
	})
}

func TestWithoutAGoodReleaseAFailingOneStaysAndTheHeadSaysSo(t *testing.T) {
	fleetTest(t, func(r *rig) {
		r.boot(ids(2)...)
		r.spoil("r1", ids(2)...)
		r.push("r1")
		r.until("done", time.Minute, func() bool { return r.head().State == fleet.Done })
		if h := r.head(); !strings.HasPrefix(h.Reason, "no good release to go back to; 2 of 2 failed") || h.Good.Release != "" {
			t.Errorf("head %+v", h)
		}
	})
}

func TestAbortedRollbackIsTriedAgain(t *testing.T) {
	fleetTest(t, func(r *rig) {
		r.boot(ids(3)...)
		r.push("r1")
		r.live("r1", 40*time.Second, ids(3)...)
		r.spoil("r2", ids(3)...)
		for _, b := range r.all {
			b.set(func() { b.onRollback = errors.New("input/output error") }) // on all: nobody can vote yes
		}
		r.push("r2")
		r.until("aborted", time.Minute, func() bool { return r.head().Epoch == 3 && r.head().State == fleet.Abort })
		for _, b := range r.all {
			b.set(func() { b.onRollback = nil })
		}
		r.live("r1", 5*time.Minute, ids(3)...)
		if h := r.head(); h.Tries == 0 || !h.Automatic() || len(h.Bad) != 1 {
			t.Errorf("head %+v", h)
		}
	})
}

// What docs/protocol.md says of a commit that a newer push overtakes before its checks have failed: nobody goes back from it by itself
// when the newer one aborts, the rows say what is wrong, and a rollback by hand ends it.
func TestOvertakenCommitThatFailsIsLeftToPeople(t *testing.T) {
	fleetTest(t, func(r *rig) {
		r.boot(ids(3)...)
		r.push("r1")
		r.live("r1", 40*time.Second, ids(3)...)
		r.spoil("r2", ids(3)...)
		for _, id := range ids(3)[1:] { // i-00 is through first, and one of three is within the guard
			b := r.all[id]
			b.set(func() { b.settleTime = 30 * time.Second })
		}
		r.push("r2")
		r.until("committed", time.Minute, func() bool { return r.head().CommittedRelease == "r2" })
		r.push("r3")
		r.until("overtaken", 20*time.Second, func() bool { return r.head().Release == "r3" })
		for _, b := range r.all {
			b.set(func() { b.refuse = errBroken })
		}
		r.until("aborted", 2*time.Minute, func() bool { return r.head().Release == "r3" && r.head().State == fleet.Abort })
		time.Sleep(time.Hour)
		if h := r.head(); h.Epoch != 3 || h.CommittedRelease != "r2" || h.Good.Release != "r1" {
			t.Errorf("head %+v", h)
		}
		for id, m := range r.rows() {
			if m.Active.Epoch == 2 || !strings.Contains(m.Error, "no such table") {
				t.Errorf("%s says %+v", id, m)
			}
		}
		for _, b := range r.all {
			b.set(func() { b.refuse, b.settleTime = nil, 0 })
		}
		r.push("r1", `kind "rollback"`)
		r.live("r1", time.Minute, ids(3)...)
	})
}
