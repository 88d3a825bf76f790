package sim

import (
	"context"
	"flag"
	"testing"
	"time"

	"s3pulldeploy/internal/fleet"
	"s3pulldeploy/internal/weak"
)

var (
	seeds = flag.Uint64("seeds", 300, "how many `seeds` to simulate")
	first = flag.Uint64("first", 1, "the first `seed`; a failing one is replayed with -first=N -seeds=1")
)

// simulate runs one seed: a time of faults, then calm, in which the fleet must converge.
func simulate(seed uint64) *world {
	w := newWorld(seed)
	if seed%5 == 0 {
		w.tables = newTables(w.scene, func(d time.Duration, what string, f func()) { w.after(d, nil, what, f) })
	}
	if seed%3 == 0 {
		w.people = newPeople(w.scene)
	}
	w.busy = w.chance(0.3)
	w.hooked, w.stepwise = w.chance(0.25), true
	w.after(time.Minute, nil, "approve", w.approving)
	for range 1 + w.rng.IntN(5) {
		b := w.add()
		w.after(w.between(0, 10*time.Second), nil, b.id+" boot", b.start)
	}
	w.after(w.between(0, 30*time.Second), nil, "first push", func() { w.push("") })
	end := w.between(5*time.Minute, 40*time.Minute)
	w.after(20*time.Second, nil, "trouble", func() { w.trouble(end) })
	if w.tables != nil {
		w.after(time.Minute, nil, "table trouble", func() { w.tables.trouble(end) })
	}
	if w.people != nil {
		w.after(time.Minute, nil, "people", func() { w.meddle(end) })
	}
	w.runUntil(end)
	w.calmDown()
	const bound = 45 * time.Minute
	for t := w.now + bound; w.now < t && len(w.violate) == 0; {
		if w.truth.settled() == "" {
			return w
		}
		w.runUntil(w.now + 10*time.Second)
	}
	if len(w.violate) == 0 {
		w.fail("I11 non-blocking: not settled %v after the last fault: %s", bound, w.truth.settled())
	}
	return w
}

// approving is somebody who looks at waves now and then.
func (w *world) approving() {
	w.approve()
	w.after(w.between(time.Second, time.Minute), nil, "approve", w.approving)
}

// meddle has people do something, and again after a while.
func (w *world) meddle(end time.Duration) {
	if w.now < end {
		w.people.act()
		w.after(w.people.between(time.Second, time.Minute), nil, "people", func() { w.meddle(end) })
	}
}

// trouble does one bad or merely busy thing, and schedules the next.
func (w *world) trouble(end time.Duration) {
	if w.now >= end {
		return
	}
	b := w.boxes[w.rng.IntN(len(w.boxes))]
	gap := w.between(100*time.Millisecond, time.Minute)
	kind := w.rng.IntN(14)
	if w.busy && w.chance(0.8) { // many agents restarted while epochs come and go: joiners in every phase
		gap, kind = w.between(20*time.Millisecond, 4*time.Second), 13
		if w.truth.head.State == fleet.Done && w.chance(0.3) {
			kind = 0
		}
	}
	switch kind {
	case 0, 1, 2:
		w.push("")
	case 3:
		if past := w.truth.releases(); len(past) > 1 {
			w.push(past[w.rng.IntN(len(past)-1)])
		}
	case 4:
		b.die("killed")
	case 5:
		b.pausedUntil = max(b.pausedUntil, w.now+w.between(time.Second, 5*time.Minute))
		w.note("%s paused until %v", b.id, b.pausedUntil)
	case 6:
		b.cut = w.now + w.between(time.Second, 3*time.Minute)
		w.note("%s cut off from the table until %v", b.id, b.cut)
	case 7:
		b.s3cut = w.now + w.between(time.Second, 3*time.Minute)
	case 8:
		b.sick = !b.sick
	case 9:
		if len(w.boxes) < 8 {
			n := w.add()
			w.after(w.between(0, 5*time.Second), nil, n.id+" boot", n.start)
		}
	case 10:
		b.skew += time.Duration(w.rng.IntN(7200)-3600) * time.Second
	case 11:
		w.freeze(w.truth.head.Frozen == nil)
	case 12, 13:
		b.sigterm(kind == 12 && w.chance(0.6))
	}
	w.after(gap, nil, "trouble", func() { w.trouble(end) })
}

// sigterm ends an agent in good order: for a restart, or since the machine goes.
func (b *box) sigterm(machineGoes bool) {
	if !b.up || b.pausedUntil > b.w.now {
		return
	}
	if machineGoes && len(b.w.boxes) < 2 {
		return
	}
	b.w.note("%s SIGTERM, machine goes: %v", b.id, machineGoes)
	if machineGoes {
		b.serving = false
	}
	b.w.active = append(b.w.active, b)
	func() {
		defer func() {
			b.w.active = b.w.active[:len(b.w.active)-1]
			if r := recover(); r != nil {
				if _, ok := r.(crash); !ok {
					panic(r)
				}
			}
		}()
		_ = b.node.Leave(context.Background(), machineGoes || weak.Rule == "M10")
	}()
	if row := b.w.truth.row(b.id); row.Instance == "" {
		delete(b.w.truth.rows, b.id)
	}
	b.up, b.node, b.job, b.inService, b.gone = false, nil, nil, false, machineGoes
	b.life++
	if !machineGoes {
		late := time.Minute
		if b.w.busy {
			late = 2 * time.Second
		}
		b.w.after(b.w.between(20*time.Millisecond, late), nil, b.id+" restart", b.start)
	}
}

// calmDown ends all faults. What was terminated stays so; a last good release is pushed.
func (w *world) calmDown() {
	w.calm, w.busy = true, false
	for _, b := range w.boxes {
		b.cut, b.s3cut, b.sick = 0, 0, false // who is paused wakes in its own time
	}
	alive := 0
	for _, b := range w.boxes {
		if !b.gone {
			alive++
		}
	}
	if alive == 0 {
		n := w.add()
		n.start()
	}
	if w.truth.head.Frozen != nil {
		w.freeze(false)
	}
	w.note("calm")
	w.after(time.Second, nil, "last push", func() { w.push("") })
}

func TestSimulate(t *testing.T) {
	epochs, commits, mended := int64(0), 0, 0
	var did [acts]int
	for seed := *first; seed < *first+*seeds; seed++ {
		w := simulate(seed)
		if len(w.violate) > 0 {
			t.Fatalf("%s\nreplay: go test ./internal/sim -run TestSimulate -first=%d -seeds=1", w.report(), seed)
		}
		epochs += w.truth.head.Epoch
		commits += len(w.truth.commits)
		if w.tables != nil {
			mended += w.tables.done
		}
		if w.people != nil {
			for i, n := range w.people.did {
				did[i] += n
			}
		}
	}
	t.Logf("%d seeds, %d epochs, %d commits, %d heads restored and mended; held, tried again, forgotten, overwritten: %v", *seeds, epochs, commits, mended, did)
	if commits < int(*seeds) {
		t.Errorf("only %d commits in %d seeds: the simulation does not reach what it is to test", commits, *seeds)
	}
}

func TestASeedReplaysExactly(t *testing.T) {
	for seed := uint64(1); seed <= 5; seed++ {
		a, b := simulate(seed), simulate(seed)
		if len(a.trace) != len(b.trace) {
			t.Fatalf("seed %d: %d lines, then %d", seed, len(a.trace), len(b.trace))
		}
		for i := range a.trace {
			if a.trace[i] != b.trace[i] {
				t.Fatalf("seed %d: line %d: %s\nthen: %s", seed, i, a.trace[i], b.trace[i])
			}
		}
	}
}

var _ fleet.Table = (*box)(nil)
