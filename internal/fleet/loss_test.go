package fleet_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"s3pulldeploy/internal/fleet"
)

func (r *rig) loseHead() {
	r.t.Helper()
	if err := r.mem.Delete(r.t.Context(), fleet.Key{Partition: scope, Sort: "head"}, nil); err != nil {
		r.t.Fatal(err)
	}
}

func TestALostHeadInTheMiddleOfAnEpochDoesNotMakeItsCoordinatorSpin(t *testing.T) {
	fleetTest(t, func(r *rig) {
		r.boot(ids(2)...)
		r.push("r1")
		r.live("r1", time.Minute, ids(2)...)
		for _, b := range r.all {
			b.set(func() { b.stageTime = time.Minute })
		}
		r.push("r2")
		r.until("open", 30*time.Second, func() bool { return r.head().State == fleet.Prepare })
		r.loseHead()
		r.until("shown", time.Minute, func() bool { return r.all["i-00"].see().Problems["head lost"] != "" })
	})
}

func TestAHeadLostAfterEpochsThatNobodyVotedInIsMendedByReseeding(t *testing.T) {
	fleetTest(t, func(r *rig) {
		r.boot(ids(2)...)
		first := r.push("r1")
		r.live("r1", time.Minute, ids(2)...)
		for _, b := range r.all {
			b.set(func() { b.stageTime = 5 * time.Minute })
		}
		r.push("r2")
		r.until("open", 30*time.Second, func() bool { return r.head().State == fleet.Prepare })
		r.push("r3")
		r.until("superseded", 30*time.Second, func() bool { return r.head().Epoch == 3 })
		time.Sleep(20 * time.Second) // all have seen it and beaten
		r.loseHead()
		l := fleet.NewLedger(r.mem, scope, r.token)
		rows, err := l.Members(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		note, err := fleet.NewNote([]byte("r1\n" + itoa(first) + "\n3"))
		if err != nil {
			t.Fatal(err)
		}
		note.Digest = "digest-r1"
		if _, err := l.Reseed(t.Context(), fleet.Head{}, rows, note, time.Now()); err != nil {
			t.Fatal(err)
		}
		for _, b := range r.all {
			b.set(func() { b.stageTime = time.Second })
		}
		r.push("r4")
		r.live("r4", 10*time.Minute, ids(2)...)
	})
}

func TestANewcomerToARestoredTableNeitherServesNorOpens(t *testing.T) {
	fleetTest(t, func(r *rig) {
		r.boot(ids(2)...)
		r.push("r1")
		r.live("r1", time.Minute, ids(2)...)
		backup, err := r.mem.Get(t.Context(), fleet.Key{Partition: scope, Sort: "head"}, true)
		if err != nil {
			t.Fatal(err)
		}
		r.push("r2")
		r.live("r2", time.Minute, ids(2)...)
		r.loseHead()
		if _, err := r.mem.Write(t.Context(), fleet.Key{Partition: scope, Sort: "head"}, fleet.Write{Set: backup}); err != nil {
			t.Fatal(err)
		}
		r.boot("new")
		r.until("shown", time.Minute, func() bool { return r.all["new"].see().Problems["head lost"] != "" })
		r.push("r3")
		time.Sleep(5 * time.Minute)
		if v := r.all["new"].see(); v.Ready {
			t.Errorf("the newcomer is ready on %s", v.Flipped.Release)
		}
		if h := r.head(); h.Epoch != 1 {
			t.Errorf("epoch %d was opened on a restored table", h.Epoch)
		}
	})
}

func TestJoinersWithSickMachinesDoNotStopAHealthyFleet(t *testing.T) {
	fleetTest(t, func(r *rig) {
		r.boot(ids(3)...)
		r.push("r1")
		r.live("r1", time.Minute, ids(3)...)
		for _, id := range []string{"j", "k", "l"} {
			b := r.box(id)
			b.refuse, b.machine = errors.New("shared target is missing"), true
			b.boot()
		}
		time.Sleep(30 * time.Second)
		for _, id := range ids(3) {
			r.all[id].set(func() { r.all[id].stageTime = 2 * time.Second }) // the joiners' noes come first
		}
		r.push("r2")
		r.live("r2", 20*time.Second, ids(3)...)
	})
}

func TestARowThatLeftWithoutComingBackIsLostInTheEnd(t *testing.T) {
	fleetTest(t, func(r *rig) {
		r.boot("a", "b", "x")
		r.push("r0")
		r.live("r0", time.Minute, "a", "b", "x")
		x := r.all["x"]
		x.kill()
		if err := x.node.Leave(t.Context(), false); err != nil {
			t.Fatal(err)
		}
		for i := range 12 {
			time.Sleep(time.Hour)
			id := "q" + itoa(int64(i))
			r.push(id)
			r.live(id, time.Minute, "a", "b")
		}
		if m := r.rows()["x"]; !m.Lost() || r.head().Excluded != 0 {
			t.Errorf("after 12 epochs: missed %d, excluded %d; want lost, and nobody excluded", m.Missed, r.head().Excluded)
		}
		r.leftOut(13, "x: lost, silent through 4 rollouts") // of which people are told all the same
	})
}

func TestACommitOvertakenByTheNextPushHasItsLogAndIsGood(t *testing.T) {
	fleetTest(t, func(r *rig) {
		r.boot("a", "b")
		r.push("r1")
		r.live("r1", time.Minute, "a", "b")
		r.push("r2")
		r.until("commit", 30*time.Second, func() bool { return r.head().State == fleet.Commit })
		r.push("r3")
		r.live("r3", time.Minute, "a", "b")
		logs, err := fleet.NewLedger(r.mem, scope, r.token).Logs(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if len(logs) != 3 || logs[1].Release != "r2" || logs[1].Outcome != "done" {
			t.Errorf("logs %+v, want one for each of three epochs", logs)
		}
	})
}

// lapses answers every other eventually consistent read of the head with what it was some changes ago.
type lapses struct {
	fleet.Table
	past  fleet.Table
	reads int
	older int // answers that were not what the head is
}

func (l *lapses) Get(ctx context.Context, k fleet.Key, strong bool) (fleet.Item, error) {
	now, err := l.Table.Get(ctx, k, strong)
	if strong || k.Sort != "head" {
		return now, err
	}
	if l.reads++; l.reads%2 == 0 {
		return now, err
	}
	before, err := l.past.Get(ctx, k, false)
	if before["beat"] != now["beat"] {
		l.older++
	}
	return before, err
}

// Whoever reads an older head after a newer one goes by the newer, and a newcomer never serves what the fleet has left (F34).
func TestReadsOfThePastMoveNobodyBack(t *testing.T) {
	fleetTest(t, func(r *rig) {
		tables := map[string]*lapses{}
		start := func(id string) {
			tables[id] = &lapses{Table: r.mem, past: r.mem.Past(5)}
			b := r.box(id)
			b.table, b.stageTime = tables[id], 2*time.Second
			b.boot()
		}
		for _, id := range ids(3) {
			start(id)
		}
		r.push("r1")
		r.live("r1", time.Minute, ids(3)...)
		r.push("r2")
		r.until("the commit", time.Minute, func() bool { h := r.head(); return h.Epoch == 2 && h.State == fleet.Commit })
		start("late")
		r.live("r2", time.Minute, append(ids(3), "late")...)
		r.push("r3")
		r.live("r3", time.Minute, append(ids(3), "late")...)
		if h := r.head(); h.Epoch != 3 {
			t.Errorf("it took %d epochs", h.Epoch)
		}
		for id, b := range r.all {
			want := 3
			if id == "late" {
				want = 2
			}
			b.set(func() {
				if len(b.flips) != want || id == "late" && b.first != "r2" {
					t.Errorf("%s flipped %d times, first to %s", id, len(b.flips), b.first)
				}
				if tables[id].older == 0 {
					t.Errorf("%s read no older head: the test shows nothing", id)
				}
			})
		}
	})
}
