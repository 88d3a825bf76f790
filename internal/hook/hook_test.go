package hook

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// logged is a handler that counts what the log got.
type logged struct {
	slog.Handler
	mu      sync.Mutex
	lines   []string // the first hundred
	bytes   int
	longest int
	last    time.Time     // when the last one came
	gap     time.Duration // the longest between two
}

func newLogged() *logged { return &logged{Handler: slog.DiscardHandler} }

func (l *logged) Enabled(context.Context, slog.Level) bool { return true }
func (l *logged) WithAttrs([]slog.Attr) slog.Handler       { return l }
func (l *logged) Handle(_ context.Context, r slog.Record) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	r.Attrs(func(a slog.Attr) bool {
		if a.Key == "line" {
			line := a.Value.String()
			if l.bytes > 0 {
				l.gap = max(l.gap, time.Since(l.last))
			}
			l.last = time.Now()
			l.bytes += len(line)
			l.longest = max(l.longest, len(line))
			if len(l.lines) < 100 {
				l.lines = append(l.lines, line)
			}
		}
		return true
	})
	return nil
}

func TestOutputGoesToTheLogInOrderAndIntoTheTail(t *testing.T) {
	log := newLogged()
	r, err := Run(t.Context(), Spec{
		Name: "after_sync", Dir: t.TempDir(), Logger: slog.New(log),
		Command: `echo one; echo two >&2; touch here; ls; printf 'no newline'`,
	})
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"one", "two", "here", "no newline"}; !slices.Equal(log.lines, want) {
		t.Errorf("log has %q, want %q", log.lines, want)
	}
	if want := "one\ntwo\nhere\nno newline"; r.Tail != want {
		t.Errorf("tail is %q, want %q", r.Tail, want)
	}
	if r.ExitCode != 0 || r.Duration <= 0 {
		t.Errorf("result is %+v", r)
	}
}

func TestEnvironmentIsCleanAndHasTheDeploysVariables(t *testing.T) {
	t.Setenv("AWS_SECRET_ACCESS_KEY", "do not pass on")
	t.Setenv("NOTIFY_SOCKET", "/run/systemd/notify")
	t.Setenv("LANG", "de_DE.UTF-8")
	env := Env{
		Site: "promo", Group: "web", Release: "2026-11-20_20-15-02", Sequence: 1795292102,
		Commit: "abc\x00d\nef", Instance: "i-1", Zone: "eu-central-1a", Kind: "deploy",
	}
	r, err := Run(t.Context(), Spec{Name: "x", Command: "env; cat", Env: env.Vars()})
	if err != nil {
		t.Fatal(err)
	}
	got := strings.Split(strings.TrimSpace(r.Tail), "\n")
	var names []string
	for _, kv := range got {
		name, _, _ := strings.Cut(kv, "=")
		if name != "PWD" && name != "OLDPWD" && name != "_" && name != "SHLVL" { // the shell's own
			names = append(names, name)
		}
	}
	slices.Sort(names)
	want := strings.Fields("DEPLOY_COMMIT DEPLOY_GROUP DEPLOY_INSTANCE DEPLOY_KIND DEPLOY_PREVIOUS DEPLOY_RELEASE " +
		"DEPLOY_SEQUENCE DEPLOY_SITE DEPLOY_ZONE HOME LANG LOGNAME PATH USER")
	if !slices.Equal(names, want) {
		t.Errorf("variables are %q, want %q", names, want)
	}
	for _, kv := range []string{
		"DEPLOY_SITE=promo", "DEPLOY_PREVIOUS=", "DEPLOY_SEQUENCE=1795292102", "DEPLOY_COMMIT=abc d ef",
		"DEPLOY_ZONE=eu-central-1a", "DEPLOY_KIND=deploy", "LANG=de_DE.UTF-8",
	} {
		if !slices.Contains(got, kv) {
			t.Errorf("no %q in %q", kv, got)
		}
	}
}

func TestFailureNamesHookCodeAndLastLineIn200Bytes(t *testing.T) {
	_, err := Run(t.Context(), Spec{Name: "before_flip", Command: "echo first; echo 'no such table'; echo; exit 3"})
	var exit *ExitError
	if !errors.As(err, &exit) || exit.Code != 3 || exit.Name != "before_flip" {
		t.Fatalf("error is %#v, want an *ExitError with code 3", err)
	}
	if want := "hook before_flip: exit code 3: no such table"; err.Error() != want {
		t.Errorf("message is %q, want %q", err, want)
	}

	_, err = Run(t.Context(), Spec{Name: "x", Command: "i=0; while [ $i -lt 150 ]; do printf ä; i=$((i+1)); done; exit 1"})
	if text := err.Error(); len(text) > 200 || len(text) < 195 || strings.Contains(text, "\uFFFD") || !strings.HasSuffix(text, "ä…") {
		t.Errorf("message is %d bytes: %q", len(text), text)
	}
}

func TestEndBySignalCountsLikeInAShell(t *testing.T) {
	r, err := Run(t.Context(), Spec{Name: "x", Command: "kill -9 $$"})
	var exit *ExitError
	if !errors.As(err, &exit) || exit.Code != 137 || r.ExitCode != 137 {
		t.Errorf("got %v and %+v, want code 137", err, r)
	}
}

// cutShort runs a command under a timeout that it does not meet, and that is long enough for it to get as far as to print said.
func cutShort(t *testing.T, s Spec, said string) (Result, time.Duration, error) {
	t.Helper()
	for s.Timeout = 200 * time.Millisecond; ; s.Timeout *= 2 {
		r, err := Run(t.Context(), s)
		if strings.Contains(r.Tail, said) || s.Timeout > 10*time.Second {
			return r, s.Timeout, err
		}
	}
}

func TestTimeoutEndsTheWholeGroup(t *testing.T) {
	r, timeout, err := cutShort(t, Spec{Name: "x", Command: "sleep 1000 & echo $!; echo waiting; wait"}, "waiting\n")
	if !errors.Is(err, ErrTimeout) {
		t.Fatalf("error is %v, want ErrTimeout", err)
	}
	if want := fmt.Sprintf("hook x: timed out after %v: waiting", timeout); err.Error() != want {
		t.Errorf("message is %q, want %q", err, want)
	}
	gone(t, r.Tail)
}

func TestWhoIgnoresSIGTERMIsKilledAfterTheGrace(t *testing.T) {
	r, _, err := cutShort(t, Spec{
		Name: "x", grace: 100 * time.Millisecond,
		Command: `trap "" TERM; sleep 1000 & echo $!; wait; wait; sleep 1000`,
	}, "\n")
	if !errors.Is(err, ErrTimeout) || r.ExitCode != 137 {
		t.Fatalf("got %v and %+v, want ErrTimeout and 137", err, r)
	}
	gone(t, r.Tail)
}

func TestCleanUpAfterSIGTERMIsStillLogged(t *testing.T) {
	r, _, err := cutShort(t, Spec{
		Name: "x", grace: 30 * time.Second,
		Command: `trap 'echo cleaned; exit 0' TERM; echo ready; sleep 1000 & wait`,
	}, "ready\n")
	if !errors.Is(err, ErrTimeout) || r.Tail != "ready\ncleaned\n" {
		t.Errorf("got %v and tail %q, want ErrTimeout and both lines", err, r.Tail)
	}
}

func TestBackgroundChildrenDoNotOutliveTheShell(t *testing.T) {
	r, err := Run(t.Context(), Spec{
		Name: "x", grace: 100 * time.Millisecond,
		Command: `sleep 1000 >/dev/null 2>&1 & echo $!; (trap "" TERM; exec sleep 1000) & echo $!; exit 0`,
	})
	if err != nil {
		t.Fatal(err)
	}
	gone(t, r.Tail)
}

func TestDaemonThatLeftTheGroupIsNotWaitedFor(t *testing.T) {
	dir := t.TempDir()
	r, err := Run(t.Context(), Spec{
		Name: "x", Dir: dir, Timeout: time.Minute,
		Command: "mkfifo f; setsid sh -c 'echo $$ >f; exec sleep 1000' & cat f",
	})
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(r.Tail))
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Errorf("the daemon was ended too: %v", err)
	}
	if r.Duration > 30*time.Second {
		t.Errorf("waited %v", r.Duration)
	}
}

func TestSilenceEndsACommandAndTalkKeepsIt(t *testing.T) {
	_, err := Run(t.Context(), Spec{Name: "x", Idle: 200 * time.Millisecond, Command: "echo migrating; sleep 1000"})
	if !errors.Is(err, ErrIdle) {
		t.Errorf("error is %v, want ErrIdle", err)
	}
	for range 10 { // a machine that stalls may make any command silent
		log := newLogged()
		_, err := Run(t.Context(), Spec{
			Name: "x", Idle: time.Second, Logger: slog.New(log),
			Command: "trap 'echo ended; exit' TERM; for i in 1 2 3 4 5 6; do echo $i; sleep 0.25; done",
		})
		if err == nil {
			return
		}
		if !errors.Is(err, ErrIdle) || len(log.lines) > 1 && log.gap < time.Second/2 {
			t.Fatalf("a command that was never silent for more than %v was ended: %v", log.gap, err)
		}
	}
	t.Error("a command that goes on printing was ended each time")
}

func TestCancellationIsTheErrorWithItsCause(t *testing.T) {
	reason := errors.New("epoch was aborted")
	ctx, cancel := context.WithCancelCause(t.Context())
	log := newLogged()
	go func() { // the command runs when it has printed
		for {
			log.mu.Lock()
			n := len(log.lines)
			log.mu.Unlock()
			if n > 0 {
				cancel(reason)
				return
			}
			time.Sleep(time.Millisecond)
		}
	}()
	_, err := Run(ctx, Spec{Name: "x", Command: "echo on; sleep 1000", Logger: slog.New(log)})
	if !errors.Is(err, reason) {
		t.Errorf("error is %v, want the cause", err)
	}
	dir := t.TempDir()
	if _, err = Run(ctx, Spec{Name: "x", Dir: dir, Command: "touch ran"}); !errors.Is(err, reason) {
		t.Errorf("error is %v, want the cause", err)
	}
	if _, err := os.Stat(filepath.Join(dir, "ran")); err == nil {
		t.Error("ran under a context that had ended")
	}
}

func TestEndlessLineIsLoggedWholeInPieces(t *testing.T) {
	const size = 64 << 20
	log := newLogged()
	r, err := Run(t.Context(), Spec{
		Name: "x", Logger: slog.New(log),
		Command: "head -c " + strconv.Itoa(size) + " /dev/zero | tr '\\0' x",
	})
	if err != nil {
		t.Fatal(err)
	}
	if log.bytes != size || log.longest != tailSize {
		t.Errorf("log got %d bytes in lines of up to %d, want %d and %d", log.bytes, log.longest, size, tailSize)
	}
	if r.Tail != strings.Repeat("x", tailSize) {
		t.Errorf("tail has %d bytes", len(r.Tail))
	}
}

func TestWhatThePipeHoldsCountsThoughItsTimeIsOver(t *testing.T) {
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer write.Close() // held, as by who left the group
	text := strings.Repeat("x", pipeSize-len("the end\n")) + "the end\n"
	if _, err := write.WriteString(text); err != nil {
		t.Fatal(err)
	}
	if err := read.SetReadDeadline(time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
	log := newLogged()
	o := newOutput(slog.New(log), "x")
	o.pump(read)
	<-o.done
	if tail := o.finish(); !strings.HasSuffix(tail, "the end\n") || log.bytes != len(text)-1 {
		t.Errorf("%d bytes logged, want %d; tail ends with %q", log.bytes, len(text)-1, last([]byte(tail), 10))
	}
}

func TestShellThatEndsWithItsTimeHasEnded(t *testing.T) {
	g := &group{exited: make(chan struct{})}
	close(g.exited)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for range 100 {
		if err := g.await(ctx); err != nil {
			t.Fatal(err)
		}
	}
}

func TestBuffersStaySmall(t *testing.T) {
	o := newOutput(nil, "x")
	for range 10_000 {
		o.keep([]byte(strings.Repeat("y", 777)))
		o.log([]byte(strings.Repeat("y", 777)))
	}
	if cap(o.tail) > 8*tailSize || cap(o.line) > 4*tailSize {
		t.Errorf("tail holds %d bytes, line %d", cap(o.tail), cap(o.line))
	}
}

func TestMissingFolderAndUserAreNamed(t *testing.T) {
	_, err := Run(t.Context(), Spec{Name: "x", Dir: "/no/such/folder", Command: "true"})
	if !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), "/no/such/folder") {
		t.Errorf("error is %v", err)
	}
	_, err = Run(t.Context(), Spec{Name: "x", User: "nobody-of-that-name", Command: "true"})
	if err == nil || err.Error() != "hook x: run as nobody-of-that-name: no such user" {
		t.Errorf("error is %v", err)
	}
}

// gone fails the test unless all processes whose numbers are lines of text end soon: who is killed
// may be a zombie for a moment, until init reaps it.
func gone(t *testing.T, text string) {
	t.Helper()
	found := 0
	for _, line := range strings.Fields(text) {
		pid, err := strconv.Atoi(line)
		if err != nil {
			continue
		}
		found++
		deadline := time.Now().Add(5 * time.Second)
		for running(pid) {
			if time.Now().After(deadline) {
				t.Errorf("process %d is still there", pid)
				_ = syscall.Kill(pid, syscall.SIGKILL)
				break
			}
			time.Sleep(2 * time.Millisecond)
		}
	}
	if found == 0 {
		t.Errorf("no process number in %q", text)
	}
}

func running(pid int) bool {
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	return err == nil && !strings.Contains(string(stat), ") Z ")
}
