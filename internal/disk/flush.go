package disk

import (
	"errors"
	"fmt"
	"time"
)

// Above so many new bytes the filesystem is synced while they are written, and after so many links at once, so that the last sync
// finds little left: on loop devices with ext4 and xfs that took 19 to 26 % off the whole of new bytes.
const (
	flushAbove = 64 << 20
	flushLinks = 1000
	flushEvery = 100 * time.Millisecond
)

// flusher syncs the filesystem of a stage at intervals.
type flusher struct {
	stop, ended chan struct{}
	err         error // to be read after ended
}

// startFlush syncs at once and at intervals, as long as something was written since, until [Stage.settle].
func (s *Stage) startFlush() {
	f := &flusher{stop: make(chan struct{}), ended: make(chan struct{})}
	s.flush = f
	go func() {
		defer close(f.ended)
		tick := time.NewTicker(flushEvery)
		defer tick.Stop()
		for before := int64(-1); f.err == nil; {
			if now := s.written.Load(); now > before {
				before = now
				f.err = s.d.syncfs(s.sync)
			}
			select {
			case <-f.stop:
				return
			case <-tick.C:
			}
		}
	}()
}

// settle ends the syncing at intervals and returns its error, which a later sync would not tell again.
func (s *Stage) settle() error {
	f := s.flush
	if f == nil {
		return nil
	}
	s.flush = nil
	close(f.stop)
	<-f.ended
	return f.err
}

// lost throws the staged tree away after a sync went wrong: what was written cannot be trusted.
func (s *Stage) lost(err error) error {
	s.complete = false
	return errors.Join(fmt.Errorf("sync %q: %w: %w", s.path(), ErrSync, err), s.discard())
}
