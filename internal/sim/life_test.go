package sim

import (
	"context"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"time"

	"s3pulldeploy/internal/agent"
	"s3pulldeploy/internal/fleet"
	"s3pulldeploy/internal/weak"
)

func (l *life) calm() (yes bool) {
	l.h.r.locked(func() { yes = l.h.r.calm })
	return yes
}

// fate draws for the n-th request of this name in this life. The realm's lock is not needed, nor who came first.
func (l *life) fate(what string) fate {
	l.h.r.counting.Lock()
	defer l.h.r.counting.Unlock()
	l.counts[what]++
	return l.h.r.fateOf(l.h.id, l.n, what, l.counts[what])
}

// token is fresh for each write; which of several at the same time gets which does not matter.
func (l *life) token() string {
	l.h.r.counting.Lock()
	defer l.h.r.counting.Unlock()
	l.tokens++
	return fmt.Sprint(l.h.id, "-", l.n, "-", l.tokens)
}

// wait passes time inside a request: to an instant of its own, and over the process' pauses.
func (l *life) wait(ctx context.Context, slot int, d time.Duration) error {
	r := l.h.r
	for {
		timer := time.NewTimer(r.at(d, l.h.slot(slot)))
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
		}
		r.lock()
		dead, left := l.dead, l.h.pausedUntil-r.now
		r.mu.Unlock()
		if dead {
			return l.halt()
		}
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("%w: %w", fleet.ErrUnavailable, err)
		}
		if left <= 0 {
			return nil
		}
		d = left
	}
}

// tick is where the process looks at a clock: it may be paused there, and it may die. It takes a moment, as everything does: what
// a goroutine set off before, in the schedule or the worker, is through when it goes on.
func (l *life) tick() {
	r := l.h.r
	for {
		time.Sleep(r.at(0, l.h.slot(clockSlot())))
		r.lock()
		left := l.h.pausedUntil - r.now
		if l.dead {
			r.mu.Unlock()
			_ = l.halt()
		}
		if left <= 0 {
			break
		}
		r.mu.Unlock()
		time.Sleep(left)
	}
	crash := l.agent != nil && !r.calm && !r.over && r.fateOf(l.h.id, "tick", r.now).chance(0.0004)
	if crash {
		l.h.crash("crashed")
	}
	r.mu.Unlock()
	if crash {
		_ = l.halt()
	}
}

// clockSlot keeps the worker, which waits for the moment of a flip, apart from the loop.
func clockSlot() int {
	var pcs [8]uintptr
	frames := runtime.CallersFrames(pcs[:runtime.Callers(4, pcs[:])])
	for {
		f, more := frames.Next()
		if strings.Contains(f.Function, "agent.waitUntil") || strings.Contains(f.Function, "agent.(*machine)") {
			return slotWorker
		}
		if !more {
			return slotClock
		}
	}
}

// Boot implements fleet.Clock.
func (l *life) Boot() time.Duration {
	if l.agent == nil { // while it is wired, under the realm's lock
		return l.boot()
	}
	l.tick()
	return l.boot()
}

func (l *life) boot() time.Duration {
	return l.bootBase + time.Duration(float64(time.Since(l.h.r.began)-l.poweredAt)*l.h.rate)
}

// Now implements fleet.Clock.
func (l *life) Now() time.Time {
	if l.agent != nil {
		l.tick()
		l.h.r.lock()
		defer l.h.r.mu.Unlock()
	}
	return l.h.r.wall().Add(l.h.skew)
}

// Ready implements agent.Service.
func (l *life) Ready() {}

// Status implements agent.Service.
func (l *life) Status(string) {}

// Watchdog implements agent.Service.
func (l *life) Watchdog() {}

// WatchdogEvery implements agent.Service. It is asked in each turn of the loop, after the report.
func (l *life) WatchdogEvery() time.Duration {
	s := l.agent.Status()
	l.h.r.locked(func() {
		if l.dead {
			return
		}
		h := l.h
		h.shown = s.View
		if h.says(h.r.now, s.View); h.inService || s.Isolated {
			h.serving = !l.going
		}
		if s.Phase == fleet.Out {
			h.serving = false // the load balancer is told 503
		}
		if !strings.HasPrefix(s.Line, "flip ") { // else it says that the link is about to move, or just has
			h.r.truth.stale(h.machine, s.View, "its report")
		}
	})
	return 0
}

// Reload implements agent.Service.
func (*life) Restart(context.Context, []string) error             { return nil }
func (l *life) Reload(_ context.Context, u []string) (int, error) { return len(u), nil }

// Going implements agent.Service.
func (l *life) Going(context.Context) bool {
	l.tick()
	return l.going || weak.Rule == "M10"
}

// schedule is an agent.Schedule whose ticks come at instants of their own.
type schedule struct {
	l    *life
	jobs []*timed
	wg   sync.WaitGroup
	stop chan struct{}
}

type timed struct {
	every  time.Duration
	slot   int
	atOnce bool
	now    chan struct{}
	f      func()
}

func (s *schedule) Every(every time.Duration, atOnce bool, f func()) (func(), error) {
	j := &timed{every, slotTicks + len(s.jobs), atOnce, make(chan struct{}), f}
	s.jobs = append(s.jobs, j)
	return func() {
		select {
		case j.now <- struct{}{}:
		default: // it runs
		}
	}, nil
}

func (s *schedule) Start() {
	s.stop = make(chan struct{})
	for _, j := range s.jobs {
		s.wg.Go(func() { s.run(j) })
	}
}

func (s *schedule) run(j *timed) {
	if j.atOnce {
		j.f()
	}
	for {
		t := time.NewTimer(s.l.h.r.at(j.every, s.l.h.slot(j.slot)))
		select {
		case <-s.stop:
			t.Stop()
			return
		case <-j.now:
			t.Stop()
			time.Sleep(s.l.h.r.at(0, s.l.h.slot(j.slot))) // the loop may have set off the worker, too
		case <-t.C:
		}
		j.f()
	}
}

func (s *schedule) Shutdown() error {
	close(s.stop)
	s.wg.Wait()
	return nil
}

// request carries one table request through the faults of the network.
func (l *life) request(ctx context.Context, what string, slot int, do func(fate) error) error {
	r, f := l.h.r, l.fate(what)
	slow := 300 * time.Millisecond
	if f.chance(0.05) {
		slow = 2 * time.Second
	}
	if err := l.wait(ctx, slot, f.between(time.Millisecond, slow)); err != nil {
		return err
	}
	err, lost := l.arrive(what, slot, f, do)
	if lost && f.chance(0.5) { // no answer comes
		_ = l.wait(ctx, slot, 2*time.Second)
	} else if f.chance(0.2) {
		_ = l.wait(ctx, slot, f.between(0, 200*time.Millisecond))
	}
	r.lock()
	dead := l.dead
	r.mu.Unlock()
	if dead {
		return l.halt()
	}
	return err
}

// arrive is the request at the table's end, if it gets there; lost: no answer comes back.
func (l *life) arrive(what string, slot int, f fate, do func(fate) error) (err error, lost bool) {
	r, h := l.h.r, l.h
	r.lock()
	defer r.mu.Unlock()
	fault := func(p float64) bool { return f.chance(p) && !r.calm }
	deadly := 0.004
	if strings.HasPrefix(what, "query") { // of which there are many
		deadly = 0.0001
	}
	switch {
	case l.dead:
		return errOutage, false
	case r.now < h.cut:
		if f.chance(0.3) { // a half cut: requests arrive, replies are lost
			_ = do(f)
		}
		r.happened(h.id, what, "cut")
		return errOutage, true
	case fault(0.01):
		r.happened(h.id, what, "throttled")
		return fleet.ErrThrottled, false
	case fault(0.01):
		r.happened(h.id, what, "lost")
		return errOutage, true
	case fault(deadly):
		h.crash("crashed before " + what)
		return errOutage, false
	case fault(0.005) && !strings.HasPrefix(what, "get") && !strings.HasPrefix(what, "query"): // arrives late: its condition is judged then
		time.AfterFunc(r.at(f.between(0, 20*time.Second), h.slot(slotLate)), func() {
			r.locked(func() {
				if !r.over {
					_ = do(f)
					r.happened(h.id, what, "late")
				}
			})
		})
		return errOutage, true
	}
	err = do(f)
	r.happened(h.id, what, fmt.Sprint(err))
	switch {
	case fault(deadly):
		h.crash("crashed after " + what)
		return errOutage, false
	case fault(0.01):
		return errOutage, true
	}
	return err, false
}

// Get implements fleet.Table; eventually consistent reads may show the past.
func (l *life) Get(ctx context.Context, k fleet.Key, consistent bool) (it fleet.Item, err error) {
	err = l.request(ctx, "get "+k.Sort, slotLoop, func(f fate) (err error) {
		from := fleet.Table(l.h.r.mem)
		if !consistent && (f.chance(0.2) || l.h.r.busy && f.chance(0.4)) {
			from = l.h.r.mem.Past(1 + f.IntN(4))
		}
		it, err = from.Get(context.Background(), k, consistent)
		return err
	})
	if err != nil {
		return nil, err
	}
	return it, nil
}

// Query implements fleet.Table.
func (l *life) Query(ctx context.Context, p, prefix string, consistent bool) (items []fleet.Item, err error) {
	slot := slotLoop
	if _, n, ok := strings.Cut(p, "#m"); ok {
		_, _ = fmt.Sscan(strings.TrimLeft(n, "0"), &slot)
		slot += slotParts
	}
	err = l.request(ctx, "query "+p, slot, func(fate) (err error) {
		items, err = l.h.r.mem.Query(context.Background(), p, prefix, consistent)
		l.h.swept(l.h.r.now, p, items)
		return err
	})
	if err != nil {
		return nil, err
	}
	return items, nil
}

// Write implements fleet.Table.
func (l *life) Write(ctx context.Context, k fleet.Key, w fleet.Write) (it fleet.Item, err error) {
	r := l.h.r
	var sent sender
	r.locked(func() {
		if !l.dead {
			l.h.look()
		}
		sent = l.h.sender(r.now) // it may arrive late
	})
	slot := slotLoop
	if k.Partition != scope && k.Sort != l.h.id { // counts others as missed, several at a time
		slot = contentSlot(k.Sort)
	}
	var got fleet.Item // nobody's, when it arrives late
	err = l.request(ctx, "write "+k.Sort, slot, func(fate) (err error) {
		r.countRuns()
		before, _ := r.mem.Get(context.Background(), k, true)
		got, err = r.mem.Write(context.Background(), k, w)
		if err == nil {
			r.truth.written(sent, k, before, got)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return got, nil
}

// Delete implements fleet.Table.
func (l *life) Delete(ctx context.Context, k fleet.Key, c fleet.Cond) error {
	return l.request(ctx, "delete "+k.Sort, slotLoop, func(fate) error { return l.h.r.mem.Delete(context.Background(), k, c) })
}

var (
	_ fleet.Table   = (*life)(nil)
	_ fleet.Clock   = (*life)(nil)
	_ agent.Bucket  = (*life)(nil)
	_ agent.Service = (*life)(nil)
)
