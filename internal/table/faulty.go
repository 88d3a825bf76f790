package table

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"

	"s3pulldeploy/internal/fleet"
)

// Faulty is a table that breaks as its hook says, for tests. Several may wrap one table: each is then
// one machine's way to it.
type Faulty struct {
	fleet.Table

	// Hook is asked before each request, and its answer is what happens to it. It may block, to delay
	// the request; it is called from every goroutine that uses the table. Nil: nothing breaks.
	Hook func(context.Context, Request) Fault

	mu   sync.Mutex
	late []func()
}

// Request is what a hook is asked about.
type Request struct {
	Method     string    // "Get", "Query", "Write" or "Delete"
	Key        fleet.Key // of a query: partition and prefix
	Consistent bool      // of a read
	Write      fleet.Write
}

// Reads says whether the request only reads.
func (r Request) Reads() bool { return r.Method == "Get" || r.Method == "Query" }

// Fault is what happens to a request.
type Fault int

// The faults. A lost reply of a read is a lost request.
const (
	None        Fault = iota
	Throttle          // refused, nothing is done: ErrThrottled
	LoseRequest       // never arrives: ErrUnavailable
	LoseReply         // is done, but the caller does not hear of it: ErrUnavailable
	Late              // ErrUnavailable now; done when Land is called
	Stale             // an eventually consistent read gives older states of a [Memory]; else nothing breaks
)

// staleBy is how many changes ago a stale read was true.
const staleBy = 1

// Why a request had no answer.
var (
	errLostRequest = errors.New("request lost")
	errLostReply   = errors.New("reply lost")
	errLate        = errors.New("request delayed")
)

// Get implements [fleet.Table].
func (f *Faulty) Get(ctx context.Context, key fleet.Key, consistent bool) (fleet.Item, error) {
	from, err := f.read(ctx, Request{Method: "Get", Key: key, Consistent: consistent})
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", text(key), err)
	}
	return from.Get(ctx, key, consistent)
}

// Query implements [fleet.Table].
func (f *Faulty) Query(ctx context.Context, partition, prefix string, consistent bool) ([]fleet.Item, error) {
	from, err := f.read(ctx, Request{Method: "Query", Key: fleet.Key{Partition: partition, Sort: prefix}, Consistent: consistent})
	if err != nil {
		return nil, fmt.Errorf("read items %s/%s*: %w", partition, prefix, err)
	}
	return from.Query(ctx, partition, prefix, consistent)
}

// Write implements [fleet.Table].
func (f *Faulty) Write(ctx context.Context, key fleet.Key, w fleet.Write) (fleet.Item, error) {
	w.Set = clone(w.Set) // the caller may reuse it before a late write lands
	it, err := f.change(ctx, Request{Method: "Write", Key: key, Write: w}, func(ctx context.Context) (fleet.Item, error) {
		return f.Table.Write(ctx, key, w)
	})
	return it, refused(key, "write", err)
}

// Delete implements [fleet.Table].
func (f *Faulty) Delete(ctx context.Context, key fleet.Key, cond fleet.Cond) error {
	r := Request{Method: "Delete", Key: key, Write: fleet.Write{If: cond}}
	_, err := f.change(ctx, r, func(ctx context.Context) (fleet.Item, error) {
		return nil, f.Table.Delete(ctx, key, cond)
	})
	return refused(key, "delete", err)
}

// Land does the writes that were late, in their order, and returns how many there were. Their outcome
// is nobody's.
func (f *Faulty) Land() int {
	f.mu.Lock()
	late := f.late
	f.late = nil
	f.mu.Unlock()
	for _, do := range late {
		do()
	}
	return len(late)
}

func (f *Faulty) fault(ctx context.Context, r Request) Fault {
	if f.Hook == nil {
		return None
	}
	return f.Hook(ctx, r)
}

// read returns the table that answers a read.
func (f *Faulty) read(ctx context.Context, r Request) (fleet.Table, error) {
	switch f.fault(ctx, r) {
	case Throttle:
		return nil, fleet.ErrThrottled
	case LoseRequest, LoseReply, Late:
		return nil, fmt.Errorf("%w: %w", fleet.ErrUnavailable, errLostRequest)
	case Stale:
		if m, ok := f.Table.(*Memory); ok {
			return m.Past(staleBy), nil
		}
	}
	return f.Table, nil
}

// change does what the hook says to a write or delete.
func (f *Faulty) change(ctx context.Context, r Request, do func(context.Context) (fleet.Item, error)) (fleet.Item, error) {
	var how error
	switch f.fault(ctx, r) {
	case Throttle:
		return nil, fleet.ErrThrottled
	case LoseRequest:
		how = errLostRequest
	case LoseReply:
		_, _ = do(ctx) // lost, whatever it was
		how = errLostReply
	case Late:
		f.mu.Lock()
		f.late = append(f.late, func() { _, _ = do(context.WithoutCancel(ctx)) })
		f.mu.Unlock()
		how = errLate
	default:
		return do(ctx)
	}
	return nil, fmt.Errorf("%w: %w", fleet.ErrUnavailable, how)
}

// Chances are the shares of requests, 0 to 1, that each fault happens to. Their sum is at most 1.
type Chances struct{ Throttle, LoseRequest, LoseReply, Late, Stale float64 }

// Hook returns a hook that draws from a seeded source: the same requests in the same order meet the
// same faults.
func (c Chances) Hook(seed uint64) func(context.Context, Request) Fault {
	var mu sync.Mutex
	source := rand.New(rand.NewPCG(seed, seed))
	return func(context.Context, Request) Fault {
		mu.Lock()
		x := source.Float64()
		mu.Unlock()
		for i, share := range []float64{c.Throttle, c.LoseRequest, c.LoseReply, c.Late, c.Stale} {
			if x < share {
				return Throttle + Fault(i)
			}
			x -= share
		}
		return None
	}
}
