package agent

import (
	"context"
	"sync/atomic"
	"time"

	"s3pulldeploy/internal/fleet"
	"s3pulldeploy/internal/weak"
)

// job is the one long step that the machine is at.
type job struct {
	want     fleet.Want
	spare    fleet.Target     // the release that an idle machine fetches, if that is the job
	room     bool             // the job is to look after room in opcache
	scrub    fleet.Commitment // what is live, if the job is to look whether the disk is well
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

// idle says whether it is work that nobody waits for, and that can be given up at any time.
func (j *job) idle() bool { return j.room || j.scrub.Release != "" || j.spare.Release != "" }

func (j *job) say(text string) { j.progress.Store(&text) }

// pursue makes the worker do what the node wants. Work for another want is given up first: its end wakes the loop,
// and the new work starts then.
func (a *Agent) pursue(ctx context.Context, want fleet.Want) {
	if a.job != nil {
		if !a.job.want.Same(want) || a.pending && a.job.idle() {
			a.job.cancel()
		}
		return
	}
	j := &job{want: want}
	if want.Task == fleet.Idle {
		if a.p.Once {
			return
		}
		switch {
		case a.mayClean():
			a.cleanDue = false
		case a.roomWanted():
			j.room = true
		default:
			if j.spare = a.spareWanted(); !j.idle() {
				j.scrub = a.scrubWanted()
			}
			if !j.idle() {
				return
			}
		}
	}
	jobCtx, cancel := context.WithCancel(ctx)
	j.cancel, a.job = cancel, j
	keep := a.node.Keep()
	a.jobs.Add(1)
	go func() {
		defer a.jobs.Done()
		report := a.perform(jobCtx, j, keep)
		given := jobCtx.Err() != nil
		cancel()
		a.post(func() {
			a.job = nil
			if report != nil && (!given || want.Task == fleet.Flip) { // a link that has moved is told of in any case
				report()
			}
		})
	}()
}

// perform does a want's work in the worker and returns what the loop is to tell the node.
func (a *Agent) perform(ctx context.Context, j *job, keep keepList) func() {
	m, want, began := a.machine, j.want, time.Now()
	count := func(err error) { a.p.Metrics.step(want, began, err) }
	switch want.Task {
	case fleet.Inspect:
		digest, err := m.inspect(ctx, want.Note)
		return func() { count(err); a.node.Inspected(want, digest, err) }
	case fleet.Stage:
		if weak.Rule == "M9" && !want.Joining { // the vote before the release is published
			a.post(func() { a.node.Staged(want, nil, false) })
		}
		err := m.stage(ctx, want, j.say)
		return func() { count(err); a.node.Staged(want, err, isMachine(err)) }
	case fleet.Flip:
		at, err := m.flip(ctx, want, a.p.Clock)
		if err != nil && ctx.Err() != nil {
			return nil // given up in time
		}
		return func() { count(err); a.node.FlipDone(want, at, err) }
	case fleet.Settle:
		err := m.settle(ctx, want)
		return func() {
			count(err)
			fresh := a.view.Settled != want.Epoch // else only its health was looked at again, in a wave
			a.node.SettledDone(want, err)
			a.cleanDue = a.cleanDue || err == nil && fresh
			if fresh || err != nil {
				a.room = room{due: err == nil}
			}
		}
	case fleet.Once:
		err := m.once(ctx, want)
		return func() { count(err); a.node.OnceDone(want, err) }
	}
	if j.room {
		again := m.makeRoom(ctx, j.say)
		return func() { a.roomMade(again) }
	}
	if j.spare.Release != "" {
		err := m.spare(ctx, j.spare)
		return func() { a.spared(j.spare, err) }
	}
	if j.scrub.Release != "" {
		last, err := m.scrub(ctx, j.scrub)
		return func() { a.scrubbed(last, err) }
	}
	err := m.clean(keep)
	return func() { a.cleaned(err) }
}

// cleanRetry is the wait after a clean-up that did not do everything, doubled each time up to the hour of the regular one: what
// holds it up may be a mount that somebody forgot.
const cleanRetry = 10 * time.Second

func (a *Agent) cleaned(err error) {
	if err == nil {
		a.cleanWait = 0
		return
	}
	a.cleanWait = min(max(2*a.cleanWait, cleanRetry), time.Hour)
	a.cleanDue, a.cleanAt = true, a.p.Clock.Boot()+a.cleanWait
}

// mayClean says whether to clean up now: not before the head is known, which names releases that are to stay.
func (a *Agent) mayClean() bool {
	return a.cleanDue && a.view.HaveHead && a.p.Clock.Boot() >= a.cleanAt
}

// spare is what is known of the release that the fleet would go back to.
type spare struct {
	held  fleet.Target  // it is on the disk
	retry time.Duration // boot time before which it is not tried again
}

// spareRetry is the wait after a release to go back to could not be fetched: nobody waits for it.
const spareRetry = 5 * time.Minute

// quiet says that this instance is in service, the fleet has nothing going on, and no settings wait to take effect.
func (a *Agent) quiet() bool {
	v := a.view
	over := v.Head.State == fleet.Done || v.Head.State == fleet.Abort
	return v.Ready && v.Phase == fleet.Serve && !v.Isolated && !v.Behind && over && !a.pending
}

// spareWanted is the release that the fleet would go back to, while an instance in service has nothing else to do and does not
// hold it, as one that joined after it; else nothing. A rollback then needs no download anywhere.
func (a *Agent) spareWanted() (none fleet.Target) {
	v := a.view
	back := v.Head.Good
	if back.Release == v.Flipped.Release {
		back = v.Head.Before
	}
	if !a.quiet() || back.Release == "" || back.Release == v.Flipped.Release || back == a.spare.held || a.p.Clock.Boot() < a.spare.retry {
		return none
	}
	return back
}

func (a *Agent) spared(t fleet.Target, err error) {
	if err != nil {
		a.spare.retry = a.p.Clock.Boot() + spareRetry
		a.log.Debug("release to go back to not fetched", "release", string(t.Release), "error", err)
		return
	}
	a.spare.held = t
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
