package fleet_test

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"s3pulldeploy/internal/fleet"
	"s3pulldeploy/internal/release"
)

func TestThreeGoLiveTogether(t *testing.T) {
	fleetTest(t, func(r *rig) {
		r.boot(ids(3)...)
		time.Sleep(3 * time.Second)
		if v := r.all["i-00"].see(); !v.Ready || !v.Waiting {
			t.Errorf("before the first push: ready %v, waiting %v; want both", v.Ready, v.Waiting)
		}
		r.push("r1")
		r.live("r1", 40*time.Second, ids(3)...)
		r.push("r2")
		if took := r.live("r2", 10*time.Second, ids(3)...); took > 4*time.Second {
			t.Errorf("push to live took %v, want under 4 s", took)
		}
		var first, last time.Time
		for _, b := range r.all {
			var at time.Time
			b.set(func() { at = b.flips[len(b.flips)-1] })
			if first.IsZero() || at.Before(first) {
				first = at
			}
			if at.After(last) {
				last = at
			}
		}
		if spread := last.Sub(first); spread > 50*time.Millisecond {
			t.Errorf("flips spread over %v, want under 50 ms", spread)
		}
		if h := r.head(); h.Epoch != 2 || h.Good.Release != "r2" || h.Before.Release != "r1" || h.Members != 3 {
			t.Errorf("head after two pushes: %+v", h)
		}
	})
}

func TestCoordinatorKilledBetweenVotesAndDecisionStillGivesOneDecision(t *testing.T) {
	fleetTest(t, func(r *rig) {
		r.boot(ids(3)...)
		r.push("r1")
		r.live("r1", 40*time.Second, ids(3)...)
		r.all["i-02"].set(func() { r.all["i-02"].stageTime = 3 * time.Second })
		r.push("r2")
		r.until("two votes", 20*time.Second, func() bool {
			yes := 0
			for _, m := range r.rows() {
				if m.Vote.Epoch == 2 && m.Vote.Yes {
					yes++
				}
			}
			return yes == 2
		})
		dead := r.all[r.head().Coordinator]
		dead.kill()
		if r.head().State != fleet.Prepare {
			t.Fatalf("state %s, want prepare", r.head().State)
		}
		took := r.until("decision", time.Minute, func() bool { return !r.head().State.Open() })
		limit := 20 * time.Second
		if dead == r.all["i-02"] {
			limit = 36 * time.Second // it had not voted: its lease runs from its last head beat
		}
		if took > limit {
			t.Errorf("decided %v after the kill; a take-over takes 16.5 s, want under %v", took, limit)
		}
		h := r.head()
		if h.State != fleet.Commit || h.Epoch != 2 || h.Fence < 3 {
			t.Errorf("after the take-over: %+v", h)
		}
		dead.boot()
		r.live("r2", time.Minute, ids(3)...)
	})
}

func TestJoinerComesUpOnTheCommittedReleaseWithoutDisturbing(t *testing.T) {
	fleetTest(t, func(r *rig) {
		r.boot(ids(3)...)
		r.push("r1")
		r.live("r1", 40*time.Second, ids(3)...)
		before := r.head()
		r.boot("late")
		r.until("joiner in service", 10*time.Second, func() bool { return r.all["late"].see().Ready })
		if b := r.all["late"]; b.active != "r1" {
			t.Errorf("joiner serves %q", b.serves())
		}
		if h := r.head(); h.Epoch != before.Epoch || h.Fence != before.Fence {
			t.Errorf("the joiner disturbed the head: %+v", h)
		}
	})
}

func TestJoinerDuringAnEpochEntersServiceOnlyWithIt(t *testing.T) {
	fleetTest(t, func(r *rig) {
		r.boot(ids(3)...)
		r.push("r1")
		r.live("r1", 40*time.Second, ids(3)...)
		r.all["i-01"].set(func() { r.all["i-01"].stageTime = 20 * time.Second })
		r.push("r2")
		r.until("open", 10*time.Second, func() bool { return r.head().State.Open() })
		late := r.box("late")
		late.stageTime = 5 * time.Second
		late.boot()
		for r.head().State.Open() {
			if v := late.see(); v.Ready && !(v.Vote.Yes && v.Vote.Epoch == 2) {
				t.Fatalf("in service on %s while the epoch that leaves it is open, without a vote", v.Flipped.Release)
			}
			time.Sleep(50 * time.Millisecond)
		}
		r.live("r2", time.Minute, append(ids(3), "late")...)
	})
}

func TestDeadPeerCostsOneLeaseOnce(t *testing.T) {
	fleetTest(t, func(r *rig) {
		r.boot(ids(4)...)
		r.push("r1")
		r.live("r1", 40*time.Second, ids(4)...)
		r.all["i-03"].kill()
		r.push("r2")
		if took := r.live("r2", 2*time.Minute, ids(3)...); took < 33*time.Second || took > 40*time.Second {
			t.Errorf("a dead peer cost %v, want one lease, 33 s", took)
		}
		r.leftOut(2, "i-03: silent")
		for _, id := range []string{"r3", "r4"} {
			r.push(id)
			if took := r.live(id, 2*time.Minute, ids(3)...); took > 5*time.Second {
				t.Errorf("%s: the same dead peer cost %v again", id, took)
			}
		}
		if m := r.rows()["i-03"]; m.Missed != 3 {
			t.Errorf("missed %d, want 3", m.Missed)
		}
	})
}

func TestPausedForLessThanALeaseIsNotExcluded(t *testing.T) {
	fleetTest(t, func(r *rig) {
		r.boot(ids(3)...)
		r.push("r1")
		r.live("r1", 40*time.Second, ids(3)...)
		thaw := make(chan struct{})
		r.all["i-02"].set(func() { r.all["i-02"].frozen = thaw })
		r.push("r2")
		time.Sleep(25 * time.Second)
		if !r.head().State.Open() {
			t.Fatalf("decided without a member that was silent for 25 s: %+v", r.head())
		}
		r.all["i-02"].set(func() { r.all["i-02"].frozen = nil })
		close(thaw)
		r.live("r2", 20*time.Second, ids(3)...)
		if h := r.head(); h.Excluded != 0 {
			t.Errorf("excluded %d", h.Excluded)
		}
	})
}

func TestThreeOfTenDeadAbortsAndIsRetriedThenHeld(t *testing.T) {
	fleetTest(t, func(r *rig) {
		r.boot(ids(10)...)
		r.push("r1")
		r.live("r1", 40*time.Second, ids(10)...)
		for _, id := range ids(3) {
			r.all[id].kill()
		}
		s := r.push("r2")
		r.until("held", 20*time.Minute, func() bool { return r.head().Hold == s })
		h := r.head()
		if h.State != fleet.Abort || h.Tries != 3 || h.CommittedRelease != "r1" {
			t.Errorf("head %+v, want an abort after 3 retries with r1 committed", h)
		}
		for id, b := range r.all {
			if b.serves() != "r1" {
				t.Errorf("%s serves %s", id, b.serves())
			}
		}
		// with a larger guard in the pointer it goes
		r.push("r3", `max_excluded "40%"`)
		r.live("r3", 2*time.Minute, ids(10)[3:]...)
	})
}

func TestThreeOfTenDeadGoesOnceTheyAreForgotten(t *testing.T) {
	fleetTest(t, func(r *rig) {
		r.boot(ids(10)...)
		r.push("r1")
		r.live("r1", 40*time.Second, ids(10)...)
		for _, id := range ids(3) {
			r.all[id].kill()
		}
		r.push("r2")
		r.until("abort", 2*time.Minute, func() bool { return r.head().State == fleet.Abort })
		l, rows := fleet.NewLedger(r.mem, scope, r.token), r.rows()
		for _, id := range ids(3) {
			if err := l.Forget(t.Context(), rows[id]); err != nil {
				t.Fatal(err)
			}
		}
		r.live("r2", time.Minute, ids(10)[3:]...) // the retry comes after 30 s
		if h := r.head(); h.Excluded != 0 {
			t.Errorf("head %+v", h)
		}
	})
}

func TestNoAboutTheReleaseAbortsForGoodAndTheNextPushGoes(t *testing.T) {
	fleetTest(t, func(r *rig) {
		r.boot(ids(3)...)
		r.push("r1")
		r.live("r1", 40*time.Second, ids(3)...)
		r.all["i-01"].set(func() { r.all["i-01"].refuse = errors.New("before_flip: exit status 1: no such table") })
		s := r.push("r2")
		r.until("abort", 20*time.Second, func() bool { return r.head().State == fleet.Abort })
		if h := r.head(); h.Hold != s || h.Reason != "i-01: before_flip: exit status 1: no such table" {
			t.Errorf("head %+v", h)
		}
		time.Sleep(20 * time.Minute)
		if h := r.head(); h.Epoch != 2 {
			t.Errorf("a held sequence was opened again: %+v", h)
		}
		r.all["i-01"].set(func() { r.all["i-01"].refuse = nil })
		r.push("r3")
		r.live("r3", 10*time.Second, ids(3)...)
	})
}

func TestOneUnfitOfTenStepsOutAndComesBack(t *testing.T) {
	fleetTest(t, func(r *rig) {
		r.boot(ids(10)...)
		r.push("r1")
		r.live("r1", 40*time.Second, ids(10)...)
		sick := r.all["i-04"]
		sick.set(func() { sick.refuse, sick.machine = errors.New("no space left"), true })
		r.push("r2")
		rest := append(ids(4), ids(10)[5:]...)
		r.live("r2", 10*time.Second, rest...)
		if m := r.rows()["i-04"]; m.Phase != fleet.Out || m.Error != "no space left" {
			t.Errorf("row %+v", m)
		}
		r.leftOut(2, "i-04: no space left")
		if v := sick.see(); !v.Behind || v.Ready {
			t.Errorf("an unfit machine shows ready %v, behind %v", v.Ready, v.Behind)
		}
		sick.set(func() { sick.refuse = nil })
		r.live("r2", time.Minute, ids(10)...)
	})
}

func TestNewerPushSupersedesAnOpenEpochOnce(t *testing.T) {
	fleetTest(t, func(r *rig) {
		r.boot(ids(3)...)
		r.push("r1")
		r.live("r1", 40*time.Second, ids(3)...)
		r.all["i-00"].set(func() { r.all["i-00"].stageTime = 10 * time.Second })
		r.push("r2")
		r.until("open", 10*time.Second, func() bool { return r.head().State.Open() && r.head().Release == "r2" })
		r.push("r3")
		r.until("superseded", 10*time.Second, func() bool { return r.head().Release == "r3" })
		if h := r.head(); h.Superseded != 1 || h.Epoch != 3 {
			t.Errorf("head %+v", h)
		}
		r.push("r4") // the epoch after a superseded one is let through
		r.until("r3 committed", time.Minute, func() bool { return r.head().CommittedRelease == "r3" })
		r.live("r4", time.Minute, ids(3)...)
	})
}

func TestSecondAgentWithTheSameIdStopsTheFirst(t *testing.T) {
	fleetTest(t, func(r *rig) {
		r.boot("a", "b")
		r.push("r1")
		r.live("r1", 40*time.Second, "a", "b")
		twin := r.box("twin")
		twin.id = "a"
		twin.boot()
		r.until("duplicate seen", 90*time.Second, func() bool { return r.all["a"].see().Duplicate })
		r.until("twin in service", 10*time.Second, func() bool { return twin.see().Ready })
	})
}

// down is a table that does not answer.
type down struct {
	fleet.Table
	off func() bool
}

func (d down) Get(ctx context.Context, k fleet.Key, c bool) (fleet.Item, error) {
	if d.off() {
		return nil, fleet.ErrUnavailable
	}
	return d.Table.Get(ctx, k, c)
}

func (d down) Query(ctx context.Context, p, s string, c bool) ([]fleet.Item, error) {
	if d.off() {
		return nil, fleet.ErrUnavailable
	}
	return d.Table.Query(ctx, p, s, c)
}

func (d down) Write(ctx context.Context, k fleet.Key, w fleet.Write) (fleet.Item, error) {
	if d.off() {
		return nil, fleet.ErrUnavailable
	}
	return d.Table.Write(ctx, k, w)
}

func TestRestartWithoutTheTableServesAndFlipsWhatWasPersisted(t *testing.T) {
	fleetTest(t, func(r *rig) {
		var off atomic.Bool
		r.table = down{r.mem, func() bool { return off.Load() }}
		r.boot(ids(2)...)
		r.push("r1")
		r.live("r1", 40*time.Second, ids(2)...)
		r.push("r2")
		b := r.all["i-01"]
		r.until("commit persisted", 10*time.Second, func() (did bool) {
			b.set(func() { did = b.state.Decision.Release == "r2" })
			return did
		})
		b.kill()
		if b.serves() != "r1" {
			t.Fatal("flipped before it could be killed")
		}
		off.Store(true)
		b.boot()
		r.until("isolated", 15*time.Second, func() bool { return b.see().Isolated })
		if b.serves() != "r2" {
			t.Errorf("serves %s, want the persisted commit r2", b.serves())
		}
		off.Store(false)
		r.live("r2", time.Minute, ids(2)...)
	})
}

func TestTableOutageChangesNothingAndIsRecoveredFrom(t *testing.T) {
	fleetTest(t, func(r *rig) {
		var off atomic.Bool
		r.table = down{r.mem, func() bool { return off.Load() }}
		r.boot(ids(3)...)
		r.push("r1")
		r.live("r1", 40*time.Second, ids(3)...)
		r.all["i-01"].set(func() { r.all["i-01"].stageTime = 5 * time.Second })
		r.push("r2")
		r.until("open", 10*time.Second, func() bool { return r.head().State.Open() })
		off.Store(true)
		time.Sleep(3 * time.Hour)
		for id, b := range r.all {
			if b.serves() != "r1" {
				t.Errorf("%s flipped to %s without a decision", id, b.serves())
			}
		}
		off.Store(false)
		r.live("r2", time.Minute, ids(3)...)
	})
}

func TestDeletedRowIsRegisteredAgain(t *testing.T) {
	fleetTest(t, func(r *rig) {
		r.boot(ids(2)...)
		r.push("r1")
		r.live("r1", 40*time.Second, ids(2)...)
		m := r.rows()["i-01"]
		if err := fleet.NewLedger(r.mem, scope, r.token).Remove(t.Context(), m); err != nil {
			t.Fatal(err)
		}
		r.push("r2")
		r.until("row back", 20*time.Second, func() bool { return r.rows()["i-01"].Active.Release == "r2" })
	})
}

func TestLostTableIsNotOpenedAgain(t *testing.T) {
	fleetTest(t, func(r *rig) {
		r.boot(ids(2)...)
		r.push("r1")
		r.live("r1", 40*time.Second, ids(2)...)
		if err := r.mem.Delete(t.Context(), fleet.Key{Partition: scope, Sort: "head"}, nil); err != nil {
			t.Fatal(err)
		}
		r.push("r2")
		r.until("shown", 20*time.Second, func() bool { return r.all["i-00"].see().Problems["head lost"] != "" })
		r.boot("fresh") // knows nothing of its own, but the rows tell
		time.Sleep(time.Minute)
		if h := r.head(); h.Epoch != 0 {
			t.Errorf("opened epoch %d on a lost table", h.Epoch)
		}
	})
}

func TestClonedStateDropsVotesAndDecisions(t *testing.T) {
	fleetTest(t, func(r *rig) {
		r.boot("a")
		r.push("r1")
		r.live("r1", 40*time.Second, "a")
		clone := r.box("b")
		r.all["a"].set(func() { clone.state, clone.active = r.all["a"].state, "r1" })
		clone.boot()
		r.until("clone in service", 20*time.Second, func() bool { return clone.see().Ready })
		clone.set(func() {
			if !clone.disk["r1"] {
				t.Error("the clone trusted contents that it had not verified")
			}
		})
	})
}

func TestUnhealthyAfterTheFlipIsReportedAndTheReleaseIsNotGood(t *testing.T) {
	fleetTest(t, func(r *rig) {
		for _, id := range ids(3) {
			b := r.box(id)
			b.stays = true
			b.boot()
		}
		r.push("r1")
		r.live("r1", 40*time.Second, ids(3)...)
		for _, b := range r.all {
			b.set(func() { b.unhealthy = errors.New("health check: got 500, want 200") })
		}
		r.push("r2")
		r.until("done", 20*time.Second, func() bool { return r.head().State == fleet.Done && r.head().Epoch == 2 })
		h := r.head()
		if h.Good.Release != "r1" {
			t.Errorf("good is %s after a release that failed everywhere", h.Good.Release)
		}
		if m := r.rows()["i-00"]; m.Active.Release == "r2" || m.Failed != 2 {
			t.Errorf("row reports %+v", m)
		}
		for _, b := range r.all {
			b.set(func() { b.unhealthy = nil })
		}
		r.push("r3") // the cure gets through
		r.live("r3", 20*time.Second, ids(3)...)
	})
}

func TestOldAndForeignPointersAreRefused(t *testing.T) {
	fleetTest(t, func(r *rig) {
		r.boot("a")
		s := r.push("r1")
		r.live("r1", 40*time.Second, "a")
		r.all["a"].kill()
		n := r.all["a"].node
		offer := func(text string) error { return n.Offer([]byte(text), time.Now(), 0) }
		for name, text := range map[string]string{
			"older sequence":        "r0\n" + itoa(s-1) + "\n3",
			"same sequence, other":  "r9\n" + itoa(s) + "\n3",
			"two days ahead":        "r9\n" + itoa(time.Now().Add(48*time.Hour).Unix()) + "\n3",
			"scope of another site": "r9\n" + itoa(s+1) + "\n3\nscope \"bucket/staging\"",
			"packed, of no scope": string(release.Pointer{
				Release: "r9", Sequence: s + 1, Files: 3, Manifest: &release.Content{SHA256: strings.Repeat("ab", 32), Length: 7},
			}.Text()),
			"garbage":                "<html>",
			"a traversal as release": "../x\n" + itoa(s+1) + "\n3",
		} {
			if err := offer(text); err == nil {
				t.Errorf("%s: accepted", name)
			}
		}
		if err := offer("r2\n" + itoa(s+1) + "\n3"); err != nil {
			t.Errorf("a good pointer after all these: %v", err)
		}
	})
}

func TestLeavingIsExcludedAtOnce(t *testing.T) {
	fleetTest(t, func(r *rig) {
		r.boot(ids(3)...)
		r.push("r1")
		r.live("r1", 40*time.Second, ids(3)...)
		b := r.all["i-02"]
		b.kill()
		if err := b.node.Leave(t.Context(), false); err != nil {
			t.Fatal(err)
		}
		if m := r.rows()["i-02"]; m.Phase != fleet.Leaving {
			t.Fatalf("phase %s", m.Phase)
		}
		r.push("r2")
		if took := r.live("r2", time.Minute, ids(2)...); took > 5*time.Second {
			t.Errorf("a member that left cost %v", took)
		}
		r.leftOut(2, "i-02: leaving")
	})
}

func TestRollbackIsAnEpochToAnEarlierRelease(t *testing.T) {
	fleetTest(t, func(r *rig) {
		r.boot(ids(3)...)
		for _, id := range []string{"r1", "r2"} {
			r.push(id)
			r.live(id, 40*time.Second, ids(3)...)
		}
		r.push("r1", `kind "rollback"`)
		r.live("r1", 10*time.Second, ids(3)...)
		if h := r.head(); h.Kind != fleet.KindRollback || h.Good.Release != release.ID("r1") {
			t.Errorf("head %+v", h)
		}
	})
}

func TestAFleetOfOneThatOpensEverythingItself(t *testing.T) {
	fleetTest(t, func(r *rig) {
		r.push("r1") // the push came before any instance
		r.boot("only")
		r.live("r1", 10*time.Second, "only")
		synctest.Wait()
	})
}
