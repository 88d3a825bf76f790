package main

import (
	"errors"
	"strings"
	"testing"
	"time"
)

// at is an answer that began at second s and took one second.
func at(s int, url, release string, parts ...string) answer {
	begin := time.Unix(int64(s), 0)
	return answer{url: url, begin: begin, end: begin.Add(time.Second), release: release, parts: parts}
}

func TestJudgeCountsOnlyWhatWasPromised(t *testing.T) {
	failed := at(5, "x", "")
	failed.err = errors.New("connection refused")
	for _, c := range []struct {
		name    string
		answers []answer
		want    tally
	}{
		{"a clean flip", []answer{
			at(1, "x", "R1", "one", "one", "one"),
			at(4, "x", "R2", "two", "two", "two"),
		}, tally{sent: 2}},
		{"an old answer to a request on its way during the flip is right", []answer{
			at(4, "x", "R2", "two", "two", "two"),
			at(4, "x", "R1", "one", "one", "one"),
		}, tally{sent: 2}},
		{"another instance may flip later", []answer{
			at(1, "x", "R2", "two", "two", "two"),
			at(4, "y", "R1", "one", "one", "one"),
		}, tally{sent: 2}},
		{"an old answer after a new one is stale, in whatever order they were noted", []answer{
			at(4, "x", "R1", "one", "one", "one"),
			at(1, "x", "R2", "two", "two", "two"),
		}, tally{sent: 2, stale: 1}},
		{"an instance that never flips is stale once the release is called live", []answer{
			at(1, "x", "R2", "two", "two", "two"),
			at(11, "y", "R1", "one", "one", "one"),
		}, tally{sent: 2, stale: 1}},
		{"files of two releases", []answer{
			at(1, "x", "R1", "one", "one", "two"),
		}, tally{sent: 1, mixed: 1}},
		{"a whole answer from the other release's folder", []answer{
			at(1, "x", "R1", "one", "one", "one"),
			at(2, "x", "R1", "two", "two", "two"),
		}, tally{sent: 2, mixed: 1}},
		{"no answer", []answer{failed}, tally{sent: 1, failed: 1}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := judge(c.answers, "R2", time.Unix(10, 0))
			got.cause = nil
			if got != c.want {
				t.Errorf("got %+v, want %+v", got, c.want)
			}
		})
	}
}

func TestReportFailsWithTheTableWhenARequestWasStale(t *testing.T) {
	var b strings.Builder
	good := row{title: "second", outcome: outcome{Release: "R2", Members: 3, LiveMS: 2500, FlipSpreadMS: 4}, tally: tally{sent: 100}}
	if err := report(&b, []row{good}); err != nil || !strings.Contains(b.String(), "2.5s") {
		t.Errorf("good row: %v\n%s", err, b.String())
	}
	bad := good
	bad.stale = 1
	if err := report(&b, []row{good, bad}); err == nil || !strings.Contains(err.Error(), "1 stale") {
		t.Errorf("stale row: %v", err)
	}
}
