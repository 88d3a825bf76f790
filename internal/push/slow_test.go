package push

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"s3pulldeploy/internal/release"
	"s3pulldeploy/internal/testenv"
)

func TestASlowUplinkThatBreaksCostsSeconds(t *testing.T) {
	const files, rate = 18, 300 << 10 // 18 MiB over three connections of 300 KiB/s
	tree := map[string]string{"large": noise(99, 6<<20)}
	for i := range files - 6 {
		tree[fmt.Sprintf("f%02d", i)] = noise(byte(i), 1<<20)
	}
	r := newPackedRig(t, tree)
	link := testenv.NewProxy(t, r.endpoint)
	text, err := os.ReadFile(r.config)
	if err == nil {
		direct := r.config
		r.config = direct + ".slow"
		before, rest, _ := strings.Cut(string(text), `s3: "`)
		_, after, _ := strings.Cut(rest, `"`)
		err = os.WriteFile(r.config, []byte(before+`s3: "`+link.URL()+`"`+after), 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
	link.SlowUplink(rate)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended := make(chan string)
	go func() {
		_, _, said := r.push(ctx, "-deploy="+r.dir)
		ended <- said
	}()
	stored := func() (packs int, bytes, largest int64) {
		inventory, err := r.store.Packs(t.Context())
		if err != nil {
			t.Error(err)
		}
		for _, o := range inventory.Objects {
			packs, bytes, largest = packs+1, bytes+o.Size, max(largest, o.Size)
		}
		return packs, bytes, largest
	}
	for end := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
		if packs, _, _ := stored(); packs >= 4 {
			break
		}
		if time.Now().After(end) {
			t.Fatal("four packs took a minute")
		}
	}
	link.Cut()
	cancel()
	if said := <-ended; !strings.Contains(said, "cancel") {
		t.Errorf("the interrupted push said %q", said)
	}
	packs, there, largest := stored()
	// Five seconds of 300 KiB/s, as far as a noisy machine's clock tells, and a frame more.
	if limit := int64(4 << 20); largest > limit || packs < 4 {
		t.Errorf("%d packs, the largest of %d bytes, limit %d", packs, largest, limit)
	}
	link.Restore()
	result, _ := r.deploy()
	whole := int64(files << 20)
	t.Logf("%d packs with %d bytes were there, the largest of %d; the second push sent %d of %d", packs, there, largest, result.UploadedBytes, whole)
	if again := result.UploadedBytes - (whole - there); again > 64<<10 {
		t.Errorf("%d bytes were sent that were there already", again)
	}
	m := r.pull()
	r.write("more", "1")
	if dry, _ := r.deploy("-dry-run"); dry.UploadedBytes != 1 {
		t.Errorf("after it a dry run would upload %d bytes", dry.UploadedBytes)
	}
	link.SlowUplink(rate)
	for n := range 2 {
		r.write("small", fmt.Sprint(n))
		if small, _ := r.deploy(); small.UploadedBytes > 64<<10 {
			t.Errorf("small push %d sent %d bytes", n, small.UploadedBytes)
		}
	}
	if c := m.FreshCost(); c.Requests > 2*int(whole/release.MaxRange+1)+8 {
		t.Errorf("a fresh sync takes %d requests", c.Requests)
	}
}

// slowly reads what a request sends, so slowly that it is given up.
func slowly(body io.Reader) {
	buffer := make([]byte, 16<<10)
	for {
		if _, err := body.Read(buffer); err != nil {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func TestALargeDeltaOverASlowUplinkBecomesPacksAndABreakCostsOneOfThem(t *testing.T) {
	const files = 7 // of 1 MiB each: together less than a delta may have
	r := newPackedRig(t, map[string]string{"a": "1"})
	r.deploy()
	for i := range files {
		r.write(fmt.Sprintf("f%d", i), noise(byte(i), 1<<20))
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	packs := 0
	var mu sync.Mutex
	slow := func(breaks bool) func(string, *http.Request) bool {
		return func(request string, req *http.Request) bool {
			switch sent := matching([]string{request}, "PUT"); {
			case matching(sent, "/d/") != nil && req.ContentLength > 1<<20:
				slowly(req.Body)
				return false
			case matching(sent, "/p/") != nil:
				mu.Lock()
				defer mu.Unlock()
				if packs++; breaks && packs == 2 {
					cancel()
					return false
				}
			}
			return true
		}
	}
	push := func(ctx context.Context) error {
		_, err := r.session(ctx, func(s *session) { s.judges = time.Tick(200 * time.Millisecond) }, "-deploy="+r.dir, "-wait=false")
		return err
	}
	r.wire.lets(slow(true))
	if err := push(ctx); err == nil {
		t.Fatal("the push was not interrupted")
	}
	r.wire.lets(slow(false))
	mu.Lock()
	packs = 0
	mu.Unlock()
	r.wire.take()
	if err := push(t.Context()); err != nil {
		t.Fatal(err)
	}
	p := r.pointer()
	if p.Delta == nil || p.Delta.Content.Length > 1<<20 {
		t.Errorf("delta %+v, want one without the contents", p.Delta)
	}
	inventory, err := r.store.Packs(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var stored int64
	for _, o := range inventory.Objects {
		stored += o.Size
	}
	mu.Lock()
	defer mu.Unlock()
	// One of the first release, one of the broken push, and those of the next, of which the first is small: by it the line is
	// measured. Two are enough for a line as fast as this one, unless it stalls.
	if most := int64(files<<20 + 64<<10); packs < 2 || len(inventory.Objects) != packs+2 || stored > most {
		t.Errorf("the second push sent %d packs, and %d are there with %d bytes, want 2 or more, two more than that and at most %d", packs, len(inventory.Objects), stored, most)
	}
	r.pull()
}

func TestALargeDeltaThatArrivedAndWasGivenUpIsNoConflict(t *testing.T) {
	r := newPackedRig(t, map[string]string{"a": "1"})
	r.deploy()
	for i := range 7 { // more than the kernel takes at once
		r.write(fmt.Sprintf("f%d", i), noise(byte(i), 1<<20))
	}
	stuck, ended := context.WithCancel(t.Context())
	defer ended()
	var tries atomic.Int32
	ticks := make(chan time.Time)
	delta := func(request string) bool { return matching([]string{request}, "PUT", "/d/") != nil }
	r.wire.lets(func(request string, req *http.Request) bool {
		if !delta(request) || req.ContentLength < 1<<20 || tries.Add(1) == 1 {
			return true
		}
		for { // the line is judged only now: the first try gets through, whatever it takes
			select {
			case ticks <- time.Now():
			case <-stuck.Done():
				return false
			}
		}
	})
	r.wire.mu.Lock()
	r.wire.after = func(request string) {
		if delta(request) && tries.Load() == 1 {
			panic(http.ErrAbortHandler) // the reply is lost
		}
	}
	r.wire.mu.Unlock()
	if _, err := r.session(t.Context(), func(s *session) { s.judges = ticks }, "-deploy="+r.dir, "-wait=false"); err != nil {
		t.Fatal(err)
	}
	p, deltas := r.pointer(), matching(r.objects(), "d/")
	if tries.Load() < 2 || len(deltas) != 2 || p.Delta == nil || deltas[1] != "d/"+string(p.Release)+"/"+string(p.Delta.Parent) {
		t.Errorf("%d tries left %q for %+v, want what was given up, and this release's", tries.Load(), deltas, p)
	}
	if m := r.pull(); len(m.Sources) < 2 || slices.ContainsFunc(m.Sources, func(s release.Source) bool { return s.Release != "" }) {
		t.Errorf("contents are in %v, want packs", m.Sources)
	}
}
