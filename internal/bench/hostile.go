package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// narrow is the network's bandwidth where a fetch is killed. Without one, what was sent when it died is mostly what the kernel held for it.
const narrow = 50_000_000

// hostile are the moments that a deploy must survive: a kill half-way, a damaged file on the disk, a slow disk.
func (l *lab) hostile(ctx context.Context) ([]row, error) {
	t := l.trees["mw"]
	s, err := l.site(l.dir)
	if err != nil {
		return nil, err
	}
	if _, err := s.deploy(ctx, t); err != nil {
		return nil, err
	}
	defer l.network(network)()
	l.proxy.bandwidth(narrow)
	defer l.proxy.bandwidth(0)
	results, err := l.contest(ctx, "killed half-way", l.runs, nothing, []contender{
		{name: ours, run: func(ctx context.Context, dir string) (cost, error) {
			took, err := s.fresh(ctx, dir)
			s.bytes = took.Down
			return took, err
		}},
		{name: "killed -9 half-way, then again", run: func(ctx context.Context, dir string) (cost, error) {
			p, err := s.pair(dir)
			if err != nil {
				return cost{}, err
			}
			return p.each(func(m *site, unsynced bool) (cost, error) { return l.killed(ctx, m, unsynced) })
		}},
	})
	if err != nil {
		return nil, err
	}
	whole := results[0][0]
	again := results[0][1]
	fetched := middle(again, func(c cost) int64 { return c.Down }) // of both runs
	note := fmt.Sprintf("The second run took %.0f %% of a whole one's time; both together fetched %.1f %% more bytes than one.",
		100*again.synced().Seconds()/whole.synced().Seconds(), 100*float64(fetched)/float64(middle(whole, func(c cost) int64 { return c.Down }))-100)
	l.proxy.bandwidth(0)
	rows := []row{{12, fmt.Sprintf("killed: %s, %s, %d Mbit/s", t.what, away(network), narrow*8/1_000_000), "killed", note, results[0]}}
	damaged, err := l.damaged(ctx)
	if err != nil {
		return nil, err
	}
	rows = append(rows, damaged)
	slow, err := l.slowDisk(ctx, s, t)
	return append(rows, slow...), err
}

// killed fetches until half of the bytes came, kills, and measures the second try; its bytes are of both.
func (l *lab) killed(ctx context.Context, s *site, unsynced bool) (cost, error) {
	self, err := os.Executable()
	if err != nil {
		return cost{}, err
	}
	before := l.proxy.traffic()
	half := l.proxy.downAt(s.bytes / 2)
	cmd := exec.CommandContext(ctx, self, "fetch", "-config="+s.config)
	cmd.Env = l.environ()
	if err := cmd.Start(); err != nil {
		return cost{}, err
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	select {
	case <-half:
	case err := <-ended:
		return cost{}, fmt.Errorf("ended before it was killed: %w", err)
	}
	if err := cmd.Process.Kill(); err != nil {
		return cost{}, err
	}
	<-ended
	took, err := s.fetch(ctx, unsynced)
	took.traffic = l.proxy.traffic().minus(before)
	return took, err
}

// damaged is an unchanged file of the release before, written over with as many other bytes.
func (l *lab) damaged(ctx context.Context) (row, error) {
	t := l.trees["mw"]
	s, err := l.site(l.dir)
	if err != nil {
		return row{}, err
	}
	if _, err := s.deploy(ctx, t); err != nil {
		return row{}, err
	}
	machines, err := s.lasting(ctx)
	defer os.RemoveAll(machines.dir)
	if err != nil {
		return row{}, err
	}
	victim := t.files[len(t.files)/2]
	rel, err := filepath.Rel(t.dir, victim)
	if err != nil {
		return row{}, err
	}
	results, err := l.contest(ctx, "damaged file", min(l.runs, 3), func(int) error { return t.change(1, true) },
		[]contender{{name: "push", run: func(ctx context.Context, _ string) (cost, error) { return s.deploy(ctx, t) }}},
		[]contender{{name: ours, keep: machines.dir, run: func(ctx context.Context, _ string) (cost, error) {
			return machines.each(func(m *site, unsynced bool) (cost, error) {
				info, err := os.Stat(victim)
				if err != nil {
					return cost{}, err
				}
				if err := os.WriteFile(filepath.Join(m.active(), rel), bytes.Repeat([]byte("x"), int(info.Size())), 0o644); err != nil {
					return cost{}, err
				}
				took, err := m.fetch(ctx, unsynced)
				if err == nil {
					err = sameFiles(t.dir, m.active())
				}
				return took, err
			})
		}}})
	if err != nil {
		return row{}, err
	}
	return row{
		12, fmt.Sprintf("damaged: 1 of the linked files of %s written over, 1 changed, %s", t.what, away(network)), "damaged",
		"The damage was found and that file alone fetched again, every time.", results[1],
	}, nil
}

// slowest is the rate of an EBS volume of the kind gp3 as it comes.
const slowest = 125_000_000

// throttle is where the kernel takes rates for what nobody in particular writes, as the flusher does.
const throttle = "/sys/fs/cgroup/blkio/blkio.throttle.write_bps_device"

// slowDisk fetches onto a disk that writes at slowest.
func (l *lab) slowDisk(ctx context.Context, s *site, t *tree) ([]row, error) {
	wrote := int64(0)
	restore, err := l.slow(l.disk, slowest)
	if err != nil {
		l.say("slow disk left out: %v", err)
		return nil, nil
	}
	results, err := l.contest(ctx, "slow disk", min(l.runs, 3), nothing, []contender{
		{name: ours, run: func(ctx context.Context, dir string) (cost, error) {
			p, err := s.pair(dir)
			if err != nil {
				return cost{}, err
			}
			return p.each(func(m *site, unsynced bool) (cost, error) {
				before := written(l.disk)
				took, err := m.fetch(ctx, unsynced)
				if !unsynced {
					wrote = written(l.disk) - before
				}
				return took, err
			})
		}},
	})
	if err := errors.Join(err, restore()); err != nil {
		return nil, err
	}
	floor := float64(wrote) / slowest
	note := fmt.Sprintf("The disk wrote %d MB for %d MB of files, which takes %.2f s at that rate; the whole took %.2f times as long.",
		wrote/1e6, t.bytes/1e6, floor, results[0][0].synced().Seconds()/floor)
	return []row{{12, fmt.Sprintf("slow disk: %s, %s, at most %d MB/s", t.what, away(network), slowest/1_000_000), "slow-disk", note, results[0]}}, nil
}

// written is how many bytes a mounted disk has written since it was made.
func written(mounted string) int64 {
	var st unix.Stat_t
	if err := unix.Stat(mounted, &st); err != nil {
		return 0
	}
	text, _ := os.ReadFile(fmt.Sprintf("/sys/dev/block/%d:%d/stat", unix.Major(st.Dev), unix.Minor(st.Dev)))
	fields := strings.Fields(string(text))
	if len(fields) < 7 {
		return 0
	}
	sectors, _ := strconv.ParseInt(fields[6], 10, 64)
	return sectors * 512
}

// slow caps the rate of a mounted disk.
func (l *lab) slow(mounted string, rate int64) (restore func() error, err error) {
	var st unix.Stat_t
	if err := unix.Stat(mounted, &st); err != nil {
		return nil, err
	}
	set := func(rate int64) error {
		line := fmt.Sprintf("%d:%d %d", unix.Major(st.Dev), unix.Minor(st.Dev), rate)
		return os.WriteFile(throttle, []byte(line), 0o644)
	}
	return func() error { return set(0) }, set(rate)
}

// members is how many machines the fleet of the bench has; perMember is each one's share of what S3 answers for one prefix, 5,500 requests
// a second.
const (
	members   = 100
	perMember = 55
	line      = 10_000_000_000 / 8 // bytes a second that S3 sends them all, together
)

// fleet has many machines catch up at once, each a process of its own.
func (l *lab) fleet(ctx context.Context) ([]row, error) {
	t := l.trees["wp"]
	s, err := l.site(l.dir)
	if err != nil {
		return nil, err
	}
	if _, err := s.deploy(ctx, t); err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp(l.disk, "fleet-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	machines := make([]site, members)
	for i := range machines {
		machines[i] = *s
		at := filepath.Join(dir, fmt.Sprint(i))
		if err := errors.Join(os.Mkdir(at, 0o755), machines[i].move(at)); err != nil {
			return nil, err
		}
	}
	defer l.network(network)()
	l.proxy.limit(members * perMember)
	defer l.proxy.limit(0)
	l.proxy.bandwidth(line)
	defer l.proxy.bandwidth(0)
	var rows []row
	for _, step := range []struct {
		key, title string
		before     func() error
	}{
		{"fleet-fresh", "fresh", func() error { return nil }},
		{"fleet-delta", "1 file changed", func() error {
			if err := t.change(1, false); err != nil {
				return err
			}
			_, err := s.deploy(ctx, t)
			return err
		}},
	} {
		if err := step.before(); err != nil {
			return nil, err
		}
		r, err := l.together(ctx, machines)
		if err != nil {
			return nil, err
		}
		r.Scenario, r.Key = 11, step.key
		r.Title = fmt.Sprintf("%d machines at once, %s: %s, %s, at most %d requests and %d MB a second",
			members, step.title, t.what, away(network), members*perMember, line/1_000_000)
		rows = append(rows, r)
	}
	return rows, nil
}

// together has all machines look at the pointer at the same time.
func (l *lab) together(ctx context.Context, machines []site) (row, error) {
	if err := syncDisk(l.disk); err != nil {
		return row{}, err
	}
	before, held := l.proxy.traffic(), l.proxy.held.Load()
	e := entry{Name: ours, Costs: make([]cost, len(machines))}
	errs := make([]error, len(machines))
	var all sync.WaitGroup
	for i := range machines {
		// One disk under all of them, where each would have its own, must not be what is measured.
		all.Go(func() { e.Costs[i], errs[i] = machines[i].fetch(ctx, true) })
	}
	all.Wait()
	passed := l.proxy.traffic().minus(before)
	var took []time.Duration
	var work time.Duration
	for i := range e.Costs {
		e.Costs[i].traffic = traffic{passed.Requests / members, passed.Up / members, passed.Down / members}
		took, work = append(took, e.Costs[i].Done), work+e.Costs[i].CPU
	}
	slices.Sort(took)
	l.say("%d machines: half of them after %s, the last after %s", len(machines), duration(took[members/2-1]), duration(took[members-1]))
	note := fmt.Sprintf("p50 %s, p99 %s, the last %s; %d requests in all, which waited %s for the limit, all together. "+
		"They share the processors of one machine, for %s of work, and its disk, which nobody waited for.",
		duration(took[members/2-1]), duration(took[members*99/100-1]), duration(took[members-1]),
		passed.Requests, duration(time.Duration(l.proxy.held.Load()-held)), duration(work))
	return row{Note: note, Entries: []entry{e}}, errors.Join(errs...)
}
