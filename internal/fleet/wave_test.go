package fleet_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"s3pulldeploy/internal/fleet"
	"s3pulldeploy/internal/release"
)

// on are the machines whose link is at a release.
func (r *rig) on(id release.ID) (names []string) {
	for name, b := range r.all {
		if b.serves() == id {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// settled waits until a wave has flipped so many machines to a release, and they report it.
func (r *rig) waved(id release.ID, n int, limit time.Duration) time.Duration {
	r.t.Helper()
	return r.until(fmt.Sprintf("%d on %s", n, id), limit, func() bool {
		reported := 0
		for _, m := range r.rows() {
			if m.Active.Release == id {
				reported++
			}
		}
		return reported == n && len(r.on(id)) == n
	})
}

func (r *rig) approve() {
	r.t.Helper()
	h := r.head()
	if _, err := fleet.NewLedger(r.mem, scope, r.token).Request(r.t.Context(), h, fleet.Item{"approved": h.Wave}); err != nil {
		r.t.Fatal(err)
	}
}

// based boots machines and makes r1 live on them.
func (r *rig) based(names ...string) {
	r.boot(names...)
	r.push("r1")
	r.live("r1", 40*time.Second, names...)
}

func TestCanaryThenAQuarterThenTheRestEachAfterItsBake(t *testing.T) {
	fleetTest(t, func(r *rig) {
		r.based(ids(8)...)
		r.push("r2", `waves "1,25%,100%"`, `bake "1m0s"`)
		r.waved("r2", 1, 20*time.Second)
		canary := r.on("r2")[0]
		if h := r.head(); h.State != fleet.Wave || h.Wave != 1 || h.CommittedRelease != "r1" {
			t.Errorf("head %+v", h)
		}
		if took := r.waved("r2", 2, 3*time.Minute); took < time.Minute || took > time.Minute+10*time.Second {
			t.Errorf("the second wave after %v, want after the bake of 1m", took)
		}
		if !slices.Contains(r.on("r2"), canary) {
			t.Errorf("%s was the canary, now these are ahead: %v", canary, r.on("r2"))
		}
		if took := r.live("r2", 3*time.Minute, ids(8)...); took < time.Minute || took > time.Minute+10*time.Second {
			t.Errorf("the rest after %v, want after another 1m", took)
		}
		if h := r.head(); h.Good.Release != "r2" || h.Epoch != 2 {
			t.Errorf("head %+v", h)
		}
	})
}

func TestEachWaveWaitsForItsApproval(t *testing.T) {
	fleetTest(t, func(r *rig) {
		r.based(ids(4)...)
		r.push("r2", `waves "1,50%"`, `approve "true"`)
		r.waved("r2", 1, 20*time.Second)
		time.Sleep(15 * time.Minute) // above the prepare timeout
		if h := r.head(); h.Wave != 1 || !strings.Contains(h.Waits, "waiting for `push -approve`") || len(r.on("r2")) != 1 {
			t.Fatalf("not approved, and the head is %+v", h)
		}
		r.approve()
		r.waved("r2", 2, time.Minute)
		time.Sleep(time.Minute)
		if h := r.head(); h.Wave != 2 || len(r.on("r2")) != 2 {
			t.Fatalf("one approval passed two waves: %+v", h)
		}
		r.approve()
		r.live("r2", time.Minute, ids(4)...)
	})
}

func TestAbortedWaveGoesBackWithoutAVote(t *testing.T) {
	fleetTest(t, func(r *rig) {
		r.based(ids(8)...)
		s := r.push("r2", `waves "25%"`, `approve "true"`)
		r.waved("r2", 2, 20*time.Second)
		r.hold(s)
		if took := r.waved("r1", 8, time.Minute); took > 5*time.Second {
			t.Errorf("back after %v", took)
		}
		h := r.head()
		if h.State != fleet.Abort || h.Epoch != 2 || h.CommittedRelease != "r1" {
			t.Errorf("head %+v", h)
		}
		r.until("all in service", time.Minute, func() bool {
			for _, b := range r.all {
				if v := b.see(); !v.Ready || v.Behind {
					return false
				}
			}
			return true
		})
		r.push("r3", `waves "1"`)
		r.live("r3", time.Minute, ids(8)...)
	})
}

// I14: what was healthy before the wave is proved again, since the link was moved twice meanwhile.
func TestCanaryTakenBackBeforeItsCheckWasOverIsCheckedAnew(t *testing.T) {
	fleetTest(t, func(r *rig) {
		r.based(ids(3)...)
		for _, b := range r.all {
			b.set(func() { b.settleTime = time.Minute })
		}
		s := r.push("r2", `waves "1"`)
		r.until("a canary flips", 20*time.Second, func() bool { return len(r.on("r2")) == 1 })
		canary := r.all[r.on("r2")[0]]
		r.hold(s)
		r.until("it goes back", 20*time.Second, func() bool { return len(r.on("r1")) == 3 })
		took := r.until("it is checked", 2*time.Minute, func() bool {
			v := canary.see()
			return v.Flipped.Release == "r1" && !v.Behind
		})
		if took < 50*time.Second {
			t.Errorf("%s called itself healthy %v after it went back; its check takes a minute", canary.id, took)
		}
	})
}

func TestFailingCanaryIsTakenBackAndItsSequenceIsBad(t *testing.T) {
	fleetTest(t, func(r *rig) {
		r.based(ids(8)...)
		r.spoil("r2", ids(8)...)
		s := r.push("r2", `waves "1,25%"`)
		r.until("aborted", time.Minute, func() bool { return r.head().State == fleet.Abort })
		h := r.head()
		if !slices.Equal(h.Bad, []int64{s}) || !strings.Contains(h.Why, "wave 1: 1 of 1 failed after the flip: i-0") {
			t.Errorf("head %+v", h)
		}
		r.waved("r1", 8, time.Minute)
		flips := 0
		for _, b := range r.all {
			b.set(func() { flips += len(b.flips) })
		}
		if flips != 8+2 {
			t.Errorf("%d flips, want one for each to r1, and the canary's two", flips)
		}
		time.Sleep(time.Hour)
		if h := r.head(); h.Epoch != 2 {
			t.Errorf("it was opened again: %+v", h)
		}
	})
}

func TestCanaryThatFallsIllWhileItBakesDoesNotPass(t *testing.T) {
	fleetTest(t, func(r *rig) {
		r.based(ids(4)...)
		r.push("r2", `waves "1"`, `bake "10m0s"`)
		r.waved("r2", 1, 20*time.Second)
		time.Sleep(9 * time.Minute)
		r.spoil("r2", r.on("r2")...)
		r.until("taken back", time.Minute, func() bool { return r.head().State == fleet.Abort })
		r.waved("r1", 4, time.Minute)
	})
}

func TestJoinersDuringWavesGetTheCommittedRelease(t *testing.T) {
	fleetTest(t, func(r *rig) {
		r.based(ids(3)...)
		r.push("r2", `waves "1"`, `approve "true"`)
		r.waved("r2", 1, 20*time.Second)
		var late []string
		for n := range 6 {
			id := fmt.Sprintf("late-%d", n)
			late = append(late, id)
			r.boot(id)
			r.until(id+" in service", 30*time.Second, func() bool { return r.all[id].see().Ready })
			var first release.ID
			r.all[id].set(func() { first = r.all[id].first })
			if first != "r1" {
				t.Errorf("%s came up on %q", id, first)
			}
		}
		r.approve()
		r.live("r2", time.Minute, append(ids(3), late...)...)
	})
}

func TestWaveOfAGroupLeavesTheOthersAlone(t *testing.T) {
	fleetTest(t, func(r *rig) {
		r.boot(ids(4)...)
		for n := range 3 {
			b := r.box(fmt.Sprintf("cron-%d", n))
			b.group = "cron"
			b.boot()
		}
		all := append(ids(4), "cron-0", "cron-1", "cron-2")
		r.push("r1")
		r.live("r1", 40*time.Second, all...)
		r.push("r2", `waves "web:100%,cron:1"`, `approve "true"`)
		r.waved("r2", 4, 20*time.Second)
		if got := r.on("r2"); !slices.Equal(got, ids(4)) {
			t.Errorf("the wave web:100%% reached %v", got)
		}
		r.approve()
		r.waved("r2", 5, 20*time.Second)
		r.approve()
		r.live("r2", 20*time.Second, all...)
	})
}

func TestWaveOfAGroupWithoutMembersAborts(t *testing.T) {
	fleetTest(t, func(r *rig) {
		r.based(ids(2)...)
		s := r.push("r2", `waves "wbe:1"`)
		r.until("held", time.Minute, func() bool { return r.head().Hold == s })
		if h := r.head(); h.State != fleet.Abort || !strings.Contains(h.Reason, `group "wbe"`) || len(r.on("r1")) != 2 {
			t.Errorf("head %+v", h)
		}
	})
}

func TestTakeOverInAWaveBakesAnewAndGoesOn(t *testing.T) {
	fleetTest(t, func(r *rig) {
		r.based(ids(6)...)
		r.push("r2", `waves "2"`, `bake "5m0s"`)
		r.waved("r2", 2, 20*time.Second)
		time.Sleep(4 * time.Minute)
		dead := r.all[r.head().Coordinator]
		dead.kill()
		fence := r.head().Fence
		took := r.until("taken over", time.Minute, func() bool { return r.head().Fence > fence })
		dead.boot()
		if committed := took + r.until("committed", 10*time.Minute, func() bool { return r.head().CommittedRelease == "r2" }); committed < 5*time.Minute {
			t.Errorf("committed %v after the take-over, want a whole bake", committed)
		}
		r.live("r2", time.Minute, ids(6)...)
	})
}

func TestCanaryThatRestartsStaysOnItsWaveAndGoesBackOnAbort(t *testing.T) {
	fleetTest(t, func(r *rig) {
		r.based(ids(4)...)
		s := r.push("r2", `waves "1"`, `approve "true"`)
		r.waved("r2", 1, 20*time.Second)
		canary := r.all[r.on("r2")[0]]
		canary.kill()
		canary.boot()
		r.until("in service again", time.Minute, func() bool { return canary.see().Ready })
		if canary.serves() != "r2" {
			t.Errorf("after its restart it serves %s", canary.serves())
		}
		canary.kill()
		r.hold(s)
		r.until("aborted", time.Minute, func() bool { return r.head().State == fleet.Abort })
		canary.boot()
		r.waved("r1", 4, time.Minute)
	})
}

func TestDeadCanaryIsReplacedByAnother(t *testing.T) {
	fleetTest(t, func(r *rig) {
		r.based(ids(12)...)
		r.push("r2", `waves "1"`, `approve "true"`)
		r.waved("r2", 1, 20*time.Second)
		dead := r.on("r2")[0]
		r.all[dead].kill()
		r.until("another", 2*time.Minute, func() bool { return len(r.on("r2")) == 2 })
		if h := r.head(); h.Wave != 1 {
			t.Errorf("head %+v", h)
		}
		r.approve()
		rest := slices.DeleteFunc(ids(12), func(id string) bool { return id == dead })
		r.live("r2", 2*time.Minute, rest...)
	})
}

func TestFreezeHoldsTheNextWave(t *testing.T) {
	fleetTest(t, func(r *rig) {
		r.based(ids(4)...)
		r.push("r2", `waves "1"`, `bake "1m0s"`)
		r.waved("r2", 1, 20*time.Second)
		r.freeze(0)
		time.Sleep(15 * time.Minute)
		if n := len(r.on("r2")); n != 1 {
			t.Errorf("frozen, and %d are on r2", n)
		}
		r.thaw()
		r.live("r2", 2*time.Minute, ids(4)...)
	})
}

func TestRollbacksAndFirstDeploysHaveNoWaves(t *testing.T) {
	fleetTest(t, func(r *rig) {
		r.boot(ids(4)...)
		for _, id := range []string{"r1", "r2"} {
			r.push(id, `waves "1"`)
			r.live(id, time.Minute, ids(4)...)
		}
		r.push("r1", `kind "rollback"`, `waves "1"`, `approve "true"`)
		r.live("r1", 10*time.Second, ids(4)...)
	})
}

func TestWaveThatCannotReportInTimeIsAborted(t *testing.T) {
	fleetTest(t, func(r *rig) {
		r.based(ids(4)...)
		for _, b := range r.all {
			b.set(func() { b.stays, b.spoilt = true, map[release.ID]error{"r2": errors.New("no")} })
			b.kill()
			b.boot()
		}
		r.live("r1", time.Minute, ids(4)...)
		r.push("r2", `waves "1"`)
		r.until("aborted", 15*time.Minute, func() bool { return r.head().State == fleet.Abort })
		r.waved("r1", 4, time.Minute)
		if h := r.head(); len(h.Bad) != 1 || !strings.Contains(h.Reason, "wave 1: 1 of 1 failed") {
			t.Errorf("head %+v", h)
		}
	})
}
