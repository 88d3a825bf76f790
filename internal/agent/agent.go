// Package agent is the daemon on an instance: wiring and life.
//
// One goroutine, the loop of [Agent.Run], owns the protocol's node. It wakes on triggers (the
// scheduler's polls, a job's end, a reload, a signal), steps the node, and pursues what the node wants: a job in the one
// worker, given up when the node wants something else. Jobs report back as events that the loop runs. The loop
// beats, renews and pings systemd's watchdog meanwhile; nothing in it waits for S3 or PHP, nor for the disk but to keep the
// node's own small state.
//
// Losing S3, DynamoDB or the instance metadata changes nothing that is served: every error is shown, on the status
// socket and in systemd's status line, and tried again. The agent ends only when it is told to, and its last word to the load
// balancer outlives it ([Parts].Verdict).
//
// Releases come in two layouts. A plain one is listed and fetched object by object. Of a packed one the pointer names the
// manifest; on the parent that the pointer names too, one delta brings manifest and new contents, so pointer and delta are all
// that is read; elsewhere it is the manifest and ranges of packs, of what no release on this disk has. What S3 gave is believed
// only as far as the pointer's SHA-256 reaches: to the manifest, and from there to every file. Contents that are not what they
// should be are read once more; then the release is refused, and what is served stays.
//
// An idle member in service also fetches the release that the fleet would go back to, and once a day reads through what is on its
// disk and mends what is damaged, both given up at once for anything else.
package agent

import (
	"cmp"
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
	Schedule Schedule // nil: gocron's
	Metrics  *Metrics // nil: nothing is counted
	Notifier Notifier // nil: nobody is told of outcomes
	// Lifecycle says what becomes of the machine, as instance.Look does. Nil: it stays.
	Lifecycle func(context.Context) (instance.Lifecycle, error)
	Once      bool // leave and end when nothing is left to do
	// Verdict is a file that is there while Healthy is what the load balancer is told: it outlives the agent, and a web server
	// goes by it while no agent answers. Empty: none.
	Verdict string
}

// Bucket is what an agent reads of a site's releases in S3; package store has the real one.
type Bucket interface {
	Pointer(ctx context.Context, etag string) (store.Read, error)
	List(ctx context.Context, id release.ID) (release.Listing, error)
	Contents
	Packed
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
	// Reload has units reload their configuration, or restarts those that cannot, and waits for the end of it. Patterns such as
	// php*-fpm.service are allowed. It returns how many it began with, also where it fails; [ErrNoUnit], [ErrNoSystemd] and, where nothing
	// else failed, [ErrNotAllowed] are errors.
	Reload(ctx context.Context, units []string) (begun int, err error)
	// Restart restarts those of the units that are running, all at once, and waits for the end of it. Patterns are allowed; that none
	// is running is no error; [ErrNoSystemd] and, where nothing else failed, [ErrNotAllowed] are.
	Restart(ctx context.Context, units []string) error
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
	gone   chan struct{} // closed when the loop has ended: nobody takes events any more
	jobs   sync.WaitGroup
	job    *job

	pointer   pointerReader
	ready     bool
	status    string
	watchdog  time.Time
	judged    bool // verdict was written down
	verdict   bool
	cleanDue  bool
	cleanAt   time.Duration // boot time before which it is not tried again
	cleanWait time.Duration // how long that was
	spare     spare
	scrub     scrubs
	room      room
	away      instance.Lifecycle // why the machine is to be no member any more
	pending   bool               // settings were changed and wait for a quiet moment
	reloadErr string

	mu   sync.Mutex // guards view
	view Status
}

// ErrReload is how Run ends when new settings are to take effect: nothing is under way then.
var ErrReload = errors.New("settings changed")

// New wires an agent from its parts and what the disk remembers. It starts nothing. A state file that is damaged is an
// error that names it: without it the agent might break its promises.
func New(p Parts) (*Agent, error) {
	var state fleet.State
	if _, err := p.Disk.Load(stateFile, &state); err != nil {
		return nil, err
	}
	log := p.Log.With("site", p.Config.Site, "instance", p.Identity.ID)
	a := &Agent{p: p, log: log.With("component", "agent"), events: make(chan func(), 64), gone: make(chan struct{})}
	a.cleanDue = true // what a crash left
	ledger := newLedger(p)
	if state.Instance != "" && state.Instance != p.Identity.ID {
		a.log.Warn("the state directory is of another instance: what is on the disk is hashed before it is believed", "was", state.Instance)
		p.Disk.Distrust()
	}
	a.machine = newMachine(p, log, ledger)
	a.node = fleet.NewNode(fleet.Options{
		Scope: p.Config.Scope(), Instance: p.Identity.ID, Group: p.Config.Group, Zone: p.Identity.Zone, Version: p.Version,
		Incarnation: p.Token(), Ledger: ledger, Journal: journal{p.Disk}, State: state, Clock: p.Clock, Random: p.Random,
		PollInterval: p.Config.PollInterval, PrepareTimeout: p.Config.PrepareTimeout, LookAgain: p.Config.PointerInterval,
		Proof: p.Config.Opcache.Effective() != config.Off, Rollback: p.Config.HealthCheck.Rollback, Once: p.Config.Hooks.FleetOnce != "",
		TableDate: tableDate(p.Table), Told: a.tell, Log: log.With("component", "fleet"),
	})
	active, err := p.Disk.Active()
	if err != nil {
		return nil, err
	}
	a.node.FoundActive(active)
	a.pointer = pointerReader{bucket: p.Bucket}
	a.recallScrub()
	a.view = a.look() // what the disk knows counts from the start, however long the table takes to answer
	return a, nil
}

// newLedger is the site's ledger, which verifies what the settings ask for.
func newLedger(p Parts) *fleet.Ledger {
	l := fleet.NewLedger(p.Table, p.Config.Scope(), p.Token)
	l.Keys = p.Config.Keyring()
	return l
}

// tableDate is the table's own clock, nil where it has none.
func tableDate(t fleet.Table) func() time.Time {
	if clock, ok := t.(interface{ Date() time.Time }); ok {
		return clock.Date
	}
	return nil
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

// post hands the loop something to run. It waits only while the loop is behind, and for nothing once that has ended.
func (a *Agent) post(f func()) {
	select {
	case a.events <- f:
	case <-a.gone:
	}
}

// Run is the agent's life. It returns nil after the context's end and a clean leave, or when Once is done; ErrReload when
// settings changed; [ErrAway] when the machine is about to go, or goes into a warm pool; ErrOnce when a single pass did not come to the end in time, or was told to end. Nothing of it runs on
// when it has returned.
func (a *Agent) Run(ctx context.Context) (err error) {
	ctx, cancel := context.WithCancel(ctx)
	down := &teardown{}
	defer func() { err = errors.Join(err, down.run()) }()
	down.add("wait for jobs", func() error { a.jobs.Wait(); return nil })
	stop := func() error { cancel(); close(a.gone); return nil }
	triggers, err := a.schedule(ctx)
	if err != nil {
		down.add("stop", stop)
		return err
	}
	down.add("stop schedule", triggers.Shutdown)
	down.add("stop", stop)
	return a.loop(ctx, triggers)
}

func (a *Agent) loop(ctx context.Context, t *triggers) error {
	deadline := a.p.Clock.Boot() + a.p.Config.PrepareTimeout
	for ctx.Err() == nil {
		if a.away.Away() {
			return a.goAway()
		}
		a.node.Progress(cmp.Or(a.job.said(), a.machine.coldness(), a.machine.undone.text()))
		want, sleep := a.node.Step(ctx)
		if ctx.Err() != nil {
			break
		}
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
		a.sleep(ctx, sleep)
	}
	if a.p.Once {
		return errors.Join(fmt.Errorf("%w: %w", ErrOnce, context.Cause(ctx)), a.leave(true))
	}
	return a.leave(a.p.Service.Going(context.WithoutCancel(ctx)))
}

// sleep waits for the next event and runs it, at most so long, and never past a watchdog's ping. An event that is there goes before
// a time that has come: a step that is always due must not keep reports waiting.
func (a *Agent) sleep(ctx context.Context, most time.Duration) {
	select {
	case f := <-a.events:
		f()
		return
	default:
	}
	if every := a.p.Service.WatchdogEvery(); every > 0 {
		most = min(most, every/3)
	}
	timer := time.NewTimer(most)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case f := <-a.events:
		f()
	case <-timer.C:
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
	quiet := want.Task == fleet.Idle && a.job == nil && a.pointer.seen && v.Ready && !v.Isolated && !v.Behind
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
