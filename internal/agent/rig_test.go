package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"s3pulldeploy/internal/config"
	"s3pulldeploy/internal/disk"
	"s3pulldeploy/internal/fleet"
	"s3pulldeploy/internal/instance"
	"s3pulldeploy/internal/release"
	"s3pulldeploy/internal/table"
)

// The releases of the tests, all of the same files with their own contents.
const (
	r1 = release.ID("2026-11-20_20-15-01")
	r2 = release.ID("2026-11-20_20-15-02")
	r3 = release.ID("2026-11-20_20-15-03")
	r4 = release.ID("2026-11-20_20-15-04")
)

var paths = []string{"a.php", "b.php", "lib/c.php", "lib/d.php"}

// rig is a fleet of real agents on real disks in a synctest bubble; S3, the table and the service manager are in memory.
type rig struct {
	t      *testing.T
	bucket *bucket
	table  *table.Memory
	began  time.Time
	bubble bool
	seq    int64
	boxes  []*box
	told   postbox
}

// bubble runs a test with a rig. That all goroutines of the agents end with them is checked by the bubble.
func bubble(t *testing.T, f func(r *rig)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		r := &rig{t: t, bucket: newBucket(), table: table.NewMemory(), began: time.Now(), bubble: true}
		defer func() {
			for _, b := range r.boxes {
				b.stop()
			}
		}()
		f(r)
	})
}

type rigClock struct{ began time.Time }

func (c rigClock) Boot() time.Duration { return time.Since(c.began) + time.Hour }
func (c rigClock) Now() time.Time      { return time.Now() }

// box is one machine.
type box struct {
	r        *rig
	id       string
	settings string
	bucket   Bucket
	table    fleet.Table
	cfg      *config.Config
	service  *service
	once     bool
	log      *slog.Logger // nil: the rig's
	metrics  *Metrics
	// lifecycle is what becomes of the machine, when it is not nil.
	lifecycle func(context.Context) (instance.Lifecycle, error)

	agent  *Agent
	disk   *disk.Disk
	cancel context.CancelFunc
	done   chan error // nil: not running
}

// box makes a machine that is off; settings are lines of YAML.
func (r *rig) box(id string, settings ...string) *box {
	b := &box{r: r, id: id, bucket: r.bucket, table: r.table, service: &service{}}
	dir := r.t.TempDir()
	b.settings = fmt.Sprintf("site: promo\nbucket: bucket\nroot: %s\nstate_dir: %s\npoll_interval: 1s\npointer_interval: 5s\n%s",
		filepath.Join(dir, "www"), filepath.Join(dir, "state"), strings.Join(settings, "\n"))
	b.service.active = func() release.ID { return b.active() }
	r.boxes = append(r.boxes, b)
	return b
}

func (r *rig) boot(ids ...string) []*box {
	var out []*box
	for _, id := range ids {
		b := r.box(id)
		b.boot()
		out = append(out, b)
	}
	return out
}

// prepare wires the box's agent.
func (b *box) prepare() error {
	var err error
	none := func(string) (string, bool) { return "", false }
	if b.cfg, err = config.Parse([]byte(b.settings), "/etc/agent.yml", config.ForAgent, none); err != nil {
		b.r.t.Fatal(err)
	}
	if b.disk, err = openDisk(b.cfg, logger()); err != nil {
		b.r.t.Fatal(err)
	}
	b.agent, err = New(Parts{
		Config: b.cfg, Bucket: b.bucket, Table: b.table, Disk: b.disk, Version: "test", Once: b.once,
		Identity: instance.Identity{ID: b.id, Zone: "a", Source: instance.SourceConfig}, Clock: rigClock{b.r.began},
		Token: token, Random: func() float64 { return 0.5 }, Log: cmp.Or(b.log, logger()), Service: b.service, Notifier: &b.r.told, Metrics: b.metrics, Lifecycle: b.lifecycle,
	})
	return err
}

func (b *box) boot() {
	b.r.t.Helper()
	if err := b.prepare(); err != nil {
		b.r.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	b.cancel, b.done = cancel, make(chan error, 1)
	a, done := b.agent, b.done
	go func() { done <- a.Run(ctx) }()
}

// wait waits for Run's end.
func (b *box) wait() error {
	err := <-b.done
	b.cancel()
	b.done = nil
	if cerr := b.disk.Close(); cerr != nil {
		b.r.t.Error(cerr)
	}
	return err
}

// stop ends a running agent as a signal does.
func (b *box) stop() {
	if b.done == nil {
		return
	}
	b.cancel()
	if err := b.wait(); err != nil && !b.once {
		b.r.t.Errorf("%s ended with %v", b.id, err)
	}
}

// active is where the link leads.
func (b *box) active() release.ID {
	to, _ := os.Readlink(filepath.Join(b.cfg.Root, b.cfg.Active))
	return release.ID(to)
}

// names lists the root.
func (b *box) names() []string {
	entries, err := os.ReadDir(b.cfg.Root)
	if err != nil {
		b.r.t.Fatal(err)
	}
	var out []string
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return out
}

func logger() *slog.Logger {
	if os.Getenv("RIG_LOG") != "" {
		return slog.New(slog.NewTextHandler(os.Stderr, nil))
	}
	return slog.New(slog.DiscardHandler)
}

func (r *rig) ledger() *fleet.Ledger { return fleet.NewLedger(r.table, "bucket/promo", token) }

func (r *rig) head() fleet.Head {
	h, _, err := r.ledger().Head(context.Background(), true)
	if err != nil {
		r.t.Fatal(err)
	}
	return h
}

// row is a member's row; ok is false when there is none.
func (r *rig) row(id string) (m fleet.Member, ok bool) {
	rows, err := r.ledger().Members(context.Background())
	if err != nil {
		r.t.Fatal(err)
	}
	i := slices.IndexFunc(rows, func(m fleet.Member) bool { return m.Instance == id })
	if i < 0 {
		return m, false
	}
	return rows[i], true
}

// push uploads a release of all paths and points to it.
func (r *rig) push(id release.ID) {
	for _, p := range paths {
		r.bucket.upload(id, p, string(id)+" "+p)
	}
	r.point(id, len(paths))
}

// point writes a pointer with the next sequence, and the hint.
func (r *rig) point(id release.ID, files int, lines ...string) {
	r.seq = max(r.seq+1, time.Now().Unix())
	r.bucket.point([]byte(strings.Join(append([]string{string(id), fmt.Sprint(r.seq), fmt.Sprint(files)}, lines...), "\n")))
	err := fleet.ErrOvertaken // by an agent that has read the pointer
	for errors.Is(err, fleet.ErrOvertaken) {
		h := r.head()
		if h.Epoch == 0 {
			return
		}
		_, err = r.ledger().Request(context.Background(), h, fleet.Item{"hint": r.seq})
	}
	if err != nil {
		r.t.Fatal(err)
	}
}

// until waits in the bubble's time, and returns how long. It looks when everybody waits for something: a condition that holds half
// way through a step would race with the rest of it.
func (r *rig) until(what string, limit time.Duration, cond func() bool) time.Duration {
	r.t.Helper()
	began := time.Now()
	for {
		if r.bubble {
			synctest.Wait()
		}
		if cond() {
			return time.Since(began)
		}
		if time.Since(began) > limit {
			var lines []string
			for _, b := range r.boxes {
				if b.agent != nil {
					lines = append(lines, fmt.Sprintf("%s: %s: %s", b.id, b.active(), b.agent.Status().Line))
				}
			}
			r.t.Fatalf("%s: not within %v\nhead %+v\n%s", what, limit, r.head(), strings.Join(lines, "\n"))
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// live waits until the epoch is over and a release is served and reported by these boxes.
func (r *rig) live(id release.ID, limit time.Duration, boxes ...*box) time.Duration {
	r.t.Helper()
	return r.until(string(id)+" live", limit, func() bool {
		if h := r.head(); h.State != fleet.Done || h.Release != id {
			return false
		}
		return !slices.ContainsFunc(boxes, func(b *box) bool {
			m, _ := r.row(b.id)
			return m.Active.Release != id || m.Phase != fleet.Serve || b.active() != id
		})
	})
}

// says waits until a box's status line has a text, or has it no more.
func (b *box) says(text string, limit time.Duration, want bool) {
	b.r.t.Helper()
	b.r.until(fmt.Sprintf("%q in the status: %v", text, want), limit, func() bool {
		return strings.Contains(b.agent.Status().Line, text) == want
	})
}
