package config

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// watching starts Watch on path and returns its calls; the test's end waits for it.
func watching(t *testing.T, path string) <-chan struct{} {
	ctx, stop := context.WithCancel(t.Context())
	calls, ended := make(chan struct{}, 100), make(chan error, 1)
	go func() { ended <- Watch(ctx, path, func() { calls <- struct{}{} }) }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Errorf("watch ended: %v", err)
		}
	})
	return calls
}

// until repeats change, which must differ each time, until Watch calls: nobody tells when it began to watch.
func until(t *testing.T, calls <-chan struct{}, change func(n int)) {
	t.Helper()
	deadline := time.After(20 * time.Second)
	for n := 0; ; n++ {
		change(n)
		select {
		case <-calls:
			return
		case <-time.After(3 * settle):
		case <-deadline:
			t.Fatal("no change was seen")
		}
	}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// replace writes as most programs do: no moment shows half of it.
func replace(t *testing.T, path, text string) {
	t.Helper()
	write(t, path+".tmp", text)
	if err := os.Rename(path+".tmp", path); err != nil {
		t.Fatal(err)
	}
}

func TestWatchSeesWritesReplacementsAndANewLink(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "promo.yml")
	write(t, path, "a")
	calls := watching(t, path)
	until(t, calls, func(n int) { write(t, path, strings.Repeat("b", n+2)) })
	until(t, calls, func(n int) { replace(t, path, strings.Repeat("c", n+2)) })
	until(t, calls, func(n int) {
		target := filepath.Join(t.TempDir(), "target")
		write(t, target, strings.Repeat("d", n+2))
		os.Remove(path)
		if err := os.Symlink(target, path); err != nil {
			t.Fatal(err)
		}
	})
}

func TestWatchCallsOnceForABurstAndNotForOtherFiles(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "promo.yml")
	write(t, path, "a")
	calls := watching(t, path)
	texts, called := 0, 1
	until(t, calls, func(n int) {
		texts++
		replace(t, path, strings.Repeat("b", n+2))
	})
	texts++
	for range 20 {
		replace(t, path, "c")
		write(t, filepath.Join(dir, "other.yml"), "x")
	}
	<-calls
	called++
	replace(t, path, "c") // the same contents again
	write(t, filepath.Join(dir, "other.yml"), "y")
	for quiet := false; !quiet; {
		select {
		case <-calls:
			called++
		case <-time.After(3 * settle):
			quiet = true
		}
	}
	if called > texts { // until may have written more than one before it heard of the first
		t.Errorf("called %d times for %d changes", called, texts)
	}
}

func TestWatchOfAMissingDirectoryFails(t *testing.T) {
	err := Watch(t.Context(), filepath.Join(t.TempDir(), "none", "x.yml"), func() {})
	if err == nil || !strings.HasPrefix(err.Error(), "watch config ") {
		t.Errorf("%v", err)
	}
}
