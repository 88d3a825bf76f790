package fleet_test

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"s3pulldeploy/internal/fleet"
)

// lame is a table that can be cut off, and can lose one read of a note.
type lame struct {
	fleet.Table
	cut, noNote atomic.Bool
}

func (l *lame) Get(ctx context.Context, k fleet.Key, strong bool) (fleet.Item, error) {
	if l.cut.Load() {
		return nil, fleet.ErrUnavailable
	}
	if strings.HasPrefix(k.Sort, "note#") && l.noNote.CompareAndSwap(true, false) {
		return nil, fleet.ErrThrottled
	}
	return l.Table.Get(ctx, k, strong)
}

func (l *lame) Query(ctx context.Context, partition, prefix string, strong bool) ([]fleet.Item, error) {
	if l.cut.Load() {
		return nil, fleet.ErrUnavailable
	}
	return l.Table.Query(ctx, partition, prefix, strong)
}

func (l *lame) Write(ctx context.Context, k fleet.Key, w fleet.Write) (fleet.Item, error) {
	if l.cut.Load() {
		return nil, fleet.ErrUnavailable
	}
	return l.Table.Write(ctx, k, w)
}

// lamed boots machines that have such a table each.
func (r *rig) lamed(names ...string) map[string]*lame {
	tables := map[string]*lame{}
	for _, id := range names {
		tables[id] = &lame{Table: r.mem}
		b := r.box(id)
		b.table = tables[id]
		b.boot()
	}
	return tables
}

func TestNobodyIsJudgedWhileTheNoteCannotBeRead(t *testing.T) {
	fleetTest(t, func(r *rig) {
		tables := r.lamed(ids(10)...)
		r.push("r1")
		r.live("r1", time.Minute, ids(10)...)
		for i, id := range ids(10) {
			b := r.all[id]
			b.set(func() {
				if b.settleTime = 40 * time.Second; i >= 7 {
					b.settleTime, b.unhealthy = 0, errors.New("500")
				}
			})
		}
		r.push("r2", `max_excluded "40%"`)
		r.until("commit", time.Minute, func() bool { return r.head().State == fleet.Commit && r.head().Epoch == 2 })
		time.Sleep(10 * time.Second)
		id := r.head().Coordinator
		tables[id].noNote.Store(true)
		r.all[id].kill()
		r.all[id].boot() // takes over at once, without any note
		time.Sleep(3 * time.Minute)
		if tables[id].noNote.Load() {
			t.Error("no note was asked for: the test shows nothing")
		}
		if h := r.head(); h.Epoch != 2 || h.State != fleet.Done || len(h.Bad) > 0 {
			t.Errorf("3 of 10 fail and 40 %% are allowed, and the head is %+v", h)
		}
	})
}

func TestEpochWhoseNoteIsGoneEndsByHandAndByTime(t *testing.T) {
	for how, byHand := range map[string]bool{
		"aborted by hand": true,
		"timed out after": false,
	} {
		fleetTest(t, func(r *rig) {
			r.based(ids(3)...)
			for _, b := range r.all {
				b.set(func() { b.stageTime = time.Hour })
			}
			s := r.push("r2")
			r.until("open", time.Minute, func() bool { return r.head().State == fleet.Prepare })
			if err := r.mem.Delete(t.Context(), fleet.Key{Partition: scope, Sort: "note#" + itoa(s)}, nil); err != nil {
				t.Fatal(err)
			}
			for _, id := range ids(3) { // the notes that they have read are gone
				r.all[id].kill()
				r.all[id].boot()
			}
			if byHand {
				r.hold(s)
			}
			r.until(how, 12*time.Minute, func() bool { return strings.HasPrefix(r.head().Reason, how) })
		})
	}
}

func TestCanaryThatReadItsCommitLaterServesWithoutTheTable(t *testing.T) {
	fleetTest(t, func(r *rig) {
		tables := r.lamed(ids(4)...)
		r.push("r1")
		r.live("r1", time.Minute, ids(4)...)
		r.push("r2", `waves "1"`, `approve "true"`)
		r.waved("r2", 1, time.Minute)
		id := r.on("r2")[0]
		canary := r.all[id]
		canary.kill()
		time.Sleep(20 * time.Second)
		r.approve()
		r.until("commit", 5*time.Minute, func() bool { return r.head().State == fleet.Done })
		for _, b := range r.all {
			b.set(func() { b.stageTime = 5 * time.Minute })
		}
		r.push("r3")
		r.until("open", time.Minute, func() bool { return r.head().Epoch == 3 })
		canary.boot() // it learns of the commit from what epoch 3 says is committed
		time.Sleep(20 * time.Second)
		canary.kill()
		tables[id].cut.Store(true)
		canary.boot()
		time.Sleep(time.Minute)
		if v := canary.see(); !v.Isolated || !v.Ready {
			t.Errorf("it serves %s, the committed release: isolated %v, ready %v", canary.serves(), v.Isolated, v.Ready)
		}
	})
}

func TestLogThatADeadCoordinatorOwesIsWrittenByWhoOpensNext(t *testing.T) {
	fleetTest(t, func(r *rig) {
		r.based(ids(3)...)
		b := r.all["i-00"]
		b.set(func() { b.refuse = errors.New("a hook failed") })
		r.push("r2")
		r.until("aborted", time.Minute, func() bool { return r.head().State == fleet.Abort })
		time.Sleep(time.Second)
		b.set(func() { b.refuse = nil })
		l := fleet.NewLedger(r.mem, scope, r.token)
		had, err := l.Logs(t.Context())
		if err != nil || len(had) != 2 {
			t.Fatalf("logs %+v, %v", had, err)
		}
		lose := func(sort string) {
			if err := r.mem.Delete(t.Context(), fleet.Key{Partition: scope, Sort: sort}, nil); err != nil {
				t.Fatal(err)
			}
		}
		lose("epoch#000000000002")
		r.push("r3")
		r.live("r3", time.Minute, ids(3)...)
		lose("epoch#000000000003")
		r.push("r4")
		r.live("r4", time.Minute, ids(3)...)
		logs, err := l.Logs(t.Context())
		if err != nil || len(logs) != 4 {
			t.Fatalf("logs %+v, %v", logs, err)
		}
		if l := logs[1]; l.Outcome != string(fleet.Abort) || l.Release != "r2" || l.Reason != had[1].Reason {
			t.Errorf("of the abort: %+v", l)
		}
		if l := logs[2]; l.Outcome != string(fleet.Done) || l.Release != "r3" || l.Reason != "" {
			t.Errorf("of the one that was done: %+v", l)
		}
	})
}
