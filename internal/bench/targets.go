package main

import (
	"errors"
	"fmt"
)

// target is a number that must hold. One that is timed says as much of the machine, and of who else uses it, as of us: how fast it was, or what was
// on its way at some moment. The others are the same wherever they are measured.
type target struct {
	key, what string
	want      string
	timed     bool
	got       func(*row) (got string, holds bool) // "": not measured
}

// atLeast is a ratio to a peer.
func atLeast(key, what, peer string, times float64) target {
	return target{key, what, ratio(times) + " faster than " + peer, true, func(r *row) (string, bool) {
		x := r.times(peer)
		if x == 0 {
			return "", false // the peer did not take part
		}
		return ratio(x), x >= times
	}}
}

// atMost is about our own cost.
func atMost(key, what string, most int64, unit string, of func(cost) int64) target {
	return target{key, what, fmt.Sprintf("at most %d%s", most, unit), false, func(r *row) (string, bool) {
		got := middle(*r.entry(ours), of)
		return fmt.Sprintf("%d%s", got, unit), got <= most
	}}
}

func requestsOf(c cost) int64 { return c.Requests }

// targets are what is promised of transfer.
var targets = []target{
	atLeast("fresh-wp", "fresh WordPress", awsName, 25),
	atLeast("fresh-wp", "fresh WordPress", rclone, 10),
	atLeast("fresh-wp", "fresh WordPress", bundle, 1),
	atLeast("fresh-mw", "fresh MediaWiki", awsName, 80),
	atLeast("fresh-mw", "fresh MediaWiki", rclone, 10),
	atLeast("fresh-mw", "fresh MediaWiki", bundle, 1),
	atLeast("fresh-mw-xfs", "fresh MediaWiki, xfs", bundle, 1),
	atLeast("pull-wp-1", "1 file of WordPress fetched", awsName, 60),
	atMost("pull-wp-1", "1 file of WordPress fetched", 2, " requests", requestsOf),
	atLeast("pull-mw-50", "50 files of MediaWiki fetched", awsName, 25),
	atMost("pull-mw-50", "50 files of MediaWiki fetched", 2, " requests", requestsOf),
	atMost("idle", "nothing changed", 1, " request", requestsOf),
	atLeast("first-push", "first push of MediaWiki", awsName, 20),
	atLeast("push-mw-50", "50 files of MediaWiki pushed", awsName, 20),
	atMost("push-mw-50", "50 files of MediaWiki pushed", 4, " requests", requestsOf),
	atMost("fresh-big", "memory for the large tree", 96, " MiB", func(c cost) int64 { return (c.RSS + 1<<20 - 1) >> 20 }),
	atMost("fleet-fresh", "fresh WordPress, a hundred machines", 12, " requests each", requestsOf),
	atMost("fleet-delta", "1 file of WordPress, a hundred machines", 3, " requests each", requestsOf),
	atMost("damaged", "1 file changed and another damaged", 3, " requests", requestsOf),
	{"killed", "time again after a kill half-way", "at most 60 %", true, func(r *row) (string, bool) {
		part := 100 * r.Entries[1].synced().Seconds() / r.Entries[0].synced().Seconds()
		return fmt.Sprintf("%.0f %%", part), part <= 60
	}},
	{"killed", "bytes again after a kill half-way", "at most 10 %", true, func(r *row) (string, bool) {
		down := func(c cost) int64 { return c.Down }
		more := 100*float64(middle(r.Entries[1], down))/float64(middle(r.Entries[0], down)) - 100
		return fmt.Sprintf("%.1f %%", more), more <= 10
	}},
}

// verdict is what came of a target.
type verdict struct {
	target
	measured string
	holds    bool
}

// verdicts are of the targets whose rows were run.
func (r *report) verdicts() (all []verdict) {
	for _, t := range targets {
		row := r.row(t.key)
		if row == nil {
			continue
		}
		if got, holds := t.got(row); got != "" {
			all = append(all, verdict{t, got, holds})
		}
	}
	return all
}

// held is a table of them.
func (r *report) held() [][]string {
	lines := [][]string{{"what", "to hold", "measured", ""}}
	for _, v := range r.verdicts() {
		end := "holds"
		if !v.holds {
			end = "missed"
		}
		lines = append(lines, []string{v.what, v.want, v.measured, end})
	}
	return lines
}

// sum counts them in a sentence.
func (r *report) sum() string {
	held, times, others := 0, 0, 0
	for _, v := range r.verdicts() {
		switch {
		case v.holds:
			held++
		case v.timed:
			times++
		default:
			others++
		}
	}
	return fmt.Sprintf("%d of %d numbers hold; missed: %s, %s.", held, held+times+others, plural(times, "time"), plural(others, "count"))
}

// missed is an error that names the counts that were missed, and the times too where the run is to be strict.
func (r *report) missed(strict bool) error {
	var errs []error
	for _, v := range r.verdicts() {
		if !v.holds && (strict || !v.timed) {
			errs = append(errs, fmt.Errorf("missed: %s, %s: %s", v.what, v.want, v.measured))
		}
	}
	return errors.Join(errs...)
}
