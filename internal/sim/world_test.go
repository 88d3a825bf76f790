// Package sim runs fleets through seeded faults in virtual time, and checks the protocol's invariants after every event. There are
// two simulations, judged by one [truth]; a failing seed of either is printed and replays exactly.
//
// The [world] runs real fleet nodes on pretended machines. It is single-threaded: a heap of events in virtual time. A table
// request may take time, and then other machines' events run inside it, so that every interleaving of requests can happen although
// nothing runs at the same time. Crashes happen at table requests, at saves of the state, and between events. It is fast:
// thousands of seeds a minute.
//
// The [realm] runs real agents, with loop, worker and schedule, on real disks, under testing/synctest. Crashes happen at
// requests, between the pieces of a download, at looks at the clock, and before each call that makes something durable; what is on
// the disk then stays, and nothing is cleaned up.
package sim

import (
	"container/heap"
	"fmt"
	"slices"
	"time"

	"s3pulldeploy/internal/release"
)

// world is one run: machines, and what will happen.
type world struct {
	*scene
	events events
	serial int
	boxes  []*box
	active []*box // whose steps are on the stack, innermost last
	depth  int
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
	w := &world{scene: newScene(seed)}
	w.altered = map[release.ID]int{}
	w.digest = func(id release.ID) string { return fmt.Sprint("d-", id, "-", w.altered[id]) }
	return w
}

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
