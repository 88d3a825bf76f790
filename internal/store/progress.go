package store

import (
	"context"
	"sync"
)

// WithProgress returns a context whose uploads tell how far they are: sent is called with bytes as
// they go out, also in the middle of an object, from several goroutines. For an object that was written,
// or found to be there already, its calls add up to the object's size; for one that failed, to zero. When a try
// breaks and the next begins, the bytes of the broken one are taken back by a negative number.
//
// Bytes count when the connection takes them: what the kernel holds, some MB, is ahead of the server.
func WithProgress(ctx context.Context, sent func(n int64)) context.Context {
	return context.WithValue(ctx, meterKey{}, meter(sent))
}

type (
	meterKey struct{}
	sentKey  struct{}
)

// meter is a caller's function; nil is one that nobody reads.
type meter func(n int64)

func meterOf(ctx context.Context) meter {
	m, _ := ctx.Value(meterKey{}).(meter)
	return m
}

func (m meter) add(n int64) {
	if m != nil && n != 0 {
		m(n)
	}
}

// start begins to count one object.
func (m meter) start() *sent {
	if m == nil {
		return nil
	}
	return &sent{meter: m}
}

// sent is what the meter was told of one object. Its methods do nothing on nil.
type sent struct {
	mu    sync.Mutex
	meter meter
	told  int64
	try   int // the one that counts: an earlier one's connection may still take bytes
}

// next begins a new try and returns its number.
func (s *sent) next() int {
	if s == nil {
		return 0
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.try++
	s.set(0)
	return s.try
}

// add counts n bytes of a try.
func (s *sent) add(try int, n int64) {
	if s == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if try == s.try {
		s.set(s.told + n)
	}
}

// end stops counting and leaves the object at total.
func (s *sent) end(total int64) {
	if s == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.try++
	s.set(total)
}

// set tells the meter the difference. It holds the lock meanwhile, so that the calls of one object are in order.
func (s *sent) set(total int64) {
	s.meter.add(total - s.told)
	s.told = total
}

// sentOf is where a request's bytes are counted, or nil.
func sentOf(ctx context.Context) *sent {
	s, _ := ctx.Value(sentKey{}).(*sent)
	return s
}
