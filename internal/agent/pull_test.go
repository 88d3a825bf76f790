package agent

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"

	"s3pulldeploy/internal/fleet"
	"s3pulldeploy/internal/release"
	"s3pulldeploy/internal/store"
	"s3pulldeploy/internal/table"
	"s3pulldeploy/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// way is a bucket whose ranges another function answers.
type way struct {
	*bucket
	rng func(next io.ReadCloser) (io.ReadCloser, error)
}

func (w *way) OpenRange(ctx context.Context, src release.Source, offset, length int64) (io.ReadCloser, error) {
	next, err := w.bucket.OpenRange(ctx, src, offset, length)
	if err != nil {
		return nil, err
	}
	return w.rng(next)
}

// altered gives other bytes.
type altered struct{ io.ReadCloser }

func (a altered) Read(p []byte) (int, error) {
	n, err := a.ReadCloser.Read(p)
	for i := range p[:n] {
		p[i] ^= 1
	}
	return n, err
}

func TestBytesThatWereDamagedOnTheWayAreFetchedOnceMore(t *testing.T) {
	bubble(t, func(r *rig) {
		times := 0
		b := r.box("i-1")
		b.bucket = &way{r.bucket, func(next io.ReadCloser) (io.ReadCloser, error) {
			r.bucket.mu.Lock()
			defer r.bucket.mu.Unlock()
			if times++; times == 2 {
				return altered{next}, nil
			}
			return next, nil
		}}
		b.boot()
		r.packed(r1, nil, site)
		r.live(r1, 30*time.Second, b)
		b.holds(r1, site)
		if h := r.head(); h.Epoch != 1 || times < 3 {
			t.Errorf("epoch %d after %d ranges", h.Epoch, times)
		}
	})
}

func TestLosingS3InTheMiddleIsTheMachines(t *testing.T) {
	bubble(t, func(r *rig) {
		b := r.box("i-1")
		b.bucket = &way{r.bucket, func(next io.ReadCloser) (io.ReadCloser, error) {
			return struct {
				io.Reader
				io.Closer
			}{io.MultiReader(io.LimitReader(next, 1000), broken{}), next}, nil
		}}
		if err := b.prepare(); err != nil {
			t.Fatal(err)
		}
		defer b.disk.Close()
		p := packing{put: r.bucket.put}.pack(t, r1, site)
		err := b.agent.machine.stage(r.t.Context(), want(t, p), func(string) {})
		if !errors.Is(err, store.ErrUnavailable) || !isMachine(err) {
			t.Errorf("error is %v, the machine's: %v", err, isMachine(err))
		}
		if n := r.bucket.requests()["m/"+string(r1)]; n != 1 {
			t.Errorf("the manifest was read %d times in %d tries", n, attempts)
		}
	})
}

type broken struct{}

func (broken) Read([]byte) (int, error) { return 0, fmt.Errorf("read pack: %w", store.ErrUnavailable) }

// want is the order to stage a release.
func want(t *testing.T, p *packed) fleet.Want {
	t.Helper()
	text := strings.Join(append([]string{string(p.id), "1", fmt.Sprint(p.manifest.Files())}, p.lines()...), "\n")
	n, err := fleet.NewNote([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	n.Digest = n.Pointer.Manifest.SHA256
	return fleet.Want{Task: fleet.Stage, Note: n, Commit: fleet.Commitment{Sequence: 1, Release: p.id, Digest: n.Digest}}
}

// lone is a machine without a fleet, in real time.
func lone(t *testing.T, from Bucket, settings ...string) *box {
	t.Helper()
	b := (&rig{t: t, bucket: newBucket(), table: table.NewMemory(), began: time.Now()}).box("i-1", settings...)
	b.bucket = from
	if err := b.prepare(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.disk.Close() })
	return b
}

// onDisk is a bucket whose packs lie in a directory: it holds nothing in memory.
type onDisk struct {
	*bucket
	dir string
}

func (f onDisk) put(key string, body []byte) {
	if !strings.HasPrefix(key, "p/") {
		f.bucket.put(key, body)
		return
	}
	if err := os.WriteFile(filepath.Join(f.dir, filepath.Base(key)), body, 0o600); err != nil {
		panic(err)
	}
}

func (f onDisk) OpenRange(_ context.Context, src release.Source, offset, length int64) (io.ReadCloser, error) {
	in, err := os.Open(filepath.Join(f.dir, filepath.Base(src.Key())))
	if err != nil {
		return nil, err
	}
	return struct {
		io.Reader
		io.Closer
	}{io.NewSectionReader(in, offset, length), in}, nil
}

func TestMemoryIsBoundedWhateverTheRelease(t *testing.T) {
	from := onDisk{newBucket(), t.TempDir()}
	p := func() *packed { // what made the release is garbage afterwards
		tr, words := tree{}, strings.Repeat("much ado about nothing ", 1<<10)
		for i := range 25 { // large files: half of them raw, half of them compressed, some by little
			tr[fmt.Sprintf("raw%02d", i)] = noise(uint64(i), 4<<20)
			tr[fmt.Sprintf("dense%02d", i)] = noise(uint64(i+100), 3<<20) + strings.Repeat(words[i:], 45)[:1<<20]
		}
		return packing{put: from.put}.pack(t, r1, tr)
	}()
	b := lone(t, from)
	w := want(t, p)
	runtime.GC()
	var mu sync.Mutex // the workers speak at the same time
	var before, now runtime.MemStats
	runtime.ReadMemStats(&before)
	peak, frames := uint64(0), 0
	err := b.agent.machine.stage(t.Context(), w, func(line string) {
		mu.Lock()
		defer mu.Unlock()
		runtime.ReadMemStats(&now)
		peak = max(peak, now.HeapInuse)
		if frames++; !strings.HasSuffix(line, " of 184 MB") {
			t.Error(line)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	if made := now.TotalAlloc - before.TotalAlloc; made > 80<<20 {
		t.Errorf("%d MiB allocated: memory is not used again", made>>20)
	}
	if used := int64(peak) - int64(before.HeapInuse); used > 64<<20 || frames < 50 {
		t.Errorf("%d MiB of heap for a release of %d MiB, %d frames", used>>20, p.manifest.Bytes()>>20, frames)
	}
}

func TestKeptManifestsGoWithTheirReleasesAndTornOnesAreReadAgain(t *testing.T) {
	bk := newBucket()
	b := lone(t, bk, "keep_releases: 1", "keep_for: 0s")
	m := b.agent.machine
	kept := func() []string {
		var names []string
		entries, _ := os.ReadDir(filepath.Join(b.cfg.StateDir, manifestsDir))
		for _, e := range entries {
			names = append(names, e.Name())
		}
		return names
	}
	small := tree{"index.php": "<?php echo 1;"}
	first := packing{put: bk.put}.pack(t, r1, small)
	second := packing{parent: first, put: bk.put}.pack(t, r2, small.with(tree{"index.php": "<?php echo 2;"}))
	for _, p := range []*packed{first, second} {
		if err := m.stage(t.Context(), want(t, p), func(string) {}); err != nil {
			t.Fatal(err)
		}
	}
	if names := kept(); len(names) != 2 {
		t.Fatalf("kept %q, want two", names)
	}
	torn := filepath.Join(b.cfg.StateDir, manifestsDir, sum256(second.object))
	if err := os.WriteFile(torn, second.object[:40], 0o600); err != nil {
		t.Fatal(err)
	}
	bk.requests()
	third := packing{parent: second, put: bk.put}.pack(t, r3, small.with(tree{"index.php": "<?php echo 3;"}))
	if err := m.stage(t.Context(), want(t, third), func(string) {}); err != nil {
		t.Fatal(err)
	}
	if got := bk.requests(); got["m/"+string(r3)] != 1 || got[deltaKey(r3, r2)] != 1 {
		t.Errorf("asked for %v, want the manifest, and the delta for what lies in it", got)
	}
	b.holds(r3, small.with(tree{"index.php": "<?php echo 3;"}))
	m.clean(keepList{r3})
	if names := kept(); !slices.Equal(names, []string{sum256(third.object)}) {
		t.Errorf("kept %q, want the one of the release on the disk", names)
	}
}

// wire counts requests.
type wire struct {
	http.RoundTripper
	n atomic.Int64
}

func (w *wire) RoundTrip(r *http.Request) (*http.Response, error) {
	w.n.Add(1)
	return w.RoundTripper.RoundTrip(r)
}

// served is a store at a real server, and how a push would write to it.
func served(t *testing.T) (s *store.Store, w *wire, dir string, put func(key string, body []byte)) {
	t.Helper()
	server := testenv.S3(t)
	name := server.NewBucket(t)
	transport := &http.Transport{}
	t.Cleanup(transport.CloseIdleConnections) // the server would wait for one that was never used
	w = &wire{RoundTripper: transport}
	s = store.New(store.Options{
		Config: aws.Config{
			Region: server.Region, HTTPClient: &http.Client{Transport: w},
			Credentials: aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) {
				return aws.Credentials{AccessKeyID: server.AccessKey, SecretAccessKey: server.SecretKey}, nil
			}),
		},
		Endpoint: server.Endpoint, Bucket: name, Site: "promo",
	})
	return s, w, filepath.Join(server.Dir, name, "promo"), func(key string, body []byte) {
		parts := strings.Split(key, "/")
		var err error
		switch parts[0] {
		case "p":
			err = s.PutPack(t.Context(), release.Sum(sha256.Sum256(body)), bytes.NewReader(body), int64(len(body)))
		case "m":
			err = s.PutManifest(t.Context(), release.ID(parts[1]), body)
		case "d":
			err = s.PutDelta(t.Context(), release.ID(parts[1]), release.ID(parts[2]), body)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

func TestPackedReleaseFromARealServer(t *testing.T) {
	s, w, dir, put := served(t)
	b := lone(t, s)
	first := packing{put: put}.pack(t, r1, site)
	next := site.with(tree{"index.php": "<?php echo 2;"})
	second := packing{parent: first, put: put}.pack(t, r2, next)
	for _, c := range []struct {
		p        *packed
		requests int64
	}{{first, int64(1 + len(first.sources()))}, {second, 1}} {
		w.n.Store(0)
		if err := b.agent.machine.stage(t.Context(), want(t, c.p), func(string) {}); err != nil {
			t.Fatal(err)
		}
		if n := w.n.Load(); n != c.requests {
			t.Errorf("release %s took %d requests, want %d", c.p.id, n, c.requests)
		}
	}
	b.holds(r1, site)
	b.holds(r2, next)
	fresh := lone(t, s)
	if err := fresh.agent.machine.stage(t.Context(), want(t, second), func(string) {}); err != nil {
		t.Fatal(err)
	}
	fresh.holds(r2, next)

	more := next.with(tree{"large.bin": noise(8, 9<<20)})
	third := packing{parent: second, put: put}.pack(t, r3, more)
	err := os.Truncate(filepath.Join(dir, third.lastPack()), 5<<20)
	if err != nil {
		t.Fatal(err)
	}
	err = b.agent.machine.stage(t.Context(), want(t, third), func(string) {})
	if !errors.Is(err, store.ErrDamaged) || isMachine(err) || slices.Contains(b.names(), string(r3)) {
		t.Errorf("a truncated pack: %v, the machine's: %v", err, isMachine(err))
	}
}
