package sim

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"hash/fnv"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"s3pulldeploy/internal/release"
)

// realm is a run of real agents, with their loops, workers and schedules, on real disks, in a synctest bubble; the table and the
// bucket are in memory.
//
// Goroutines that are runnable at one instant run in any order. So that a seed replays exactly, everything that is shared
// is only touched by goroutines that woke alone: each request waits until an instant that nobody else has ([realm.at]), and its
// fate is drawn from its own name ([life.fate]), whoever came first.
type realm struct {
	*scene
	mu       sync.Mutex // held while anything below, or of the scene, is looked at or changed
	counting sync.Mutex // held while requests are counted
	began    time.Time
	dir      string
	hosts    []*host
	lives    []*life
	bucket   bucket
	packed   bool
	over     bool
	ran      int      // lines of fleet_once that were counted
	story    []string // all that happened, in order
}

// grain is the distance of the instants that one slot has.
const grain = 4096

// The slots: who wakes at which instants modulo grain. Hosts have slotsPerHost each, from slotHosts on.
const (
	slotDriver   = 0
	slotTables   = 1
	slotHosts    = 64
	slotsPerHost = 128

	slotLoop     = 0 // requests of the loop but for sweeps; of the boot
	slotWorker   = 1
	slotPointer  = 2
	slotLate     = 3  // requests that arrive late
	slotClock    = 4  // looking at the clock
	slotTicks    = 5  // of the schedule, one for each job
	slotParts    = 16 // sweeps: 16 partitions
	slotContents = 32 // objects, by their names
)

func (h *host) slot(n int) int { return slotHosts + h.index*slotsPerHost + n }

// at is an instant that only a slot has, in d or soon after, as a duration from now.
func (r *realm) at(d time.Duration, slot int) time.Duration {
	now := time.Since(r.began)
	due := (now+max(d, 0))/grain*grain + time.Duration(slot)
	for due <= now {
		due += grain
	}
	return due - now
}

func (r *realm) lock() {
	r.mu.Lock()
	r.now = time.Since(r.began)
}

// locked does something alone.
func (r *realm) locked(f func()) {
	r.lock()
	defer r.mu.Unlock()
	f()
}

// happened adds to the story, and has the truth look.
func (r *realm) happened(id, what, outcome string) {
	r.story = append(r.story, fmt.Sprintln(r.now, id, what, outcome))
	r.truth.check(what)
}

// fate is a request's own randomness.
type fate struct{ *rand.Rand }

func (f fate) chance(p float64) bool { return f.Float64() < p }
func (f fate) between(lo, hi time.Duration) time.Duration {
	x := f.Float64()
	return lo + time.Duration(x*x*float64(hi-lo))
}

// fateOf draws from a name.
func (s *scene) fateOf(name ...any) fate {
	h := fnv.New64a()
	fmt.Fprintln(h, name...)
	return fate{rand.New(rand.NewPCG(s.seed, h.Sum64()))}
}

// workshop is where disks lie: in memory where the machine has that.
func workshop(t testing.TB) string {
	t.Helper()
	base := "/dev/shm"
	if _, err := os.Stat(base); err != nil {
		base = ""
	}
	dir, err := os.MkdirTemp(base, "sim")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// warmUp makes the coders that the process keeps, outside of any bubble.
func warmUp() {
	plain := bytes.Repeat([]byte("x"), 1000)
	stored := release.BuildFrame(nil, plain)
	if _, err := release.DecodeFrame(nil, release.Frame{Stored: int64(len(stored)), Length: int64(len(plain))}, stored); err != nil {
		panic(err)
	}
}

// live runs one seed with real agents: a time of faults, then calm, in which the fleet must converge.
func live(t *testing.T, seed uint64, dir string) *realm {
	t.Helper()
	return within(t, seed, dir, (*realm).play)
}

// within has something happen in a realm of its own.
func within(t *testing.T, seed uint64, dir string, happen func(*realm)) *realm {
	t.Helper()
	warmUp()
	r := &realm{scene: newScene(seed), dir: filepath.Join(dir, fmt.Sprint(seed))}
	synctest.Test(t, func(*testing.T) {
		r.began = time.Now()
		r.bucket = bucket{r: r, objects: map[string][]byte{}, plain: map[release.ID]release.Listing{}, bodies: map[release.ID]tree{}, lines: map[release.ID]string{}}
		defer r.end()
		happen(r)
	})
	if err := os.RemoveAll(r.dir); err != nil {
		t.Error(err)
	}
	return r
}

func (r *realm) play() {
	r.locked(func() {
		r.digest = r.bucket.digest
		if r.seed%4 == 0 {
			r.tables = newTables(r.scene, r.after)
		}
		if r.seed%3 == 0 {
			r.people = newPeople(r.scene)
		}
		r.busy, r.packed, r.hooked, r.stepwise = r.chance(0.2), r.chance(0.5), r.chance(0.25), true
		for range 1 + r.rng.IntN(4) {
			r.addHost().later(r.between(0, 5*time.Second), (*host).start)
		}
	})
	r.pause(r.between(0, 20*time.Second))
	r.locked(func() { r.publish("") })
	end := r.between(3*time.Minute, 15*time.Minute)
	for time.Since(r.began) < end && !r.failed() {
		r.pause(r.between(100*time.Millisecond, 40*time.Second))
		r.locked(r.trouble)
	}
	r.locked(r.calmDown)
	r.pause(time.Second)
	r.locked(func() { r.publish("") })
	r.settle(45 * time.Minute)
}

// settle waits until all that live are in service on what the fleet committed.
func (r *realm) settle(bound time.Duration) {
	for last := time.Since(r.began) + bound; !r.failed(); r.pause(5 * time.Second) {
		missing := ""
		r.locked(func() {
			r.approve()
			if missing = r.truth.settled(); missing == "" {
				r.verifyAll()
			} else if r.now > last {
				r.fail("I11 non-blocking: not settled %v after the last fault: %s", bound, missing)
			}
		})
		if missing == "" {
			return
		}
	}
}

func (r *realm) pause(d time.Duration) { time.Sleep(r.at(d, slotDriver)) }

func (r *realm) failed() (yes bool) {
	r.locked(func() { yes = len(r.violate) > 0 })
	return yes
}

// after does something alone after a while, for the table.
func (r *realm) after(d time.Duration, _ string, f func()) {
	time.AfterFunc(r.at(d, slotTables), func() {
		r.locked(func() {
			if !r.over {
				f()
			}
		})
	})
}

// onceHook is the command that notes each run of fleet_once; empty: there is none.
func (r *realm) onceHook() string {
	if !r.hooked {
		return ""
	}
	return "echo $DEPLOY_INSTANCE $DEPLOY_SEQUENCE >> " + r.runs()
}

func (r *realm) runs() string { return filepath.Join(r.dir, "runs") }

// countRuns has the truth see the runs of fleet_once that have ended. It is asked before each write of the table, so that each run
// is seen in its own epoch.
func (r *realm) countRuns() {
	text, err := os.ReadFile(r.runs())
	if errors.Is(err, fs.ErrNotExist) {
		return
	} else if err != nil {
		panic(err)
	}
	lines := strings.Fields(string(text))
	for ; r.ran+1 < len(lines); r.ran += 2 {
		sequence, err := strconv.ParseInt(lines[r.ran+1], 10, 64)
		if err != nil {
			panic(err)
		}
		if i := slices.IndexFunc(r.machines, func(m *machine) bool { return m.id == lines[r.ran] }); r.truth.head.Sequence == sequence {
			r.truth.ran(r.machines[i], r.truth.head.Epoch, sequence)
		}
	}
}

// trouble does one bad or merely busy thing.
func (r *realm) trouble() {
	if r.people != nil && r.people.rng.IntN(2) == 0 {
		r.people.act()
	}
	if r.tables != nil && r.tables.rng.IntN(8) == 0 {
		r.tables.restore()
	}
	if r.chance(0.3) {
		r.approve()
	}
	h := r.hosts[r.rng.IntN(len(r.hosts))]
	kind := r.rng.IntN(14)
	if r.busy && r.chance(0.7) {
		kind = 12
	}
	switch kind {
	case 0, 1, 2:
		r.publish("")
	case 3:
		if past := r.truth.releases(); len(past) > 1 {
			r.publish(past[r.rng.IntN(len(past)-1)])
		}
	case 4:
		h.crash("killed")
	case 5:
		h.pausedUntil = max(h.pausedUntil, r.now+r.between(time.Second, 3*time.Minute))
		r.note("%s paused until %v", h.id, h.pausedUntil)
	case 6:
		h.cut = r.now + r.between(time.Second, 3*time.Minute)
		r.note("%s cut off from the table until %v", h.id, h.cut)
	case 7:
		h.s3cut = r.now + r.between(time.Second, 3*time.Minute)
		r.note("%s cut off from the bucket until %v", h.id, h.s3cut)
	case 8:
		h.sick = !h.sick
		r.note("%s sick: %v", h.id, h.sick)
	case 9:
		if len(r.hosts) < 6 {
			r.addHost().later(r.between(0, 5*time.Second), (*host).start)
		}
	case 10:
		h.skew += time.Duration(r.rng.IntN(7200)-3600) * time.Second
	case 11:
		r.freeze(r.truth.head.Frozen == nil)
	case 12:
		h.sigterm(false)
	case 13:
		h.sigterm(true)
	}
}

// calmDown ends all faults. What was terminated stays so.
func (r *realm) calmDown() {
	r.calm, r.busy = true, false
	left := slices.ContainsFunc(r.hosts, func(h *host) bool { return !h.gone && (h.life == nil || !h.life.going) })
	for _, h := range r.hosts {
		h.cut, h.s3cut, h.sick = 0, 0, false
		h.pausedUntil = min(h.pausedUntil, r.now)
	}
	if !left {
		r.addHost().later(0, (*host).start)
	}
	if r.truth.head.Frozen != nil {
		r.freeze(false)
	}
	r.note("calm")
}

// end stops all agents, and waits for what is left of those that died: one may have been paused.
func (r *realm) end() {
	r.locked(func() { r.over = true })
	for _, l := range r.lives {
		if l.cancel != nil {
			l.cancel()
			<-l.ended
		}
	}
}

// verifyAll looks at every disk.
func (r *realm) verifyAll() {
	for _, h := range r.hosts {
		h.look()
		if h.active == "" {
			continue
		}
		if err := h.verify(h.active); err != nil {
			r.fail("I13 atomic view: %s serves %s: %v", h.id, h.active, err)
		}
	}
}

// spoiltDir names the releases that fail their check after the flip: it is a hook that looks there.
func (r *realm) spoiltDir() string { return filepath.Join(r.dir, "spoilt") }

// publish pushes a release as the push command does: contents first, then pointer and hint; back is an earlier one.
func (r *realm) publish(back release.ID) {
	id := cmp.Or(back, release.ID(fmt.Sprintf("r%d", len(r.pushed)+1)))
	r.push(back)
	if back == "" {
		r.bucket.upload(id, r.broken[id])
	}
	if r.spoilt[id] {
		if err := errors.Join(os.MkdirAll(r.spoiltDir(), 0o755), os.WriteFile(filepath.Join(r.spoiltDir(), string(id)), nil, 0o644)); err != nil {
			panic(err)
		}
	}
	r.pointer = r.bucket.sign(r.pointer, id)
	r.bucket.past = append(r.bucket.past, r.pointer)
}
