package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const (
	r1 = "2026-11-20_20-15-01"
	r2 = "2026-11-20_20-15-02"
	r3 = "2026-11-20_20-15-03"
)

func at(ms int) time.Time { return time.Unix(1_000_000, 0).Add(time.Duration(ms) * time.Millisecond) }

func answered(begin, took int, releases string) answer {
	return answer{begin: at(begin), end: at(begin + took), releases: releases}
}

func TestAnswersAreJudgedByTheReleaseThatWasLive(t *testing.T) {
	flips := []flip{
		{release: r2, before: at(0), pushed: at(1000), at: at(3000), over: at(9000)},
		{release: r3, before: at(10000), pushed: at(11000), at: at(13000), over: at(19000)},
	}
	r := judge("app", "warm", []answer{
		answered(100, 7, r1),
		answered(2999, 900, r1),        // began before the flip
		answered(2999, 20, r2),         // the link had moved a moment before it was seen
		answered(3001, 10, r1),         // stale
		answered(13001, 10, r2),        // stale
		answered(13001, 30, r3),        // well
		answered(13001, 10, r2+","+r3), // mixed
		answered(16000, 70, r3),
		{begin: at(500), end: at(510), err: os.ErrDeadlineExceeded},
	}, flips)
	if r.requests != 9 || r.failed != 1 || r.mixed != 1 || r.stale != 2 || r.cause == nil {
		t.Errorf("got %+v", r)
	}
	if r.before.slowest != 10*time.Millisecond || r.after.slowest != 900*time.Millisecond || r.later != 70*time.Millisecond {
		t.Errorf("slowest: %v, %v, later %v", r.before.slowest, r.after.slowest, r.later)
	}
	if verdict([]row{r}) == nil {
		t.Error("what visitors noticed passes")
	}
	r.mode = "reset"
	if err := verdict([]row{r}); err != nil {
		t.Errorf("the older way fails the bench: %v", err)
	}
}

func TestPageThatIsNotWholeIsNoAnswer(t *testing.T) {
	for page, want := range map[string]string{
		"<html>7<!-- releases " + r1 + " --></html>\n":            r1,
		"<html>7<!-- releases " + r1 + "," + r2 + " --></html>\n": r1 + "," + r2,
		"<html>7<!-- releases " + r1:                              "",
		"<html>7<!-- releases  --></html>\n":                      "",
		"<html>7<!-- releases " + r1 + " --></html>\nWarning":     "",
		"": "",
	} {
		if got, err := releases([]byte(page)); got != want || (err == nil) != (want != "") {
			t.Errorf("%q: %q, %v", page, got, err)
		}
	}
}

func TestTableGoesBetweenItsMarkers(t *testing.T) {
	file := filepath.Join(t.TempDir(), "b.md")
	if err := os.WriteFile(file, []byte("a\n<!-- bench-switch -->\nold\n<!-- bench-switch end -->\nb\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	rows := []row{
		{app: "a", mode: "warm", after: window{slowest: 10 * time.Millisecond}},
		{app: "a", mode: "reset", after: window{slowest: 300 * time.Millisecond}},
	}
	for range 2 {
		if err := between(file, table(rows)); err != nil {
			t.Fatal(err)
		}
	}
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if s := string(text); !strings.HasPrefix(s, "a\n<!-- bench-switch -->\n| application") || !strings.HasSuffix(s, "<!-- bench-switch end -->\nb\n") ||
		strings.Contains(s, "old") || !strings.Contains(s, "`reset` takes 30 times that of `warm`") {
		t.Errorf("the file is\n%s", s)
	}
	if err := between(file+"x", ""); err == nil {
		t.Error("a file that is not there is written")
	}
}
