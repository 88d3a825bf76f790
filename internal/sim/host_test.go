package sim

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"testing/synctest"
	"time"

	"s3pulldeploy/internal/agent"
	"s3pulldeploy/internal/config"
	"s3pulldeploy/internal/disk"
	"s3pulldeploy/internal/fleet"
	"s3pulldeploy/internal/instance"
	"s3pulldeploy/internal/release"
)

// host is one machine of a realm: its directories survive its agent's lives.
type host struct {
	*machine
	r     *realm
	index int
	cfg   *config.Config
	life  *life // nil: no agent is running
	lives int

	rate float64 // of the boot clock against true time
	power

	synced map[release.ID]bool // contents that were made durable under their temporary name
	shown  fleet.View          // by the agent at the end of its last turn
}

// power is when a machine was switched on last, and what its boot clock showed then.
type power struct{ bootBase, poweredAt time.Duration }

// life is one process of the agent, from its start to its end. It is also everything that the agent sees of the world: clock,
// table, bucket, service manager.
type life struct {
	power
	h      *host
	n      int
	agent  *agent.Agent
	disk   *disk.Disk
	cancel context.CancelFunc
	closed chan struct{} // when the process has died, and its descriptors with it
	ended  chan struct{}
	counts map[string]int // of requests, by their names
	tokens int

	dead  bool // killed: nothing of it has any effect any more
	going bool // the machine goes too
}

// addHost makes a machine that is off.
func (r *realm) addHost() *host {
	h := &host{r: r, index: len(r.hosts), synced: map[release.ID]bool{}}
	h.machine = r.machine(h.index)
	h.rate = 0.96 + r.rng.Float64()*0.08
	h.bootBase = time.Duration(r.rng.IntN(1000)) * time.Second
	if r.chance(0.5) {
		h.skew = time.Duration(r.rng.IntN(7200)-3600) * time.Second
	}
	h.phase = func() (fleet.Phase, bool) {
		if h.life == nil || h.life.agent == nil {
			return "", false
		}
		s := h.life.agent.Status()
		return s.Phase, s.Ready
	}
	text := fmt.Sprintf("group: %s\nsite: promo\nbucket: bucket\nroot: %s\nstate_dir: %s\npoll_interval: 2s\npointer_interval: 9s\nprepare_timeout: 3m\nkeep_releases: 1\nkeep_for: 0s\n"+
		"hooks: {after_flip: '[ ! -e %s/$DEPLOY_RELEASE ] && printf %%s $DEPLOY_RELEASE > %s', fleet_once: '%s'}\n",
		h.group, h.root(), filepath.Join(r.dir, h.id, "state"), r.spoiltDir(), h.passedFile(), r.onceHook())
	var err error
	if h.cfg, err = config.Parse([]byte(text), "/etc/agent.yml", config.ForAgent, func(string) (string, bool) { return "", false }); err != nil {
		panic(err)
	}
	r.hosts, r.machines = append(r.hosts, h), append(r.machines, h.machine)
	return h
}

// passedFile names the release whose check has passed last: it is a hook that writes it.
func (h *host) passedFile() string { return filepath.Join(h.r.dir, h.id, "passed") }

func (h *host) root() string { return filepath.Join(h.r.dir, h.id, "www") }

// later has the host do something after a while.
func (h *host) later(d time.Duration, do func(*host)) {
	time.AfterFunc(h.r.at(d, h.slot(slotLoop)), func() { h.r.locked(func() { do(h) }) })
}

// start runs the agent: after a crash, a restart or a boot.
func (h *host) start() {
	if h.up || h.gone || h.r.over {
		return
	}
	h.lives++
	l := &life{power: h.power, h: h, n: h.lives, counts: map[string]int{}, closed: make(chan struct{}), ended: make(chan struct{})}
	h.life, h.up, h.inService = l, true, false
	h.r.lives = append(h.r.lives, l)
	h.look()
	h.r.note("%s starts, active %q", h.id, h.active)
	var err error
	if l.disk, err = disk.Open(disk.Options{Root: h.cfg.Root, Active: h.cfg.Active, StateDir: h.cfg.StateDir, Before: l.before, Logger: h.r.log}); err == nil {
		l.agent, err = agent.New(agent.Parts{
			Config: h.cfg, Bucket: l, Table: l, Disk: l.disk, Identity: instance.Identity{ID: h.id, Zone: "a", Source: instance.SourceConfig},
			Version: "sim", Clock: l, Token: l.token, Random: h.r.fateOf(h.id, l.n, "random").Float64, Log: h.r.log.With("box", h.id), Service: l, Schedule: &schedule{l: l},
		})
	}
	if err != nil {
		h.r.fail("I16 re-runnable: %s does not start: %v", h.id, err)
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	l.cancel = cancel
	go func() {
		defer close(l.ended)
		err := l.agent.Run(ctx)
		h.r.locked(func() { l.left(err) })
	}()
}

// left is an orderly end.
func (l *life) left(err error) {
	h := l.h
	if l.dead || h.r.over {
		return
	}
	h.r.note("%s has left: %v", h.id, err)
	l.dead = true
	close(l.closed)
	if err := l.disk.Close(); err != nil {
		h.r.fail("I16 re-runnable: %s: %v", h.id, err)
	}
	h.up, h.life, h.inService, h.gone = false, nil, false, l.going
	if row := h.r.truth.row(h.id); row.Instance == "" {
		delete(h.r.truth.rows, h.id)
	}
	if !l.going {
		late := time.Minute
		if h.r.busy {
			late = 2 * time.Second
		}
		h.later(h.r.fateOf(h.id, l.n, "restart").between(20*time.Millisecond, late), (*host).start)
	}
}

// crash kills the process: whatever it was doing, no step of it follows, and no clean-up.
func (h *host) crash(why string) {
	l := h.life
	if l == nil || l.dead || l.cancel == nil {
		return
	}
	f := h.r.fateOf(h.id, l.n, "crash")
	l.dead = true
	h.look()
	h.r.note("%s dies: %s", h.id, why)
	go func() {
		synctest.Wait()    // for whatever else runs at this instant
		_ = l.disk.Close() // as the kernel does: descriptors and locks
		close(l.closed)
		l.cancel()
	}()
	h.up, h.life, h.inService = false, nil, false
	if f.chance(0.3) { // of the whole machine: its web server is down too, and its boot clock starts again
		h.serving = false
		h.bootBase, h.poweredAt = 0, h.r.now
	}
	h.later(f.between(time.Second, 3*time.Minute), (*host).start)
}

// halt ends a goroutine of a dead process on the spot. What is deferred in it lets go of locks and finds the disk closed.
func (l *life) halt() error {
	<-l.closed
	runtime.Goexit()
	return nil
}

// sigterm ends an agent in good order: for a restart, or since the machine goes.
func (h *host) sigterm(machineGoes bool) {
	l := h.life
	if l == nil || l.dead || l.cancel == nil || h.pausedUntil > h.r.now || machineGoes && len(h.r.hosts) < 2 {
		return
	}
	h.r.note("%s SIGTERM, machine goes: %v", h.id, machineGoes)
	if l.going = machineGoes; machineGoes {
		h.serving = false
	}
	l.cancel()
}

// look takes in what is on the disk now, and has it judged.
func (h *host) look() {
	entries, err := os.ReadDir(h.root())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		h.r.fail("%s: %v", h.id, err)
	}
	there := map[release.ID]bool{}
	for _, e := range entries {
		if id := release.ID(e.Name()); e.IsDir() && h.r.bucket.bodies[id] != nil {
			there[id] = true
			if !h.disk[id] {
				h.appeared(id)
			}
		}
	}
	h.readState()
	previous, _ := os.Readlink(filepath.Join(h.root(), "previous"))
	to, _ := os.Readlink(filepath.Join(h.root(), "active"))
	if was := h.active; string(was) != to {
		if h.active = release.ID(to); to == "" {
			h.r.fail("I12 static, I13 atomic view: %s serves %s no more, and nothing else", h.id, was)
			return
		}
		h.r.note("%s flips from %q to %q", h.id, was, to)
		if err := h.verify(h.active); err != nil {
			h.r.fail("I1 authentic, I13 atomic view: %s flips to %s: %v", h.id, to, err)
		}
		d := h.state.Decision
		if a := h.state.Ahead; a.Epoch > d.Epoch && a.Release == h.active { // a wave; else it goes back from one
			d = a
		}
		if d.Release != h.active {
			h.r.fail("I7 no early flip: %s flips to %s, its persisted decision is %s", h.id, to, d.Release)
		}
		h.r.truth.flip(h.machine, fleet.Want{Epoch: d.Epoch, Commit: fleet.Commitment{Release: h.active}})
		h.r.truth.authentic(h.machine, fleet.Want{Commit: d})
		if err := os.Remove(h.passedFile()); err != nil && !errors.Is(err, fs.ErrNotExist) {
			panic(err)
		}
	}
	passed, _ := os.ReadFile(h.passedFile())
	h.passed = release.ID(passed)
	for id := range h.disk {
		if !there[id] {
			h.r.truth.removed(h.machine, h.shown.Head, id, release.ID(previous))
			delete(h.disk, id)
			delete(h.synced, id)
		}
	}
}

// appeared judges a directory with a release's name.
func (h *host) appeared(id release.ID) {
	h.disk[id], h.digests[id] = true, h.r.bucket.digest(id)
	if err := h.verify(id); err != nil {
		h.r.fail("I1 authentic: %s has %s under its name: %v", h.id, id, err)
	}
	if !h.synced[id] {
		h.r.fail("I6 sticky vote: %s has %s under its name before its contents are durable", h.id, id)
	}
}

// readState takes in what the agent has saved.
func (h *host) readState() {
	text, err := os.ReadFile(filepath.Join(h.cfg.StateDir, "state.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	_, text, _ = bytes.Cut(text, []byte("\n"))
	var s fleet.State
	if err := json.Unmarshal(text, &s); err != nil {
		h.r.fail("I13 atomic view: %s has half a state: %v", h.id, err)
		return
	}
	h.r.truth.saved(h.machine, s)
	h.state = s
}

// verify compares a release on the disk with what was pushed.
func (h *host) verify(id release.ID) error {
	want := h.r.bucket.bodies[id]
	found := 0
	top := filepath.Join(h.root(), string(id))
	err := filepath.WalkDir(top, func(p string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		found++
		rel, _ := filepath.Rel(top, p)
		got, err := os.ReadFile(p)
		if info, ierr := e.Info(); ierr == nil && info.Mode().Perm() != h.r.bucket.mode(rel) {
			return fmt.Errorf("packed %v: %s has mode %v", h.r.packed, rel, info.Mode())
		}
		if err == nil && string(got) != want[rel] {
			err = fmt.Errorf("packed %v: %s has other contents: %.40q, want %.40q", h.r.packed, rel, got, want[rel])
		}
		return err
	})
	if err == nil && found != len(want) {
		err = fmt.Errorf("%d files of %d", found, len(want))
	}
	return err
}

// before is asked before each call that makes something durable.
func (l *life) before(call string, f *os.File) error {
	if l.agent == nil { // while it is wired, under the realm's lock
		l.h.durable(call, f)
		return nil
	}
	var err error
	var dead bool
	l.h.r.locked(func() {
		if !l.dead {
			err = l.sync(call, filepath.Base(f.Name()))
		}
		if dead = l.dead; !dead && err == nil {
			l.h.durable(call, f)
		}
	})
	if dead {
		return l.halt()
	}
	return err
}

// durable notes where the link leads that a call of fsync keeps.
func (h *host) durable(call string, f *os.File) {
	if call == "fsync" && filepath.Clean(f.Name()) == h.root() {
		h.linked = h.active
	}
}

// sync is the call on its way to the disk.
func (l *life) sync(call, name string) error {
	r, h := l.h.r, l.h
	h.look()
	fate := l.fate(call)
	r.happened(h.id, call, name)
	switch {
	case r.calm:
	case fate.chance(0.01):
		h.crash("crashed before " + call + " " + name)
		return nil
	case fate.chance(0.004), h.sick && call == "syncfs":
		h.doubted = true
		return errors.New("input/output error")
	}
	if call == "syncfs" {
		for id := range r.bucket.bodies {
			if _, err := os.Lstat(filepath.Join(h.root(), ".incoming-"+string(id))); err == nil {
				h.synced[id] = true
			}
		}
	}
	return nil
}
