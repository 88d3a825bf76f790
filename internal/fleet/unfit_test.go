package fleet_test

import (
	"errors"
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
