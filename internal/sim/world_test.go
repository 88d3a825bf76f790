// Package sim runs real fleet nodes against an in-memory table in a world of seeded faults, and checks the protocol's
// invariants after every event.
//
// The world is single-threaded: a heap of events in virtual time. A table request may take time, and then other
// machines' events run inside it, so that every interleaving of requests can happen although nothing runs
// at the same time; and so a seed replays exactly. Crashes happen at table requests, at saves of the state, and
// between events.
package sim

import (
	"container/heap"
	"context"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"time"

	"s3pulldeploy/internal/fleet"
	"s3pulldeploy/internal/release"
	"s3pulldeploy/internal/table"
)

const scope = "bucket/promo"

// world is one run: machines, table, bucket, and what has gone wrong.
type world struct {
	seed   uint64
	rng    *rand.Rand
	now    time.Duration // virtual, since the start
	epoch  time.Time     // the true wall clock at the start
	events events
	serial int
	mem    *table.Memory
	boxes  []*box
	active []*box // whose steps are on the stack, innermost last
	depth  int
	tokens int

	pointer  []byte
	sequence int64
	pushed   map[int64]release.ID
	broken   map[release.ID]bool // releases that every hook refuses
	calm     bool                // faults are over
	busy     bool                // agents restart all the time

	truth   truth
	violate []string
	trace   []string
	log     *slog.Logger
}

type event struct {
	at     time.Duration
	serial int
	owner  *box // nil: the world's
	life   int  // the owner's life this belongs to; 0: any
	what   string
	run    func()
}

type events []*event

func (e events) Len() int { return len(e) }
func (e events) Less(i, j int) bool {
	return e[i].at < e[j].at || e[i].at == e[j].at && e[i].serial < e[j].serial
}
func (e events) Swap(i, j int) { e[i], e[j] = e[j], e[i] }
func (e *events) Push(x any)   { *e = append(*e, x.(*event)) }
func (e *events) Pop() any {
	old := *e
	last := old[len(old)-1]
	*e = old[:len(old)-1]
	return last
}

func newWorld(seed uint64) *world {
	w := &world{
		seed: seed, rng: rand.New(rand.NewPCG(seed, 7)), mem: table.NewMemory(), epoch: time.Unix(1_790_000_000, 0),
		pushed: map[int64]release.ID{}, broken: map[release.ID]bool{},
	}
	var out io.Writer = io.Discard
	if os.Getenv("SIM_LOG") != "" {
		out = os.Stderr
	}
	w.log = slog.New(slog.NewTextHandler(out, &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey {
			return slog.String("t", w.now.String())
		}
		return a
	}}))
	w.truth = newTruth(w)
	return w
}

func (w *world) wall() time.Time { return w.epoch.Add(w.now) }

// after schedules an event; owner's events are dropped when that life of it has ended.
func (w *world) after(d time.Duration, owner *box, what string, run func()) {
	w.serial++
	e := &event{at: w.now + max(d, 0), serial: w.serial, owner: owner, what: what, run: run}
	if owner != nil {
		e.life = owner.life
	}
	heap.Push(&w.events, e)
}

// crash is the panic that ends a machine's life in the middle of a step.
type crash struct{ b *box }

// runUntil runs events up to a time. Events of machines that are in the middle of a step wait for its end.
func (w *world) runUntil(until time.Duration) {
	var waiting []*event
	defer func() {
		for _, e := range waiting {
			heap.Push(&w.events, e)
		}
	}()
	for len(w.events) > 0 && w.events[0].at <= until && len(w.violate) == 0 {
		e := heap.Pop(&w.events).(*event)
		if e.owner != nil && slices.Contains(w.active, e.owner) {
			waiting = append(waiting, e)
			continue
		}
		w.now = max(w.now, e.at)
		w.dispatch(e)
		w.truth.check(e.what)
	}
	w.now = max(w.now, until)
}

func (w *world) dispatch(e *event) {
	b := e.owner
	if b == nil {
		e.run()
		return
	}
	if b.life != e.life {
		return
	}
	if b.pausedUntil > w.now {
		w.serial++
		e.at, e.serial = b.pausedUntil, w.serial
		heap.Push(&w.events, e)
		return
	}
	w.active = append(w.active, b)
	depth := len(w.active)
	defer func() {
		w.active = w.active[:depth-1]
		switch r := recover().(type) {
		case nil:
		case crash:
			r.b.die("crashed in " + e.what)
		default:
			panic(r)
		}
	}()
	e.run()
}

// pass lets virtual time go by inside a request, with other machines' events in it.
func (w *world) pass(d time.Duration) {
	if w.depth >= 3 {
		return
	}
	w.depth++
	defer func() { w.depth-- }()
	w.runUntil(w.now + d)
}

func (w *world) chance(p float64) bool { return w.rng.Float64() < p }

// between is a random duration, more often short than long.
func (w *world) between(lo, hi time.Duration) time.Duration {
	f := w.rng.Float64()
	return lo + time.Duration(f*f*float64(hi-lo))
}

func (w *world) token() string {
	w.tokens++
	return fmt.Sprintf("t%d", w.tokens)
}

func (w *world) ledger() *fleet.Ledger {
	l := fleet.NewLedger(w.mem, scope, w.token)
	l.Parallel = 1
	return l
}

func (w *world) note(format string, args ...any) {
	line := fmt.Sprintf("%10v %s", w.now.Round(time.Millisecond), fmt.Sprintf(format, args...))
	w.trace = append(w.trace, line)
	w.log.Info(line)
}

func (w *world) fail(format string, args ...any) {
	w.violate = append(w.violate, fmt.Sprintf(format, args...))
}

func (w *world) report() string {
	tail := w.trace[max(0, len(w.trace)-60):]
	return fmt.Sprintf("seed %d: %s\n%s", w.seed, strings.Join(w.violate, "; "), strings.Join(tail, "\n"))
}

// push publishes a release the way the push command does; back is an earlier release to roll back to.
func (w *world) push(back release.ID) {
	h, ok, err := w.ledger().Head(context.Background(), true)
	if err != nil {
		panic(err)
	}
	w.sequence = max(w.wall().Unix(), w.sequence+1, h.Sequence+1)
	id, extra := release.ID(fmt.Sprintf("r%d", len(w.pushed)+1)), ""
	if back != "" {
		id, extra = back, "\nkind \"rollback\""
	}
	w.pushed[w.sequence] = id
	w.broken[id] = w.broken[id] || back == "" && !w.calm && w.chance(0.15)
	w.pointer = fmt.Appendf(nil, "%s\n%d\n3%s", id, w.sequence, extra)
	w.note("push %s as %d%s, broken %v", id, w.sequence, extra, w.broken[id])
	if ok && w.chance(0.8) {
		w.ask(h, fleet.Item{"hint": w.sequence})
	}
}

// ask is a request of push to the fleet, which the truth sees too.
func (w *world) ask(h fleet.Head, set fleet.Item, remove ...string) {
	if now, err := w.ledger().Request(context.Background(), h, set, remove...); err == nil {
		w.truth.head = now
	}
}

// freeze or unfreeze, as push does.
func (w *world) freeze(on bool) {
	h, ok, err := w.ledger().Head(context.Background(), true)
	if err != nil || !ok {
		return
	}
	w.note("freeze %v", on)
	if on {
		w.ask(h, fleet.Item{"frozen": fleet.Item{"by": "sim", "why": "sim", "until": int64(0)}})
		return
	}
	w.ask(h, fleet.Item{}, "frozen")
}
