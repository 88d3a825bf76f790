package benchfleet

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"s3pulldeploy/internal/fleet"
	"s3pulldeploy/internal/release"
)

const scope = "bucket/promo"

// crowd is a fleet of real nodes on pretended machines, in a synctest bubble.
type crowd struct {
	table   *meter
	poll    time.Duration
	stage   time.Duration // the longest time to bring up a release
	mu      sync.Mutex    // guards pointer, s3, flips, and the counter of tokens
	pointer []byte
	s3      int // reads of the pointer
	flips   []time.Time
	tokens  int
	began   time.Time
	wg      sync.WaitGroup
	stop    context.CancelFunc
}

// being is one member: a node and what its machine would do.
type being struct {
	c      *crowd
	id     string
	node   *fleet.Node
	state  fleet.State
	rng    *rand.Rand
	events chan func()
	busy   *fleet.Want
	seen   time.Time // of the pointer
}

type bubbleClock struct{ began time.Time }

func (c bubbleClock) Boot() time.Duration { return time.Since(c.began) + time.Hour }
func (c bubbleClock) Now() time.Time      { return time.Now() }

// Save implements fleet.Journal.
func (b *being) Save(s fleet.State) error {
	b.state = s
	return nil
}

func (c *crowd) token() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.tokens++
	return fmt.Sprintf("%032d", c.tokens)
}

func (c *crowd) ledger() *fleet.Ledger { return fleet.NewLedger(c.table.Memory, scope, c.token) }

// assemble makes a fleet of n members that serve the first epoch.
func assemble(ctx context.Context, n int, poll, stage time.Duration) *crowd {
	c := &crowd{table: newMeter(), poll: poll, stage: stage, began: time.Now()}
	ctx, c.stop = context.WithCancel(ctx)
	text := []byte(fmt.Sprintf("r1\n%d\n3", time.Now().Unix()))
	note, err := fleet.NewNote(text)
	must(err)
	note.Digest = "digest-r1"
	l := c.ledger()
	must(l.PutNote(ctx, note))
	h, err := l.Open(ctx, fleet.Head{}, note, "nobody", false)
	must(err)
	h, err = l.Decide(ctx, h, fleet.Outcome{Commit: true, Now: time.Now(), Members: n})
	must(err)
	_, err = l.Done(ctx, h, true, "")
	must(err)
	c.pointer = text
	c.table.hidden.Store(true)
	for i := range n {
		b := &being{c: c, id: fmt.Sprintf("i-%017d", i), rng: rand.New(rand.NewPCG(7, uint64(i))), events: make(chan func(), 64)}
		done := fleet.Commitment{Epoch: 1, Sequence: note.Sequence, Release: "r1", Digest: note.Digest}
		b.state = fleet.State{Scope: scope, Instance: b.id, Epoch: 1, Floor: note.Sequence, Decision: done, Flipped: done, Settled: 1}
		b.node = fleet.NewNode(fleet.Options{
			Scope: scope, Instance: b.id, Group: "web", Zone: "eu-central-1a", Version: "v1.0.0", Incarnation: c.token(),
			Ledger: fleet.NewLedger(c.table, scope, c.token), Journal: b, State: b.state, Clock: bubbleClock{c.began}, Random: b.rng.Float64,
			PollInterval: poll, PrepareTimeout: 10 * time.Minute, LookAgain: 30 * time.Second, Log: slog.New(slog.DiscardHandler),
		})
		b.node.FoundActive("r1")
		c.wg.Go(func() { b.live(ctx, time.Duration(b.rng.Int64N(int64(time.Minute)))) })
	}
	time.Sleep(90 * time.Second) // all have begun, in their own time, and beaten once
	c.table.hidden.Store(false)
	time.Sleep(90 * time.Second)
	return c
}

func must(err error) {
	if err != nil {
		panic(err)
	}
}

func (b *being) live(ctx context.Context, later time.Duration) {
	timer := time.NewTimer(later)
	for {
		select {
		case <-ctx.Done():
			return
		case f := <-b.events:
			f()
		case <-timer.C:
		}
		if ctx.Err() != nil {
			return
		}
		want, sleep := b.node.Step(ctx)
		b.pursue(want)
		b.read()
		timer.Reset(sleep)
	}
}

// read looks at the pointer every 30 s, and for a hint.
func (b *being) read() {
	every := 30 * time.Second
	if b.node.PointerWanted() {
		every = 250 * time.Millisecond
	}
	if time.Since(b.seen) < every {
		return
	}
	b.seen = time.Now()
	time.AfterFunc(20*time.Millisecond, func() {
		b.c.mu.Lock()
		b.c.s3++
		text := b.c.pointer
		b.c.mu.Unlock()
		b.events <- func() { must(b.node.Offer(text, time.Now(), 0)) }
	})
}

func (b *being) pursue(w fleet.Want) {
	if b.busy != nil || w.Task == fleet.Idle {
		return
	}
	b.busy = &w
	after := func(d time.Duration, f func()) {
		time.AfterFunc(d, func() { b.events <- func() { b.busy = nil; f() } })
	}
	switch w.Task {
	case fleet.Inspect:
		after(30*time.Millisecond, func() { b.node.Inspected(w, "digest-"+string(w.Note.Pointer.Release), nil) })
	case fleet.Stage:
		after(b.c.stage/4+time.Duration(b.rng.Int64N(int64(b.c.stage*3/4))), func() { b.node.Staged(w, nil, false) })
	case fleet.Flip:
		after(w.At-bubbleClock{b.c.began}.Boot(), func() {
			now := time.Now()
			b.c.mu.Lock()
			b.c.flips = append(b.c.flips, now)
			b.c.mu.Unlock()
			b.node.FlipDone(w, now, nil)
		})
	case fleet.Settle:
		after(100*time.Millisecond, func() { b.node.SettledDone(w, nil) })
	}
}

// rollout is how one went.
type rollout struct {
	members        int
	live, done     time.Duration // from the pointer to the last flip, to the epoch's end
	spread         time.Duration // of the flips
	widest         time.Duration // spread of several rollouts
	units, busiest units
	requests, s3   int
	keys           [2]string
}

// push publishes the next release as the push command does, and waits for the end of its epoch.
func (c *crowd) push(ctx context.Context, id release.ID) (rollout, error) {
	c.table.reset()
	c.mu.Lock()
	c.flips, c.s3 = nil, 0
	c.mu.Unlock()
	l := c.ledger()
	h, _, err := l.Head(ctx, true)
	if err != nil {
		return rollout{}, err
	}
	began := time.Now()
	sequence := max(began.Unix(), h.Sequence+1)
	c.mu.Lock()
	c.pointer = []byte(fmt.Sprintf("%s\n%d\n3", id, sequence))
	c.mu.Unlock()
	if _, err := l.Request(ctx, h, fleet.Item{"hint": sequence}); err != nil {
		return rollout{}, err
	}
	for {
		time.Sleep(50 * time.Millisecond)
		if h, _, err = l.Head(ctx, true); err != nil {
			return rollout{}, err
		}
		if h.Sequence == sequence && (h.State == fleet.Done || h.State == fleet.Abort) {
			break
		}
		if time.Since(began) > 20*time.Minute {
			return rollout{}, fmt.Errorf("not over after %v: %+v", time.Since(began), h)
		}
	}
	r := rollout{members: int(h.Members), done: time.Since(began)}
	c.mu.Lock()
	defer c.mu.Unlock()
	slices.SortFunc(c.flips, time.Time.Compare)
	if h.State != fleet.Done || len(c.flips) < r.members {
		return r, fmt.Errorf("%d of %d flipped, head %+v", len(c.flips), r.members, h)
	}
	r.live, r.spread, r.s3 = c.flips[len(c.flips)-1].Sub(began), c.flips[len(c.flips)-1].Sub(c.flips[0]), c.s3
	r.units, r.requests, r.busiest, r.keys = c.table.counted()
	return r, nil
}

// model runs a rollout of n members in virtual time, after some that made them known.
func model(t *testing.T, n int, poll, stage time.Duration) (r rollout) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		c := assemble(context.Background(), n, poll, stage)
		defer func() { c.stop(); c.wg.Wait() }()
		var err error
		if r, err = c.push(t.Context(), "r2"); err != nil {
			t.Fatal(err)
		}
	})
	t.Logf("%d members: live %v, done %v, spread %v, %d requests, %+v units, $%.4f, %d reads of S3; busiest %+v %v",
		n, r.live, r.done, r.spread, r.requests, r.units, r.units.dollars(), r.s3, r.busiest, r.keys)
	return r
}

// within checks that no key was asked for more than it gives.
func within(t *testing.T, r rollout) {
	t.Helper()
	if r.busiest.reads > mostReads || r.busiest.writes > mostWrites {
		t.Errorf("%d members: a key was asked for %.0f read units (%s) and %.0f write units (%s) in a second; it gives %d and %d",
			r.members, r.busiest.reads, r.keys[0], r.busiest.writes, r.keys[1], mostReads, mostWrites)
	}
}

func TestNoKeyIsAskedForMoreThanItGives(t *testing.T) {
	within(t, model(t, 1000, 5*time.Second, 2*time.Second))
}

func TestFiftyFlipWithin50Milliseconds(t *testing.T) {
	if r := model(t, 50, time.Second, 200*time.Millisecond); r.spread >= 50*time.Millisecond || r.live >= 4*time.Second {
		t.Errorf("live after %v, flips spread over %v", r.live, r.spread)
	}
}

func TestTwoHundredAreLiveBeforeTwiceTheTimeOfThree(t *testing.T) {
	few, many := model(t, 3, time.Second, 200*time.Millisecond), model(t, 200, time.Second, 200*time.Millisecond)
	if many.live >= 2*few.live || many.live >= 4*time.Second {
		t.Errorf("3: live after %v, 200: %v", few.live, many.live)
	}
}
