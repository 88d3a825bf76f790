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

// triggers is the schedule: when the head and the pointer are polled, and when to clean up.
type triggers struct {
	gocron.Scheduler
	pointerJob gocron.Job
	asked      time.Time
	poll       time.Duration
}

// schedule starts the polls. A pointer read runs in the scheduler's goroutine, one at a time, and reports to the loop.
func (a *Agent) schedule(ctx context.Context) (*triggers, error) {
	s, err := gocron.NewScheduler(gocron.WithStopTimeout(5 * time.Second))
	if err != nil {
		return nil, fmt.Errorf("start schedule: %w", err)
	}
	t := &triggers{Scheduler: s, poll: a.p.Config.PollInterval}
	one := gocron.WithSingletonMode(gocron.LimitModeReschedule)
	now := gocron.WithStartAt(gocron.WithStartImmediately())
	add := func(every time.Duration, f func(), o ...gocron.JobOption) gocron.Job {
		j, jerr := s.NewJob(gocron.DurationJob(every), gocron.NewTask(f), append(o, one)...)
		err = errors.Join(err, jerr)
		return j
	}
	add(t.poll, func() { a.post(a.node.Poll) })
	t.pointerJob = add(a.p.Config.PointerInterval, func() { a.readPointer(ctx) }, now)
	add(time.Hour, func() { a.post(func() { a.cleanDue = true }) })
	if err != nil {
		return nil, errors.Join(fmt.Errorf("start schedule: %w", err), s.Shutdown())
	}
	s.Start()
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
	_ = t.pointerJob.RunNow() // fails only when the schedule is being shut down
}

// pointerReader polls the pointer with conditional reads. Its fields but bucket belong to the loop.
type pointerReader struct {
	bucket Bucket
	etag   string // of text, which the node took
	text   []byte
	seen   bool // the bucket has answered
	err    string
}

// readPointer reads the pointer, unless it is unchanged, and lets the loop offer it to the node.
func (a *Agent) readPointer(ctx context.Context) {
	etag := make(chan string, 1)
	a.post(func() { etag <- a.pointer.etag })
	var known string
	select {
	case known = <-etag:
	case <-ctx.Done():
		return
	}
	var r store.Read
	err := failpoint.Hit("A1")
	if err == nil {
		r, err = a.pointer.bucket.Pointer(ctx, known)
	}
	if ctx.Err() != nil {
		return
	}
	a.post(func() { a.offer(r, err) })
}

// offer takes what a read of the pointer gave. Only a pointer that the node took is remembered, so that a refused one is
// looked at again. One that is unmodified is offered again, which changes nothing unless the node has dropped it since, as it
// does when the table knows its sequence with other contents.
func (a *Agent) offer(r store.Read, err error) {
	p := &a.pointer
	switch {
	case errors.Is(err, store.ErrNotFound):
		err, p.seen = nil, true
	case errors.Is(err, store.ErrNotModified):
		r.Text, r.ETag, err = p.text, p.etag, nil
		fallthrough
	case err == nil:
		p.seen = true
		if err = a.node.Offer(r.Text, r.Date); err == nil {
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
