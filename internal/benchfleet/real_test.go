package benchfleet

import (
	"cmp"
	"context"
	"crypto/md5"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	mathrand "math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"s3pulldeploy/internal/account"
	"s3pulldeploy/internal/agent"
	"s3pulldeploy/internal/config"
	"s3pulldeploy/internal/disk"
	"s3pulldeploy/internal/fleet"
	"s3pulldeploy/internal/instance"
	"s3pulldeploy/internal/release"
	"s3pulldeploy/internal/store"
	"s3pulldeploy/internal/table"
	"s3pulldeploy/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// bucket is a site of the plain layout in memory: what the store costs is measured elsewhere.
type bucket struct {
	agent.Packed // none
	mu           sync.Mutex
	pointer      []byte
	releases     map[release.ID]map[string]string
	reads        int // of the pointer
}

func sum(text string) string {
	s := md5.Sum([]byte(text))
	return hex.EncodeToString(s[:])
}

// Pointer implements agent.Bucket.
func (b *bucket) Pointer(_ context.Context, etag string) (store.Read, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.reads++
	switch tag := sum(string(b.pointer)); {
	case b.pointer == nil:
		return store.Read{}, store.ErrNotFound
	case tag == etag:
		return store.Read{}, store.ErrNotModified
	default:
		return store.Read{Text: b.pointer, ETag: tag, Date: time.Now()}, nil
	}
}

// List implements agent.Bucket.
func (b *bucket) List(_ context.Context, id release.ID) (out release.Listing, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for p, body := range b.releases[id] {
		out = append(out, release.Object{Path: p, Size: int64(len(body)), ETag: sum(body), Modified: time.Unix(1_700_000_000, 0)})
	}
	slices.SortFunc(out, func(a, b release.Object) int { return strings.Compare(a.Path, b.Path) })
	return out, nil
}

// Open implements agent.Bucket.
func (b *bucket) Open(_ context.Context, id release.ID, o release.Object) (io.ReadCloser, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return io.NopCloser(strings.NewReader(b.releases[id][o.Path])), nil
}

// publish pushes a release of which one file changed.
func (b *bucket) publish(id release.ID, sequence int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.releases[id] = map[string]string{"index.php": string(id), "a.php": "a", "lib/b.php": "b"}
	b.pointer = []byte(fmt.Sprintf("%s\n%d\n%d", id, sequence, len(b.releases[id])))
}

// silent is a service manager that nobody listens to.
type silent struct{}

func (silent) Ready()                                        {}
func (silent) Status(string)                                 {}
func (silent) Watchdog()                                     {}
func (silent) WatchdogEvery() time.Duration                  { return 0 }
func (silent) Restart(context.Context, []string) error       { return nil }
func (silent) Reload(context.Context, []string) (int, error) { return 0, nil }
func (silent) Going(context.Context) bool                    { return true }

type realClock struct{}

func (realClock) Boot() time.Duration {
	var ts unix.Timespec
	must(unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts))
	return time.Duration(ts.Nano())
}
func (realClock) Now() time.Time { return time.Now() }

func token() string {
	b := make([]byte, 16)
	_, _ = rand.Read(b)
	return hex.EncodeToString(b)
}

// squad is a fleet of real agents in this process.
type squad struct {
	t      *testing.T
	bucket *bucket
	tables []*table.Dynamo // each agent's own, which counts
	own    *fleet.Ledger
	seq    int64
	stop   context.CancelFunc
	wg     sync.WaitGroup
}

// dial is a table whose requests may take so long; 0: as long as an agent's.
func dial(t *testing.T, name string, timeout time.Duration) *table.Dynamo {
	t.Helper()
	endpoint := testenv.DynamoDB(t) // and credentials
	cfg, err := account.Load(t.Context(), account.Options{OwnEndpoints: true})
	must(err)
	return table.NewDynamo(table.Options{Config: cfg, Endpoint: endpoint, Name: name, Timeout: timeout})
}

// newTable makes a table of that name.
func newTable(t *testing.T, name, scope string) *fleet.Ledger {
	t.Helper()
	tbl := dial(t, name, 30*time.Second) // the test's own requests may not be late
	testenv.Patiently(t, func() error {
		_, err := tbl.Init(t.Context())
		return err
	})
	return fleet.NewLedger(tbl, scope, token)
}

// enlist starts n agents on one new table, a few at a time, and waits until they serve the first release.
func enlist(t *testing.T, n int) *squad {
	t.Helper()
	name := testenv.Name(t)
	s := &squad{t: t, bucket: &bucket{releases: map[release.ID]map[string]string{}}, own: newTable(t, name, scope)}
	ctx, stop := context.WithCancel(context.Background())
	s.stop = stop
	dir := t.TempDir()
	s.publish("r0")
	for i := range n {
		tbl := dial(t, name, 0)
		s.tables = append(s.tables, tbl)
		s.start(ctx, filepath.Join(dir, fmt.Sprint(i)), fmt.Sprintf("i-%04d", i), tbl)
	}
	s.wait("r0", n, 5*time.Minute)
	return s
}

// recruit makes a real agent on a disk of its own, with these settings besides the necessary ones.
func recruit(dir, id, settings string, b agent.Bucket, tbl fleet.Table, clock fleet.Clock) (*agent.Agent, *disk.Disk) {
	text := fmt.Sprintf("site: promo\nbucket: bucket\nroot: %s/www\nstate_dir: %s/state\n%s", dir, dir, settings)
	cfg, err := config.Parse([]byte(text), "/etc/agent.yml", config.ForAgent, os.LookupEnv)
	must(err)
	d, err := disk.Open(disk.Options{Root: cfg.Root, Active: cfg.Active, StateDir: cfg.StateDir})
	must(err)
	a, err := agent.New(agent.Parts{
		Config: cfg, Bucket: b, Table: tbl, Disk: d, Identity: instance.Identity{ID: id, Source: instance.SourceConfig}, Version: "bench",
		Clock: clock, Token: token, Random: mathrand.Float64, Log: slog.New(slog.DiscardHandler), Service: silent{},
	})
	must(err)
	return a, d
}

func (s *squad) start(ctx context.Context, dir, id string, tbl fleet.Table) {
	a, d := recruit(dir, id, "poll_interval: 1s\nkeep_for: 0s\n", s.bucket, tbl, realClock{})
	s.wg.Go(func() {
		if err := errors.Join(a.Run(ctx), d.Close()); err != nil {
			s.t.Errorf("%s: %v", id, err)
		}
	})
}

func (s *squad) dismiss() {
	s.stop()
	s.wg.Wait()
}

// publish writes the pointer, and the hint where there is a head.
func (s *squad) publish(id release.ID) {
	s.seq = max(s.seq+1, time.Now().Unix())
	s.bucket.publish(id, s.seq)
	h, ok, err := s.own.Head(s.t.Context(), true)
	if err == nil && ok {
		_, err = s.own.Request(s.t.Context(), h, fleet.Item{"hint": s.seq})
	}
	if err != nil {
		s.t.Fatal(err)
	}
}

// wait waits for the end of the epoch, and until n members report the release.
func (s *squad) wait(id release.ID, n int, limit time.Duration) (done time.Duration, at []int64) {
	s.t.Helper()
	began := time.Now()
	for ; ; time.Sleep(50 * time.Millisecond) {
		h, _, err := s.own.Head(s.t.Context(), true)
		if err == nil && h.State == fleet.Done && h.Release == id {
			if done == 0 {
				done = time.Since(began)
			}
			rows, err := s.own.Members(s.t.Context())
			if at = at[:0]; err == nil {
				for _, m := range rows {
					if m.Active.Release == id {
						at = append(at, m.Active.At)
					}
				}
			}
			if len(at) == n {
				slices.Sort(at)
				return done, at
			}
		}
		if time.Since(began) > limit {
			s.t.Fatalf("%s: not everywhere after %v: %d of %d, head %+v, %v", id, limit, len(at), n, h, err)
		}
	}
}

// counts are the requests and units of all agents so far.
func (s *squad) counts() (c table.Counts) {
	for _, t := range s.tables {
		n := t.Counts()
		c.Reads += n.Reads
		c.Writes += n.Writes
		c.ReadUnits += n.ReadUnits
		c.WriteUnits += n.WriteUnits
	}
	return c
}

// rollout pushes one release to all.
func (s *squad) rollout(id release.ID) rollout {
	s.t.Helper()
	before := s.counts()
	reads := s.bucket.reads
	began := time.Now()
	s.publish(id)
	done, at := s.wait(id, len(s.tables), 5*time.Minute)
	after := s.counts()
	return rollout{
		members: len(at), done: done, live: time.UnixMilli(at[len(at)-1]).Sub(began),
		spread:   time.Duration(at[len(at)-1]-at[0]) * time.Millisecond,
		requests: int(after.Reads - before.Reads + after.Writes - before.Writes),
		units:    units{after.ReadUnits - before.ReadUnits, after.WriteUnits - before.WriteUnits},
		s3:       s.bucket.reads - reads,
	}
}

// march enlists n agents and takes the rollout with the median time to live, with the median spread of all and the widest.
func march(t *testing.T, n, rounds int) rollout {
	t.Helper()
	s := enlist(t, n)
	defer s.dismiss()
	var all []rollout
	for i := range rounds {
		r := s.rollout(release.ID(fmt.Sprintf("r%d", i+1)))
		t.Logf("%d agents: live %v, done %v, spread %v, %d requests, %+v, $%.6f, %d reads of the pointer",
			n, r.live, r.done, r.spread, r.requests, r.units, r.units.dollars(), r.s3)
		all = append(all, r)
	}
	slices.SortFunc(all, func(a, b rollout) int { return cmp.Compare(a.spread, b.spread) })
	median, widest := all[len(all)/2].spread, all[len(all)-1].spread
	slices.SortFunc(all, func(a, b rollout) int { return cmp.Compare(a.live, b.live) })
	r := all[len(all)/2]
	r.spread, r.widest = median, widest
	return r
}

func TestRealAgentsRollOutOnDynamoDB(t *testing.T) {
	r := march(t, 5, 1)
	if r.members != 5 || r.requests < 5*4 || r.units.writes < 5*2 {
		t.Errorf("%+v: each of five members reads head and note, votes and reports", r)
	}
}
