package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// What the contenders are called; ours is first in every row.
const (
	ours    = "s3-pull-deploy"
	awsName = "aws s3 sync"
	rclone  = "rclone"
	bundle  = "tar.zst"
	linked  = "cp -al"
)

// network is the latency of most rows: a request within a region. far is a laptop's.
const (
	network = 30 * time.Millisecond
	far     = 100 * time.Millisecond
)

// row is one line of contenders in the table.
type row struct {
	Scenario int     `json:"scenario"`
	Title    string  `json:"title"`
	Key      string  `json:"key"` // what the targets call it
	Note     string  `json:"note,omitempty"`
	Entries  []entry `json:"entries"`
}

// scenario makes rows. Those that are not quick are left out of the quick bench.
type scenario struct {
	name  string
	quick bool
	run   func(l *lab, ctx context.Context) ([]row, error)
}

var scenarios = []scenario{
	{"fresh-wp", true, func(l *lab, ctx context.Context) ([]row, error) {
		return l.fresh(ctx, 1, "fresh-wp", "wp", 0, awsName, rclone, bundle)
	}},
	{"fresh-wp-30", false, func(l *lab, ctx context.Context) ([]row, error) {
		return l.fresh(ctx, 1, "fresh-wp-30", "wp", network, awsName, rclone, bundle)
	}},
	{"delta-wp", true, func(l *lab, ctx context.Context) ([]row, error) {
		return l.delta(ctx, change{pull: 4, push: 9, key: "wp-1", tree: "wp", files: 1}, l.peers([]string{rclone}, awsName, bundle, rclone)...)
	}},
	{"delta-wp-30", false, func(l *lab, ctx context.Context) ([]row, error) {
		return l.delta(ctx, change{pull: 4, push: 9, key: "wp-1-30", tree: "wp", files: 1, latency: network}, awsName, bundle)
	}},
	{"fresh-mw", true, func(l *lab, ctx context.Context) ([]row, error) {
		return l.fresh(ctx, 2, "fresh-mw", "mw", network, l.peers([]string{awsName, rclone}, awsName, bundle, rclone)...)
	}},
	{"delta-mw", true, func(l *lab, ctx context.Context) ([]row, error) {
		return l.delta(ctx, change{pull: 4, push: 9, key: "mw-50", tree: "mw", files: 50, latency: network, idle: true}, l.peers([]string{rclone}, awsName, bundle, linked, rclone)...)
	}},
	{"xfs", false, (*lab).onXFS},
	{"bump", false, func(l *lab, ctx context.Context) ([]row, error) {
		files := l.trees["mw"].count * 30 / 100
		return l.delta(ctx, change{pull: 6, push: 6, key: "mw-bump", tree: "mw", files: files, neighbours: true, latency: network}, awsName, rclone, bundle)
	}},
	{"first-push", false, func(l *lab, ctx context.Context) ([]row, error) { return l.firstPush(ctx, "mw") }},
	{"far", false, func(l *lab, ctx context.Context) ([]row, error) {
		fresh, err := l.fresh(ctx, 10, "fresh-far", "mw", far, rclone, bundle)
		if err != nil {
			return nil, err
		}
		delta, err := l.delta(ctx, change{pull: 10, push: 10, key: "far-50", tree: "mw", files: 50, latency: far}, awsName, bundle)
		return append(fresh, delta...), err
	}},
	{"fleet", false, (*lab).fleet},
	{"hostile", false, (*lab).hostile},
	{"big", false, (*lab).large},
}

// peers are those who take part: of the quick bench, none of the slow.
func (l *lab) peers(slow []string, all ...string) []string {
	if !l.quick {
		return all
	}
	return slices.DeleteFunc(all, func(p string) bool { return slices.Contains(slow, p) })
}

// fresh is a release fetched onto a machine with nothing on its disk.
func (l *lab) fresh(ctx context.Context, number int, key, name string, latency time.Duration, peers ...string) ([]row, error) {
	t := l.trees[name]
	s, err := l.site(l.dir)
	if err != nil {
		return nil, err
	}
	if _, err := s.deploy(ctx, t); err != nil {
		return nil, err
	}
	all := []contender{{name: ours, run: s.fresh, reads: func(dir string) string {
		return filepath.Join(dir, "synced", s.name, "www", "active")
	}}}
	for _, p := range peers {
		c := contender{name: p, reads: itself}
		switch p {
		case awsName, rclone:
			prefix, err := l.seeded(ctx, t)
			if err != nil {
				return nil, err
			}
			if c.run = l.awsDown(prefix); p == rclone {
				c.run = l.rcloneDown(prefix)
			}
		case bundle:
			if _, err := l.once(ctx, contender{run: l.bundleUp(t, key)}); err != nil {
				return nil, err
			}
			c.run = l.bundleDown(key)
		}
		all = append(all, c)
	}
	defer l.network(latency)()
	results, err := l.contest(ctx, "fresh "+name, l.rounds(t), nothing, all)
	if err != nil {
		return nil, err
	}
	return []row{{number, fmt.Sprintf("fresh: %s, %s", t.what, away(latency)), key, firstReads(results[0]), results[0]}}, nil
}

// network sets the latency, and returns what takes it away again.
func (l *lab) network(d time.Duration) func() {
	l.proxy.latency(d)
	return func() { l.proxy.latency(0) }
}

// away says how far S3 is.
func away(d time.Duration) string {
	if d == 0 {
		return "no latency"
	}
	return fmt.Sprintf("%d ms a request", d.Milliseconds())
}

// rounds is how often contenders work on a tree: three times on the large one.
func (l *lab) rounds(t *tree) int {
	if t.name == "big" {
		return min(l.runs, 3)
	}
	return l.runs
}

// change is a scenario in which some files are others and everybody follows.
type change struct {
	pull, push int // numbers of scenarios
	key, tree  string
	files      int
	neighbours bool
	latency    time.Duration
	idle       bool // and look once more, when nothing has changed
}

// delta pushes and fetches a tree again and again, of which some files have changed.
func (l *lab) delta(ctx context.Context, c change, peers ...string) ([]row, error) {
	t := l.trees[c.tree]
	s, err := l.site(l.dir)
	if err != nil {
		return nil, err
	}
	if _, err := s.deploy(ctx, t); err != nil {
		return nil, err
	}
	machines, err := s.lasting(ctx)
	defer os.RemoveAll(machines.dir)
	if err != nil {
		return nil, err
	}
	push := []contender{{name: ours, keep: s.dir, run: func(ctx context.Context, _ string) (cost, error) { return s.deploy(ctx, t) }}}
	pull := []contender{{
		name: ours, keep: machines.dir, run: func(ctx context.Context, _ string) (cost, error) { return machines.fetch(ctx) },
		reads: func(string) string { return machines.synced.active() },
	}}
	var idle []contender
	for _, p := range peers {
		up, down, err := l.follower(ctx, p, t, c.key)
		if err != nil {
			return nil, err
		}
		defer os.RemoveAll(down.keep)
		if up.run != nil {
			push = append(push, up)
		}
		pull = append(pull, down)
		if p == awsName || p == rclone {
			idle = append(idle, down)
		}
	}
	defer l.network(c.latency)()
	results, err := l.contest(ctx, fmt.Sprintf("%d of %s changed", c.files, t.name), l.rounds(t), func(int) error {
		return t.change(c.files, c.neighbours)
	}, push, pull)
	if err != nil {
		return nil, err
	}
	if err := sameFiles(t.dir, machines.synced.active()); err != nil {
		return nil, err
	}
	title := fmt.Sprintf("%s of %s changed, %s", plural(c.files, "file"), t.what, away(c.latency))
	rows := []row{
		{c.pull, "fetched: " + title, "pull-" + c.key, firstReads(results[1]), results[1]},
		{c.push, "pushed: " + title, "push-" + c.key, "", results[0]},
	}
	if !c.idle {
		return rows, nil
	}
	unchanged, err := l.unchanged(ctx, c, machines.synced, idle)
	return append(rows, unchanged), err
}

// unchanged looks once more, at what it has already.
func (l *lab) unchanged(ctx context.Context, c change, s *site, peers []contender) (row, error) {
	look := contender{name: ours, keep: s.dir, run: func(ctx context.Context, _ string) (cost, error) {
		all, err := s.look(ctx, 2, false)
		if err != nil {
			return cost{}, err
		}
		// The first look reads the pointer and finds its release; the second is a running agent's.
		all[1].Requests--
		return all[1], nil
	}}
	results, err := l.contest(ctx, "nothing changed", l.runs, nothing, append([]contender{look}, peers...))
	if err != nil {
		return row{}, err
	}
	return row{7, fmt.Sprintf("nothing changed: %s, %s", l.trees[c.tree].what, away(c.latency)), "idle", "", results[0]}, nil
}

// follower is a peer that pushes and fetches a tree again and again. It begins with what the tree is now, on both sides.
func (l *lab) follower(ctx context.Context, peer string, t *tree, key string) (up, down contender, err error) {
	up.name, down.name, down.reads = peer, peer, itself
	switch peer {
	case bundle:
		up.run, down.run = l.bundleUp(t, key), l.bundleDown(key)
		return up, down, nil
	case linked: // of a copy: links change the times of what is pushed, which would all be read again
		from, err := os.MkdirTemp(l.disk, "linked-")
		if err != nil {
			return up, down, err
		}
		down.run = l.copyLinks(from)
		return up, down, copyTree(t.dir, from, "")
	}
	seed := l.seed // of its own: nobody shall find it pushed by another
	if l.quick {
		seed = l.seeded
	}
	prefix, err := seed(ctx, t)
	if err != nil {
		return up, down, err
	}
	if down.keep, err = os.MkdirTemp(l.disk, "peer-"); err != nil {
		return up, down, err
	}
	if err := copyTree(t.dir, down.keep, ""); err != nil {
		return up, down, err
	}
	up.run, down.run = l.awsUp(t, prefix), l.awsDown(prefix)
	if peer == rclone {
		up.run, down.run = l.rcloneUp(t, prefix), l.rcloneDown(prefix)
	}
	return up, down, nil
}

// firstPush sends a tree that the bucket has nothing of.
func (l *lab) firstPush(ctx context.Context, name string) ([]row, error) {
	t := l.trees[name]
	n := 0
	prefix := func() string { n++; return fmt.Sprintf("first/%d", n) }
	defer l.network(network)()
	results, err := l.contest(ctx, "first push of "+name, l.runs, nothing, []contender{
		{name: ours, run: func(ctx context.Context, dir string) (cost, error) {
			s, err := l.site(dir)
			if err != nil {
				return cost{}, err
			}
			return s.deploy(ctx, t)
		}},
		{name: awsName, run: func(ctx context.Context, dir string) (cost, error) { return l.awsUp(t, prefix())(ctx, dir) }},
		{name: rclone, run: func(ctx context.Context, dir string) (cost, error) { return l.rcloneUp(t, prefix())(ctx, dir) }},
		{name: bundle, run: func(ctx context.Context, dir string) (cost, error) { return l.bundleUp(t, prefix())(ctx, dir) }},
	})
	if err != nil {
		return nil, err
	}
	return []row{{8, fmt.Sprintf("first push: %s, %s", t.what, away(network)), "first-push", "", results[0]}}, nil
}

// onXFS repeats what depends on the filesystem.
func (l *lab) onXFS(ctx context.Context) ([]row, error) {
	defer func(disk string) { l.disk = disk }(l.disk)
	l.disk = l.disks["xfs"]
	fresh, err := l.fresh(ctx, 2, "fresh-mw-xfs", "mw", network, bundle)
	if err != nil {
		return nil, err
	}
	delta, err := l.delta(ctx, change{pull: 4, push: 9, key: "mw-50-xfs", tree: "mw", files: 50, latency: network}, bundle)
	if err != nil {
		return nil, err
	}
	rows := append(fresh, delta[0]) // pushing has nothing to do with it
	for i := range rows {
		rows[i].Title += ", xfs"
	}
	return rows, nil
}

// large is the tree that memory and the number of files show in.
func (l *lab) large(ctx context.Context) ([]row, error) {
	if err := l.plantBig(ctx); err != nil {
		return nil, err
	}
	fresh, err := l.fresh(ctx, 3, "fresh-big", "big", network, bundle)
	if err != nil {
		return nil, err
	}
	delta, err := l.delta(ctx, change{pull: 5, push: 5, key: "big-100", tree: "big", files: 100, latency: network}, bundle)
	return append(fresh, delta...), err
}
