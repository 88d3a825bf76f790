package disk

import (
	"errors"
	"fmt"
	"time"
)

// Above so many new bytes the filesystem is synced while they are written, so that the last sync finds
// little left: on loop devices with ext4 and xfs that took 19 to 26 % off the whole.
const (
	flushAbove = 64 << 20
	flushEvery = 100 * time.Millisecond
)

// flusher syncs the filesystem of a stage at intervals.
type flusher struct {
	stop, ended chan struct{}
	err         error // to be read after ended
}

// startFlush syncs at intervals, as long as something was written since, until [Stage.settle].
func (s *Stage) startFlush() {
	f := &flusher{stop: make(chan struct{}), ended: make(chan struct{})}
	s.flush = f
	go func() {
		defer close(f.ended)
		tick := time.NewTicker(flushEvery)
		defer tick.Stop()
		for before := int64(0); f.err == nil; {
			select {
			case <-f.stop:
				return
			case <-tick.C:
			}
			if now := s.written.Load(); now > before {
				before = now
				f.err = s.d.syncfs(s.sync)
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
