package main

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"text/tabwriter"
	"time"
)

// tally is how the requests of one rollout went.
type tally struct {
	sent   int
	failed int   // no answer, or not 200
	mixed  int   // files of two releases in one answer
	stale  int   // begun after the same instance had answered with the new release, and answered with another
	cause  error // of one that failed
}

// row is one rollout in the table.
type row struct {
	title string
	outcome
	tally
}

// judge counts what happened to the requests while the fleet moved to a release, live everywhere from a
// moment on. The first answer of a release says which version it is; whatever differs from that is mixed.
func judge(answers []answer, release string, live time.Time) tally {
	t := tally{sent: len(answers)}
	version := make(map[string]string)    // what the parts of a release say
	flipped := make(map[string]time.Time) // when an instance had first answered with the new release
	for _, a := range answers {
		if at, ok := flipped[a.url]; a.err == nil && a.release == release && (!ok || a.end.Before(at)) {
			flipped[a.url] = a.end
		}
	}
	for _, a := range answers {
		if a.err != nil {
			t.failed++
			t.cause = fmt.Errorf("%s: %w", a.url, a.err)
			continue
		}
		if version[a.release] == "" {
			version[a.release] = a.parts[0]
		}
		if slices.ContainsFunc(a.parts, func(p string) bool { return p != version[a.release] }) {
			t.mixed++
		}
		at, ok := flipped[a.url]
		if !ok || live.Before(at) {
			at = live
		}
		if a.begin.After(at) && a.release != release {
			t.stale++
		}
	}
	return t
}

// report prints the table, and fails when a request did not go as promised.
func report(w io.Writer, rows []row) error {
	var errs []error
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "\trelease\tinstances\tpush to live\tflips within\trequests\tfailed\tmixed\tstale")
	for _, r := range rows {
		fmt.Fprintf(tw, "%s\t%s\t%d\t%s\t%s\t%d\t%d\t%d\t%d\n", r.title, r.Release, r.Members,
			milliseconds(r.LiveMS), milliseconds(r.FlipSpreadMS), r.sent, r.failed, r.mixed, r.stale)
		if r.failed+r.mixed+r.stale > 0 {
			errs = append(errs, fmt.Errorf("%s: %d of %d requests failed, %d mixed, %d stale", r.title, r.failed, r.sent, r.mixed, r.stale), r.cause)
		}
	}
	return errors.Join(append(errs, tw.Flush())...)
}

func milliseconds(n int64) string { return (time.Duration(n) * time.Millisecond).String() }
