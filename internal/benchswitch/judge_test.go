package main

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
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
	return answer{due: at(begin), begin: at(begin), end: at(begin + took), releases: releases}
}

func TestAnswersAreJudgedByTheReleaseThatWasLive(t *testing.T) {
	flips := []flip{
		{release: r2, before: at(0), pushed: at(1000), at: at(3000), over: at(9000)},
		{release: r3, before: at(10000), pushed: at(11000), at: at(13000), over: at(19000)},
	}
	r := judge(&app{name: "app", rate: 2}, "warm", []answer{
		answered(100, 7, r1),
		answered(2999, 900, r1),        // began before the flip
		answered(2999, 20, r2),         // the link had moved a moment before it was seen
		answered(3001, 10, r1),         // stale
		answered(13001, 10, r2),        // stale
		answered(13001, 30, r3),        // well
		answered(13001, 10, r2+","+r3), // mixed
		answered(16000, 70, r3),
		answered(13300, 250, r3), // while room was made, its last 50 ms
		answered(13599, 300, r3), // the same, its first
		answered(13602, 8, r3),   // after it
		{due: at(100), begin: at(500), end: at(510), err: os.ErrDeadlineExceeded}, // no worker was free for 400 ms
	}, flips, []span{{at(13500), at(13600)}})
	if r.requests != 12 || r.failed != 1 || r.mixed != 1 || r.stale != 2 || r.cause == nil || r.flips != 2 {
		t.Errorf("got %+v", r)
	}
	if r.before.slowest != 410*time.Millisecond || r.after.slowest != 900*time.Millisecond || r.later.slowest != 70*time.Millisecond {
		t.Errorf("slowest: %v, %v, later %v", r.before.slowest, r.after.slowest, r.later.slowest)
	}
	if r.rooms != 1 || r.room.most != 300*time.Millisecond || r.room.slowest != r.room.most {
		t.Errorf("room: %d, %+v", r.rooms, r.room)
	}
	if worst := r.worst(); worst < 2.19 || worst > 2.2 { // of the first flip; nobody came in the second before the other
		t.Errorf("the largest ratio of a flip is %v", worst)
	}
	if r.after.most != 900*time.Millisecond || r.before.most != 410*time.Millisecond || r.achieved < 0.75 || r.achieved > 0.76 { // 12 in 15.97 s
		t.Errorf("at most %v, %v; %.3f a second", r.before.most, r.after.most, r.achieved)
	}
}

func TestBenchFailsWhereItsClaimsDoNotHold(t *testing.T) {
	took := func(d time.Duration) window { return window{slowest: d} }
	for name, c := range map[string]struct {
		spoil func(warm, reset, off *row)
		want  string // in the error; empty: it passes
	}{
		"all holds":                     {func(_, _, _ *row) {}, ""},
		"without opcache fewer answers": {func(_, _, off *row) { off.requests = 700 }, ""},
		"failed":                        {func(warm, _, _ *row) { warm.failed, warm.cause = 1, os.ErrDeadlineExceeded }, "a, warm: 1 requests failed"},
		"its cause":                     {func(warm, _, _ *row) { warm.failed, warm.cause = 1, os.ErrDeadlineExceeded }, os.ErrDeadlineExceeded.Error()},
		"mixed":                         {func(_, reset, _ *row) { reset.mixed = 2 }, "a, reset: 0 requests failed, 2 mixed"},
		"stale":                         {func(_, _, off *row) { off.stale = 3 }, "a, off: 0 requests failed, 0 mixed, 3 stale"},
		"few flips":                     {func(_, _, off *row) { off.flips-- }, "a, off: 19 flips, not 20"},
		"few requests":                  {func(_, reset, _ *row) { reset.requests = 9999 }, "a, reset: 9999 requests, not 10000"},
		"slower after":                  {func(warm, _, _ *row) { warm.before = took(9 * time.Millisecond) }, "takes 3.3 times the one before, not 3"},
		"slowest of all":                {func(warm, _, _ *row) { warm.after.most = 301 * time.Millisecond }, "the slowest request of all after a flip takes 3.0 times"},
		"room": {func(warm, reset, _ *row) {
			warm.room.most, reset.after.most = 300*time.Millisecond, 300*time.Millisecond
		}, ""},
		"room slower than reset": {func(warm, reset, _ *row) {
			warm.room.most, reset.after.most = 301*time.Millisecond, 300*time.Millisecond
		}, "a, warm: while room is made the slowest request takes 301 ms, and after a flip of reset 300 ms"},
		"room with a cache on the disk": {func(warm, _, off *row) {
			warm.room = took(200 * time.Millisecond)
			*off = *warm
			off.mode, off.room = "warm"+onDisk, took(101*time.Millisecond)
		}, "a, warm+file_cache: while room is made the slowest request takes 101 ms, and 200 ms without a cache on the disk"},
		"of the cache on the disk too": {func(warm, _, _ *row) { warm.mode, warm.after.most = "warm"+onDisk, 301*time.Millisecond }, "a, warm+file_cache: the slowest request of all"},
		"no better":                    {func(_, reset, _ *row) { reset.after = took(299 * time.Millisecond) }, "of reset takes 10.0 times as long, not 10"},
	} {
		t.Run(name, func(t *testing.T) {
			rows := make([]row, 3)
			for i, mode := range []string{"warm", "reset", "off"} {
				rows[i] = row{app: "a", mode: mode, flips: 20, requests: 10_000, before: took(10 * time.Millisecond), after: took(300 * time.Millisecond)}
			}
			rows[0].after = took(30 * time.Millisecond)
			rows[0].before.most, rows[0].later.most, rows[0].after.most = 90*time.Millisecond, 100*time.Millisecond, 300*time.Millisecond
			c.spoil(&rows[0], &rows[1], &rows[2])
			err := verdict(rows)
			if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, want %q", err, c.want)
			}
		})
	}
}

// The site answers nobody until every worker waits for it: what is due then is late, and is due as if nothing were.
func TestRequestThatFindsNoWorkerCountsFromWhenItWasDue(t *testing.T) {
	var waiting atomic.Int64
	gate := make(chan struct{})
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		waiting.Add(1)
		<-gate
		fmt.Fprint(w, "<html><!-- releases "+r1+" --></html>\n")
	}))
	t.Cleanup(s.Close)
	const rate = 200
	l := startLoad(s.URL, []string{"/"}, rate)
	await := func(what string, done func() bool) {
		t.Helper()
		for end := time.Now().Add(30 * time.Second); !done(); time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				l.stop()
				t.Fatal(what)
			}
		}
	}
	await("all workers wait", func() bool { return waiting.Load() == workers })
	opened := time.Now()
	close(gate)
	await("more answers", func() bool { return l.answered() >= 2*workers })
	answers := l.stop()
	slices.SortFunc(answers, func(a, b answer) int { return a.due.Compare(b.due) })
	for n, a := range answers {
		again := n > 0 && a.due.Equal(answers[n-1].due)
		if again || a.due.Sub(answers[0].due)%(time.Second/rate) != 0 || a.begin.Before(a.due) || a.err != nil {
			t.Errorf("request %d: due %v after the first, begun %v, %v", n, a.due.Sub(answers[0].due), a.begin, a.err)
		}
		if late := opened.Sub(a.due); a.took() < late {
			t.Errorf("request %d took %v, and nobody was answered for %v", n, a.took(), late)
		}
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
		{app: "a", mode: "warm", after: window{slowest: 10 * time.Millisecond, p99: 20 * time.Millisecond, most: 77 * time.Millisecond}},
		{app: "a", mode: "reset", after: window{slowest: 300 * time.Millisecond, most: 924 * time.Millisecond}},
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
		strings.Contains(s, "old") || !strings.Contains(s, "`reset` takes 30 times that of `warm`, by the medians; by the slowest of all flips 12 times.") || !strings.Contains(s, "| in the second after the flip | 10 ms | 20 ms | 77 ms |") {
		t.Errorf("the file is\n%s", s)
	}
	if err := between(file+"x", ""); err == nil {
		t.Error("a file that is not there is written")
	}
}
