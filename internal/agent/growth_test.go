package agent

import (
	"fmt"
	"os"
	"runtime"
	"testing"
	"testing/synctest"
	"time"

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

// The heap has what the pretended table and bucket keep of an epoch in it, too: some kilobytes.
func TestNothingGrowsOver500Epochs(t *testing.T) {
	const epochs, perEpoch = 500, 12 << 10
	if _, err := os.Stat("/dev/shm"); err == nil {
		t.Setenv("TMPDIR", "/dev/shm") // thousands of syncs: a disk would take minutes
	}
	bubble(t, func(r *rig) {
		boxes := []*box{r.box("i-1", "keep_releases: 1", "keep_for: 0s"), r.box("i-2", "keep_releases: 1", "keep_for: 0s")}
		for _, b := range boxes {
			b.boot()
		}
		var early footprint
		for n := 1; n <= epochs; n++ {
			id := release.ID(fmt.Sprintf("r%d", n))
			r.push(id)
			r.live(id, time.Minute, boxes...)
			if n == 100 {
				early = r.footprint()
			}
		}
		late := r.footprint()
		t.Logf("after 100 epochs %+v, after %d %+v", early, epochs, late)
		if late.goroutines > early.goroutines || late.descriptors > early.descriptors || late.entries > early.entries+2 {
			t.Errorf("after 100 epochs %+v, after %d %+v", early, epochs, late)
		}
		if grown := late.heap - early.heap; grown > (epochs-100)*perEpoch {
			t.Errorf("the heap has grown by %d bytes over %d epochs", grown, epochs-100)
		}
	})
}
