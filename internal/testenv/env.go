// Package testenv gives tests the real parts that the tool works with: an S3 server, DynamoDB Local,
// the built commands, and a proxy that breaks connections.
//
// A part is started at the first use in a test binary and shared by its tests, so each test takes a
// bucket and a table of its own ([S3Server.NewBucket], [Name]). A package that uses parts calls [Main]
// from its TestMain. Without it, and after a panic, the kernel ends what was started.
//
// Where a part is not installed, or root is needed and not there, the test is skipped and says what is left out. `make test`
// installs everything, runs as root and sets S3PULLDEPLOY_REQUIRE_PARTS=1, which turns the skip into a failure.
package testenv

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"s3pulldeploy/internal/testenv/parts"
)

// S3Server is how to reach the test binary's S3 server.
type S3Server struct {
	Endpoint, Region, AccessKey, SecretKey string

	Dir string // the server's data: a folder for each bucket
}

// Main runs the tests, ends what testenv started and exits.
func Main(m *testing.M) { os.Exit(Run(m)) }

// Run is Main for who has more to clean up: it returns the exit code.
func Run(m *testing.M) int {
	code := m.Run()
	if err := shared.close(); err != nil {
		fmt.Fprintln(os.Stderr, "testenv:", err)
		code = max(code, 1)
	}
	return code
}

// S3 returns the test binary's S3 server and sets the environment of the test so that AWS's SDK has
// its credentials and finds no others. That forbids t.Parallel; child processes use [S3Server.Env].
func S3(t testing.TB) S3Server {
	t.Helper()
	s := part(t, &shared.s3, "S3", func(dir string) (*parts.S3, error) {
		return parts.StartS3(context.Background(), dir)
	})
	setenv(t)
	return S3Server{s.Endpoint, parts.Region, parts.AccessKey, parts.SecretKey, s.Dir}
}

// Env is the whole environment for a child process that uses the test's S3 and DynamoDB servers.
func (S3Server) Env() []string { return parts.Environ() }

// NewBucket creates an empty bucket that is this test's own.
func (s S3Server) NewBucket(t testing.TB) string {
	t.Helper()
	name := Name(t)
	if err := os.Mkdir(filepath.Join(s.Dir, name), 0o755); err != nil {
		t.Fatal("create bucket:", err)
	}
	return name
}

// DynamoDB returns the endpoint of the test binary's DynamoDB Local, and sets the environment like [S3].
func DynamoDB(t testing.TB) string {
	t.Helper()
	d := part(t, &shared.dynamodb, "DynamoDB", func(dir string) (*parts.DynamoDB, error) {
		return parts.StartDynamoDB(context.Background(), dir)
	})
	setenv(t)
	return d.Endpoint
}

// Bin builds a command of this module ("agent", "push") once per test binary and set of build tags,
// and returns its path.
func Bin(t testing.TB, name string, tags ...string) string {
	t.Helper()
	shared.Lock()
	defer shared.Unlock()
	key := strings.Join(append([]string{name}, tags...), " ")
	if path, ok := shared.bins[key]; ok {
		return path
	}
	dir, err := shared.tempDir()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	path, err := parts.Build(ctx, dir, name, tags...)
	if err != nil {
		t.Fatal(err)
	}
	shared.bins[key] = path
	return path
}

// Patiently does what needs a server, and for up to a minute again while the error says that it is unavailable: the first
// request to a DynamoDB Local that has just started may take longer than a request may.
func Patiently(t testing.TB, do func() error) {
	t.Helper()
	for end := time.Now().Add(time.Minute); ; {
		err := do()
		if err == nil {
			return
		}
		if time.Now().After(end) || !strings.Contains(err.Error(), "unavailable") {
			t.Fatal(err)
		}
	}
}

var names atomic.Int64

// Name is a new name for a bucket, a table or a site that belongs to the test, at most 40 letters of
// [a-z0-9-].
func Name(t testing.TB) string {
	s := strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= '0' && r <= '9':
			return r
		case r >= 'A' && r <= 'Z':
			return r + 'a' - 'A'
		}
		return '-'
	}, t.Name())
	s = strings.Trim(s[:min(len(s), 30)], "-")
	return fmt.Sprintf("%s-%d", s, names.Add(1))
}

// shared is what this test binary has started.
var shared = environment{bins: make(map[string]string)}

type environment struct {
	sync.Mutex
	dir      string
	s3       *parts.S3
	dynamodb *parts.DynamoDB
	bins     map[string]string
}

// tempDir is the binary's own folder, removed by close.
func (e *environment) tempDir() (string, error) {
	if e.dir != "" {
		return e.dir, nil
	}
	dir, err := os.MkdirTemp("", "testenv-")
	e.dir = dir
	return dir, err
}

func (e *environment) close() error {
	e.Lock()
	defer e.Unlock()
	var errs []error
	if e.s3 != nil {
		errs = append(errs, e.s3.Stop(10*time.Second))
	}
	if e.dynamodb != nil {
		errs = append(errs, e.dynamodb.Stop(10*time.Second))
	}
	if e.dir != "" {
		errs = append(errs, os.RemoveAll(e.dir))
	}
	return errors.Join(errs...)
}

// part returns what slot holds, started first if need be. A part that is not installed skips the test.
func part[T any](t testing.TB, slot **T, what string, start func(dir string) (*T, error)) *T {
	t.Helper()
	shared.Lock()
	defer shared.Unlock()
	if *slot != nil {
		return *slot
	}
	dir, err := shared.tempDir()
	if err != nil {
		t.Fatal(err)
	}
	p, err := start(dir)
	Require(t, what+" tests", err)
	*slot = p
	return p
}

// Require ends a test whose part did not start (err is not nil). Where the part is only not installed the
// test is skipped and says what is left out, unless S3PULLDEPLOY_REQUIRE_PARTS=1 forbids that.
func Require(t testing.TB, leftOut string, err error) {
	t.Helper()
	switch {
	case err == nil:
	case errors.Is(err, parts.ErrMissing):
		LeaveOut(t, fmt.Sprintf("%s are left out, `make test` installs what they need: %v", leftOut, err))
	default:
		t.Fatalf("%s: %v", leftOut, err)
	}
}

// LeaveOut ends a test that this machine cannot run: skipped with the reason, or failed where
// S3PULLDEPLOY_REQUIRE_PARTS=1 says that nothing may be left out.
func LeaveOut(t testing.TB, why string) {
	t.Helper()
	if os.Getenv("S3PULLDEPLOY_REQUIRE_PARTS") == "1" {
		t.Fatalf("%s; S3PULLDEPLOY_REQUIRE_PARTS=1 allows no skip", why)
	} else {
		t.Skipf("%s", why)
	}
}

// Root ends a test that only root can run, as [LeaveOut] does. What is what root is needed for.
func Root(t testing.TB, what string) {
	t.Helper()
	if os.Geteuid() != 0 {
		LeaveOut(t, what+": needs root, `make test` uses sudo where it asks nothing")
	}
}

// setenv gives the test the credentials and removes everything else of AWS until its end.
func setenv(t testing.TB) {
	t.Helper()
	for _, kv := range os.Environ() {
		if k, _, _ := strings.Cut(kv, "="); strings.HasPrefix(k, "AWS_") {
			t.Setenv(k, "") // for the restore at the end
			os.Unsetenv(k)
		}
	}
	for k, v := range parts.Credentials() {
		t.Setenv(k, v)
	}
}
