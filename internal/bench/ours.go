package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"s3pulldeploy/internal/testenv/parts"
)

// site is a site of ours in the bucket, with a machine of its own.
type site struct {
	l      *lab
	name   string
	dir    string // of the machine: its root, its state
	cache  string // of who pushes
	config string
	bytes  int64 // that a machine with nothing on its disk had to fetch the last time
}

// site makes a new one, whose machine's disk is below dir.
func (l *lab) site(dir string) (*site, error) {
	l.sites++
	s := &site{l: l, name: fmt.Sprintf("site-%d", l.sites), cache: filepath.Join(l.dir, fmt.Sprintf("cache-%d", l.sites))}
	return s, s.move(dir)
}

// move gives the site another machine, with nothing on its disk. Go's sources have keys, for tests.
func (s *site) move(dir string) error {
	s.dir = dir
	s.config = filepath.Join(dir, s.name+".yml")
	text := fmt.Sprintf("site: %s\nbucket: %s\ntable: bench\nregion: %s\nlayout: packed\nsecrets: allow\nendpoints: {s3: %q, dynamodb: %q}\nroot: %q\nstate_dir: %q\nkeep_for: 0s\n",
		s.name, bucket, parts.Region, s.l.proxy.URL(), s.l.dynamodb.Endpoint, filepath.Join(dir, s.name, "www"), filepath.Join(dir, s.name, "state"))
	return os.WriteFile(s.config, []byte(text), 0o644)
}

// root is where the machine's releases are, and active the one that is live.
func (s *site) root() string   { return filepath.Join(s.dir, s.name, "www") }
func (s *site) active() string { return filepath.Join(s.root(), "active") }

// deploy pushes a tree with the built command.
func (s *site) deploy(ctx context.Context, t *tree) (cost, error) {
	took, _, err := s.l.measure(ctx, command{
		args: []string{s.l.push, "-config=" + s.config, "-deploy=" + t.dir, "-wait=false", "-json"},
		env:  []string{"XDG_CACHE_HOME=" + s.cache},
	})
	return took, err
}

// fetch has the site's machine catch up with the pointer.
func (s *site) fetch(ctx context.Context, unsynced bool) (cost, error) {
	all, err := s.look(ctx, 1, unsynced)
	if err != nil {
		return cost{}, err
	}
	return all[0], nil
}

// look has the machine look at the pointer so many times. Of requests and bytes, those of all together stand in each.
func (s *site) look(ctx context.Context, times int, unsynced bool) ([]cost, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	took, out, err := s.l.measure(ctx, command{
		args: []string{self, "fetch", "-config=" + s.config, "-times=" + strconv.Itoa(times), "-unsynced=" + strconv.FormatBool(unsynced)},
	})
	if err != nil {
		return nil, err
	}
	var all []cost
	for d := json.NewDecoder(bytes.NewReader(out)); d.More(); {
		var f fetched
		if err := d.Decode(&f); err != nil {
			return nil, err
		}
		c := cost{Synced: f.Took, CPU: f.CPU, RSS: f.RSS, traffic: took.traffic}
		if unsynced {
			c.Done, c.Synced = f.Took, 0
		}
		all = append(all, c)
	}
	if len(all) != times {
		return nil, fmt.Errorf("fetch looked %d times, not %d", len(all), times)
	}
	return all, nil
}

// releaseOf reads the release's id from what `push -json` printed.
func releaseOf(out []byte) (string, error) {
	var r struct {
		Release string `json:"release"`
	}
	err := json.Unmarshal(out, &r)
	return r.Release, err
}

// pair is two machines of one site that go through the same: the one waits for the disk, the other does not.
type pair struct {
	dir              string
	synced, unsynced *site
}

// pair gives the site two machines with nothing on their disks, which are below dir.
func (s *site) pair(dir string) (pair, error) {
	one, other := *s, *s
	p := pair{dir, &one, &other}
	for sub, m := range map[string]*site{"synced": p.synced, "unsynced": p.unsynced} {
		at := filepath.Join(dir, sub)
		if err := errors.Join(os.Mkdir(at, 0o755), m.move(at)); err != nil {
			return p, err
		}
	}
	return p, nil
}

// lasting is a pair that lives through many releases, and has the one that is out now. Who asks for it removes its directory.
func (s *site) lasting(ctx context.Context) (p pair, err error) {
	dir, err := os.MkdirTemp(s.l.disk, "machine-")
	if err != nil {
		return p, err
	}
	if p, err = s.pair(dir); err == nil {
		_, err = p.fetch(ctx)
	}
	return p, err
}

// each is the cost of what f does to the one that waits, and the time that it takes with the other.
func (p pair) each(f func(m *site, unsynced bool) (cost, error)) (cost, error) {
	took, err := f(p.synced, false)
	if err != nil {
		return cost{}, err
	}
	other, err := f(p.unsynced, true)
	took.Done = other.Done
	return took, err
}

// fetch has both catch up with the pointer.
func (p pair) fetch(ctx context.Context) (cost, error) {
	return p.each(func(m *site, unsynced bool) (cost, error) { return m.fetch(ctx, unsynced) })
}

// fresh fetches onto machines with nothing on their disks.
func (s *site) fresh(ctx context.Context, dir string) (cost, error) {
	p, err := s.pair(dir)
	if err != nil {
		return cost{}, err
	}
	return p.fetch(ctx)
}
