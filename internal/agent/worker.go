package agent

import (
	"context"
	"sync/atomic"
	"time"

	"s3pulldeploy/internal/fleet"
)

// job is the one long step that the machine is at.
type job struct {
	want     fleet.Want
	cancel   context.CancelFunc
	progress atomic.Pointer[string]
}

// said is the last line of progress; empty without a job.
func (j *job) said() string {
	if j == nil || j.progress.Load() == nil {
		return ""
	}
	return *j.progress.Load()
}

func (j *job) say(text string) { j.progress.Store(&text) }

// pursue makes the worker do what the node wants. Work for another want is given up first: its end wakes the loop,
// and the new work starts then.
func (a *Agent) pursue(ctx context.Context, want fleet.Want) {
	if a.job != nil {
		if !a.job.want.Same(want) {
			a.job.cancel()
		}
		return
	}
	if want.Task == fleet.Idle {
		if !a.cleanDue || a.p.Once {
			return
		}
		a.cleanDue = false
	}
	jobCtx, cancel := context.WithCancel(ctx)
	j := &job{want: want, cancel: cancel}
	a.job = j
	keep := a.node.Keep()
	a.jobs.Add(1)
	go func() {
		defer a.jobs.Done()
		report := a.perform(jobCtx, j, keep)
		given := jobCtx.Err() != nil
		cancel()
		a.post(func() {
			a.job = nil
			if !given && report != nil {
				report()
			}
		})
	}()
}

// perform does a want's work in the worker and returns what the loop is to tell the node.
func (a *Agent) perform(ctx context.Context, j *job, keep keepList) func() {
	m, want := a.machine, j.want
	switch want.Task {
	case fleet.Inspect:
		digest, err := m.inspect(ctx, want.Note)
		return func() { a.node.Inspected(want, digest, err) }
	case fleet.Stage:
		err := m.stage(ctx, want, j.say)
		return func() { a.node.Staged(want, err, isMachine(err)) }
	case fleet.Flip:
		at, err := m.flip(ctx, want, a.p.Clock)
		return func() { a.node.FlipDone(want, at, err) }
	case fleet.Settle:
		err := m.settle(ctx, want)
		return func() {
			a.node.SettledDone(want, err)
			a.cleanDue = err == nil
		}
	default:
		m.clean(keep)
		return nil
	}
}

// waitUntil sleeps until a boot time, looking at the clock again after each sleep: timers stand still in suspend.
func waitUntil(ctx context.Context, c fleet.Clock, at time.Duration) error {
	for {
		left := at - c.Boot()
		if left <= 0 {
			return ctx.Err()
		}
		timer := time.NewTimer(min(left, time.Second))
		select {
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		case <-timer.C:
		}
	}
}
