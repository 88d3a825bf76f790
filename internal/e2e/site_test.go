package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"s3pulldeploy/internal/testenv"
	"s3pulldeploy/internal/testenv/parts"
)

// world is what all scenarios share.
type world struct {
	s3       testenv.S3Server
	dynamodb string
	push     string // the built commands
	agent    string
}

func newWorld(t *testing.T) *world {
	return &world{testenv.S3(t), testenv.DynamoDB(t), testenv.Bin(t, "push"), testenv.Bin(t, "agent")}
}

// site is one site with its bucket, its developer's settings and its agents.
type site struct {
	t      *testing.T
	world  *world
	name   string
	bucket string
	dir    string // short, for sockets, and open to every user, for hooks
	app    string // the tree that is pushed
	agents []*agent
	// s3, table and sns are where agents find the services; push goes straight to the servers. Empty: Amazon's SNS.
	s3, table, sns string
	env            []string // of push, besides the usual
}

var sites atomic.Int64

// newSite creates bucket and table with `push -init`, for agents to come.
func newSite(t *testing.T, w *world) *site {
	t.Helper()
	dir, err := os.MkdirTemp("", "e2e-")
	check(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	check(t, os.Chmod(dir, 0o755))
	n := sites.Add(1)
	s := &site{
		t: t, world: w, dir: dir, app: filepath.Join(dir, "app"), s3: w.s3.Endpoint, table: w.dynamodb,
		name: fmt.Sprintf("site-%d", n), bucket: fmt.Sprintf("e2e-%d-%d", os.Getpid(), n),
	}
	s.write("push.yml", s.settings(w.s3.Endpoint, w.dynamodb))
	// The first request to a DynamoDB Local that has just started may take longer than push waits for one.
	s.await(30*time.Second, "push -init", func() string {
		if r := s.push("-init"); r.code != 0 {
			return r.String()
		}
		return ""
	})
	t.Cleanup(func() {
		for _, a := range s.agents {
			if t.Failed() {
				t.Logf("log of %s:\n%s", a.id, a.logText())
			}
		}
	})
	return s
}

// settings is the part that developer and instances share.
func (s *site) settings(s3, table string) string {
	return fmt.Sprintf("site: %s\nbucket: %s\nregion: %s\nendpoints: {s3: %q, dynamodb: %q, sns: %q}\n",
		s.name, s.bucket, parts.Region, s3, table, s.sns)
}

// write writes a file of the site's folder and returns its path.
func (s *site) write(name, text string) string {
	s.t.Helper()
	path := filepath.Join(s.dir, name)
	check(s.t, os.MkdirAll(filepath.Dir(path), 0o755))
	check(s.t, os.WriteFile(path, []byte(text), 0o644))
	return path
}

// result is how a call of a command ended.
type result struct {
	code           int
	stdout, stderr string
}

func (r result) String() string {
	return fmt.Sprintf("exit code %d\nstdout: %s\nstderr: %s", r.code, r.stdout, r.stderr)
}

// commandTime bounds every call: above what a lease and a lost coordinator cost together.
const commandTime = 100 * time.Second

// said is what a command has printed to stderr; it may be read while the command runs.
type said struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (s *said) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.Write(p)
}

func (s *said) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.String()
}

// call runs a command to its end.
func (s *site) call(path string, args ...string) result { return s.run(&said{}, path, args...) }

// run is call whose stderr can be read meanwhile.
func (s *site) run(stderr *said, path string, args ...string) result {
	ctx, cancel := context.WithTimeout(context.Background(), commandTime)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Env = append(parts.Environ(), "RUNTIME_DIRECTORY="+s.dir, "XDG_CACHE_HOME="+filepath.Join(s.dir, "cache"))
	cmd.Env = append(cmd.Env, s.env...)
	var stdout bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, stderr
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		s.t.Errorf("run %s: %v", path, err)
	}
	return result{cmd.ProcessState.ExitCode(), stdout.String(), stderr.String()}
}

// push calls the push command with the site's settings. Any goroutine may.
func (s *site) push(args ...string) result { return s.pushSaying(&said{}, args...) }

func (s *site) pushSaying(stderr *said, args ...string) result {
	return s.run(stderr, s.world.push, append([]string{"-config=" + filepath.Join(s.dir, "push.yml")}, args...)...)
}

// outcome is what `push -json` prints of a rollout.
type outcome struct {
	Release      string `json:"release"`
	Sequence     int64  `json:"sequence"`
	Files        int    `json:"files"`
	Outcome      string `json:"outcome"`
	Members      int    `json:"members"`
	Excluded     int    `json:"excluded"`
	LiveMS       int64  `json:"live_ms"`
	FlipSpreadMS int64  `json:"flip_spread_ms"`
	Reason       string `json:"reason"`
}

// tree makes the tree to push exactly these files.
func (s *site) tree(files map[string]string) {
	s.t.Helper()
	check(s.t, os.RemoveAll(s.app))
	for name, text := range files {
		s.write(filepath.Join("app", name), text)
	}
}

// deploy pushes a tree of these files and wants this exit code.
func (s *site) deploy(code int, files map[string]string, args ...string) (outcome, result) {
	s.t.Helper()
	s.tree(files)
	return s.rollOut(code, append([]string{"-deploy=" + s.app}, args...)...)
}

// rollOut runs a verb that rolls out with -json and wants this exit code.
func (s *site) rollOut(code int, args ...string) (outcome, result) {
	s.t.Helper()
	r := s.push(append(args, "-json", "-timeout=90s")...)
	if r.code != code {
		s.t.Fatalf("push %s: want exit code %d: %s", strings.Join(args, " "), code, r)
	}
	var o outcome
	if err := json.Unmarshal([]byte(r.stdout), &o); err != nil {
		s.t.Fatalf("push %s: %v: %s", strings.Join(args, " "), err, r)
	}
	return o, r
}

// live deploys these files and wants them live on so many members.
func (s *site) live(members int, files map[string]string, args ...string) outcome {
	s.t.Helper()
	o, r := s.deploy(0, files, args...)
	if o.Outcome != "done" || o.Members != members || o.Excluded != 0 {
		s.t.Fatalf("want done on %d members: %s", members, r)
	}
	return o
}

// status is what `push -status -json` prints.
type status struct {
	Pointer, Committed *struct {
		Release  string `json:"release"`
		Sequence int64  `json:"sequence"`
	}
	Head *struct {
		Epoch       int64  `json:"epoch"`
		State       string `json:"state"`
		Release     string `json:"release"`
		Coordinator string `json:"coordinator"`
	} `json:"head"`
	Members []member `json:"members"`
}

type member struct {
	Instance string `json:"instance"`
	Phase    string `json:"phase"`
	Release  string `json:"release"`
	Vote     string `json:"vote"`
	Reason   string `json:"reason"`
}

func (s *site) status() status {
	s.t.Helper()
	r := s.push("-status", "-json")
	var st status
	if err := json.Unmarshal([]byte(r.stdout), &st); err != nil {
		s.t.Fatalf("push -status: %v: %s", err, r)
	}
	return st
}

// member is the row of an instance; one without a phase is not there.
func (st status) member(id string) member {
	for _, m := range st.Members {
		if m.Instance == id {
			return m
		}
	}
	return member{}
}

// epoch is the head's number, 0 without a head.
func (st status) epoch() int64 {
	if st.Head == nil {
		return 0
	}
	return st.Head.Epoch
}

// await waits until holds returns "" and fails with what it says when the time is up.
func (s *site) await(within time.Duration, what string, holds func() string) {
	s.t.Helper()
	deadline := time.NewTimer(within)
	defer deadline.Stop()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		missing := holds()
		if missing == "" {
			return
		}
		select {
		case <-deadline.C:
			s.t.Fatalf("%s: not within %v: %s", what, within, missing)
		case <-tick.C:
		}
	}
}

// awaitPhase waits for a phase of these agents' rows.
func (s *site) awaitPhase(within time.Duration, phase string, agents ...*agent) {
	s.t.Helper()
	s.await(within, "phase "+phase, func() string {
		st := s.status()
		for _, a := range agents {
			if m := st.member(a.id); m.Phase != phase {
				return fmt.Sprintf("%s is in phase %q (%s)", a.id, m.Phase, m.Reason)
			}
		}
		return ""
	})
}

// awaitLive waits until a release is what these agents' active names and their rows report.
func (s *site) awaitLive(within time.Duration, release string, agents ...*agent) {
	s.t.Helper()
	s.await(within, release+" is live", func() string {
		st := s.status()
		for _, a := range agents {
			if on, m := a.active(), st.member(a.id); on != release || m.Release != release {
				return fmt.Sprintf("%s is on %q and reports %q, phase %s, %s", a.id, on, m.Release, m.Phase, m.Reason)
			}
		}
		return ""
	})
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// gate is a file that a hook waits for.
type gate string

// hook is a command that waits for the gate, and says that it does with a second file.
func (g gate) hook() string {
	return fmt.Sprintf("touch %[1]s.reached; until [ -e %[1]s ]; do sleep 0.05; done", string(g))
}

func (g gate) open(t *testing.T) {
	t.Helper()
	check(t, os.WriteFile(string(g), nil, 0o644))
}

func (g gate) close(t *testing.T) {
	t.Helper()
	check(t, errors.Join(os.Remove(string(g)), os.RemoveAll(string(g)+".reached")))
}

// reached is "" when the hook is at the gate.
func (g gate) reached() string {
	if _, err := os.Stat(string(g) + ".reached"); err != nil {
		return "the hook has not come"
	}
	return ""
}

// in runs f in the background; the returned function waits for what it returns.
func in[T any](f func() T) func() T {
	done := make(chan T, 1)
	go func() { done <- f() }()
	return func() T { return <-done }
}
