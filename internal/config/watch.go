package config

import (
	"bytes"
	"context"
	"fmt"
	"path/filepath"
	"time"

	"github.com/fsnotify/fsnotify"
)

// settle is how long Watch waits after the first sign of a change, so that an editor's several steps are one.
const settle = 200 * time.Millisecond

// Watch calls changed, from its own goroutine, whenever the contents of the file at path are others than before. It
// blocks until ctx ends, and then returns nil; other errors mean that changes are not seen any more. Its caller waits for it.
//
// The directory is watched, not the file, because editors and configuration management replace files, and so is a link's
// new target noticed; an edit of the target behind a link in another directory is not, that is what SIGHUP is for. While
// the file is missing or cannot be read, nothing is called. What changed between the caller's [Load] and Watch's
// beginning is not noticed either.
func Watch(ctx context.Context, path string, changed func()) error {
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("watch config %q: %w", path, err)
	}
	defer w.Close()
	if err := w.Add(filepath.Dir(path)); err != nil {
		return fmt.Errorf("watch config %q: %w", path, err)
	}
	last, _ := readFile(path)
	var due <-chan time.Time // set while a change settles
	for alive := true; alive; {
		select {
		case <-ctx.Done():
			return nil
		case _, alive = <-w.Events:
		case _, alive = <-w.Errors: // events were lost: look as well
		case <-due:
			due = nil
			if text, err := readFile(path); err == nil && !bytes.Equal(text, last) {
				last = text
				changed()
			}
			continue
		}
		if due == nil {
			due = time.After(settle)
		}
	}
	return fmt.Errorf("watch config %q: notifications ended", path)
}
