package main

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// cost is what one run took. A contender that never goes to S3 has no traffic.
type cost struct {
	Done   time.Duration `json:"done"`   // until the contender was content; 0: not measured
	Synced time.Duration `json:"synced"` // until everything was on the disk; 0: not measured
	CPU    time.Duration `json:"cpu"`    // of all its processes, in user and kernel
	RSS    int64         `json:"rss"`    // bytes, of its largest process at its largest
	Read   time.Duration `json:"read"`   // all files of the tree once, right after; 0: not measured
	traffic
}

// entry is one contender's runs in a row of the table.
type entry struct {
	Name  string `json:"name"`
	Costs []cost `json:"costs"`
}

// middle is the median of what f gives of the runs.
func middle[T cmp.Ordered](e entry, f func(cost) T) T {
	var all []T
	for _, c := range e.Costs {
		all = append(all, f(c))
	}
	slices.Sort(all)
	if len(all) == 0 {
		var none T
		return none
	}
	return all[(len(all)-1)/2]
}

// total is the time of all runs.
func (e entry) total() (all time.Duration) {
	for _, c := range e.Costs {
		all += cmp.Or(c.Synced, c.Done)
	}
	return all
}

// synced is the time that ratios are made of.
func (e entry) synced() time.Duration {
	return middle(e, func(c cost) time.Duration { return cmp.Or(c.Synced, c.Done) })
}

// contender does a row's work once, in or from the directory dir, which is its own and fresh.
type contender struct {
	name string
	run  func(ctx context.Context, dir string) (cost, error)
	keep string // work in this directory instead, from run to run

	reads func(dir string) string // where the tree is then, to be read in the whole bench; nil: nowhere
}

func itself(dir string) string { return dir }

// A contender whose runs took more than this together, and who had the least number of them, sits out the rest: where a ratio is above
// twenty, more runs would make the number nicer and not truer.
const (
	patience      = 40 * time.Second
	patienceQuick = 10 * time.Second
)

// contest lets contenders work in turns, each round from another one on, so that a slow moment of the machine hits all of them. Those of
// one group go before those of the next: a release is pushed by all before it is fetched by any. before prepares a round.
func (l *lab) contest(ctx context.Context, title string, rounds int, before func(round int) error, groups ...[]contender) ([][]entry, error) {
	results := make([][]entry, len(groups))
	for g, all := range groups {
		results[g] = make([]entry, len(all))
		for n, c := range all {
			results[g][n].Name = c.name
		}
	}
	for round := range rounds {
		if err := before(round); err != nil {
			return nil, fmt.Errorf("%s: prepare round %d: %w", title, round+1, err)
		}
		for g, all := range groups {
			for turn := range all {
				n := (turn + round) % len(all)
				e := &results[g][n]
				if e.total() > l.patience && len(e.Costs) >= l.least {
					continue
				}
				took, err := l.once(ctx, all[n])
				if err != nil {
					return nil, fmt.Errorf("%s: %s: %w", title, e.Name, err)
				}
				e.Costs = append(e.Costs, took)
				l.say("%s, round %d of %d: %s %s", title, round+1, rounds, e.Name, duration(cmp.Or(took.Synced, took.Done)))
			}
		}
	}
	return results, nil
}

// once runs a contender in its directory, when the disk has come to rest.
func (l *lab) once(ctx context.Context, c contender) (cost, error) {
	dir := c.keep
	if dir == "" {
		var err error
		if dir, err = os.MkdirTemp(l.disk, "run-"); err != nil {
			return cost{}, err
		}
		defer os.RemoveAll(dir)
	}
	if err := syncDisk(l.disk); err != nil {
		return cost{}, err
	}
	took, err := c.run(ctx, dir)
	if err == nil && c.reads != nil && !l.quick {
		took.Read, err = readAll(c.reads(dir))
	}
	return took, err
}

// readAll reads every file of a tree, one after the other, as the first visitors of a release do, and says how long that took.
func readAll(dir string) (time.Duration, error) {
	began := time.Now()
	dir, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return 0, err
	}
	err = filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			_, err = os.ReadFile(name)
		}
		return err
	})
	return time.Since(began), err
}

// firstReads says how long it took to read what each contender brought; "" where nobody asked.
func firstReads(entries []entry) string {
	var said []string
	for _, e := range entries {
		if took := middle(e, func(c cost) time.Duration { return c.Read }); took > 0 {
			said = append(said, e.Name+" "+duration(took))
		}
	}
	if said == nil {
		return ""
	}
	return "To read the whole tree once, right after: " + strings.Join(said, ", ") + "."
}

// nothing is for contests whose rounds need no preparation.
func nothing(int) error { return nil }

// command is a process of a contender.
type command struct {
	args  []string
	env   []string
	stdin io.Reader
	sync  string // a directory whose disk is synced when it has ended; "": none
}

// measure runs a command to its end.
func (l *lab) measure(ctx context.Context, c command) (took cost, stdout []byte, err error) {
	cmd := exec.CommandContext(ctx, c.args[0], c.args[1:]...)
	var out, log bytes.Buffer
	cmd.Stdout, cmd.Stderr, cmd.Stdin = &out, &log, c.stdin
	cmd.Env = append(l.environ(), c.env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	before, began := l.proxy.traffic(), time.Now()
	err = cmd.Run()
	took.Done = time.Since(began)
	if err == nil && c.sync != "" {
		err = syncDisk(c.sync)
		took.Synced = time.Since(began)
	}
	took.traffic = l.proxy.traffic().minus(before)
	if err != nil {
		return took, nil, fmt.Errorf("%s: %w\n%s", strings.Join(c.args, " "), err, bytes.TrimSpace(log.Bytes()))
	}
	took.CPU, took.RSS = used(cmd.ProcessState)
	return took, out.Bytes(), nil
}

// used is what a process and those that it waited for needed.
func used(p *os.ProcessState) (cpu time.Duration, rss int64) {
	usage, ok := p.SysUsage().(*syscall.Rusage)
	if !ok {
		return 0, 0
	}
	return p.UserTime() + p.SystemTime(), usage.Maxrss << 10
}

// syncDisk waits until the filesystem of a directory is on its disk, as `sync -f` does.
func syncDisk(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.Syncfs(int(f.Fd())); err != nil {
		return fmt.Errorf("sync %q: %w", dir, err)
	}
	return nil
}
