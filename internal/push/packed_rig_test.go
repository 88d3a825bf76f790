package push

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"

	"s3pulldeploy/internal/account"
	"s3pulldeploy/internal/config"
	"s3pulldeploy/internal/release"
	"s3pulldeploy/internal/store"
	"s3pulldeploy/internal/testenv"
)

// wire is what lies between push and the S3 server: it notes every request, and breaks what a test wants broken.
type wire struct {
	mu     sync.Mutex
	seen   []string
	last   time.Time                                  // when the last of them came
	before func(request string, r *http.Request) bool // whether the request goes through
	after  func(request string)
}

func (w *wire) ServeHTTP(to http.ResponseWriter, r *http.Request, next http.Handler) {
	request := r.Method + " " + r.URL.Path
	if r.URL.RawQuery != "" && r.Method == http.MethodGet {
		request += " " + r.URL.Query().Get("prefix")
	}
	w.mu.Lock()
	// What a server that stalls is asked once more is one request: the pointer, after four seconds.
	if n := len(w.seen); n == 0 || w.seen[n-1] != request || r.Method != http.MethodGet || time.Since(w.last) < time.Second {
		w.seen = append(w.seen, request)
	}
	w.last = time.Now()
	before, after := w.before, w.after
	w.mu.Unlock()
	if before != nil && !before(request, r) {
		panic(http.ErrAbortHandler) // the connection breaks
	}
	next.ServeHTTP(to, r)
	if after != nil {
		after(request)
	}
}

// lets sets what goes through from now on; nil: everything. Requests of a push that has ended may still be on their way.
func (w *wire) lets(before func(request string, r *http.Request) bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.before = before
}

// take returns the requests since the last time.
func (w *wire) take() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	seen := w.seen
	w.seen = nil
	return seen
}

// packedRig is a site of its own with a tree, and a wire to the server.
type packedRig struct {
	*testing.T
	dir      string // the tree
	config   string
	bucket   string // where the server keeps it
	aws      aws.Config
	endpoint string
	wire     *wire
	store    *store.Store
}

func newPackedRig(t *testing.T, tree map[string]string) *packedRig {
	t.Helper()
	s3, dynamo := testenv.S3(t), testenv.DynamoDB(t)
	target, err := url.Parse(s3.Endpoint)
	if err != nil {
		t.Fatal(err)
	}
	r := &packedRig{T: t, dir: plant(t, tree), wire: &wire{}}
	// The host stays: it is part of what is signed.
	proxy := &httputil.ReverseProxy{
		Rewrite:  func(p *httputil.ProxyRequest) { p.SetURL(target); p.Out.Host = p.In.Host },
		ErrorLog: log.New(io.Discard, "", 0),
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) { r.wire.ServeHTTP(w, req, proxy) }))
	t.Cleanup(server.Close)
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	bucket := s3.NewBucket(t)
	r.bucket = filepath.Join(s3.Dir, bucket)
	r.config = filepath.Join(t.TempDir(), "config.yml")
	settings := fmt.Sprintf("site: shop\nbucket: %s\ntable: %s\nendpoints: {s3: %q, dynamodb: %q}\nregion: us-east-1\nlayout: packed\n",
		bucket, bucket, server.URL, dynamo)
	if err := os.WriteFile(r.config, []byte(settings), 0o644); err != nil {
		t.Fatal(err)
	}
	aws, err := account.Load(t.Context(), account.Options{OwnEndpoints: true})
	if err != nil {
		t.Fatal(err)
	}
	r.aws, r.endpoint = aws, s3.Endpoint
	r.store = store.New(store.Options{Config: aws, Endpoint: s3.Endpoint, Bucket: bucket, Site: "shop"})
	testenv.Patiently(t, func() error {
		code, _, said := r.push(t.Context(), "-init")
		if code != exitDone {
			return errors.New(said)
		}
		return nil
	})
	r.wire.take()
	return r
}

// push runs the command; what it says to people is one text.
func (r *packedRig) push(ctx context.Context, args ...string) (code int, stdout, stderr string) {
	r.Helper()
	var out, errs bytes.Buffer
	code = Main(ctx, append([]string{"-config=" + r.config}, args...), strings.NewReader(""), &out, &errs)
	return code, out.String(), errs.String()
}

// session runs the command with a session that the test changes, and returns what it printed.
func (r *packedRig) session(ctx context.Context, change func(*session), args ...string) (stdout string, err error) {
	o, err := parse(append([]string{"-config=" + r.config}, args...))
	if err != nil {
		return "", err
	}
	var out, said bytes.Buffer
	s := &session{options: o, console: newConsole(o.json, strings.NewReader(""), &out, &said)}
	if s.cfg, err = config.Load(o.config, config.ForPush); err != nil {
		return "", err
	}
	change(s)
	err = verbs[o.verb].run(s, ctx)
	return out.String(), err
}

// deploy pushes the tree, which must end well, and returns the result and the requests that it took up to the pointer:
// cleaning up comes after it, and not each time.
func (r *packedRig) deploy(args ...string) (result Result, requests []string) {
	r.Helper()
	r.wire.take()
	code, out, said := r.push(r.Context(), append([]string{"-deploy=" + r.dir, "-json"}, args...)...)
	if code != exitDone {
		r.Fatalf("exit code %d: %s", code, said)
	}
	if err := json.Unmarshal([]byte(out), &result); err != nil {
		r.Fatal(err)
	}
	requests = r.wire.take()
	if i := slices.IndexFunc(requests, func(q string) bool { return strings.HasPrefix(q, "PUT") && strings.HasSuffix(q, "/latest-deploy") }); i >= 0 {
		requests = requests[:i+1]
	}
	return result, requests
}

func (r *packedRig) write(name, text string) {
	r.Helper()
	full := filepath.Join(r.dir, name)
	if err := errors.Join(os.MkdirAll(filepath.Dir(full), 0o755), os.WriteFile(full, []byte(text), 0o644)); err != nil {
		r.Fatal(err)
	}
}

func (r *packedRig) pointer() release.Pointer {
	r.Helper()
	read, err := r.store.Pointer(r.Context(), "")
	if err != nil {
		r.Fatal(err)
	}
	p, err := release.ParsePointer(read.Text)
	if err != nil {
		r.Fatal(err)
	}
	return p
}

// manifest reads what the pointer names.
func (r *packedRig) manifest(p release.Pointer) *release.Manifest {
	r.Helper()
	object, err := r.store.GetManifest(r.Context(), p.Release, *p.Manifest)
	if err != nil {
		r.Fatal(err)
	}
	m, err := release.ParseManifest(object)
	if err != nil {
		r.Fatal(err)
	}
	return m
}

// pull fetches the pointer's release as a new instance does and compares it with the tree on disk.
func (r *packedRig) pull() *release.Manifest {
	r.Helper()
	m := r.manifest(r.pointer())
	got := r.contents(m)
	listed := map[string]bool{}
	for i := range m.Entries {
		e := &m.Entries[i]
		listed[e.Path] = true
		full := filepath.Join(r.dir, e.Path)
		info, err := os.Lstat(full)
		if err != nil {
			r.Error(err)
			continue
		}
		switch e.Kind {
		case release.Dir:
			if !info.IsDir() {
				r.Errorf("%q is a directory only in the release", e.Path)
			}
		case release.Symlink:
			if target, err := os.Readlink(full); err != nil || target != e.Target {
				r.Errorf("%q links to %q, in the release to %q", e.Path, target, e.Target)
			}
		default:
			want, err := os.ReadFile(full)
			if err != nil || !bytes.Equal(want, got[i]) || e.Verify(got[i]) != nil || e.Exec != (info.Mode()&0o100 != 0) {
				r.Errorf("%q came back as %d other bytes or with another mode, %v", e.Path, len(got[i]), err)
			}
		}
	}
	err := filepath.WalkDir(r.dir, func(name string, _ os.DirEntry, err error) error {
		if rel, _ := filepath.Rel(r.dir, name); err == nil && rel != "." && !listed[rel] {
			r.Errorf("%q is not in the release", rel)
		}
		return err
	})
	if err != nil {
		r.Error(err)
	}
	return m
}

// contents reads every file's contents.
func (r *packedRig) contents(m *release.Manifest) [][]byte {
	r.Helper()
	got := make([][]byte, len(m.Entries))
	all := make([]int, len(m.Entries))
	for i := range all {
		all[i] = i
	}
	plan := m.Fetch(all)
	for _, g := range plan.Ranges {
		in, err := r.store.OpenRange(r.Context(), m.Sources[g.Source], g.Offset, g.Length)
		if err != nil {
			r.Fatal(err)
		}
		body, err := io.ReadAll(in)
		in.Close()
		if err != nil {
			r.Fatal(err)
		}
		for _, n := range g.Frames {
			f := m.Frames[n]
			at := f.Offset - g.Offset
			data, err := release.DecodeFrame(nil, f, body[at:at+f.Stored])
			if err != nil {
				r.Fatal(err)
			}
			for _, i := range plan.Entries(n) {
				part, at := m.Part(&m.Entries[i], n, data)
				if got[i] == nil {
					got[i] = make([]byte, m.Entries[i].Size)
				}
				copy(got[i][at:], part)
			}
		}
	}
	return got
}

// noise is text that does not compress.
func noise(seed byte, n int) string {
	text := make([]byte, n)
	rand.NewChaCha8([32]byte{seed}).Read(text)
	return string(text)
}

func matching(requests []string, parts ...string) (found []string) {
	for _, q := range requests {
		if !slices.ContainsFunc(parts, func(part string) bool { return !strings.Contains(q, part) }) {
			found = append(found, q)
		}
	}
	return found
}

// minimalConfig is one that only a scan needs.
func minimalConfig() *config.Config { return &config.Config{} }

// settings adds lines to the settings file.
func (r *packedRig) settings(lines string) {
	r.Helper()
	text, err := os.ReadFile(r.config)
	if err == nil {
		err = os.WriteFile(r.config, append(text, lines...), 0o644)
	}
	if err != nil {
		r.Fatal(err)
	}
}
