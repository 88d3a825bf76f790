package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"s3pulldeploy/internal/config"
	"s3pulldeploy/internal/disk"
	"s3pulldeploy/internal/failpoint"
	"s3pulldeploy/internal/fleet"
	"s3pulldeploy/internal/hook"
	"s3pulldeploy/internal/php"
	"s3pulldeploy/internal/release"
	"s3pulldeploy/internal/store"
)

// Contents is where the bytes of a plain release come from.
type Contents interface {
	Open(ctx context.Context, id release.ID, o release.Object) (io.ReadCloser, error)
}

// downloads is the number of objects fetched at a time: enough to hide S3's 30 ms behind small files.
const downloads = 16

// atOnce is how many of most transfers may run at a time with the descriptors that this process may have: four each (a
// connection, a file, its directory, and one to spare), besides 32 of the agent's own, half of them the table's connections.
func atOnce(most int) int {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil || limit.Cur >= uint64(32+4*most) {
		return most
	}
	return max((int(limit.Cur)-32)/4, 1)
}

// attempts is how often a stage is tried while S3 or the network is away, before this machine says no; pause is what it waits
// after the first try, and as much longer after each further one. The store has waited some seconds in every try.
const (
	attempts = 3
	pause    = 2 * time.Second
)

// backTime bounds the warm-up for a rollback: PHP may hang in what is live, and visitors wait.
const backTime = 10 * time.Second

// handover is how long after a reload the php-fpm from before it may be the one that answers: longer than process_control_timeout of
// share/php/fpm.conf, 10 s.
const handover = 15 * time.Second

type keepList = []release.ID

// machine does the long steps of one site on this instance. Its methods run in the worker, one at a time.
type machine struct {
	cfg       *config.Config
	bucket    Bucket
	disk      *disk.Disk
	opcache   *php.Opcache
	env       hook.Env
	log       *slog.Logger
	past      *past
	manifests manifests
	noteOf    func(ctx context.Context, sequence int64) (*fleet.Note, error)
	putOutput func(ctx context.Context, o fleet.Output, now time.Time) error
	// previous is what was live before the last flip of this process, for the hooks.
	previous release.ID
	// opened says that the last flip was this machine's first: nothing was served before.
	opened bool
	// prepareEnds is when the time ends that the hooks of the release being prepared share.
	prepareEnds time.Time
	after       after
	service     Service
	turn        turn
	roomFor     release.ID // for which room was made in opcache
	warmFor     release.ID // which was compiled last
	backTime    time.Duration
	handover    time.Duration
	pageless    bool // it was said that the site has no page that names its release
	cold        note
	undone      note // what could not be done after the last flip, though the release is served

	mu       sync.Mutex
	listings map[release.ID]release.Listing // of the last few pointers: inspected, then staged
}

// note is a line of the worker's for people, that the loop reads. The zero value is empty.
type note struct{ is atomic.Pointer[string] }

func (n *note) set(text string) { n.is.Store(&text) }

func (n *note) text() string {
	if text := n.is.Load(); text != nil {
		return *text
	}
	return ""
}

// warn says, in the log, and until the next flip in the status, what was not done after the flip.
func (m *machine) warn(text string) {
	m.log.Warn(text)
	m.undone.set(strings.TrimPrefix(m.undone.text()+"; "+text, "; "))
}

// newMachine wires a machine.
func newMachine(p Parts, log *slog.Logger, ledger *fleet.Ledger) *machine {
	c := p.Config
	log = log.With("component", "machine")
	return &machine{
		cfg: c, bucket: p.Bucket, disk: p.Disk, log: log, past: recall(p.Disk, log), noteOf: ledger.Note, putOutput: ledger.PutOutput,
		service: p.Service, turn: ledger.Turn("opcache", p.Identity.ID, p.Clock),
		manifests: manifests{c.StateDir, log},
		opcache: php.New(php.Options{
			Mode: c.Opcache.Effective(), URLs: c.Opcache.URL, Host: c.Opcache.Host, Timeout: c.Opcache.Timeout,
			Warming: c.PrepareTimeout / 2 / time.Duration(max(len(c.Opcache.URL), 1)), // the rest is for download and hooks
		}),
		env:      hook.Env{Site: c.Site, Group: c.Group, Instance: p.Identity.ID, Zone: p.Identity.Zone},
		listings: map[release.ID]release.Listing{}, backTime: backTime, handover: handover,
	}
}

// theirs are the errors besides the disk's whose reason is this machine (its network, role or settings), not the release.
var theirs = []error{
	store.ErrUnavailable, store.ErrDenied, store.ErrNoCredentials, store.ErrNoBucket, store.ErrRegion, hook.ErrPrivilege,
}

func isMachine(err error) bool {
	var own unfit
	return errors.As(err, &own) || disk.Fault(err) || slices.ContainsFunc(theirs, func(e error) bool { return errors.Is(err, e) })
}

// inspect finds a pointer's digest: in the plain layout that of the listing, which must be complete.
func (m *machine) inspect(ctx context.Context, n fleet.Note) (string, error) {
	if !n.Pointer.Plain() {
		return m.inspectPacked(n.Pointer)
	}
	l, err := m.listing(ctx, n, false)
	if err != nil {
		return "", err
	}
	return l.Digest(), nil
}

// listing lists a release of the plain layout and checks it against its pointer. The one that was inspected is
// used again when staging, unless it is to be fresh.
func (m *machine) listing(ctx context.Context, n fleet.Note, cached bool) (release.Listing, error) {
	id := n.Pointer.Release
	if id.Collides(m.cfg.Active) {
		return nil, fmt.Errorf("release id %q is the name of the active link", id)
	}
	m.mu.Lock()
	have, ok := m.listings[id]
	m.mu.Unlock()
	if ok && cached {
		return have, nil
	}
	if err := failpoint.Hit("A6"); err != nil {
		return nil, err
	}
	l, err := m.bucket.List(ctx, id)
	if err != nil {
		return nil, fmt.Errorf("list release %s: %w", id, err)
	}
	if err := l.Check(n.Pointer.Files); err != nil {
		return nil, fmt.Errorf("release %s: %w", id, err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.listings) >= 4 {
		clear(m.listings)
	}
	m.listings[id] = l
	return l, nil
}

// stage brings a release to the disk, complete, verified and durable, runs the hooks that belong to it and rehearses it. While S3 is
// away it is tried again, from where it was; after a sync that did not work, once more from nothing.
func (m *machine) stage(ctx context.Context, w fleet.Want, progress func(string)) error {
	m.prepareEnds = time.Now().Add(m.cfg.PrepareTimeout)
	for try := 1; ; try++ {
		err := m.stageOnce(ctx, w, progress)
		if err == nil {
			err = m.rehearse(ctx, w, progress)
		}
		again := errors.Is(err, store.ErrUnavailable) && try < attempts || errors.Is(err, disk.ErrSync) && try == 1
		if !again || ctx.Err() != nil {
			return err
		}
		m.log.Warn("stage interrupted, trying again", "release", string(w.Note.Pointer.Release), "try", try, "error", err)
		select {
		case <-ctx.Done():
		case <-time.After(time.Duration(try) * pause):
		}
	}
}

func (m *machine) stageOnce(ctx context.Context, w fleet.Want, progress func(string)) error {
	id := w.Note.Pointer.Release
	digest, ok, err := m.disk.Has(id)
	if err != nil && !errors.Is(err, disk.ErrDamaged) && !errors.Is(err, disk.ErrState) {
		return err // damaged contents, or a damaged index: it is brought up again
	}
	if ok && digest != w.Note.Digest {
		return fmt.Errorf("release %s is on this disk with another digest (%.12s, not %.12s): an id is used once", id, digest, w.Note.Digest)
	}
	if ok {
		err = m.disk.CheckShared()
	} else {
		err = m.fetch(ctx, w, progress, m.publish)
	}
	if err != nil {
		return err
	}
	if ok && w.Commit.Kind == fleet.KindRollback && m.past.prepared(id, digest) {
		return nil // its hooks ran when it was new
	}
	command := m.cfg.Hooks.BeforeFlip
	if command == "" {
		return nil // and nothing to be noted, which would wait for the disk twice
	}
	if err := m.prepareHook(ctx, "before_flip", command, filepath.Join(m.cfg.Root, string(id)), w); err != nil {
		return err
	}
	m.past.try(id, func(d *deeds) { d.Prepared = w.Note.Digest })
	return nil
}

// finish is what becomes of a stage that has all contents.
type finish func(context.Context, *disk.Stage, fleet.Want) error

// fetch builds the release: list, compare with the note, download; hooks, sync and name are publish's, which ends it.
func (m *machine) fetch(ctx context.Context, w fleet.Want, progress func(string), end finish) (err error) {
	if !w.Note.Pointer.Plain() {
		return m.fetchPacked(ctx, w, progress, end)
	}
	id := w.Note.Pointer.Release
	l, err := m.listing(ctx, w.Note, true)
	if err != nil {
		return err
	}
	if l.Digest() != w.Note.Digest {
		if l, err = m.listing(ctx, w.Note, false); err != nil {
			return err
		}
		if d := l.Digest(); d != w.Note.Digest {
			return fmt.Errorf("release %s lists with digest %.12s, the fleet agreed on %.12s: its objects were changed", id, d, w.Note.Digest)
		}
	}
	s, err := m.disk.Stage(ctx, id, w.Note.Digest, files(l))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.GiveUp(err)) }()
	if err := m.download(ctx, s, id, l, progress); err != nil {
		return err
	}
	return end(ctx, s, w)
}

// publish ends the building of a release whose contents are all there: what the settings add, hook, sync, name.
func (m *machine) publish(ctx context.Context, s *disk.Stage, w fleet.Want) error {
	if err := s.Complete(); err != nil {
		return err
	}
	if command := m.cfg.Hooks.AfterSync; command != "" {
		if err := m.prepareHook(ctx, "after_sync", command, s.Dir(), w); err != nil {
			return err
		}
	}
	// What before_flip made is not in the contents that get the name now.
	if err := m.past.note(w.Note.Pointer.Release, func(d *deeds) { d.Prepared = "" }); err != nil {
		return err
	}
	return s.Publish(ctx)
}

// files is what the disk needs to know of a listing. The mtime is the object's time less a minute: equal on every
// instance, so that ETags agree, and old enough for opcache to keep the file at once.
func files(l release.Listing) []disk.File {
	out := make([]disk.File, len(l))
	for i, o := range l {
		out[i] = disk.File{Path: o.Path, Size: o.Size, Modified: o.Modified.Add(-time.Minute), Digest: disk.ETagDigest(o.ETag)}
	}
	return out
}

// download fetches what is missing, several at a time, and says how far it is.
func (m *machine) download(ctx context.Context, s *disk.Stage, id release.ID, l release.Listing, progress func(string)) error {
	missing := s.Missing()
	objects := make(map[string]release.Object, len(l))
	for _, o := range l {
		objects[o.Path] = o
	}
	var done atomic.Int64
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(atOnce(downloads))
	for _, f := range missing {
		g.Go(func() error {
			if err := m.one(ctx, s, id, objects[f.Path], f); err != nil {
				return err
			}
			progress(fmt.Sprintf("%d of %d files", done.Add(1), len(missing)))
			return nil
		})
	}
	return g.Wait()
}

func (m *machine) one(ctx context.Context, s *disk.Stage, id release.ID, o release.Object, f disk.File) error {
	if err := failpoint.Hit("A7"); err != nil {
		return err
	}
	r, err := m.bucket.Open(ctx, id, o)
	if err != nil {
		return err
	}
	defer r.Close()
	f.Digest = "" // the reader compares it, and knows, after the answer only, whether the ETag is an MD5: with KMS it is none
	return s.Put(f, r)
}

// flip verifies the release, waits for the moment and moves the link. Its time is the wall clock's, right after.
func (m *machine) flip(ctx context.Context, w fleet.Want, c fleet.Clock) (at time.Time, err error) {
	armed, err := m.disk.Arm(w.Commit.Release)
	if err != nil {
		return time.Time{}, err
	}
	defer func() { err = errors.Join(err, armed.Close()) }()
	failpoint.Hit("A13")
	if err := waitUntil(ctx, c, w.At); err != nil {
		return time.Time{}, err
	}
	previous, active := m.disk.Active()
	if err := armed.Flip(); err != nil {
		return time.Time{}, err
	}
	m.opened = previous == "" && active == nil
	if previous != w.Commit.Release {
		m.previous = previous
	}
	m.after = after{}
	return c.Now(), nil
}

// once runs fleet_once for the whole fleet, in the new release, while the old code serves.
func (m *machine) once(ctx context.Context, w fleet.Want) error {
	return m.hookFor(ctx, m.cfg.Hooks.OnceTimeout, "fleet_once", m.cfg.Hooks.FleetOnce, filepath.Join(m.cfg.Root, string(w.Commit.Release)), w)
}

// prepareHook runs a hook of those that share the prepare time of a release.
func (m *machine) prepareHook(ctx context.Context, name, command, dir string, w fleet.Want) error {
	left := time.Until(m.prepareEnds)
	if command != "" && left <= 0 {
		return fmt.Errorf("hook %s: no time is left of prepare_timeout, %v", name, m.cfg.PrepareTimeout)
	}
	return m.hookFor(ctx, min(m.cfg.Hooks.Timeout, left), name, command, dir, w)
}

// hook runs one of the operator's commands for a release, if there is one.
func (m *machine) hook(ctx context.Context, name, command, dir string, w fleet.Want) error {
	return m.hookFor(ctx, m.cfg.Hooks.Timeout, name, command, dir, w)
}

func (m *machine) hookFor(ctx context.Context, limit time.Duration, name, command, dir string, w fleet.Want) error {
	if command == "" {
		return nil
	}
	env := m.env
	env.Release, env.Sequence = string(w.Commit.Release), w.Commit.Sequence
	env.Kind, env.Commit = cmp.Or(w.Commit.Kind, "deploy"), w.Note.Pointer.Commit
	if w.Back {
		env.Kind = fleet.KindRollback
	}
	env.Previous = string(m.previous)
	if active, err := m.disk.Active(); err == nil && active != w.Commit.Release {
		env.Previous = string(active)
	}
	user := m.cfg.Hooks.User
	if user == "" {
		user = m.cfg.WebUser
	}
	r, err := hook.Run(ctx, hook.Spec{
		Name: name, Command: command, Dir: dir, User: user, Env: env.Vars(),
		Timeout: limit, Idle: m.cfg.Hooks.IdleTimeout, Logger: m.log,
	})
	if err != nil && ctx.Err() == nil && r.Tail != "" {
		m.keepOutput(ctx, fleet.Output{Instance: m.env.Instance, Hook: name, Release: w.Commit.Release, Text: r.Tail})
	}
	return err
}

// keepOutput has the end of what a failed hook printed at hand for push, best effort: all of it is in the log.
func (m *machine) keepOutput(ctx context.Context, o fleet.Output) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	if err := m.putOutput(ctx, o, time.Now()); err != nil {
		m.log.Warn("push will not show what the hook printed", "hook", o.Hook, "error", err)
	}
}
