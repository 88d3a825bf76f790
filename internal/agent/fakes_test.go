package agent

import (
	"context"
	"crypto/md5"
	"encoding/hex"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"s3pulldeploy/internal/release"
	"s3pulldeploy/internal/store"
)

// service records what a service manager is told.
type service struct {
	reloaded []string
	// reload is done in a Reload, when it is not nil.
	reload func()
	// restarted are the units of each Restart, whose error is stuck; barred is that of a Reload, and
	// allowed how many units it then began with all the same.
	restarted     []string
	stuck, barred error
	allowed       int
	active        func() release.ID
	every         time.Duration
	going         bool

	mu    sync.Mutex
	ready []release.ID // what was active at each Ready
	lines []string
	pings []time.Time

	turns, atOnce int
	turn          time.Time
}

func (s *service) Ready() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ready = append(s.ready, s.active())
}

func (s *service) Status(text string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lines = append(s.lines, text)
}

func (s *service) Watchdog() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pings = append(s.pings, time.Now())
}

// WatchdogEvery is asked in each turn of the loop: turns without end at one instant of the bubble are a busy loop.
func (s *service) WatchdogEvery() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.turns++
	if !time.Now().Equal(s.turn) {
		s.turn, s.atOnce = time.Now(), 0
	}
	if s.atOnce++; s.atOnce > 2000 {
		panic("the loop does not sleep: " + s.lines[len(s.lines)-1])
	}
	return s.every
}

func (s *service) Reload(_ context.Context, units []string) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reloaded = append(s.reloaded, units...)
	if s.reload != nil {
		s.reload()
	}
	if s.barred != nil {
		return s.allowed, s.barred
	}
	return len(units), nil
}

// reloads are the units of all Reloads.
func (s *service) reloads() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.reloaded)
}

// onReload sets what a Reload does.
func (s *service) onReload(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reload = f
}

func (s *service) Restart(_ context.Context, units []string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.restarted = append(s.restarted, units...)
	return s.stuck
}

func (s *service) Going(context.Context) bool { return s.going }

// readies is what was active whenever the service was told that the machine is ready.
func (s *service) readies() []release.ID {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.ready)
}

// bucket is a site of the plain layout in memory.
type bucket struct {
	mu       sync.Mutex
	pointer  []byte
	full     int // reads of the pointer that were answered with it
	releases map[release.ID]map[string]release.Object
	bodies   map[string]string
	fetched  map[string]int // by "<release>/<path>", whole answers
	// gate is asked before each request, with "pointer", the release's id, or "<release>/<path>"; it may wait.
	gate func(ctx context.Context, what string) error
}

func newBucket() *bucket {
	return &bucket{releases: map[release.ID]map[string]release.Object{}, bodies: map[string]string{}, fetched: map[string]int{}}
}

func sum(text string) string {
	s := md5.Sum([]byte(text))
	return hex.EncodeToString(s[:])
}

func (b *bucket) upload(id release.ID, path, body string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.releases[id] == nil {
		b.releases[id] = map[string]release.Object{}
	}
	b.releases[id][path] = release.Object{Path: path, Size: int64(len(body)), ETag: sum(body), Modified: time.Now()}
	b.bodies[string(id)+"/"+path] = body
}

func (b *bucket) point(text []byte) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.pointer = text
}

// through sets the gate; nil opens it.
func (b *bucket) through(gate func(ctx context.Context, what string) error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.gate = gate
}

func (b *bucket) ask(ctx context.Context, what string) error {
	b.mu.Lock()
	gate := b.gate
	b.mu.Unlock()
	if gate == nil {
		return ctx.Err()
	}
	return gate(ctx, what)
}

// stands returns the pointer's text, and how often it was answered in full.
func (b *bucket) stands() (text []byte, full int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.pointer, b.full
}

// relabel gives the objects of a release ETags that are not the MD5 of their contents.
func (b *bucket) relabel(id release.ID) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for p, o := range b.releases[id] {
		o.ETag = sum("looks like an MD5 of " + p)
		b.releases[id][p] = o
	}
}

// times is how often an object was fetched.
func (b *bucket) times(id release.ID, path string) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.fetched[string(id)+"/"+path]
}

func (b *bucket) Pointer(ctx context.Context, etag string) (store.Read, error) {
	if err := b.ask(ctx, "pointer"); err != nil {
		return store.Read{}, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case b.pointer == nil:
		return store.Read{}, store.ErrNotFound
	case etag == sum(string(b.pointer)):
		return store.Read{}, store.ErrNotModified
	}
	b.full++
	return store.Read{Text: slices.Clone(b.pointer), ETag: sum(string(b.pointer)), Date: time.Now()}, nil
}

func (b *bucket) List(ctx context.Context, id release.ID) (release.Listing, error) {
	if err := b.ask(ctx, string(id)); err != nil {
		return nil, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Collect(maps.Values(b.releases[id])), nil
}

func (b *bucket) Open(ctx context.Context, id release.ID, o release.Object) (io.ReadCloser, error) {
	key := string(id) + "/" + o.Path
	if err := b.ask(ctx, key); err != nil {
		return nil, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if now := b.releases[id][o.Path]; now.ETag != o.ETag {
		return nil, store.ErrChanged
	}
	b.fetched[key]++
	return io.NopCloser(strings.NewReader(b.bodies[key])), nil
}

// hold is a gate that keeps requests for one thing until it is opened, or their context ends.
type hold struct {
	what string
	open chan struct{}
}

func holding(what string) *hold { return &hold{what, make(chan struct{})} }

func (h *hold) gate(ctx context.Context, what string) error {
	if what != h.what {
		return ctx.Err()
	}
	select {
	case <-h.open:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// ownWay is one machine's way to the contents of a bucket.
type ownWay struct {
	*bucket
	cut atomic.Bool
}

func (w *ownWay) Open(ctx context.Context, id release.ID, o release.Object) (io.ReadCloser, error) {
	if w.cut.Load() {
		return nil, fmt.Errorf("read object %q: %w", o.Path, store.ErrUnavailable)
	}
	return w.bucket.Open(ctx, id, o)
}
