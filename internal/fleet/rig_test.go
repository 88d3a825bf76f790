package fleet_test

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"s3pulldeploy/internal/fleet"
	"s3pulldeploy/internal/release"
	"s3pulldeploy/internal/table"
)

const scope = "bucket/promo"

// rig is a fleet of nodes on one in-memory table, in a synctest bubble: real protocol, pretended machines.
type rig struct {
	t     *testing.T
	table fleet.Table // what new machines talk to
	mem   *table.Memory
	start time.Time
	mu    sync.Mutex
	text  []byte // the pointer in S3
	seq   int64
	all   map[string]*box
	tick  int
	date  func() time.Time // the table's clock
}

// box is one pretended machine: what is on its disk survives a kill.
type box struct {
	r      *rig
	id     string
	node   *fleet.Node
	state  fleet.State
	disk   map[release.ID]bool
	active release.ID
	first  release.ID // what it flipped to first
	flips  []time.Time
	stop   context.CancelFunc
	done   chan struct{}
	events chan func()
	busy   *fleet.Want
	table  fleet.Table

	// what may be made to fail
	unseen     error // of inspecting
	stageTime  time.Duration
	refuse     error                // of staging
	machine    bool                 // that reason is the machine's
	unhealthy  error                // of settling
	spoilt     map[release.ID]error // releases that fail their check here
	onRollback error                // a reason of the machine why a rollback cannot be staged
	settleTime time.Duration
	clock      boxClock
	journal    func(fleet.State) error // fails to save
	hook       *hook                   // fleet_once
	stays      bool                    // health_check.rollback: false
	group      string
	frozen     chan struct{}
	view       fleet.View
	mu         sync.Mutex // held by the loop while it works
}

// hook is the fleet_once hook of all machines of a test.
type hook struct {
	mu    sync.Mutex
	takes time.Duration
	fails error
	began []string // who ran it
}

// becomes changes how long it takes, and what of it fails.
func (h *hook) becomes(takes time.Duration, fails error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.takes, h.fails = takes, fails
}

// runs begins it on a machine.
func (h *hook) runs(id string) (takes time.Duration, fails error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.began = append(h.began, id)
	return h.takes, h.fails
}

// ran is where it was begun so far.
func (h *hook) ran() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.began)
}

func fleetTest(t *testing.T, f func(r *rig)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		mem := table.NewMemory()
		r := &rig{t: t, table: mem, mem: mem, start: time.Now(), all: map[string]*box{}}
		defer func() {
			for _, b := range r.all {
				b.kill()
			}
		}()
		f(r)
	})
}

type bubbleClock struct{ start time.Time }

func (c bubbleClock) Boot() time.Duration { return time.Since(c.start) + time.Hour }
func (c bubbleClock) Now() time.Time      { return time.Now() }

// boxClock is a machine's own: its wall clock may be off, its boot clock too fast. It is changed while the box stands still.
type boxClock struct {
	bubbleClock
	off  time.Duration
	rate float64 // of the boot clock; 0: 1
}

func (c *boxClock) Now() time.Time { return time.Now().Add(c.off) }

func (c *boxClock) Boot() time.Duration {
	return time.Duration(cmp.Or(c.rate, 1) * float64(c.bubbleClock.Boot()))
}

func (r *rig) log() *slog.Logger {
	var w io.Writer = io.Discard
	if os.Getenv("RIG_LOG") != "" {
		w = os.Stderr
	}
	return slog.New(slog.NewTextHandler(w, nil))
}

func (r *rig) token() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.tick++
	return fmt.Sprintf("t%d", r.tick)
}

// box makes a machine that is off.
func (r *rig) box(id string) *box {
	b := &box{r: r, id: id, disk: map[release.ID]bool{}, stageTime: 200 * time.Millisecond, table: r.table, clock: boxClock{bubbleClock: bubbleClock{r.start}}}
	r.all[id] = b
	return b
}

func (r *rig) boot(ids ...string) {
	for _, id := range ids {
		r.box(id).boot()
	}
}

func (b *box) boot() {
	ctx, cancel := context.WithCancel(b.r.t.Context())
	b.stop, b.done, b.events, b.busy = cancel, make(chan struct{}), make(chan func(), 16), nil
	b.node = fleet.NewNode(fleet.Options{
		Scope: scope, Instance: b.id, Group: cmp.Or(b.group, "web"), Rollback: !b.stays, Once: b.hook != nil, TableDate: b.r.date, Zone: "a", Version: "test", Incarnation: b.r.token(),
		Ledger: fleet.NewLedger(b.table, scope, b.r.token), Journal: b, State: b.state, Clock: &b.clock,
		Random: func() float64 { return 0.5 }, PollInterval: time.Second, PrepareTimeout: 10 * time.Minute, LookAgain: 30 * time.Second,
		Log: b.r.log().With("box", b.id),
	})
	b.node.FoundActive(b.active)
	go b.loop(ctx)
}

// Save is the journal.
func (b *box) Save(s fleet.State) error {
	if b.journal != nil {
		if err := b.journal(s); err != nil {
			return err
		}
	}
	b.state = s
	return nil
}

func (b *box) loop(ctx context.Context) {
	defer close(b.done)
	var last time.Time
	steps := 0
	for ctx.Err() == nil {
		if steps++; !time.Now().Equal(last) {
			last, steps = time.Now(), 0
		} else if steps > 1000 {
			panic(b.id + ": the node spins: " + fmt.Sprint(b.node.View()))
		}
		b.mu.Lock()
		frozen := b.frozen
		b.mu.Unlock()
		if frozen != nil {
			<-frozen
		}
		sleep := b.step(ctx)
		select {
		case <-ctx.Done():
		case f := <-b.events:
			b.set(f)
		case <-time.After(sleep):
		}
	}
}

func (b *box) step(ctx context.Context) time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	w, sleep := b.node.Step(ctx)
	if ctx.Err() != nil {
		return 0
	}
	b.pursue(w)
	b.r.mu.Lock()
	text := b.r.text
	b.r.mu.Unlock()
	if text != nil {
		_ = b.node.Offer(text, time.Time{}, 0)
	}
	b.view = b.node.View()
	return sleep
}

// set changes or reads the box while its loop stands still.
func (b *box) set(f func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	f()
}

// serves is the release that active points to.
func (b *box) serves() (id release.ID) {
	b.set(func() { id = b.active })
	return id
}

func (b *box) pursue(w fleet.Want) {
	if b.busy != nil && !b.busy.Same(w) {
		b.busy = nil // given up
	}
	if b.busy != nil || w.Task == fleet.Idle {
		return
	}
	b.busy = &w
	after := func(d time.Duration, f func()) {
		events, job := b.events, b.busy
		time.AfterFunc(d, func() {
			events <- func() {
				if b.busy == job {
					b.busy = nil
					f()
				}
			}
		})
	}
	switch w.Task {
	case fleet.Inspect:
		after(10*time.Millisecond, func() { b.node.Inspected(w, "digest-"+string(w.Note.Pointer.Release), b.unseen) })
	case fleet.Stage:
		after(b.stageTime, func() {
			if b.onRollback != nil && w.Commit.Kind == fleet.KindRollback {
				b.node.Staged(w, b.onRollback, true)
				return
			}
			if b.refuse == nil {
				b.disk[w.Note.Pointer.Release] = true
			}
			b.node.Staged(w, b.refuse, b.machine)
		})
	case fleet.Flip:
		after(max(0, w.At-b.clock.Boot()), func() {
			if !b.disk[w.Commit.Release] {
				b.node.FlipDone(w, time.Now(), errors.New("not on disk"))
				return
			}
			b.active = w.Commit.Release
			b.first = cmp.Or(b.first, b.active)
			b.flips = append(b.flips, time.Now())
			b.node.FlipDone(w, time.Now(), nil)
		})
	case fleet.Once:
		takes, fails := b.hook.runs(b.id)
		after(takes, func() { b.node.OnceDone(w, fails) })
	case fleet.Settle:
		after(cmp.Or(b.settleTime, 50*time.Millisecond), func() { b.node.SettledDone(w, cmp.Or(b.unhealthy, b.spoilt[w.Commit.Release])) })
	}
}

func (b *box) kill() {
	if b.stop != nil {
		b.stop()
		<-b.done
		b.stop = nil
	}
}

func (b *box) see() fleet.View {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.view
}

// push publishes a release as the push command does: pointer, then hint.
func (r *rig) push(id string, lines ...string) int64 {
	r.seq = max(r.seq+1, time.Now().Unix())
	text := fmt.Sprintf("%s\n%d\n3", id, r.seq)
	for _, l := range lines {
		text += "\n" + l
	}
	r.mu.Lock()
	r.text = []byte(text)
	r.mu.Unlock()
	l := fleet.NewLedger(r.mem, scope, r.token)
	if h, ok, err := l.Head(r.t.Context(), true); err == nil && ok {
		if _, err := l.Request(r.t.Context(), h, fleet.Item{"hint": r.seq}); err != nil {
			r.t.Fatalf("hint: %v", err)
		}
	}
	return r.seq
}

func (r *rig) head() fleet.Head {
	r.t.Helper()
	h, _, err := fleet.NewLedger(r.mem, scope, r.token).Head(r.t.Context(), true)
	if err != nil {
		r.t.Fatal(err)
	}
	return h
}

func (r *rig) rows() map[string]fleet.Member {
	r.t.Helper()
	rows, err := fleet.NewLedger(r.mem, scope, r.token).Members(r.t.Context())
	if err != nil {
		r.t.Fatal(err)
	}
	out := map[string]fleet.Member{}
	for _, m := range rows {
		out[m.Instance] = m
	}
	return out
}

// until waits for a condition in the bubble's time, and returns how long it took.
func (r *rig) until(what string, limit time.Duration, cond func() bool) time.Duration {
	r.t.Helper()
	began := time.Now()
	for synctest.Wait(); !cond(); synctest.Wait() { // cond reads what machines write
		if time.Since(began) > limit {
			var views []string
			for id, b := range r.all {
				v := b.see()
				views = append(views, fmt.Sprintf("%s: phase %s active %s %v", id, v.Phase, b.serves(), v.Problems))
			}
			slices.Sort(views)
			r.t.Fatalf("%s: not within %v\nhead %+v\n%s", what, limit, r.head(), strings.Join(views, "\n"))
		}
		time.Sleep(10 * time.Millisecond)
	}
	return time.Since(began)
}

// live waits until the release is active, healthy and reported on these machines and the epoch is over.
func (r *rig) live(id string, limit time.Duration, boxes ...string) time.Duration {
	r.t.Helper()
	return r.until(id+" live", limit, func() bool {
		rows, h := r.rows(), r.head()
		if h.State != fleet.Done || h.Release != release.ID(id) {
			return false
		}
		for _, b := range boxes {
			if rows[b].Active.Release != release.ID(id) || rows[b].Phase != fleet.Serve {
				return false
			}
		}
		return true
	})
}

func ids(n int) []string {
	var out []string
	for i := range n {
		out = append(out, fmt.Sprintf("i-%02d", i))
	}
	return out
}
