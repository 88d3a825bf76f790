package fleet_test

import (
	"fmt"
	"testing"
	"time"

	"s3pulldeploy/internal/fleet"
)

// phases are the moments of a rollout of r2 at which the fleet changes; i-00 and i-01 stay, i-01 takes its time.
var phases = []struct {
	name string
	come func(r *rig) bool
}{
	{"before the push", func(*rig) bool { return true }},
	{"opened", func(r *rig) bool { return r.head().Epoch == 2 }},
	{"some have voted", func(r *rig) bool { return r.rows()["i-00"].Vote.Epoch == 2 }},
	{"committed", func(r *rig) bool { return r.head().State == fleet.Commit && r.head().Epoch == 2 }},
	{"flipped", func(r *rig) bool { return r.all["i-00"].serves() == "r2" }},
	{"reported", func(r *rig) bool { return r.rows()["i-00"].Active.Epoch == 2 }},
	{"done", func(r *rig) bool { return r.head().State == fleet.Done && r.head().Epoch == 2 }},
}

// during rolls r2 out to three, and lets the fleet change at each phase of that. The change must not stop it.
func during(t *testing.T, change func(r *rig), after func(t *testing.T, r *rig)) {
	t.Helper()
	for i, p := range phases {
		t.Run(p.name, func(t *testing.T) {
			fleetTest(t, func(r *rig) {
				r.boot(ids(3)...)
				r.push("r1")
				r.live("r1", 40*time.Second, ids(3)...)
				r.all["i-01"].set(func() { r.all["i-01"].stageTime = 3 * time.Second })
				if i > 0 {
					r.push("r2")
				}
				r.until(p.name, 30*time.Second, func() bool { return p.come(r) })
				change(r)
				if i == 0 {
					r.push("r2")
				}
				r.live("r2", 45*time.Second, "i-00", "i-01")
				if h := r.head(); h.Epoch != 2 {
					t.Errorf("it took %d epochs: %+v", h.Epoch-1, h)
				}
				after(t, r)
			})
		})
	}
}

func TestScaleOutAtEveryPhase(t *testing.T) {
	during(t, func(r *rig) {
		for n := range 2 {
			b := r.box(fmt.Sprintf("new-%d", n))
			b.stageTime = time.Duration(1+2*n) * time.Second
			b.boot()
		}
	}, func(t *testing.T, r *rig) {
		r.live("r2", time.Minute, "i-02", "new-0", "new-1")
		for _, id := range []string{"new-0", "new-1"} {
			if v := r.all[id].see(); !v.Ready || v.Behind {
				t.Errorf("%s: ready %v, behind %v", id, v.Ready, v.Behind)
			}
		}
	})
}

func TestScaleInAtEveryPhase(t *testing.T) {
	during(t, func(r *rig) {
		b := r.all["i-02"]
		b.kill() // the loop has ended before its node leaves, as in the agent
		if err := b.node.Leave(r.t.Context(), true); err != nil {
			r.t.Fatal(err)
		}
	}, func(t *testing.T, r *rig) {
		if m, ok := r.rows()["i-02"]; ok {
			t.Errorf("the row of a machine that is gone is there: %+v", m)
		}
		r.push("r3")
		if took := r.live("r3", time.Minute, "i-00", "i-01"); took > 8*time.Second {
			t.Errorf("the push after it took %v: somebody was waited for", took)
		}
	})
}

// A machine that dies without a word costs its lease, whenever it happens.
func TestDeathAtEveryPhase(t *testing.T) {
	during(t, func(r *rig) { r.all["i-02"].kill() }, func(t *testing.T, r *rig) {
		for _, id := range []string{"r3", "r4", "r5", "r6"} {
			r.push(id)
			r.live(id, 2*time.Minute, "i-00", "i-01")
		}
		r.push("r7")
		if took := r.live("r7", time.Minute, "i-00", "i-01"); took > 8*time.Second {
			t.Errorf("after four epochs the dead one still costs: %v", took)
		}
	})
}

func TestDeadCoordinatorIsReplacedWithin17Seconds(t *testing.T) {
	fleetTest(t, func(r *rig) {
		r.boot(ids(5)...)
		r.push("r1")
		r.live("r1", 40*time.Second, ids(5)...)
		for _, b := range r.all {
			b.set(func() { b.stageTime = 40 * time.Second })
		}
		r.push("r2")
		r.until("opened", 10*time.Second, func() bool { return r.head().Epoch == 2 })
		led := r.head()
		r.until("a beat", 10*time.Second, func() bool { return r.head().Beat > led.Beat })
		led = r.head()
		r.all[led.Coordinator].kill()
		took := r.until("take-over", time.Minute, func() bool { return r.head().Fence > led.Fence })
		if h := r.head(); took > 17*time.Second || took < 16*time.Second || h.Coordinator == led.Coordinator {
			t.Errorf("%s replaced %s after %v, want 16.5 s", h.Coordinator, led.Coordinator, took)
		}
	})
}

func TestThreeOfTenDeadGoOnceTheyAreBack(t *testing.T) {
	fleetTest(t, func(r *rig) {
		r.boot(ids(10)...)
		r.push("r1")
		r.live("r1", 40*time.Second, ids(10)...)
		for _, id := range ids(3) {
			r.all[id].kill()
		}
		s := r.push("r2")
		r.until("abort", 2*time.Minute, func() bool { return r.head().State == fleet.Abort })
		if h := r.head(); h.RetryAt == 0 || h.Hold == s {
			t.Fatalf("not to be tried again: %+v", h)
		}
		for id, b := range r.all {
			if b.serves() != "r1" {
				t.Errorf("%s serves %s after the abort", id, b.serves())
			}
		}
		for _, id := range ids(3) {
			r.all[id].boot()
		}
		r.live("r2", 2*time.Minute, ids(10)...)
	})
}

// Members that were lost long ago are no part of the guard's base, and no pushes wait for them.
func TestGhostsOfEarlierEpochsCostNothing(t *testing.T) {
	fleetTest(t, func(r *rig) {
		r.boot(ids(20)...)
		r.push("r1")
		r.live("r1", 40*time.Second, ids(20)...)
		for _, id := range ids(2) { // within the guard, 10 % of 20
			r.all[id].kill()
		}
		left := ids(20)[2:]
		for n := range 4 {
			id := fmt.Sprintf("old-%d", n)
			r.push(id)
			r.live(id, 2*time.Minute, left...)
		}
		for _, id := range left[:1] { // the guard has room again: 10 % of 18 is one
			r.all[id].kill()
		}
		r.push("r2")
		if took := r.live("r2", 2*time.Minute, left[1:]...); took > 40*time.Second {
			t.Errorf("with two ghosts and one death: %v, want the one's lease", took)
		}
		if h := r.head(); h.Excluded != 1 || h.Members != 18 {
			t.Errorf("%d of %d members excluded, want 1 of 18: ghosts are not counted", h.Excluded, h.Members)
		}
	})
}
