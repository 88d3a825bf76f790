package e2e

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"

	"s3pulldeploy/internal/testenv"
	"s3pulldeploy/internal/testenv/parts"
)

// breakable is the world with commands that have failpoints.
func breakable(t *testing.T) *world {
	w := newWorld(t)
	w.push, w.agent = testenv.Bin(t, "push", "failpoints"), testenv.Bin(t, "agent", "failpoints")
	return w
}

// healTime is how long after the end of a fault every live agent may take to be on the committed release.
const healTime = 60 * time.Second

// broken is a site whose agents can be broken, with what is known of it from outside while they are: what every instance
// serves, and what the head says.
type broken struct {
	*site
	version   int
	witnesses []*witness
	record    *record
}

// breakSite makes a site with so many agents, on a first release.
func breakSite(t *testing.T, w *world, agents int) *broken {
	t.Helper()
	b := watchedSite(t, w)
	for n := range agents {
		b.breakAgent(fmt.Sprintf("i-%d", n))
	}
	b.begin()
	return b
}

// watchedSite makes a site that has no agents yet.
func watchedSite(t *testing.T, w *world) *broken {
	t.Helper()
	b := &broken{site: newSite(t, w)}
	b.record = b.newRecord()
	return b
}

// begin starts all agents and brings them to a first release.
func (b *broken) begin() {
	b.t.Helper()
	for _, a := range b.agents {
		a.start()
	}
	b.awaitPhase(joinTime, "serve", b.agents...)
	b.deployed(b.deployNext()())
	b.converged(joinTime)
}

// breakAgent prepares an agent that can be armed, and watches what it serves. It keeps one more release than it serves, so
// that each rollout has something to remove. It finds the services where the site says that they are now.
func (b *broken) breakAgent(id string, extra ...string) *agent {
	a := b.newAgent(id, append([]string{"keep_releases: 1", "keep_for: 0s"}, extra...)...)
	a.env = append(a.env, "S3PULLDEPLOY_FAILPOINTS="+a.armed())
	a.configure()
	b.witnesses = append(b.witnesses, b.watch(a))
	return a
}

func (a *agent) armed() string { return filepath.Join(a.dir, "armed") }

// arm says what the agent breaks at from now on; nothing disarms it. Atomically: an agent may be reading.
func (a *agent) arm(list string) {
	a.site.t.Helper()
	check(a.site.t, os.WriteFile(a.armed()+".new", []byte(list), 0o644))
	check(a.site.t, os.Rename(a.armed()+".new", a.armed()))
}

// fired counts how often something happened at a step.
func (a *agent) fired(step string) int { return a.logged("failpoint: " + step + " ") }

// awaitFired waits until a step was hit so often.
func (a *agent) awaitFired(step string, times int) {
	a.site.t.Helper()
	a.site.await(joinTime, "failpoint "+step+" on "+a.id, func() string { return missing(a.fired(step), times) })
}

// awaitDeath waits until an agent has killed itself.
func (a *agent) awaitDeath() {
	a.site.t.Helper()
	select {
	case <-a.Done():
	case <-time.After(joinTime):
		a.site.t.Fatalf("%s still runs after %v, armed for %q", a.id, joinTime, a.armed())
	}
	status, ok := a.State().Sys().(syscall.WaitStatus)
	if !ok || !status.Signaled() || status.Signal() != syscall.SIGKILL {
		a.site.t.Fatalf("%s ended by itself: %v", a.id, a.Err())
	}
}

// From the number large on versions are so large that what is new fills packs; from small on they are small.
const (
	small = 500
	large = 1000
)

// contents is the tree of a version. What is in it tells which one it is, one file is the same in all, and one is of a size.
func contents(version int) map[string]string {
	noise := rand.NewChaCha8([32]byte{byte(version), byte(version >> 8)})
	blob := make([]byte, 96<<10)
	switch {
	case version >= large:
		blob = make([]byte, 18<<20)
	case version >= small:
		blob = blob[:4<<10]
	}
	_, _ = noise.Read(blob)
	return map[string]string{
		"index.php": fmt.Sprint(version), "lib/same.php": "same", "lib/a.php": fmt.Sprintf("a of %d", version),
		"lib/deep/b.txt": fmt.Sprintf("b of %d", version), "blob": string(blob),
	}
}

// deployNext pushes the next version in the background.
func (b *broken) deployNext(args ...string) func() result {
	b.t.Helper()
	b.version++
	b.tree(contents(b.version))
	all := append([]string{"-deploy=" + b.app, "-layout=packed", "-json", "-timeout=90s"}, args...)
	return in(func() result { return b.push(all...) })
}

// deployed wants a push to have seen its release live, on whoever was there.
func (b *broken) deployed(r result) {
	b.t.Helper()
	if r.code != 0 || !strings.Contains(r.stdout, `"outcome":"done"`) && !strings.Contains(r.stdout, `"outcome": "done"`) {
		b.t.Fatalf("push of version %d: want it done: %s", b.version, r)
	}
}

// converged waits until every agent serves the current version, which the head says is committed, and has nothing left to say
// or to clear up. It returns how long that took.
func (b *broken) converged(within time.Duration) time.Duration {
	b.t.Helper()
	began := time.Now()
	b.await(within, fmt.Sprintf("all on version %d", b.version), func() string {
		h := b.record.now()
		if h.state != "done" || h.release == "" || h.committed != h.release {
			return fmt.Sprintf("the head says %+v", h)
		}
		for _, a := range b.agents {
			if text := a.settled(h.committed, b.version); text != "" {
				return a.id + ": " + text
			}
		}
		return ""
	})
	return time.Since(began)
}

// settled is "" when an agent serves a release, is content, and has left nothing behind.
func (a *agent) settled(release string, version int) string {
	v := a.view()
	if on := a.active(); on != release || a.file("index.php") != fmt.Sprint(version) {
		return fmt.Sprintf("is on %q, not on %s: %s", on, release, v.Line)
	}
	if v.Phase != "serve" || !v.Ready || !v.Healthy || len(v.Problems) > 0 {
		return fmt.Sprintf("%+v", v)
	}
	for _, dir := range []string{a.root, filepath.Join(a.dir, "state")} {
		entries, err := os.ReadDir(dir)
		if err != nil {
			return err.Error()
		}
		for _, e := range entries {
			if strings.HasPrefix(e.Name(), ".") {
				return fmt.Sprintf("%s is left in %s", e.Name(), dir)
			}
		}
	}
	return ""
}

// flip is a change of the active link: another inode, to a release.
type flip struct {
	inode  uint64
	target string
}

// witness looks at what an instance serves, many times a second.
type witness struct {
	root string

	mu    sync.Mutex
	flips []flip
	wrong string // the first thing that must never be seen
}

// watch begins to look, until the end of the test, which fails if anything was seen that must never be.
func (b *broken) watch(a *agent) *witness {
	w := &witness{root: a.root}
	ctx, cancel := context.WithCancel(context.Background())
	var ended sync.WaitGroup
	ended.Go(func() {
		tick := time.NewTicker(4 * time.Millisecond)
		defer tick.Stop()
		for n := 0; ctx.Err() == nil; n++ {
			w.look(n%16 == 0)
			<-tick.C
		}
	})
	b.t.Cleanup(func() {
		cancel()
		ended.Wait()
		if w.wrong != "" {
			b.t.Errorf("%s served what must never be seen: %s", w.root, w.wrong)
		}
	})
	return w
}

// look reads the link and, if it is another one or this is one of the thorough looks, everything that it leads to.
func (w *witness) look(thorough bool) {
	link := filepath.Join(w.root, "active")
	f, err := readFlip(link)
	w.mu.Lock()
	defer w.mu.Unlock()
	seen := len(w.flips)
	switch {
	case errors.Is(err, fs.ErrNotExist) && seen == 0:
		return
	case err != nil:
		w.blame(fmt.Sprintf("the link: %v", err))
		return
	}
	fresh := seen == 0 || w.flips[seen-1] != f
	if fresh {
		w.flips = append(w.flips, f)
	} else if !thorough {
		return
	}
	if err := whole(filepath.Join(w.root, f.target), fresh); err != nil {
		// Between the two looks the release may have been left, and removed.
		if now, _ := readFlip(link); now == f {
			w.blame(fmt.Sprintf("%s: %v", f.target, err))
		}
	}
}

func (w *witness) blame(text string) {
	if w.wrong == "" {
		w.wrong = text
	}
}

func readFlip(link string) (flip, error) {
	info, err := os.Lstat(link)
	if err != nil {
		return flip{}, err
	}
	target, err := os.Readlink(link)
	if err != nil {
		return flip{}, err
	}
	again, err := os.Lstat(link)
	if err == nil && !os.SameFile(info, again) { // it was replaced in between
		return readFlip(link)
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return flip{}, fmt.Errorf("stat of %s is a %T", link, info.Sys())
	}
	return flip{st.Ino, target}, err
}

// whole wants a directory to be one version's tree: every file by its hash (a large one only where all is asked for), and
// nothing else.
func whole(dir string, all bool) error {
	text, err := os.ReadFile(filepath.Join(dir, "index.php"))
	if err != nil {
		return err
	}
	var version int
	if _, err := fmt.Sscan(string(text), &version); err != nil {
		return fmt.Errorf("index.php is %q", text)
	}
	want := sums(version)
	if version >= large && !all {
		delete(want, "blob")
	}
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		name, err := filepath.Rel(dir, path)
		if err != nil || version >= large && !all && name == "blob" {
			return err
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if sum := sha256.Sum256(text); want[name] != hex.EncodeToString(sum[:]) {
			return fmt.Errorf("%s, of %d bytes, is none of version %d", name, len(text), version)
		}
		delete(want, name)
		return nil
	})
	if err == nil && len(want) > 0 {
		err = fmt.Errorf("version %d lacks %d files", version, len(want))
	}
	return err
}

var known sync.Map // version: map of path and hash

// sums are the hashes of a version's files; the caller may change the map.
func sums(version int) map[string]string {
	have, ok := known.Load(version)
	if !ok {
		made := map[string]string{}
		for name, text := range contents(version) {
			sum := sha256.Sum256([]byte(text))
			made[name] = hex.EncodeToString(sum[:])
		}
		have, _ = known.LoadOrStore(version, made)
	}
	out := map[string]string{}
	for k, v := range have.(map[string]string) {
		out[k] = v
	}
	return out
}

// flipped is how often the link was seen to change so far.
func (w *witness) flipped() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.flips)
}

// head is the head item, as far as the oracle looks at it.
type head struct {
	epoch, fence       int64
	state              string
	release, committed string
	committedSequence  int64
}

// record is what the head was seen to say, many times a second.
type record struct {
	client *dynamodb.Client
	scope  string

	mu      sync.Mutex
	last    head
	decided map[int64]string // epoch: commit or abort
	wrong   []string
}

// newRecord begins to read the head, until the end of the test, which fails if the head ever went back or an epoch was decided
// twice.
func (b *broken) newRecord() *record {
	r := &record{scope: b.bucket + "/" + b.name, decided: map[int64]string{}, client: dynamodb.New(dynamodb.Options{
		Region: parts.Region, BaseEndpoint: aws.String(b.world.dynamodb),
		Credentials: aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) {
			return aws.Credentials{AccessKeyID: parts.AccessKey, SecretAccessKey: parts.SecretKey}, nil
		}),
	})}
	ctx, cancel := context.WithCancel(context.Background())
	var ended sync.WaitGroup
	ended.Go(func() {
		tick := time.NewTicker(50 * time.Millisecond)
		defer tick.Stop()
		for ctx.Err() == nil {
			r.look(ctx)
			<-tick.C
		}
	})
	b.t.Cleanup(func() {
		cancel()
		ended.Wait()
		for _, text := range r.wrong {
			b.t.Error(text)
		}
	})
	return r
}

func (r *record) look(ctx context.Context) {
	out, err := r.client.GetItem(ctx, &dynamodb.GetItemInput{
		TableName: aws.String("s3-pull-deploy"), ConsistentRead: aws.Bool(true),
		Key: map[string]types.AttributeValue{
			"pk": &types.AttributeValueMemberS{Value: r.scope}, "sk": &types.AttributeValueMemberS{Value: "head"},
		},
	})
	if err != nil || out.Item == nil {
		return // the server is busy, or there is none yet
	}
	text := func(name string) string {
		v, _ := out.Item[name].(*types.AttributeValueMemberS)
		if v == nil {
			return ""
		}
		return v.Value
	}
	number := func(name string) (n int64) {
		if v, _ := out.Item[name].(*types.AttributeValueMemberN); v != nil {
			_, _ = fmt.Sscan(v.Value, &n)
		}
		return n
	}
	r.take(head{
		number("epoch"), number("fence"), text("state"), text("release"), text("committed_release"), number("committed_sequence"),
	})
}

func (r *record) take(h head) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if h.epoch < r.last.epoch || h.fence < r.last.fence || h.committedSequence < r.last.committedSequence {
		r.wrong = append(r.wrong, fmt.Sprintf("the head went back from %+v to %+v", r.last, h))
	}
	decision := map[string]string{"commit": "commit", "done": "commit", "abort": "abort"}[h.state]
	if was := r.decided[h.epoch]; was != "" && decision != was {
		r.wrong = append(r.wrong, fmt.Sprintf("epoch %d was decided as %s and then said %+v", h.epoch, was, h))
	} else if decision != "" {
		r.decided[h.epoch] = decision
	}
	r.last = h
}

// now is the head as it was last read.
func (r *record) now() head {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.last
}
