//go:build failpoints

package failpoint

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const variable = "S3PULLDEPLOY_FAILPOINTS"

// Hit is called before a step. It does what the step is armed with, and returns the error that the step shall fail with.
func Hit(step string) error { return armed.hit(step).run(step) }

// Landed is called when a step's write has landed at a server, before its answer is looked at.
func Landed(step string) { _ = Hit(step + "+") }

var armed = &list{source: os.Getenv(variable)}

// list is what is armed, and how often each step was hit since.
type list struct {
	source string // the list, or the file that has it

	mu      sync.Mutex
	text    string
	actions map[string]action
	hits    map[string]int
}

// action is what happens at a step: its kind, what comes after the colon, and at which hit, 0 for every one.
type action struct {
	kind, what string
	at         int
	armed      *list
	text       string // that it was armed with
}

// hit counts, and returns what is to happen now; the zero action is nothing.
func (l *list) hit(step string) action {
	l.mu.Lock()
	defer l.mu.Unlock()
	text := l.read()
	if text != l.text || l.hits == nil {
		actions, err := parse(text)
		if err != nil {
			give(err)
		}
		l.text, l.actions, l.hits = text, actions, map[string]int{}
	}
	l.hits[step]++
	a, ok := l.actions[step]
	if !ok || a.at > 0 && a.at != l.hits[step] {
		return action{}
	}
	a.armed, a.text = l, text
	return a
}

// read is what is armed now.
func (l *list) read() string {
	if !strings.HasPrefix(l.source, "/") {
		return l.source
	}
	file, err := os.ReadFile(l.source)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		give(err)
	}
	return strings.TrimSpace(string(file))
}

// give ends a process whose list makes no sense.
func give(err error) {
	fmt.Fprintf(os.Stderr, "failpoint: %v\n", err)
	os.Exit(2)
}

// parse reads a list; errors name the entry.
func parse(text string) (map[string]action, error) {
	actions := map[string]action{}
	for entry := range strings.SplitSeq(text, ",") {
		if entry == "" {
			continue
		}
		step, does, ok := strings.Cut(entry, "=")
		if !ok || step == "" {
			return nil, fmt.Errorf("%q is not STEP=ACTION", entry)
		}
		a := action{}
		if head, count, counted := cutLast(does, "@"); counted {
			n, err := strconv.Atoi(count)
			if err != nil || n < 1 {
				return nil, fmt.Errorf("%q: hits count from 1", entry)
			}
			does, a.at = head, n
		}
		a.kind, a.what, _ = strings.Cut(does, ":")
		_, err := time.ParseDuration(a.what)
		switch {
		case a.kind == "kill" && a.what == "", a.kind == "hang" && a.what == "", a.kind == "wait" && a.what == "", a.kind == "error" && a.what != "", a.kind == "sleep" && err == nil:
		default:
			return nil, fmt.Errorf("%q: an action is kill, hang, wait, sleep:TIME or error:TEXT", entry)
		}
		actions[step] = a
	}
	return actions, nil
}

func cutLast(s, sep string) (before, after string, found bool) {
	if i := strings.LastIndex(s, sep); i >= 0 {
		return s[:i], s[i+len(sep):], true
	}
	return s, "", false
}

// run does what is to happen.
func (a action) run(step string) error {
	if a == (action{}) {
		return nil
	}
	fmt.Fprintf(os.Stderr, "failpoint: %s %s\n", step, a.kind)
	switch a.kind {
	case "kill":
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {} // until it has arrived
	case "hang":
		select {}
	case "wait":
		for a.armed.read() == a.text {
			time.Sleep(10 * time.Millisecond)
		}
		return nil
	case "sleep":
		d, _ := time.ParseDuration(a.what) // parse has tried
		time.Sleep(d)
		return nil
	}
	if number := errorNumber(a.what); number != 0 {
		return &fs.PathError{Op: "failpoint", Path: step, Err: number}
	}
	return fmt.Errorf("failpoint %s: %s", step, a.what)
}

// errorNumber finds an error number by its name, EIO say; 0 for none.
func errorNumber(name string) syscall.Errno {
	for n := syscall.Errno(1); n < 256; n++ {
		if unix.ErrnoName(n) == name {
			return n
		}
	}
	return 0
}
