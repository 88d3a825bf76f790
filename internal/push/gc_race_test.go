package push

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"s3pulldeploy/internal/config"
	"s3pulldeploy/internal/fleet"
	"s3pulldeploy/internal/release"
	"s3pulldeploy/internal/store"
	"s3pulldeploy/internal/table"
)

const (
	raceGrace = 10 * time.Second // at least: a push may take half of it, and rely on what nobody names for a quarter
	raceTime  = 20 * time.Second // at least, and on a machine with other work until enough has happened
	raceLimit = 3 * time.Minute
)

// race is pushes, rollbacks, rollouts and clean-ups against each other, with a grace of seconds.
type race struct {
	*packedRig
	grace  time.Duration
	ledger *fleet.Ledger
	ends   [3]atomic.Int32 // of calls of push: done, conflicts, failures
	deploys, rollouts, cleanups,
	checks atomic.Int32
}

// call runs the command with the short grace.
func (r *race) call(ctx context.Context, args ...string) error {
	_, err := r.session(ctx, func(s *session) { s.grace = r.grace }, args...)
	switch {
	case err == nil:
		r.ends[0].Add(1)
	case exitCode(err) == exitConflict:
		r.ends[1].Add(1)
	default:
		r.ends[2].Add(1)
	}
	return err
}

// pusher changes its tree and pushes, again and again. Some pushes make packs, and some are killed.
func (r *race) pusher(ctx context.Context, dir string) {
	for i := 0; ctx.Err() == nil; i++ {
		size := 20_000
		if i%3 == 0 {
			size = 9 << 20 // does not fit into a delta
		}
		for _, name := range []string{"changes", fmt.Sprintf("f%d", i%5)} {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(noise(byte(mathrand.Int()), size)), 0o644); err != nil {
				r.Error(err)
			}
		}
		one, cancel := ctx, context.CancelFunc(func() {})
		if i%4 == 3 {
			one, cancel = context.WithTimeout(ctx, mathrand.N(400*time.Millisecond))
		}
		if r.call(one, "-deploy="+dir, "-wait=false") == nil {
			r.deploys.Add(1)
		}
		cancel()
	}
}

// rollbacker goes back to any release that there is.
func (r *race) rollbacker(ctx context.Context) {
	for pause(ctx, time.Second) {
		manifests, err := r.store.Manifests(ctx)
		if err != nil || len(manifests.Objects) == 0 {
			continue
		}
		_ = r.call(ctx, "-rollback="+string(manifests.Objects[mathrand.N(len(manifests.Objects))].Release), "-wait=false")
	}
}

// collector cleans up without a pause, and is killed now and then.
func (r *race) collector(ctx context.Context) {
	for i := 0; ctx.Err() == nil; i++ {
		one, cancel := ctx, context.CancelFunc(func() {})
		if i%3 == 2 {
			one, cancel = context.WithTimeout(ctx, mathrand.N(200*time.Millisecond))
		}
		if r.call(one, "-gc") == nil {
			r.cleanups.Add(1)
		}
		cancel()
	}
}

// fleet moves the head as agents do: an epoch is opened for the pointer, its release is fetched slowly, then it is
// committed. From the first look on the manifest that succeeds nothing of what the head names may be missing.
func (r *race) fleet(ctx context.Context) {
	for ctx.Err() == nil {
		if err := r.rollout(ctx); err != nil && ctx.Err() == nil && !outage(err) {
			r.Errorf("rollout: %v", err)
		}
	}
}

// outage is an error that says nothing about what is there. An epoch whose end got no answer may be over, or not.
func outage(err error) bool {
	return slices.ContainsFunc([]error{store.ErrUnavailable, fleet.ErrUnavailable, fleet.ErrThrottled, fleet.ErrOvertaken},
		func(e error) bool { return errors.Is(err, e) })
}

func (r *race) rollout(ctx context.Context) error {
	read, err := r.store.Pointer(ctx, "")
	if errors.Is(err, store.ErrNotFound) {
		pause(ctx, 100*time.Millisecond)
		return nil
	}
	if err != nil {
		return err
	}
	note, err := fleet.NewNote(read.Text)
	if err != nil {
		return err
	}
	head, _, err := r.ledger.Head(ctx, true)
	if err = cmp.Or(err, r.ledger.PutNote(ctx, note)); err != nil {
		return err
	}
	if head, err = r.ledger.Open(ctx, head, note, "i-1", false); err != nil {
		return err
	}
	m, err := r.settled(ctx, note.Pointer, 2*time.Second)
	if err != nil || m == nil { // it was superseded before the head named it: such an epoch is aborted
		_, abort := r.ledger.Decide(ctx, head, fleet.Outcome{Reason: "superseded"})
		return cmp.Or(err, abort)
	}
	if err := r.whole(ctx, m, r.grace/4); err != nil {
		return fmt.Errorf("the open epoch's %s: %w", note.Pointer.Release, err)
	}
	if head, err = r.ledger.Decide(ctx, head, fleet.Outcome{Commit: true, Members: 1}); err != nil {
		return err
	}
	if _, err = r.ledger.Done(ctx, head, true, ""); err != nil {
		return err
	}
	r.rollouts.Add(1)
	if m, err = r.settled(ctx, note.Pointer, 30*time.Second); err == nil && m == nil {
		err = errors.New("its manifest is gone")
	}
	if err == nil {
		err = r.whole(ctx, m, 0)
	}
	if err != nil {
		return fmt.Errorf("the committed %s: %w", note.Pointer.Release, err)
	}
	return nil
}

// settled is the manifest of a pointer; nil if the release was dropped. A drop that a clean-up takes back lasts for
// two requests, whatever those take.
func (r *race) settled(ctx context.Context, p release.Pointer, patience time.Duration) (*release.Manifest, error) {
	for end := time.Now().Add(patience); ; {
		object, err := r.store.GetManifest(ctx, p.Release, *p.Manifest)
		if err == nil {
			return release.ParseManifest(object)
		}
		if gone := errors.Is(err, store.ErrDamaged) || errors.Is(err, store.ErrNotFound); !gone {
			return nil, err
		}
		if time.Now().After(end) || !pause(ctx, 100*time.Millisecond) {
			return nil, nil
		}
	}
}

// whole reads everything of a release, in so much time, and verifies it.
func (r *race) whole(ctx context.Context, m *release.Manifest, over time.Duration) error {
	plan := m.Fetch(func() (all []int) {
		for i := range m.Entries {
			all = append(all, i)
		}
		return all
	}())
	got := make([][]byte, len(m.Entries))
	for _, g := range plan.Ranges {
		pause(ctx, over/time.Duration(len(plan.Ranges)))
		in, err := r.store.OpenRange(ctx, m.Sources[g.Source], g.Offset, g.Length)
		if err != nil {
			return err
		}
		body, err := io.ReadAll(in)
		in.Close()
		if err != nil {
			return err
		}
		for _, n := range g.Frames {
			f := m.Frames[n]
			data, err := release.DecodeFrame(nil, f, body[f.Offset-g.Offset:][:f.Stored])
			if err != nil {
				return err
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
	for i := range m.Entries {
		if e := &m.Entries[i]; e.Kind == release.File {
			if err := e.Verify(got[i]); err != nil {
				return err
			}
		}
	}
	return nil
}

// checker reads what the pointer names, again and again.
func (r *race) checker(ctx context.Context) {
	for ctx.Err() == nil {
		read, err := r.store.Pointer(ctx, "")
		if err != nil {
			pause(ctx, 50*time.Millisecond)
			continue
		}
		p, err := release.ParsePointer(read.Text)
		if err != nil {
			r.Error(err)
			return
		}
		m, err := r.settled(ctx, p, 30*time.Second)
		if m != nil {
			err = r.whole(ctx, m, 0)
		}
		if now, nowErr := r.store.Pointer(ctx, ""); nowErr == nil && now.ETag == read.ETag && (err != nil || m == nil) && ctx.Err() == nil && !outage(err) {
			r.Errorf("the pointer names %s: %v", p.Release, err)
		}
		r.checks.Add(1)
	}
}

// pause waits, and says whether the test goes on.
func pause(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}

func TestPushesRolloutsAndCleanUpsAgainstEachOther(t *testing.T) {
	r := &race{packedRig: newPackedRig(t, map[string]string{"base": noise(1, 9<<20)}), grace: raceGrace}
	r.settings("keep_remote: 2\n")
	cfg, err := config.Load(r.config, config.ForPush)
	if err != nil {
		t.Fatal(err)
	}
	db := table.NewDynamo(table.Options{Config: r.aws, Endpoint: cfg.Endpoints.DynamoDB, Name: cfg.Table, Timeout: time.Minute})
	r.ledger = fleet.NewLedger(db, cfg.Scope(), rand.Text)
	began := time.Now()
	if err := r.call(t.Context(), "-deploy="+r.dir, "-wait=false"); err != nil {
		t.Fatal(err)
	}
	// A push among all the others may take four times what it takes alone. With more grace too little happens in the time that there is.
	r.grace = min(max(raceGrace, 8*time.Since(began)), 3*raceGrace)
	// Each tree has contents that stay, in a pack of long ago, which only its own releases name; and pushes take their time
	// between the look at the bucket and the manifest.
	r.wire.lets(func(request string, _ *http.Request) bool {
		if strings.HasPrefix(request, "PUT") && strings.Contains(request, "/shop/m/") {
			time.Sleep(mathrand.N(r.grace / 5))
		}
		return true
	})
	began = time.Now()
	ctx, cancel := context.WithTimeout(t.Context(), raceLimit)
	defer cancel()
	enough := func() bool {
		return r.deploys.Load() >= 6 && r.rollouts.Load() >= 2 && r.cleanups.Load() >= 5 && r.checks.Load() >= 5
	}
	var all sync.WaitGroup
	other := plant(t, map[string]string{"base": noise(2, 9<<20)})
	for _, actor := range []func(){
		func() { r.pusher(ctx, r.dir) }, func() { r.pusher(ctx, other) }, func() { r.rollbacker(ctx) },
		func() { r.collector(ctx) }, func() { r.collector(ctx) }, func() { r.fleet(ctx) }, func() { r.checker(ctx) },
	} {
		all.Go(actor)
	}
	for pause(ctx, 100*time.Millisecond) && (time.Since(began) < raceTime || !enough()) {
	}
	cancel()
	all.Wait()
	t.Logf("grace %v; %d deploys, %d rollouts, %d clean-ups, %d looks at the pointer; calls: %d done, %d conflicts, %d failed or killed",
		r.grace, r.deploys.Load(), r.rollouts.Load(), r.cleanups.Load(), r.checks.Load(), r.ends[0].Load(), r.ends[1].Load(), r.ends[2].Load())
	if !enough() {
		t.Error("too little happened to prove anything")
	}
	r.onlyWhatIsNeeded()
}

// onlyWhatIsNeeded lets the grace pass: every manifest that is left is whole, and there is nothing that none needs.
func (r *race) onlyWhatIsNeeded() {
	r.Helper()
	standing := func() []standing {
		list, _, err := (&site{store: r.store}).standing(r.Context(), nil)
		if err != nil {
			r.Fatal(err)
		}
		return list
	}
	for _, s := range standing() {
		r.complete(s)
	}
	// What stands now is dropped once it is older than the grace, and goes when the tombstone is that, too.
	for end := time.Now().Add(3*r.grace + time.Minute); ; {
		if err := r.call(r.Context(), "-gc"); err != nil && !errors.Is(err, store.ErrStale) && !outage(err) { // with this grace a slow machine is late
			r.Fatal(err)
		}
		surplus := r.surplus(standing())
		if len(surplus) == 0 {
			break
		}
		if time.Now().After(end) {
			r.Fatalf("nobody needs %q", surplus)
		}
		pause(r.Context(), time.Second)
	}
	for _, s := range standing() {
		r.complete(s)
	}
}

// complete checks that a release that was not dropped is whole.
func (r *race) complete(s standing) {
	if s.dropped {
		return
	}
	found, err := r.store.FindManifest(r.Context(), s.id)
	if err != nil {
		r.Fatal(err)
	}
	if found.Dropped {
		return // the last request of a clean-up that was killed
	}
	m, err := release.ParseManifest(found.Object)
	if err == nil {
		err = r.whole(r.Context(), m, 0)
	}
	if err != nil {
		r.Errorf("%s can be deployed by its manifest, but: %v", s.id, err)
	}
}

// surplus is what no manifest needs, and tombstones.
func (r *race) surplus(standing []standing) (keys []string) {
	needed := map[string]bool{"latest-deploy": true}
	for _, s := range standing {
		if !s.dropped {
			needed["m/"+string(s.id)] = true
			for _, key := range s.keys {
				needed[key] = true
			}
		}
	}
	for _, key := range r.objects() {
		id, isDelta := strings.CutPrefix(key, "d/")
		id, _, _ = strings.Cut(id, "/")
		if !needed[key] && !(isDelta && needed["m/"+id]) {
			keys = append(keys, key)
		}
	}
	return keys
}
