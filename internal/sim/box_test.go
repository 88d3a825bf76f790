package sim

import (
	"context"
	"errors"
	"fmt"
	"time"

	"s3pulldeploy/internal/fleet"
)

// box is one machine: its disk survives crashes, its node does not.
type box struct {
	*machine
	w    *world
	node *fleet.Node
	life int // counts starts; 0: never started

	rate      float64       // of the boot clock against true time
	bootBase  time.Duration // boot clock at the last power-on
	poweredAt time.Duration

	job    *fleet.Want
	pollAt time.Duration
}

var errOutage = fmt.Errorf("outage: %w", fleet.ErrUnavailable)

func (w *world) add() *box {
	b := &box{
		w: w, machine: w.machine(len(w.boxes)),
		bootBase: time.Duration(w.rng.IntN(1000)) * time.Second,
	}
	b.rate = 0.96 + w.rng.Float64()*0.08
	b.skew = time.Duration(w.rng.IntN(7200)-3600) * time.Second
	if w.chance(0.5) {
		b.skew = 0
	}
	b.view = func() fleet.View { return b.node.View() }
	b.phase = func() (fleet.Phase, bool) { v := b.node.View(); return v.Phase, v.Ready }
	w.boxes, w.machines = append(w.boxes, b), append(w.machines, b.machine)
	return b
}

// Boot and Now are the machine's clocks.
func (b *box) Boot() time.Duration {
	return b.bootBase + time.Duration(float64(b.w.now-b.poweredAt)*b.rate)
}
func (b *box) Now() time.Time { return b.w.wall().Add(b.skew) }

// start runs the agent: after a crash, a restart or a boot.
func (b *box) start() {
	if b.up || b.gone {
		return
	}
	b.life++
	b.up, b.job, b.inService, b.pollAt = true, nil, false, 0
	l := fleet.NewLedger(b, scope, b.w.token)
	l.Parallel = 1
	b.node = fleet.NewNode(fleet.Options{
		Scope: scope, Instance: b.id, Group: b.group, Rollback: true, Once: b.w.hooked, TableDate: b.w.wall, Version: "sim", Incarnation: b.w.token(), Ledger: l, Journal: b,
		State: b.state, Clock: b, Random: b.w.rng.Float64, PollInterval: 5 * time.Second, PrepareTimeout: 10 * time.Minute, LookAgain: 30 * time.Second,
		Log: b.w.log.With("box", b.id),
	})
	b.node.FoundActive(b.active)
	b.w.note("%s starts, active %q", b.id, b.active)
	b.w.after(0, b, b.id+" step", b.step)
}

func (b *box) die(why string) {
	if !b.up {
		return
	}
	b.w.note("%s dies: %s", b.id, why)
	b.up, b.node, b.job, b.inService = false, nil, nil, false
	b.life++
	if b.w.chance(0.3) { // a power cut: the web server is down too, and the boot clock starts again
		b.serving = false
		b.bootBase, b.poweredAt = 0, b.w.now
	}
	back := b.w.between(time.Second, 3*time.Minute)
	b.w.after(back, nil, b.id+" back", b.start)
}

// step is one turn of the agent's loop.
func (b *box) step() {
	w := b.w
	if b.node.PointerWanted() || w.now >= b.pollAt {
		b.pollAt = w.now + 30*time.Second
		if w.pointer != nil && w.now >= b.s3cut {
			_ = b.node.Offer(w.pointer, w.wall(), 0)
		}
	}
	want, sleep := b.node.Step(context.Background())
	b.pursue(want)
	v := b.node.View()
	if b.says(w.now, v); b.inService || v.Isolated {
		b.serving = true
	}
	if v.Phase == fleet.Out {
		b.serving = false // the load balancer is told 503
	}
	w.after(max(time.Duration(float64(sleep)/b.rate), time.Millisecond), b, b.id+" step", b.step)
}

func (b *box) pursue(want fleet.Want) {
	if want.Task == fleet.Idle || b.job != nil {
		if b.job != nil && !b.job.Same(want) {
			b.job = nil // given up
		}
		return
	}
	w := b.w
	b.job = &want
	finish := func(after time.Duration, f func()) {
		job := b.job
		w.after(after, b, b.id+" "+want.Task.String(), func() {
			if b.job == job {
				b.job = nil
				f()
				w.after(0, b, b.id+" step", b.stepNow)
			}
		})
	}
	switch want.Task {
	case fleet.Inspect:
		finish(w.between(5*time.Millisecond, time.Second), func() { b.node.Inspected(want, w.digest(want.Note.Pointer.Release), nil) })
	case fleet.Stage:
		b.stage(want, finish)
	case fleet.Flip:
		if left := want.At - b.Boot(); left > fleet.FlipDelay(len(w.boxes)) {
			w.fail("I10 no remote clocks: %s, whose clock is %v off, waits %v for the flip of epoch %d", b.id, b.skew, left, want.Epoch)
		}
		finish(time.Duration(float64(want.At-b.Boot())/b.rate), func() { b.flip(want) })
	case fleet.Once:
		finish(w.between(100*time.Millisecond, 20*time.Second), func() {
			var err error
			if w.fault(0.05) {
				err = errors.New("fleet_once: exit code 1")
			}
			w.truth.ran(b.machine, want.Epoch, want.Note.Sequence)
			b.node.OnceDone(want, err)
		})
	case fleet.Settle:
		finish(w.between(10*time.Millisecond, 2*time.Second), func() {
			var err error
			if w.spoilt[want.Commit.Release] || !w.calm && w.chance(0.05) {
				err = errors.New("health check: got 500, want 200")
			}
			if err == nil {
				b.passed = b.active
			}
			b.node.SettledDone(want, err)
		})
	}
}

// stepNow is a step on a job's end; the scheduled one comes besides.
func (b *box) stepNow() {
	want, _ := b.node.Step(context.Background())
	b.pursue(want)
}

func (b *box) stage(want fleet.Want, finish func(time.Duration, func())) {
	w, id := b.w, want.Note.Pointer.Release
	took := w.between(20*time.Millisecond, 40*time.Second)
	if b.disk[id] {
		took = 20 * time.Millisecond
	} else if w.busy {
		took = w.between(20*time.Millisecond, 500*time.Millisecond)
	}
	finish(took, func() {
		var err error
		machine := false
		switch {
		case w.broken[id]:
			err = errors.New("before_flip: exit status 1")
		case !b.disk[id] && (b.sick || w.now < b.s3cut):
			err, machine = errors.New("no space left on device"), true
		case b.disk[id] && b.digests[id] != want.Note.Digest:
			err = errors.New("this id is on the disk with another digest")
		case !b.disk[id] && w.digest(id) != want.Note.Digest:
			err = errors.New("what the bucket has is not what the note says")
		default:
			b.disk[id], b.digests[id] = true, want.Note.Digest
		}
		b.node.Staged(want, err, machine)
	})
}

func (b *box) flip(want fleet.Want) {
	id := want.Commit.Release
	b.w.truth.flip(b.machine, want)
	if !b.disk[id] {
		b.w.note("%s cannot flip to %s: not here", b.id, id)
		b.node.FlipDone(want, b.Now(), errors.New("not on this disk"))
		return
	}
	b.w.truth.authentic(b.machine, want)
	if b.active != id {
		b.active, b.linked, b.passed = id, id, ""
	}
	if b.w.fault(0.01) {
		panic(crash{b}) // the link is moved, its record is not
	}
	b.node.FlipDone(want, b.Now(), nil)
}

// Save is the journal: a crash before it loses the state, a crash after it does not.
func (b *box) Save(s fleet.State) error {
	if b.w.fault(0.004) {
		panic(crash{b})
	}
	if b.w.fault(0.004) {
		return errors.New("no space left on device")
	}
	b.w.truth.saved(b.machine, s)
	b.state = s
	if b.w.fault(0.004) {
		panic(crash{b})
	}
	return nil
}

// request carries one table request through the faults of the network.
func (b *box) request(key string, do func() error) error {
	w := b.w
	life := b.life
	if w.chance(0.4) {
		slow := 400 * time.Millisecond
		if w.busy {
			slow = 3 * time.Second
		}
		w.pass(w.between(0, slow))
	}
	if b.life != life || !b.up {
		panic(crash{b})
	}
	switch {
	case w.now < b.cut:
		if w.chance(0.3) { // a half cut: requests arrive, replies are lost
			_ = do()
		}
		return errOutage
	case w.tables.throttles(key), w.fault(0.01):
		return fleet.ErrThrottled
	case w.fault(0.01):
		return errOutage
	case w.fault(0.003):
		panic(crash{b})
	case w.fault(0.005): // arrives late: its condition is judged then
		w.after(w.between(0, 20*time.Second), nil, b.id+" late request", func() { _ = do() })
		return errOutage
	}
	err := do()
	switch {
	case w.fault(0.003):
		panic(crash{b})
	case w.fault(0.01):
		return errOutage
	}
	if w.chance(0.2) {
		w.pass(w.between(0, 200*time.Millisecond))
	}
	if b.life != life || !b.up {
		panic(crash{b})
	}
	return err
}

// Get implements fleet.Table; eventually consistent reads may show the past.
func (b *box) Get(ctx context.Context, k fleet.Key, consistent bool) (it fleet.Item, err error) {
	err = b.request(k.Partition, func() (err error) {
		if !consistent && (b.w.chance(0.2) || b.w.busy && b.w.chance(0.4)) {
			it, err = b.w.mem.Past(1+b.w.rng.IntN(4)).Get(ctx, k, false)
			return err
		}
		it, err = b.w.mem.Get(ctx, k, true)
		return err
	})
	if err != nil {
		return nil, err
	}
	return it, nil
}

// Query implements fleet.Table.
func (b *box) Query(ctx context.Context, p, prefix string, consistent bool) (items []fleet.Item, err error) {
	err = b.request(p, func() (err error) {
		items, err = b.w.mem.Query(ctx, p, prefix, consistent)
		b.swept(b.w.now, p, items)
		return err
	})
	if err != nil {
		return nil, err
	}
	return items, nil
}

// Write implements fleet.Table.
func (b *box) Write(ctx context.Context, k fleet.Key, wr fleet.Write) (it fleet.Item, err error) {
	sent := b.sender(b.w.now) // it may arrive late
	err = b.request(k.Partition, func() (err error) {
		before, _ := b.w.mem.Get(ctx, k, true)
		it, err = b.w.mem.Write(ctx, k, wr)
		if err == nil {
			b.w.truth.written(sent, k, before, it)
		}
		return err
	})
	if refused := (*fleet.ConditionError)(nil); err != nil && !errors.As(err, &refused) {
		return nil, err
	}
	return it, err
}

// Delete implements fleet.Table.
func (b *box) Delete(ctx context.Context, k fleet.Key, c fleet.Cond) error {
	return b.request(k.Partition, func() error { return b.w.mem.Delete(ctx, k, c) })
}
