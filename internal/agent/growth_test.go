package agent

import (
	"context"
	"fmt"
	"maps"
	"os"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"s3pulldeploy/internal/fleet"
	"s3pulldeploy/internal/release"
)

// footprint is what a process and its disks hold.
type footprint struct{ goroutines, descriptors, entries, heap int }

func (r *rig) footprint() (f footprint) {
	r.t.Helper()
	synctest.Wait()
	for range 2 { // what has a finalizer goes with the second
		runtime.GC()
	}
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		r.t.Fatal(err)
	}
	f = footprint{goroutines: runtime.NumGoroutine(), descriptors: len(fds), heap: int(m.HeapAlloc)}
	for _, b := range r.boxes {
		state, err := os.ReadDir(b.cfg.StateDir)
		if err != nil {
			r.t.Fatal(err)
		}
		f.entries += len(b.names()) + len(state)
	}
	return f
}

// shed has table, bucket and service forget what they remember of epochs that are over, so that what is left to grow is the
// agents'. A real table keeps the notes for ever and the logs for 90 days.
func (r *rig) shed() {
	h, ctx := r.head(), context.Background()
	items, err := r.table.Query(ctx, "bucket/promo", "epoch#", true)
	if err != nil {
		r.t.Fatal(err)
	}
	for _, it := range items {
		if epoch := it["epoch"].(int64); epoch < h.Epoch {
			r.table.Drop(fleet.Key{Partition: "bucket/promo", Sort: fmt.Sprintf("epoch#%012d", epoch)})
			r.table.Drop(fleet.Key{Partition: "bucket/promo", Sort: fmt.Sprintf("note#%d", it["sequence"])})
		}
	}
	r.bucket.drop(func(key string) bool {
		return !strings.HasPrefix(key, "p/") && !strings.Contains(key, string(h.Release))
	})
	r.told.drop()
	for _, b := range r.boxes {
		b.service.drop()
	}
}

// drop forgets what has such a key: an object's, or a release's id.
func (b *bucket) drop(old func(key string) bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	maps.DeleteFunc(b.releases, func(id release.ID, _ map[string]release.Object) bool { return old(string(id)) })
	maps.DeleteFunc(b.bodies, func(key, _ string) bool { return old(key) })
	maps.DeleteFunc(b.fetched, func(key string, _ int) bool { return old(key) })
}

func (p *postbox) drop() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.got = nil
}

func (s *service) drop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lines = s.lines[:0]
}

// TestNothingGrowsOver500Epochs compares what is held after 300 and after 500 epochs: what is made once, such as pools and buffers, is
// there by then.
func TestNothingGrowsOver500Epochs(t *testing.T) {
	if _, err := os.Stat("/dev/shm"); err == nil {
		t.Setenv("TMPDIR", "/dev/shm") // thousands of syncs: a disk would take minutes
	}
	layouts := map[string]func(r *rig) func(release.ID){
		"plain": func(r *rig) func(release.ID) { return r.push },
		"packed": func(r *rig) func(release.ID) {
			var last *packed
			tr := tree{"index.php": "<?php", "lib/a.php": "<?php // a", "bin/run.sh": "#!/bin/sh"}
			return func(id release.ID) {
				last = r.packed(id, last, tr.with(tree{"version.php": string(id)}))
				last.parent = nil
			}
		},
	}
	for name, layout := range layouts {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(r *rig) { growsNot(r, layout(r)) })
		})
	}
}

func growsNot(r *rig, push func(release.ID)) {
	const early, late, most = 300, 500, 16 << 10
	boxes := []*box{r.box("i-1", "keep_releases: 1", "keep_for: 0s"), r.box("i-2", "keep_releases: 1", "keep_for: 0s")}
	for _, b := range boxes {
		b.boot()
	}
	at := map[int]footprint{}
	for n := 1; n <= late; n++ {
		id := release.ID(fmt.Sprintf("r%03d", n))
		push(id)
		r.live(id, time.Minute, boxes...)
		r.shed()
		if n%100 == 0 {
			at[n] = r.footprint()
			r.t.Logf("after %d epochs %+v", n, at[n])
		}
	}
	was, is := at[early], at[late]
	if is.goroutines > was.goroutines || is.descriptors > was.descriptors || is.entries > was.entries+2 {
		r.t.Errorf("after %d epochs %+v, after %d %+v", early, was, late, is)
	}
	if grown := is.heap - was.heap; grown > most {
		r.t.Errorf("the heap has grown by %d bytes over %d epochs", grown, late-early)
	}
}
