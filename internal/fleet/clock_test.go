package fleet_test

import (
	"fmt"
	"testing"
	"time"

	"s3pulldeploy/internal/fleet"
)

// spreadOfFlips is how far apart the machines flipped last.
func (r *rig) spreadOfFlips() time.Duration {
	var first, last time.Time
	for _, b := range r.all {
		b.set(func() {
			at := b.flips[len(b.flips)-1]
			if first.IsZero() || at.Before(first) {
				first = at
			}
			if at.After(last) {
				last = at
			}
		})
	}
	return last.Sub(first)
}

// flipLate is the most that a flip may be away from the others': the flip delay of a small fleet, and a step.
const flipLate = time.Second + 300*time.Millisecond

// A wall clock that is off by an hour, whoever has it, excludes nobody, and moves a flip by its delay at most (F41).
func TestAWallClockThatIsWrongDecidesNothing(t *testing.T) {
	for _, off := range []time.Duration{time.Hour, -time.Hour} {
		for _, id := range ids(3) {
			t.Run(fmt.Sprintf("%s by %v", id, off), func(t *testing.T) {
				fleetTest(t, func(r *rig) {
					for _, id := range ids(3) {
						r.box(id)
					}
					r.all[id].clock.off = off
					for _, b := range r.all {
						b.boot()
					}
					r.push("r1")
					r.live("r1", 40*time.Second, ids(3)...)
					r.push("r2")
					r.live("r2", 15*time.Second, ids(3)...)
					if h := r.head(); h.Epoch != 2 || h.Excluded != 0 {
						t.Errorf("the head says %+v", h)
					}
					if spread := r.spreadOfFlips(); spread > flipLate {
						t.Errorf("the flips are %v apart", spread)
					}
				})
			})
		}
	}
}

// A wall clock that is set between the commit and the flip moves the flip by its delay at most (F42).
func TestAWallClockThatStepsBeforeTheFlipMovesItLittle(t *testing.T) {
	for _, step := range []time.Duration{time.Hour, -time.Hour} {
		t.Run(step.String(), func(t *testing.T) {
			fleetTest(t, func(r *rig) {
				r.boot(ids(3)...)
				r.push("r1")
				r.live("r1", 40*time.Second, ids(3)...)
				r.push("r2")
				r.until("the commit", 15*time.Second, func() bool { h := r.head(); return h.Epoch == 2 && h.State == fleet.Commit })
				r.all["i-02"].set(func() { r.all["i-02"].clock.off = step })
				r.live("r2", 15*time.Second, ids(3)...)
				if spread := r.spreadOfFlips(); spread > flipLate {
					t.Errorf("the flips are %v apart", spread)
				}
			})
		})
	}
}

// Clocks that are 5 % fast take nobody for silent who has not said anything for a whole lease: that is what the tenth above it is for
// (F43).
func TestClocksThatRunFastAccuseNobody(t *testing.T) {
	fleetTest(t, func(r *rig) {
		for _, id := range ids(3) {
			b := r.box(id)
			b.clock.rate = 1.05
			b.boot()
		}
		r.push("r1")
		r.live("r1", 40*time.Second, ids(3)...)
		slow := r.all["i-02"]
		slow.set(func() { slow.stageTime = time.Minute })
		r.push("r2")
		r.until("the others have voted", 15*time.Second, func() bool {
			rows := r.rows()
			return rows["i-00"].Vote.Epoch == 2 && rows["i-01"].Vote.Epoch == 2
		})
		beat := r.rows()["i-02"].Beat
		r.until("a beat", 10*time.Second, func() bool { return r.rows()["i-02"].Beat > beat })
		thaw := make(chan struct{})
		slow.set(func() { slow.frozen = thaw })
		time.Sleep(fleet.Lease)
		if h := r.head(); !h.State.Open() {
			t.Errorf("decided without a member that was silent for a lease: %+v", h)
		}
		slow.set(func() { slow.frozen = nil })
		close(thaw)
		r.live("r2", 90*time.Second, ids(3)...)
		if h := r.head(); h.Epoch != 2 || h.Excluded != 0 {
			t.Errorf("the head says %+v", h)
		}
	})
}

// A machine that sleeps over two rollouts, stopped or suspended, is left out; when it wakes up it does nothing that it had in mind, and
// goes straight to what is committed (F21, F44).
func TestAMachineThatSleepsOverCommitsGoesStraightToTheLast(t *testing.T) {
	for _, role := range []string{"the coordinator", "a member"} {
		t.Run(role, func(t *testing.T) {
			fleetTest(t, func(r *rig) {
				r.boot(ids(3)...)
				r.push("r1")
				r.live("r1", 40*time.Second, ids(3)...)
				for _, b := range r.all {
					b.set(func() { b.stageTime = 2 * time.Second })
				}
				r.push("r2")
				r.until("opened", 15*time.Second, func() bool { h := r.head(); return h.Epoch == 2 && h.State == fleet.Prepare })
				var sleeper string
				var others []string
				for _, id := range ids(3) {
					if sleeper == "" && (id == r.head().Coordinator) == (role == "the coordinator") {
						sleeper = id
					} else {
						others = append(others, id)
					}
				}
				b, thaw := r.all[sleeper], make(chan struct{})
				b.set(func() { b.frozen = thaw })
				r.live("r2", 90*time.Second, others...)
				r.push("r3")
				r.live("r3", 90*time.Second, others...)
				time.Sleep(30 * time.Minute)
				if on := b.serves(); on != "r1" {
					t.Errorf("asleep it serves %s", on)
				}
				before := r.head()
				b.set(func() { b.frozen = nil })
				close(thaw)
				r.live("r3", time.Minute, ids(3)...)
				if h := r.head(); h.Epoch != 3 || h.Fence != before.Fence || h.Token != before.Token {
					t.Errorf("it wrote the head: %+v after %+v", h, before)
				}
				b.set(func() {
					if len(b.flips) != 2 {
						t.Errorf("it flipped %d times, want to r1 and to r3", len(b.flips))
					}
				})
			})
		})
	}
}
