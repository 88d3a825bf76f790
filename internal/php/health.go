package php

import (
	"context"
	"fmt"
	"net/http"
	"time"
)

// What a health check waits between attempts: first and at most, doubling.
const (
	firstPause = 200 * time.Millisecond
	mostPause  = 2 * time.Second
)

// Health is a look at the site. It is health_check of the settings.
type Health struct {
	URL, Host string        // as of Options
	Expect    int           // the status; 0: 200
	Timeout   time.Duration // of one attempt; 0: none but the context's
	Attempts  int           // in all; below 1: one

	// Release is compared with the header X-Deploy-Release, where the web server sends one
	// (share/nginx/site.conf does); empty: not compared.
	Release string
	// Preview sends Release in the same header, for a server that serves a release by its name before it is live
	// (share/nginx/preview.conf). One that answers with another release serves none by name: that is an error of its own.
	Preview bool
}

// Check asks for the page until an attempt gives what is expected, and returns the last attempt's
// error: a *RouteError, a [*StaleError], the context's, or one that has the status and the first 200 bytes of
// the answer. Redirects are not followed: where one is right, Expect says so. Callers name the action.
func (h Health) Check(ctx context.Context) error {
	r, err := newRoute(h.URL, h.Host)
	if err != nil {
		return err
	}
	defer r.close()
	attempts := max(h.Attempts, 1)
	pause := firstPause
	for n := 1; ; n++ {
		err := h.attempt(ctx, r)
		if err == nil {
			return nil
		}
		if n == attempts || ctx.Err() != nil {
			return fmt.Errorf("attempt %d of %d: %w", n, attempts, err)
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
		}
		pause = min(2*pause, mostPause)
	}
}

func (h Health) attempt(ctx context.Context, r *route) error {
	if h.Timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, h.Timeout)
		defer cancel()
	}
	asked := ""
	if h.Preview {
		asked = h.Release
	}
	a, err := r.get(ctx, asked)
	if err != nil {
		return r.explain(err, cureSite)
	}
	expect := h.Expect
	if expect == 0 {
		expect = http.StatusOK
	}
	if a.status != expect {
		where := ""
		if to := a.header.Get("Location"); to != "" {
			where = fmt.Sprintf(" (to %s)", to)
		}
		return fmt.Errorf("%s: status %d%s instead of %d: %q", r.name, a.status, where, expect, excerpt(a.body))
	}
	if got := a.header.Get(releaseHeader); h.Release != "" && got != "" && got != h.Release {
		if h.Preview {
			return fmt.Errorf("%s: it serves %s where %s was asked for by its name: the server block is not share/nginx/preview.conf", r.name, got, h.Release)
		}
		return &StaleError{URL: r.name, Root: got, Release: h.Release, Visitors: true}
	}
	return nil
}
