package main

import (
	"context"
	"errors"
	"os"
	"regexp"
	"time"

	"s3pulldeploy/internal/php"
)

// measure deploys an application again and again, in one mode and under load.
func (s *servers) measure(ctx context.Context, a *app, mode string, flips int) (r row, err error) {
	var undo teardown
	defer func() { err = errors.Join(err, undo.run()) }()
	t, err := s.start(ctx, a, mode, &undo)
	if err != nil {
		return row{}, err
	}
	l := startLoad(t.web.URL, a.pages, a.rate)
	defer l.stop()
	if err := t.quiet(ctx); err != nil {
		return row{}, err
	}
	var all []flip
	for n := range flips {
		f, err := t.flip(ctx)
		if err != nil {
			return row{}, err
		}
		all = append(all, f)
		if enough := leastRequests * (n + 1) / leastFlips; mode != "off" { // there opcache fills up, and answers take as long as they take
			if err := t.await(ctx, "enough requests", func() (bool, error) { return l.answered() >= enough, nil }); err != nil {
				return row{}, err
			}
		}
		if (n+1)%5 == 0 {
			say("%s, %s: %d of %d flips", a.name, mode, n+1, flips)
		}
	}
	text, err := os.ReadFile(t.agentLog())
	if err != nil {
		return row{}, err
	}
	rooms, err := rooms(string(text))
	return judge(a, mode, l.stop(), all, rooms), err
}

// roomLine is when the agent began to make room, and when it had.
var roomLine = regexp.MustCompile(`(?m)^time=(\S+) level=INFO msg="(making|made) room in opcache"`)

// rooms reads the agent's log.
func rooms(log string) (all []span, err error) {
	for _, line := range roomLine.FindAllStringSubmatch(log, -1) {
		at, err := time.Parse(time.RFC3339Nano, line[1])
		open := len(all) > 0 && all[len(all)-1].to.IsZero()
		switch begins := line[2] == "making"; {
		case err != nil:
			return nil, err
		case begins && !open: // else it tries again
			all = append(all, span{from: at})
		case !begins && !open:
			return nil, errors.New("the agent made room that it did not begin to make")
		case !begins:
			all[len(all)-1].to = at.Add(time.Millisecond) // the log cuts what is below
		}
	}
	if len(all) > 0 && all[len(all)-1].to.IsZero() {
		return nil, errors.New("the agent began to make room, and did not")
	}
	return all, nil
}

// flip measures one push: a second of nothing, the push, and what follows.
func (t *site) flip(ctx context.Context) (f flip, err error) {
	f.before = time.Now()
	if err := sleep(ctx, time.Second); err != nil {
		return f, err
	}
	was := t.live()
	f.pushed = time.Now()
	watch, stop := context.WithCancel(ctx)
	seen := make(chan time.Time, 1)
	go func() { seen <- t.moved(watch, was) }()
	err = t.deploy(ctx)
	stop()
	f.at = <-seen
	if err != nil {
		return f, err
	}
	if f.release = t.live(); f.release == was || f.at.IsZero() {
		return f, errors.New("push ended, and the link has not moved")
	}
	err = t.quiet(ctx)
	f.over = time.Now()
	return f, err
}

// moved is when the link leads elsewhere, to the millisecond; 0 when it did not by the end of ctx.
func (t *site) moved(ctx context.Context, was string) time.Time {
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		if t.live() != was {
			return time.Now()
		}
		select {
		case <-ctx.Done():
			return time.Time{}
		case <-tick.C:
		}
	}
}

// quiet waits until opcache has stood still for two seconds: by then a rollout, and making room after it, are over.
func (t *site) quiet(ctx context.Context) error {
	var last php.Status
	since := time.Now()
	return t.await(ctx, "opcache stands still", func() (bool, error) {
		all, err := t.cache.Status(ctx)
		if err != nil {
			return false, err
		}
		if now := all[0]; now.Scripts != last.Scripts || now.LastRestart != last.LastRestart || now.Restarting {
			last, since = now, time.Now()
		}
		return time.Since(since) > 2*time.Second, nil
	})
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(d):
		return context.Cause(ctx)
	}
}
