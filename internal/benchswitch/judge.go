package main

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"
)

// flip is one release that went live under load.
type flip struct {
	release string
	before  time.Time // a second without anything begins
	pushed  time.Time // push was started
	at      time.Time // the link was seen to have moved
	over    time.Time // whatever follows a rollout is over, room in opcache too
}

// span is when room was made in opcache.
type span struct{ from, to time.Time }

// What every mode must come to. In mode off requests may be fewer: opcache fills up, and answers take as long as they take.
const (
	leastFlips    = 20
	leastRequests = 10_000
)

// What warm must hold: the slowest request after a flip against the one before, by the medians over the flips, and the slowest after any
// flip against the slowest without one; and against that of reset, by the medians. What came while room was made is in none of these: it is to
// be no slower than the slowest of reset, and with a cache on the disk to take half as long as without one at most.
const (
	mostSlower  = 3
	leastFaster = 10
)

// row is one application in one mode.
type row struct {
	app, mode             string
	flips, requests       int
	rate                  int     // requests a second that were due
	achieved              float64 // and that were answered
	failed, mixed, stale  int
	before, during, after window
	later                 window // from a second after a flip on
	room                  window // while room was made, after some of the flips
	rooms                 int    // how often
	cause                 error  // of a request that failed
}

// window is how long requests took in one part of all flips.
type window struct {
	slowest time.Duration   // the median over the flips of each one's slowest
	p99     time.Duration   // of all requests in it
	most    time.Duration   // the slowest of all
	each    []time.Duration // each flip's slowest; 0: nobody came
}

// judge makes a row of what was answered while releases went live one after the other.
func judge(a *app, mode string, answers []answer, flips []flip, rooms []span) row {
	r := row{app: a.name, mode: mode, requests: len(answers), rate: a.rate, achieved: achieved(answers), rooms: len(rooms)}
	live := ""
	for _, f := range flips {
		if f.release > live {
			live = f.release
			r.flips++
		}
	}
	for _, a := range answers {
		switch {
		case a.err != nil:
			r.failed++
			r.cause = cmp.Or(r.cause, a.err)
		case strings.Contains(a.releases, ","):
			r.mixed++
		case stale(a, flips):
			r.stale++
		}
	}
	r.room = measure(answers, rooms, func(s span) (time.Time, time.Time) { return s.from, s.to })
	answers = slices.DeleteFunc(slices.Clone(answers), func(a answer) bool {
		return slices.ContainsFunc(rooms, func(s span) bool { return a.end.After(s.from) && a.due.Before(s.to) })
	})
	r.before = measure(answers, flips, func(f flip) (time.Time, time.Time) { return f.before, f.before.Add(time.Second) })
	r.during = measure(answers, flips, func(f flip) (time.Time, time.Time) { return f.pushed, f.at })
	r.after = measure(answers, flips, func(f flip) (time.Time, time.Time) { return f.at, f.at.Add(time.Second) })
	r.later = measure(answers, flips, func(f flip) (time.Time, time.Time) { return f.at.Add(time.Second), f.over })
	return r
}

// achieved is how many answers a second came.
func achieved(answers []answer) float64 {
	if len(answers) == 0 {
		return 0
	}
	first, last := answers[0].due, answers[0].end
	for _, a := range answers {
		if a.due.Before(first) {
			first = a.due
		}
		if a.end.After(last) {
			last = a.end
		}
	}
	return float64(len(answers)) / last.Sub(first).Seconds()
}

// stale says whether a request began after a flip and was answered by an older release; ids grow with time.
func stale(a answer, flips []flip) bool {
	live := ""
	for _, f := range flips {
		if a.begin.After(f.at) {
			live = f.release
		}
	}
	return a.releases < live
}

// within are the requests that visitors waited for, in part at least, between two times.
func within(answers []answer, from, to time.Time) (in []answer) {
	for _, a := range answers {
		if a.end.After(from) && a.due.Before(to) {
			in = append(in, a)
		}
	}
	return in
}

func measure[T any](answers []answer, parts []T, ends func(T) (from, to time.Time)) window {
	var most, all []time.Duration
	for _, p := range parts {
		from, to := ends(p)
		in := within(answers, from, to)
		most = append(most, slowest(in))
		for _, a := range in {
			all = append(all, a.took())
		}
	}
	return window{quantile(most, 0.5), quantile(all, 0.99), quantile(most, 1), most}
}

// worst is the largest ratio of any flip: its slowest request after it to its slowest before it.
func (r row) worst() (most float64) {
	for i, before := range r.before.each {
		if before > 0 {
			most = max(most, ratio(r.after.each[i], before))
		}
	}
	return most
}

func slowest(answers []answer) (most time.Duration) {
	for _, a := range answers {
		most = max(most, a.took())
	}
	return most
}

// quantile is 0 of nothing.
func quantile(of []time.Duration, q float64) time.Duration {
	if len(of) == 0 {
		return 0
	}
	of = slices.Sorted(slices.Values(of))
	return of[min(int(q*float64(len(of))), len(of)-1)]
}

// String is one line for the terminal.
func (r row) String() string {
	return fmt.Sprintf("%s, %s: %d requests, %.0f of %d a second, %d failed, %d mixed, %d stale; slowest before %s, during %s, after %s, later %s; room made %d times: %s",
		r.app, r.mode, r.requests, r.achieved, r.rate, r.failed, r.mixed, r.stale, ms(r.before.slowest), ms(r.during.slowest), ms(r.after.slowest), ms(r.later.slowest), r.rooms, ms(r.room.slowest))
}

func ms(d time.Duration) string {
	if d < 10*time.Millisecond {
		return fmt.Sprintf("%.1f ms", float64(d)/1e6)
	}
	return fmt.Sprintf("%d ms", d.Milliseconds())
}

// table is what goes into the documentation.
func table(rows []row) string {
	var b strings.Builder
	b.WriteString("| application | mode | flips | requests | due a second | answered a second | failed | mixed | stale | room made | after ÷ before, by the medians | of the worst flip | slowest after any flip ÷ without one | slowest while room is made ÷ without a flip |\n")
	b.WriteString("|---|---|---|---|---|---|---|---|---|---|---|---|---|---|\n")
	for _, r := range rows {
		fmt.Fprintf(&b, "| %s | %s | %d | %d | %d | %.1f | %d | %d | %d | %d | %.1f | %.1f | %.1f | %.1f |\n", r.app, r.mode, r.flips, r.requests, r.rate, r.achieved,
			r.failed, r.mixed, r.stale, r.rooms, ratio(r.after.slowest, r.before.slowest), r.worst(), ratio(r.after.most, r.without()), ratio(r.room.most, r.without()))
	}
	b.WriteString("\n| application | mode | when | slowest of a flip, median | p99 | maximum |\n|---|---|---|---|---|---|\n")
	for _, r := range rows {
		for _, w := range []struct {
			when string
			window
		}{{"in the second before", r.before}, {"while it is prepared", r.during}, {"in the second after the flip", r.after}, {"later", r.later}, {"while room is made", r.room}} {
			if w.most == 0 { // nobody came
				continue
			}
			fmt.Fprintf(&b, "| %s | %s | %s | %s | %s | %s |\n", r.app, r.mode, w.when, ms(w.slowest), ms(w.p99), ms(w.most))
		}
	}
	b.WriteByte('\n')
	for _, w := range rows {
		for _, r := range rows {
			if w.mode == "warm" && !r.warm() && r.app == w.app {
				fmt.Fprintf(&b, "%s: after a flip the slowest request of `%s` takes %.0f times that of `warm`, by the medians; by the slowest of all flips %.0f times.\n",
					w.app, r.mode, ratio(r.after.slowest, w.after.slowest), ratio(r.after.most, w.after.most))
			}
		}
	}
	return b.String()
}

// without is the slowest request in all seconds that no flip was in.
func (r row) without() time.Duration { return max(r.before.most, r.later.most) }

func (r row) warm() bool { return strings.HasPrefix(r.mode, "warm") }

func ratio(a, b time.Duration) float64 { return float64(a) / float64(max(b, 1)) }

// between replaces what is between the markers in a file.
func between(file, text string) error {
	const begin, end = "<!-- bench-switch -->\n", "<!-- bench-switch end -->"
	old, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	head, rest, ok := strings.Cut(string(old), begin)
	_, tail, whole := strings.Cut(rest, end)
	if !ok || !whole {
		return fmt.Errorf("%s: no markers %q and %q", file, strings.TrimSpace(begin), end)
	}
	return os.WriteFile(file, []byte(head+begin+text+end+tail), 0o644)
}

// verdict fails when visitors noticed something that they must not, when warm is not what it promises, and when there was too little to
// tell.
func verdict(rows []row) error {
	var errs []error
	for _, r := range rows {
		no := func(when bool, format string, args ...any) {
			if when {
				errs = append(errs, fmt.Errorf("%s, %s: %s", r.app, r.mode, fmt.Sprintf(format, args...)))
			}
		}
		no(r.failed+r.mixed+r.stale > 0, "%d requests failed, %d mixed, %d stale", r.failed, r.mixed, r.stale)
		errs = append(errs, r.cause)
		no(r.flips < leastFlips, "%d flips, not %d", r.flips, leastFlips)
		no(r.mode != "off" && r.requests < leastRequests, "%d requests, not %d", r.requests, leastRequests)
		if !r.warm() {
			continue
		}
		after := r.after.slowest
		no(after > mostSlower*r.before.slowest, "the slowest request after a flip takes %.1f times the one before, not %d", ratio(after, r.before.slowest), mostSlower)
		no(r.after.most > mostSlower*r.without(), "the slowest request of all after a flip takes %.1f times the slowest without one, not %d", ratio(r.after.most, r.without()), mostSlower)
		for _, s := range rows {
			no(s.app == r.app && s.mode == "warm" && r.mode != "warm" && 2*r.room.slowest > s.room.slowest,
				"while room is made the slowest request takes %s, and %s without a cache on the disk: not half as long", ms(r.room.slowest), ms(s.room.slowest))
			no(s.app == r.app && s.mode == "reset" && r.room.most > s.after.most, "while room is made the slowest request takes %s, and after a flip of reset %s", ms(r.room.most), ms(s.after.most))
			no(s.app == r.app && s.mode == "reset" && s.after.slowest < leastFaster*after, "after a flip the slowest request of reset takes %.1f times as long, not %d",
				ratio(s.after.slowest, after), leastFaster)
		}
	}
	return errors.Join(errs...)
}
