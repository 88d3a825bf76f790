// Command demo shows the tool at work on one machine, as `make demo` runs it: three instances, each with
// its own root, agent, PHP pool and nginx, one S3 server and one DynamoDB Local.
//
// It pushes an application, pushes a second release under steady requests, rolls back under requests, and
// ends with a table. It fails when an instance was left out or a request failed, mixed two releases or
// got an old one after a new one. Everything listens on loopback, lives in one temporary folder and
// is gone at the end, also after Ctrl-C. DEMO_KEEP=1 leaves it running until then and prints where.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"
)

// instances is how many the fleet has.
const instances = 3

// grace is how long a process may take to end.
const grace = 15 * time.Second

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second Ctrl-C ends us at once, and the kernel ends what we started
	err := run(ctx, os.Getenv("DEMO_KEEP") == "1")
	if err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

// run is the whole demo; what it starts is gone when it returns.
func run(ctx context.Context, keep bool) (err error) {
	dir, err := os.MkdirTemp("", "demo-")
	if err != nil {
		return err
	}
	var undo teardown
	defer func() { err = errors.Join(err, undo.run()) }()
	undo.add(func() error { return os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil { // the web user must get through
		return err
	}

	f, err := startFleet(ctx, dir, &undo)
	if err != nil {
		return err
	}
	rows, err := show(ctx, f)
	if err != nil {
		return err
	}
	fmt.Println()
	if err := report(os.Stdout, rows); err != nil {
		return err
	}
	if keep {
		f.describe(os.Stdout)
		<-ctx.Done()
	}
	return nil
}

// show deploys twice and rolls back, and returns a row for each.
func show(ctx context.Context, f *fleet) ([]row, error) {
	var rows []row
	for _, step := range []struct {
		title, version string
		verb           func(app string) []string
		load           bool
	}{
		{"first release", "one", deploy, false},
		{"second release, under load", "two", deploy, true},
		{"rollback, under load", "", func(string) []string { return []string{"-rollback"} }, true},
	} {
		say("%s", step.title)
		app := filepath.Join(f.dir, "app-"+step.version)
		if step.version != "" {
			if err := writeApp(app, step.version); err != nil {
				return nil, err
			}
		}
		r, err := f.rollOut(ctx, step.verb(app), step.load)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", step.title, err)
		}
		r.title = step.title
		rows = append(rows, r)
	}
	return rows, nil
}

func deploy(app string) []string { return []string{"-deploy=" + app} }

// rollOut runs one verb of push, with requests before, meanwhile and after if asked.
func (f *fleet) rollOut(ctx context.Context, verb []string, withLoad bool) (row, error) {
	var l *load
	if withLoad {
		l = startLoad(f.urls())
		defer l.stop()
		if err := l.answered(ctx, 300); err != nil {
			return row{}, err
		}
	}
	out, err := f.push(ctx, verb...)
	live := time.Now()
	if err != nil || !withLoad {
		return row{outcome: out}, err
	}
	if err := l.answered(ctx, 300); err != nil {
		return row{}, err
	}
	return row{outcome: out, tally: judge(l.stop(), out.Release, live)}, nil
}

func say(format string, args ...any) { fmt.Printf("== "+format+"\n", args...) }

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
	return errors.Join(errs...)
}
