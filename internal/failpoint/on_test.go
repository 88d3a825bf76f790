//go:build failpoints

package failpoint

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

func TestAnActionHappensAtTheHitItIsArmedFor(t *testing.T) {
	l := &list{source: "A1=error:EIO@2,A2=error:what it says,A3=sleep:1ms"}
	for n, want := range []bool{false, true, false} {
		err := l.hit("A1").run("A1")
		if got := errors.Is(err, syscall.EIO); got != want {
			t.Errorf("hit %d of A1: %v, an error: %v, want %v", n+1, err, got, want)
		}
	}
	for range 2 {
		if err := l.hit("A2").run("A2"); err == nil || err.Error() != "failpoint A2: what it says" {
			t.Errorf("A2: %v", err)
		}
	}
	began := time.Now()
	if err := l.hit("A3").run("A3"); err != nil || time.Since(began) < time.Millisecond {
		t.Errorf("A3: %v after %v", err, time.Since(began))
	}
	if err := l.hit("A4").run("A4"); err != nil {
		t.Errorf("A4 is not armed: %v", err)
	}
}

func TestAFileArmsAProcessThatRuns(t *testing.T) {
	file := filepath.Join(t.TempDir(), "armed")
	l := &list{source: file}
	arm := func(text string) {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if a := l.hit("A1"); a != (action{}) {
		t.Errorf("without the file: %v", a)
	}
	arm("A1=kill@1\n")
	if a := l.hit("A1"); a.kind != "kill" {
		t.Errorf("armed: %v; hits count from the change on", a)
	}
	arm("A1=wait")
	waits := l.hit("A1")
	done := make(chan error, 1)
	go func() { done <- waits.run("A1") }()
	select {
	case err := <-done:
		t.Errorf("it did not wait: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	arm("")
	if err := <-done; err != nil {
		t.Error(err)
	}
	if a := l.hit("A1"); a != (action{}) {
		t.Errorf("disarmed: %v", a)
	}
}

func TestAListThatMakesNoSenseIsRefused(t *testing.T) {
	for _, text := range []string{"A1", "=kill", "A1=kill@0", "A1=kill@x", "A1=kill:now", "A1=wait:1s", "A1=sleep:long", "A1=error:", "A1=explode"} {
		if actions, err := parse(text); err == nil {
			t.Errorf("%q was read as %v", text, actions)
		}
	}
}
