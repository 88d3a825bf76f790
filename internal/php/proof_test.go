package php

import (
	"errors"
	"slices"
	"strings"
	"testing"
)

func TestProofComparesWhereThePoolRunsFrom(t *testing.T) {
	const live = "2026-11-20_20-15-02"
	for _, c := range []struct {
		name, root, release string
		stale               bool
	}{
		{"live", "/srv/promo/" + live, live, false},
		{"a folder in it", "/srv/promo/" + live + "/public", live, false},
		{"a chroot's path", "/" + live, live, false},
		{"an id that is no time, and a folder in it", "/srv/promo/v1.2/public", "v1.2", false},
		{"the release before", "/srv/promo/2026-11-20_20-15-01", live, true},
		{"another site", "/var/www/html", live, true},
		{"an id that only begins so", "/srv/promo/v1.20", "v1.2", true},
	} {
		_, err := Prove([]Status{{URL: "http://a/", Root: c.root}}, c.release)
		if stale := errors.Is(err, ErrStale); stale != c.stale {
			t.Errorf("%s: stale %t (%v), want %t", c.name, stale, err, c.stale)
		}
	}
}

func TestProofNamesEachPoolItsRootAndTheCure(t *testing.T) {
	pools := []Status{{URL: "http://a/", Root: "/srv/r1"}, {URL: "http://b/", Root: "/srv/r2"}, {URL: "http://c/", Root: "/old"}, {URL: "http://d/"}}
	silent, err := Prove(pools, "r2")
	if !slices.Equal(silent, []string{"http://d/"}) {
		t.Errorf("silent: %q", silent)
	}
	var stale *StaleError
	if !errors.As(err, &stale) || stale.URL != "http://a/" || stale.Root != "/srv/r1" {
		t.Fatalf("error is %v", err)
	}
	for _, want := range []string{`flipped but stale: http://a/ runs from "/srv/r1", not from r2`, "share/nginx/local.conf", `http://c/ `} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("no %q in %v", want, err)
		}
	}
	if strings.Contains(err.Error(), "http://b/") {
		t.Errorf("the pool that is right is in %v", err)
	}
}

func TestStaleTextKeepsItsCauseAndLeadsToItsCureWhereItIsCut(t *testing.T) {
	left := 200 - len("3 of 3 failed after the flip: i-0123456789abcdef0: ") // of what rows and the head keep
	for _, e := range []*StaleError{
		{URL: "http://127.0.0.1:8901/_deploy/opcache", Root: "/var/www/promo.example.com/2026-11-20_20-15-01", Release: "2026-11-20_20-15-02"},
		{URL: "http://127.0.0.1/_deploy/release?is=2026-11-20_20-15-02", Root: "2026-11-20_20-15-01", Release: "2026-11-20_20-15-02", Visitors: true},
	} {
		whole := e.Error()
		if !strings.HasSuffix(whole, " ("+e.Cure()+")") {
			t.Errorf("no cure in %q", whole)
		}
		if cut := whole[:left]; !strings.Contains(cut, e.URL) || !strings.Contains(cut, e.Root) || !strings.Contains(cut, e.Release+" (") || StaleCure("3 failed: i-1: "+cut) != e.Cure() {
			t.Errorf("of %q is left %q, cure %q", whole, cut, StaleCure(cut))
		}
	}
	if cure := StaleCure("health check: status 500"); cure != "" {
		t.Errorf("what is not stale has the cure %q", cure)
	}
}

func TestExceptAsksOnlyTheOtherPools(t *testing.T) {
	a, b := answers(t, 200, nil, good), answers(t, 200, nil, good)
	o := New(Options{URLs: []string{a, b}})
	got, err := o.Except(map[string]bool{a: true}).Status(t.Context())
	if err != nil || len(got) != 1 || got[0].URL != b {
		t.Errorf("got %+v, %v", got, err)
	}
	if got, err := o.Status(t.Context()); err != nil || len(got) != 2 {
		t.Errorf("the whole is %+v, %v afterwards", got, err)
	}
}
