// Command benchswitch measures what visitors notice of a deploy, as `make bench-switch` runs it: a real agent and push, S3
// server, DynamoDB Local, nginx and php-fpm with what is in share/; an application of 400 files, and WordPress (Debian's package) with
// a MariaDB of its own, database and uploads shared by all releases.
//
// For each application and each opcache.mode (and for warm with a cache on the disk as well, as share/php/opcache.ini proposes it), requests come at a fixed rate, every answer is looked at, and release after
// release is pushed. The rate does not wait for answers, as visitors do not wait for each other, and how long a request took counts from
// when it was due: a stall is felt by all who came meanwhile. An answer says which releases its files are from (PHP's get_included_files): two are a mixed answer; the release
// before, to a request that began after the link was seen to have moved, is a stale one. Per flip there are three windows: a second
// before the push, all of the push before the flip (while the release is fetched and compiled), and the second after the flip. The slowest
// request of each is taken, and of those the median over all flips, so that a noisy machine does not decide; the table has the maximum and the largest ratio of a flip too.
// What was under way while the agent made room in opcache, by its log, is in none of these but in a window of its own.
//
// It fails when a request failed, was mixed or stale; when there were fewer than 20 flips in a mode, or, but in mode off, fewer than 10,000
// requests; and when in mode warm the slowest request after a flip takes over 3 times the one before by the medians, or the slowest of all
// over 3 times the slowest without a flip, or that of reset less than 10 times as long by the medians. While room is made the slowest may
// take as long as the slowest of reset, and half as long, by the medians, where there is a cache on the disk. So a short run (-flips=2) always fails. Everything listens on loopback, lives in one temporary
// folder and is gone at the end, also after Ctrl-C.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"
)

// grace is how long a process may take to end.
const grace = 15 * time.Second

// options are the command line's.
type options struct {
	flips       int
	apps, modes string
	docs        string
}

func main() {
	var o options
	flag.IntVar(&o.flips, "flips", 20, "releases to push in each mode")
	flag.StringVar(&o.apps, "apps", "files,wordpress", "the applications, comma-separated")
	flag.StringVar(&o.modes, "modes", "warm,warm"+onDisk+",reset,off", "the modes of opcache, comma-separated")
	flag.StringVar(&o.docs, "docs", "", "write the table into this `file`, between its markers")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second Ctrl-C ends us at once, and the kernel ends what we started
	if err := run(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "bench-switch:", err)
		os.Exit(1)
	}
}

// run is the whole bench; what it starts is gone when it returns.
func run(ctx context.Context, o options) (err error) {
	dir, err := os.MkdirTemp("", "switch-")
	if err != nil {
		return err
	}
	var undo teardown
	defer func() { err = errors.Join(err, undo.run()) }()
	undo.add(func() error { return os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil { // the web user must get through
		return err
	}
	s, err := startServers(ctx, dir, &undo)
	if err != nil {
		return err
	}
	var rows []row
	for _, name := range strings.Split(o.apps, ",") {
		a, err := makeApp(ctx, name, dir, &undo)
		if err != nil {
			return fmt.Errorf("make application %s: %w", name, err)
		}
		for _, mode := range strings.Split(o.modes, ",") {
			r, err := s.measure(ctx, a, mode, o.flips)
			if err != nil {
				return fmt.Errorf("%s, mode %s: %w", name, mode, err)
			}
			rows = append(rows, r)
			say("%s", r)
		}
	}
	text := table(rows)
	fmt.Print("\n", text)
	if o.docs != "" {
		if err := between(o.docs, text); err != nil {
			return err
		}
	}
	return verdict(rows)
}

func say(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "%s %s\n", time.Now().Format(time.TimeOnly), fmt.Sprintf(format, args...))
}

// teardown is what to undo at the end, the last thing first.
type teardown []func() error

func (t *teardown) add(f func() error) { *t = append(*t, f) }

// stop adds the end of a process.
func (t *teardown) stop(p interface{ Stop(time.Duration) error }) {
	t.add(func() error { return p.Stop(grace) })
}

func (t *teardown) run() error {
	var errs []error
	for i := len(*t) - 1; i >= 0; i-- {
		errs = append(errs, (*t)[i]())
	}
	*t = nil
	return errors.Join(errs...)
}
