package fleet_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"s3pulldeploy/internal/fleet"
)

// A machine whose state cannot be saved promises nothing and follows nobody: the fleet must hear so at once.
func TestMachineThatCannotSaveItsStateIsLeftOutWithItsReason(t *testing.T) {
	readOnly := errors.New("read-only file system")
	for name, at := range map[string]func(fleet.State) bool{
		"anything":     func(fleet.State) bool { return true },
		"the decision": func(s fleet.State) bool { return s.Decision.Epoch >= 2 },
	} {
		t.Run(name, func(t *testing.T) {
			fleetTest(t, func(r *rig) {
				r.boot(ids(10)...)
				r.push("r1")
				r.live("r1", 40*time.Second, ids(10)...)
				sick := r.all["i-04"]
				sick.set(func() {
					sick.journal = func(s fleet.State) error {
						if at(s) {
							return readOnly
						}
						return nil
					}
				})
				r.push("r2")
				r.until("the others have flipped", 15*time.Second, func() bool {
					n := 0
					for _, m := range r.rows() {
						if m.Active.Release == "r2" {
							n++
						}
					}
					return n == 9
				})
				r.until("it says so", 15*time.Second, func() bool {
					m := r.rows()["i-04"]
					return m.Phase == fleet.Out && strings.Contains(m.Error, "read-only")
				})
				if v := sick.see(); v.Ready || v.Flipped.Release != "r1" {
					t.Errorf("ready %v on %s", v.Ready, v.Flipped.Release)
				}
				r.until("the epoch is over without it", 15*time.Second, func() bool {
					h := r.head()
					return h.State == fleet.Done && h.Good.Release == "r2"
				})
				time.Sleep(time.Minute)
				sick.set(func() { sick.journal = nil })
				r.live("r2", time.Minute, ids(10)...)
				if m := r.rows()["i-04"]; m.Phase != fleet.Serve || m.Error != "" {
					t.Errorf("healed: %+v", m)
				}
			})
		})
	}
}

// failing makes saves of the second epoch's commit fail, so many times; -1: all.
func (b *box) failing(times int) {
	b.set(func() {
		b.journal = func(s fleet.State) error {
			if s.Decision.Epoch < 2 || times == 0 {
				return nil
			}
			times--
			return errors.New("input/output error")
		}
	})
}

func TestCommitThatIsSavedAtALaterTryIsNoFailure(t *testing.T) {
	for times := 1; times <= 3; times++ {
		t.Run(fmt.Sprintf("of a canary, %d times", times), func(t *testing.T) {
			fleetTest(t, func(r *rig) {
				r.based(ids(4)...)
				r.push("r2", `waves "1"`, `approve "true"`)
				r.waved("r2", 1, 20*time.Second)
				id := r.on("r2")[0]
				canary := r.all[id]
				canary.failing(times)
				r.approve()
				r.live("r2", time.Minute, ids(4)...)
				r.until("it is well", 20*time.Second, func() bool {
					m := r.rows()[id]
					return m.Phase == fleet.Serve && m.Failed == 0 && m.Error == ""
				})
				canary.set(func() {
					if s := canary.state; s.Failed != 0 || s.Error != "" || s.Decision.Epoch != 2 {
						t.Errorf("on its disk: %+v", s)
					}
				})
			})
		})
	}
	t.Run("in a fleet of two", func(t *testing.T) {
		fleetTest(t, func(r *rig) {
			r.based(ids(2)...)
			r.all["i-01"].failing(1)
			r.push("r2")
			r.until("done", time.Minute, func() bool {
				if m := r.rows()["i-01"]; m.Failed != 0 {
					r.t.Fatalf("one save failed, and it says %+v", m)
				}
				return r.head().Epoch == 2 && r.head().State == fleet.Done
			})
			r.live("r2", time.Second, ids(2)...)
			if h := r.head(); h.Good.Release != "r2" || h.Reason != "" {
				t.Errorf("head %+v", h)
			}
		})
	})
}

func TestMachineThatCannotFlipSpeaksForNoRelease(t *testing.T) {
	for name, sicken := range map[string]func(r *rig, b *box){
		"a joiner": func(r *rig, b *box) {
			b.refuse, b.machine = errors.New("no such object"), true
			b.boot()
			r.until("it has tried r1", 20*time.Second, func() bool { return r.rows()[b.id].Error != "" })
			b.set(func() { b.refuse = nil }) // it asks for r2 before it tries r1 again
			b.failing(-1)
			r.push("r2")
		},
		"one that leaves": func(r *rig, b *box) {
			b.boot()
			r.until("it serves", 20*time.Second, func() bool { return r.rows()[b.id].Active.Release == "r1" && b.see().Ready })
			b.failing(-1)
			r.push("r2")
			r.until("it failed", 20*time.Second, func() bool { return r.rows()[b.id].Failed == 2 })
			b.kill()
			if err := b.node.Leave(r.t.Context(), false); err != nil {
				r.t.Error(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			fleetTest(t, func(r *rig) {
				r.based(ids(3)...)
				for _, b := range r.all {
					b.set(func() { b.stageTime, b.settleTime = 2*time.Second, 20*time.Second })
				}
				b := r.box("cron-0")
				b.group = "cron"
				sicken(r, b)
				r.until("the others serve r2", time.Minute, func() bool {
					h := r.head()
					return h.State == fleet.Done && h.Good.Release == "r2" || h.Epoch > 2
				})
				m := r.rows()["cron-0"]
				if h := r.head(); h.Epoch != 2 || m.Failed != 2 || !m.Vote.Yes || m.Vote.Epoch != 2 {
					t.Errorf("head %+v\nrow %+v", h, m)
				}
			})
		})
	}
}
