package fleet_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"s3pulldeploy/internal/fleet"
)

// hooked makes machines that have a fleet_once hook, and r1 live on them.
func (r *rig) hooked(names ...string) *hook {
	h := &hook{takes: 5 * time.Second}
	for _, id := range names {
		b := r.box(id)
		b.hook = h
		b.boot()
	}
	r.push("r1")
	r.live("r1", time.Minute, names...)
	return h
}

func TestFleetOnceRunsOnOneInstanceBeforeTheCommit(t *testing.T) {
	fleetTest(t, func(r *rig) {
		h := r.hooked(ids(4)...)
		if len(h.ran()) != 1 {
			t.Errorf("at the first deploy it ran on %v", h.ran())
		}
		h.becomes(15*time.Minute, nil) // far above the prepare timeout, whose clock stands still
		r.push("r2")
		r.until("begun", time.Minute, func() bool { return len(h.ran()) == 2 })
		time.Sleep(12 * time.Minute)
		if now := r.head(); now.State != fleet.Prepare || len(r.on("r1")) != 4 || !strings.HasPrefix(now.Waits, "fleet_once on i-0") {
			t.Errorf("while it runs the old code serves: %+v, on r1: %v", now, r.on("r1"))
		}
		r.live("r2", 20*time.Minute, ids(4)...)
		if len(h.ran()) != 2 {
			t.Errorf("it ran on %v", h.ran())
		}
	})
}

func TestFailedFleetOnceAbortsForGood(t *testing.T) {
	fleetTest(t, func(r *rig) {
		h := r.hooked(ids(3)...)
		h.becomes(time.Second, errors.New("fleet_once: exit code 1: table exists"))
		s := r.push("r2")
		r.until("held", time.Minute, func() bool { return r.head().Hold == s })
		if now := r.head(); now.State != fleet.Abort || !strings.Contains(now.Reason, "table exists") || len(r.on("r1")) != 3 {
			t.Errorf("head %+v", now)
		}
	})
}

func TestTakeOverThatFindsFleetOnceRunningAbortsAndHolds(t *testing.T) {
	fleetTest(t, func(r *rig) {
		h := r.hooked(ids(3)...)
		h.becomes(10*time.Minute, nil)
		s := r.push("r2")
		r.until("begun", time.Minute, func() bool { return len(h.ran()) == 2 })
		r.all[r.head().Coordinator].kill()
		r.until("held", time.Minute, func() bool { return r.head().Hold == s })
		time.Sleep(time.Hour)
		if now := r.head(); now.State != fleet.Abort || len(h.ran()) != 2 {
			t.Errorf("head %+v, it ran on %v", now, h.ran())
		}
	})
}

func TestFleetOnceOfAnInstanceThatDiesIsNotRunAgain(t *testing.T) {
	fleetTest(t, func(r *rig) {
		h := &hook{takes: 5 * time.Second}
		r.boot(ids(3)...)
		only := r.box("cron") // the coordinator has no such hook
		only.hook = h
		only.boot()
		r.push("r1")
		r.live("r1", time.Minute, append(ids(3), "cron")...)
		h.becomes(10*time.Minute, nil)
		s := r.push("r2")
		r.until("begun", time.Minute, func() bool { return len(h.ran()) == 2 })
		only.kill()
		only.boot()
		r.until("held", time.Minute, func() bool { return r.head().Hold == s })
		if now := r.head(); !strings.Contains(now.Reason, "nobody knows how far it came") {
			t.Errorf("head %+v", now)
		}
		time.Sleep(time.Hour)
		if len(h.ran()) != 2 {
			t.Errorf("it ran on %v", h.ran())
		}
	})
}

func TestFleetOnceThatEndedIsNotRepeatedForItsSequence(t *testing.T) {
	fleetTest(t, func(r *rig) {
		h := r.hooked(ids(10)...)
		r.push("r2")
		r.until("over", time.Minute, func() bool { return r.head().Epoch == 2 && strings.HasPrefix(r.head().Once, "ok ") })
		if r.head().State != fleet.Prepare {
			t.Fatal("committed by the sweep that saw the hook's end")
		}
		r.freeze(0)
		for _, id := range ids(3) { // more than the guard, and they voted yes
			r.all[id].kill()
		}
		l := fleet.NewLedger(r.mem, scope, r.token)
		r.until("aborted", 3*time.Minute, func() bool { // as a lost coordinator's successor might for another reason
			now, err := l.Decide(t.Context(), r.head(), fleet.Outcome{Reason: "time", Retry: time.Minute, Now: time.Now()})
			return err == nil && now.State == fleet.Abort
		})
		for _, id := range ids(3) {
			r.all[id].boot()
		}
		r.thaw()
		r.live("r2", 10*time.Minute, ids(10)...)
		if len(h.ran()) != 2 {
			t.Errorf("it ran on %v; once was for r1", h.ran())
		}
	})
}

func TestRollbackRunsNoFleetOnce(t *testing.T) {
	fleetTest(t, func(r *rig) {
		h := r.hooked(ids(3)...)
		r.push("r2")
		r.live("r2", time.Minute, ids(3)...)
		r.push("r1", `kind "rollback"`)
		r.live("r1", time.Minute, ids(3)...)
		r.spoil("r3", ids(3)...)
		r.push("r3")
		r.until("back by itself", 2*time.Minute, func() bool { return r.head().Automatic() && r.head().State == fleet.Done })
		if len(h.ran()) != 3 {
			t.Errorf("it ran on %v, want once for each of r1, r2 and r3", h.ran())
		}
	})
}

// laggard answers one eventually consistent read of the head as it was before fleet_once began.
type laggard struct {
	fleet.Table
	past  fleet.Table
	owing bool
}

func (l *laggard) Get(ctx context.Context, k fleet.Key, strong bool) (fleet.Item, error) {
	now, err := l.Table.Get(ctx, k, strong)
	if strong || k.Sort != "head" || !l.owing || now["once"] == nil {
		return now, err
	}
	before, err := l.past.Get(ctx, k, false)
	if before["once"] == nil {
		l.owing = false
		return before, err
	}
	return now, nil
}

func TestStaleReadWhileFleetOnceRunsDoesNotRunItAgain(t *testing.T) {
	fleetTest(t, func(r *rig) {
		h := &hook{takes: 20 * time.Second}
		slow := map[string]*laggard{}
		for _, id := range ids(3) {
			b := r.box(id)
			slow[id] = &laggard{Table: r.mem, past: r.mem.Past(1)}
			b.hook, b.stageTime, b.table = h, 3*time.Second, slow[id]
			b.boot()
		}
		r.push("r1")
		r.live("r1", 2*time.Minute, ids(3)...)
		for id, b := range r.all {
			b.set(func() { slow[id].owing = true })
		}
		r.push("r2")
		r.live("r2", 5*time.Minute, ids(3)...)
		if len(h.ran()) != 2 {
			t.Errorf("it ran on %v, want once for each of r1 and r2", h.ran())
		}
		for id := range slow {
			if slow[id].owing {
				t.Errorf("%s never read an old head: the test shows nothing", id)
			}
		}
	})
}

func TestOnceIsNotedOnlyOverWhatWasRead(t *testing.T) {
	fleetTest(t, func(r *rig) {
		r.boot(ids(1)...)
		r.all["i-00"].set(func() { r.all["i-00"].stageTime = time.Hour })
		r.push("r1")
		r.until("open", time.Minute, func() bool { return r.head().State == fleet.Prepare })
		r.all["i-00"].kill()
		l := fleet.NewLedger(r.mem, scope, r.token)
		was := r.head()
		now, err := l.Once(t.Context(), was, "running 1 x")
		if err != nil || now.Beat != was.Beat+1 {
			t.Fatalf("beat %d after %d, %v", now.Beat, was.Beat, err)
		}
		if _, err := l.Once(t.Context(), was, "running 1 y"); !errors.Is(err, fleet.ErrOvertaken) {
			t.Errorf("over an older reading: %v", err)
		}
		was = now
		was.Once, was.Beat = "", now.Beat+5
		if _, err := l.Once(t.Context(), was, "running 1 y"); !errors.Is(err, fleet.ErrOvertaken) {
			t.Errorf("over another run: %v", err)
		}
	})
}
