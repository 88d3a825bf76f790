// Package agent is the daemon on an instance: wiring and life.
//
// One goroutine, the loop of [Agent.Run], owns the protocol's node. It wakes on triggers (the
// scheduler's polls, a job's end, a reload, a signal), steps the node, and pursues what the node wants: a job in the one
// worker, given up when the node wants something else. Jobs report back as events that the loop runs. The loop
// beats, renews and pings systemd's watchdog meanwhile; nothing in it waits for S3, a disk or PHP.
//
// Losing S3, DynamoDB or the instance metadata changes nothing that is served: every error is shown, on the status
// socket and in systemd's status line, and tried again. The agent ends only when it is told to.
package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"s3pulldeploy/internal/config"
	"s3pulldeploy/internal/disk"
	"s3pulldeploy/internal/fleet"
	"s3pulldeploy/internal/instance"
	"s3pulldeploy/internal/release"
	"s3pulldeploy/internal/store"
)

// Parts are what an agent works on; New takes them ready to use, so that tests and the simulation can bring their own.
type Parts struct {
	Config   *config.Config
	Bucket   Bucket
	Table    fleet.Table
	Disk     *disk.Disk
	Identity instance.Identity
	Version  string
	Clock    fleet.Clock
	Token    func() string  // fresh random text
	Random   func() float64 // [0, 1)
	Log      *slog.Logger
	Service  Service
	Once     bool // leave and end when nothing is left to do
}

// Bucket is what an agent reads of a site's releases in S3; package store has the real one.
type Bucket interface {
	Pointer(ctx context.Context, etag string) (store.Read, error)
	List(ctx context.Context, id release.ID) (release.Listing, error)
	Contents
}

// Service is the service manager that is told how it goes; [Systemd] is the real one.
type Service interface {
	// Ready says, once, that the machine may serve.
	Ready()
	// Status is one line for people.
	Status(text string)
	// Watchdog says that the loop is alive.
	Watchdog()
	// WatchdogEvery is how often Watchdog is expected, 0 for never.
	WatchdogEvery() time.Duration
	// Going says whether the machine itself is about to go.
	Going(ctx context.Context) bool
}

// Agent is one running member. Make it with New, run it once with Run.
type Agent struct {
	p       Parts
	log     *slog.Logger
	node    *fleet.Node
	machine *machine

	events chan func()
	jobs   sync.WaitGroup
	job    *job

	pointer   pointerReader
	ready     bool
	status    string
	watchdog  time.Time
	cleanDue  bool
	pending   bool // settings were changed and wait for a quiet moment
	reloadErr string

	mu   sync.Mutex // guards view
	view Status
}

// ErrReload is how Run ends when new settings are to take effect: nothing is under way then.
var ErrReload = errors.New("settings changed")

// New wires an agent from its parts and what the disk remembers. It starts nothing.
func New(p Parts) (*Agent, error) {
	var state fleet.State
	if _, err := p.Disk.Load(stateFile, &state); err != nil {
		return nil, fmt.Errorf("load state: %w", err)
	}
	log := p.Log.With("site", p.Config.Site, "instance", p.Identity.ID)
	a := &Agent{p: p, log: log.With("component", "agent"), events: make(chan func(), 64)}
	a.machine = newMachine(p, log)
	a.node = fleet.NewNode(fleet.Options{
		Scope: p.Config.Scope(), Instance: p.Identity.ID, Group: p.Config.Group, Zone: p.Identity.Zone, Version: p.Version,
		Incarnation: p.Token(), Ledger: fleet.NewLedger(p.Table, p.Config.Scope(), p.Token),
		Journal: journal{p.Disk}, State: state, Clock: p.Clock, Random: p.Random,
		PollInterval: p.Config.PollInterval, PrepareTimeout: p.Config.PrepareTimeout,
		Log: log.With("component", "fleet"),
	})
	active, err := p.Disk.Active()
	if err != nil {
		return nil, fmt.Errorf("read active: %w", err)
	}
	a.node.FoundActive(active)
	a.pointer = pointerReader{bucket: p.Bucket}
	return a, nil
}

// stateFile is the name of the node's state in the state directory.
const stateFile = "state"

type journal struct{ disk *disk.Disk }

func (j journal) Save(s fleet.State) error { return j.disk.Save(stateFile, s) }

// Reload asks Run to end with [ErrReload] as soon as nothing is under way. err, when not nil, says that the new settings are
// bad: it is shown and the old ones stay.
func (a *Agent) Reload(err error) {
	a.post(func() {
		a.pending, a.reloadErr = err == nil, ""
		if err != nil {
			a.reloadErr = err.Error()
			a.log.Error("settings not reloaded, the old ones stay", "error", err)
		}
	})
}

// post hands the loop something to run. It blocks only while the loop is behind.
func (a *Agent) post(f func()) { a.events <- f }

// Run is the agent's life. It returns nil after the context's end and a clean leave, or when Once is done; ErrReload when
// settings changed; ErrOnce when a single pass did not come to the end in time.
func (a *Agent) Run(ctx context.Context) (err error) {
	ctx, stop := context.WithCancel(ctx)
	down := &teardown{}
	defer func() { err = errors.Join(err, down.run()) }()
	down.add("wait for jobs", func() error { a.drain(); return nil })
	triggers, err := a.schedule(ctx)
	if err != nil {
		stop()
		return err
	}
	down.add("stop schedule", triggers.Shutdown)
	down.add("stop", func() error { stop(); return nil })
	return a.loop(ctx, triggers)
}

func (a *Agent) loop(ctx context.Context, t *triggers) error {
	deadline := a.p.Clock.Boot() + a.p.Config.PrepareTimeout
	for {
		want, sleep := a.node.Step(ctx)
		a.pursue(ctx, want)
		if a.node.PointerWanted() || a.node.Empty() {
			t.pointer(a.node.Empty())
		}
		a.report()
		if a.p.Once {
			if over, err := a.once(want, deadline); over {
				return errors.Join(err, a.leave(true))
			}
		}
		if a.pending && a.job == nil && !a.view.Head.State.Open() {
			return ErrReload
		}
		if every := a.p.Service.WatchdogEvery(); every > 0 {
			sleep = min(sleep, every/3)
		}
		timer := time.NewTimer(sleep)
		select {
		case <-ctx.Done():
			timer.Stop()
			return a.leave(a.p.Service.Going(context.WithoutCancel(ctx)))
		case f := <-a.events:
			f()
		case <-timer.C:
		}
		timer.Stop()
	}
}

// ErrOnce: a single pass ended without the committed release being served.
var ErrOnce = errors.New("not on the fleet's release")

// once says whether a single pass has nothing left to do.
func (a *Agent) once(want fleet.Want, deadline time.Duration) (bool, error) {
	if a.p.Clock.Boot() > deadline {
		return true, fmt.Errorf("%w after %v: %s", ErrOnce, a.p.Config.PrepareTimeout, a.status)
	}
	v := a.view
	quiet := want.Task == fleet.Idle && a.job == nil && a.pointer.seen && v.Ready && !v.Behind
	return quiet && !v.Head.State.Open() && !v.Coordinates && !a.node.Opening(), nil
}

// leave tells the fleet; bounded, since the machine may be going.
func (a *Agent) leave(remove bool) error {
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
	defer cancel()
	a.p.Service.Status("leaving")
	if err := a.node.Leave(ctx, remove); err != nil {
		a.log.Warn("fleet not told of leaving", "error", err)
	}
	a.log.Info("left", "row_removed", remove)
	return nil
}

// drain waits for the worker, running events so that nobody blocks on the loop.
func (a *Agent) drain() {
	done := make(chan struct{})
	go func() { a.jobs.Wait(); close(done) }()
	for {
		select {
		case <-a.events:
		case <-done:
			return
		}
	}
}
