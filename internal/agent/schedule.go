package agent

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/go-co-op/gocron/v2"

	"s3pulldeploy/internal/failpoint"
	"s3pulldeploy/internal/store"
)

// Schedule has functions run at intervals, each in a goroutine of its own and never twice at a time: one whose turn comes while it
// runs skips it. Shutdown waits, some seconds at most, for those that run. gocron's is the real one; the simulation has its own,
// whose order it knows.
type Schedule interface {
	// Every adds a function before the start; atOnce: it runs at the start too. What is returned has it run out of turn.
	Every(interval time.Duration, atOnce bool, f func()) (now func(), err error)
	Start()
	Shutdown() error
}

// Gocron is gocron's [Schedule].
type Gocron struct{ gocron.Scheduler }

// NewGocron returns an empty schedule.
func NewGocron() (Gocron, error) {
	s, err := gocron.NewScheduler(gocron.WithStopTimeout(5 * time.Second))
	return Gocron{s}, err
}

// Every implements [Schedule].
func (g Gocron) Every(interval time.Duration, atOnce bool, f func()) (func(), error) {
	o := []gocron.JobOption{gocron.WithSingletonMode(gocron.LimitModeReschedule)}
	if atOnce {
		o = append(o, gocron.WithStartAt(gocron.WithStartImmediately()))
	}
	j, err := g.NewJob(gocron.DurationJob(interval), gocron.NewTask(f), o...)
	return func() { _ = j.RunNow() }, err // fails only when the schedule is being shut down
}

// triggers is when the head and the pointer are polled, and when to clean up.
type triggers struct {
	Schedule
	readPointer func()
	asked       time.Time
	poll        time.Duration
}

// schedule starts the polls. A pointer read runs in a goroutine of the schedule's, one at a time, and reports to the loop.
func (a *Agent) schedule(ctx context.Context) (*triggers, error) {
	t := &triggers{Schedule: a.p.Schedule, poll: a.p.Config.PollInterval}
	if t.Schedule == nil {
		g, err := NewGocron()
		if err != nil {
			return nil, fmt.Errorf("start schedule: %w", err)
		}
		t.Schedule = g
	}
	_, err1 := t.Every(t.poll, false, func() { a.post(a.node.Poll) })
	now, err2 := t.Every(a.p.Config.PointerInterval, true, func() { a.readPointer(ctx) })
	_, err3 := t.Every(time.Hour, false, func() { a.post(func() { a.cleanDue = true }) })
	err4 := a.watchLifecycle(ctx, t)
	if err := errors.Join(err1, err2, err3, err4); err != nil {
		return nil, errors.Join(fmt.Errorf("start schedule: %w", err), t.Shutdown())
	}
	t.readPointer = now
	t.Start()
	return t, nil
}

// pointer has the pointer read soon: at once for a new hint, at the poll's pace while the first push is waited for.
func (t *triggers) pointer(waiting bool) {
	every := 250 * time.Millisecond // a hint comes after the pointer: one read nearly always does
	if waiting {
		every = t.poll
	}
	if time.Since(t.asked) < every {
		return
	}
	t.asked = time.Now()
	t.readPointer()
}

// pointerReader polls the pointer with conditional reads. Its fields but bucket belong to the loop.
type pointerReader struct {
	bucket Bucket
	etag   string // of text, which the node took
	text   []byte
	seen   bool      // the bucket has answered
	read   time.Time // when it last did
	err    string
}

// pointerTime bounds one poll of the pointer with its tries. A poll that waits keeps all others from being made, and says nothing.
const pointerTime = 10 * time.Second

// poll reads the pointer, in bounded time.
func (p *pointerReader) poll(ctx context.Context, etag string) (store.Read, error) {
	bounded, cancel := context.WithTimeout(ctx, pointerTime)
	defer cancel()
	r, err := p.bucket.Pointer(bounded, etag)
	if errors.Is(err, context.DeadlineExceeded) {
		err = fmt.Errorf("read pointer: %w: no answer within %v", store.ErrUnavailable, pointerTime)
	}
	return r, err
}

// readPointer reads the pointer, unless it is unchanged, and lets the loop offer it to the node.
func (a *Agent) readPointer(ctx context.Context) {
	type known struct {
		etag string
		had  int64
	}
	asked := make(chan known, 1)
	a.post(func() { asked <- known{a.pointer.etag, a.node.Newest()} })
	var k known
	select {
	case k = <-asked:
	case <-ctx.Done():
		return
	}
	var r store.Read
	err := failpoint.Hit("A1")
	if err == nil {
		r, err = a.pointer.poll(ctx, k.etag)
	}
	if ctx.Err() != nil {
		return
	}
	a.post(func() { a.offer(r, err, k.had) })
}

// offer takes what a read of the pointer gave; had is the newest sequence that the fleet had before it. Only a pointer that the node took is remembered, so that a refused one is
// looked at again. One that is unmodified is offered again, which changes nothing unless the node has dropped it since, as it
// does when the table knows its sequence with other contents.
func (a *Agent) offer(r store.Read, err error, had int64) {
	p := &a.pointer
	if err == nil || errors.Is(err, store.ErrNotFound) || errors.Is(err, store.ErrNotModified) {
		p.read = a.p.Clock.Now()
	}
	switch {
	case errors.Is(err, store.ErrNotFound):
		err, p.seen = nil, true
	case errors.Is(err, store.ErrNotModified):
		r.Text, r.ETag, err = p.text, p.etag, nil
		fallthrough
	case err == nil:
		p.seen = true
		if err = a.node.Offer(r.Text, r.Date, had); err == nil {
			p.etag, p.text = r.ETag, r.Text
		}
	}
	text := ""
	if err != nil {
		text = err.Error()
	}
	if text != p.err {
		p.err = text
		if err != nil {
			a.log.Warn("pointer not usable", "error", err)
		} else {
			a.log.Info("pointer usable again")
		}
	}
}
