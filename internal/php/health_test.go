package php

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

func TestHealthGoesByTheStatusAndSaysWhatCameInstead(t *testing.T) {
	long := strings.Repeat("SQLSTATE\n", 100)
	for _, c := range []struct {
		name   string
		status int
		header map[string]string
		body   string
		health Health
		want   string // empty: healthy
	}{
		{"as expected", 200, nil, "ok", Health{}, ""},
		{"another status on purpose", 401, nil, "", Health{Expect: 401}, ""},
		{"redirect on purpose", 302, map[string]string{"Location": "/login"}, "", Health{Expect: 302}, ""},
		{"error page", 500, nil, long, Health{}, `status 500 instead of 200: "SQLSTATE SQLSTATE`},
		{"redirect is not followed", 301, map[string]string{"Location": "https://x/"}, "", Health{}, "status 301 (to https://x/) instead of 200"},
		{"this release", 200, map[string]string{"X-Deploy-Release": "r2"}, "", Health{Release: "r2"}, ""},
		{"a server that does not say", 200, nil, "", Health{Release: "r2"}, ""},
		{"stale", 200, map[string]string{"X-Deploy-Release": "r1"}, "", Health{Release: "r2"}, `get "r1", not r2`},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.health.URL = answers(t, c.status, c.header, c.body)
			err := c.health.Check(t.Context())
			switch {
			case c.want == "" && err != nil:
				t.Error(err)
			case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want) || len(err.Error()) > 500):
				t.Errorf("error is %v, want %q in it", err, c.want)
			}
			if stale := c.name == "stale"; errors.Is(err, ErrStale) != stale {
				t.Errorf("errors.Is(%v, ErrStale) is not %t", err, stale)
			}
		})
	}
}

func TestHealthTriesAgainUntilItIsGood(t *testing.T) {
	requests := 0
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		requests++
		if r.Host != "promo.example.com" || requests < 3 {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	}))
	defer s.Close()
	h := Health{URL: s.URL, Host: "promo.example.com", Timeout: 10 * time.Second, Attempts: 2}
	if err := h.Check(t.Context()); err == nil || !strings.Contains(err.Error(), "attempt 2 of 2") || requests != 2 {
		t.Errorf("after %d requests: %v", requests, err)
	}
	if err := h.Check(t.Context()); err != nil || requests != 3 {
		t.Errorf("after %d requests: %v", requests, err)
	}
}

func TestHealthStopsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusServiceUnavailable)
		fmt.Fprint(w, "not yet")
		cancel()
	}))
	defer s.Close()
	err := Health{URL: s.URL, Attempts: 1000}.Check(ctx)
	if err == nil || !errors.Is(ctx.Err(), context.Canceled) || strings.Contains(err.Error(), "attempt 1000") {
		t.Errorf("error is %v", err)
	}
}

func TestHealthNamesASiteThatNobodyServes(t *testing.T) {
	err := Health{URL: "http://127.0.0.1:1/"}.Check(t.Context())
	var route *RouteError
	if !errors.As(err, &route) || route.Cure != cureSite {
		t.Errorf("error is %v, want the cure %q", err, cureSite)
	}
}
