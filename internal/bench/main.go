// Command bench measures the transfer of releases against the tools that people use for it, as `make bench` runs it.
//
// All contenders go to one S3 server through one proxy, which adds a network's latency to each request and counts what passes. They work in
// fresh directories on loop images of ext4 with a journal and of xfs, in turns, and the disk is at rest when one begins. A
// row has the medians of its rounds: seconds until the contender was content and until everything was on the disk, requests, bytes,
// processor time and memory. Ratios are of seconds until everything was on the disk, in the same run.
//
// Ours are the built push, and for the agent its own steps in a process of their own ([agent.Alone]): what the fleet adds, waiting for
// each other, is not transfer. Peers neither verify nor wait for the disk, so for both there are both numbers.
//
// What the design promises is compared with what was found, and what is missed is called missed. A missed count, of requests or of
// memory, is an error: nothing but our code decides it. A missed ratio of times is one only where -strict asks for that, since it is
// the machine's as well.
//
// Whatever is started or mounted belongs to this process and is gone when it ends.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"runtime/debug"
	"syscall"
	"time"

	"s3pulldeploy/internal/testenv/parts"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop)
	if err := run(ctx, os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// run is the whole command.
func run(ctx context.Context, args []string, stdout io.Writer) error {
	if len(args) > 0 && args[0] == "fetch" { // one of our own children
		return runFetch(ctx, args[1:], stdout)
	}
	var quick, write, again, strict bool
	var only string
	set := flag.NewFlagSet("bench", flag.ContinueOnError)
	set.BoolVar(&quick, "quick", false, "the headline rows only, with fewer rounds")
	set.BoolVar(&write, "write", false, "write docs/benchmarks.md and its picture")
	set.BoolVar(&again, "again", false, "measure nothing, show the last run again")
	set.BoolVar(&strict, "strict", false, "a missed time is an error too, not only a missed count")
	set.StringVar(&only, "only", "", "scenarios whose name matches, a regular expression")
	rounds := set.Int("rounds", 5, "rounds of a row")
	if err := set.Parse(args); err != nil {
		return err
	}
	match, err := regexp.Compile(only)
	if err != nil {
		return err
	}
	debug.SetGCPercent(20) // see copyFile
	l := &lab{out: stdout, began: time.Now(), runs: *rounds, least: 2, patience: patience, quick: quick}
	if quick {
		l.runs, l.least, l.patience = min(l.runs, 3), 1, patienceQuick
	}
	root, err := parts.ModuleRoot()
	if err != nil {
		return err
	}
	cache := filepath.Join(root, ".bench")
	r := &report{}
	if again {
		err = r.load(cache)
	} else {
		r, err = l.bench(ctx, cache, match)
	}
	if err != nil {
		return err
	}
	r.print(stdout)
	if write {
		if err := r.write(filepath.Join(root, "docs")); err != nil {
			return err
		}
	}
	return r.missed(strict)
}

// bench sets everything up, runs the scenarios and takes it all down again. What it found is kept in cache too.
func (l *lab) bench(ctx context.Context, cache string, match *regexp.Regexp) (r *report, err error) {
	defer func() { err = errors.Join(err, l.close()) }()
	if err := l.open(ctx, cache); err != nil {
		return nil, err
	}
	if err := l.plantAll(ctx, filepath.Join(cache, "packages")); err != nil {
		return nil, err
	}
	r = &report{Date: time.Now().UTC().Format(time.DateOnly), Machine: l.describe(ctx), Quick: l.quick}
	for _, s := range scenarios {
		if l.quick && !s.quick || !match.MatchString(s.name) {
			continue
		}
		rows, err := s.run(l, ctx)
		if err != nil {
			return nil, fmt.Errorf("scenario %s: %w", s.name, err)
		}
		r.Rows = append(r.Rows, rows...)
	}
	r.Took = time.Since(l.began)
	return r, r.keep(cache)
}
