package push

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"s3pulldeploy/internal/account"
	"s3pulldeploy/internal/config"
	"s3pulldeploy/internal/fleet"
	"s3pulldeploy/internal/release"
	"s3pulldeploy/internal/store"
	"s3pulldeploy/internal/table"
)

// liveWithin is how old an instance's last beat may be for push to wait for it: three of the beats that it makes
// when nothing happens. By the two clocks, so it decides nothing but whether to wait.
const liveWithin = 3 * time.Minute

// tableTime is how long a request to the table may take: a push that fails must be started again by a person, who would rather wait.
const tableTime = 10 * time.Second

// site is one site's bucket and table, as this account reaches them.
type site struct {
	cfg    *config.Config
	store  *store.Store
	table  *table.Dynamo
	ledger *fleet.Ledger
	keys   *release.Keyring // whose signatures instances ask for, with our own; empty: none
	region string
	who    string // whose account, or which server, for the first line
}

// open gets credentials, which may ask for a code, and says nothing to bucket or table yet.
func (s *session) open(ctx context.Context) (*site, error) {
	c := s.cfg
	own := c.Endpoints.S3 != "" && c.Endpoints.DynamoDB != ""
	aws, err := account.Load(ctx, account.Options{Region: c.Region, Profile: c.Profile, OwnEndpoints: own, Prompt: s.prompt()})
	if err != nil {
		return nil, err
	}
	if err := account.Check(ctx, aws); err != nil {
		return nil, err
	}
	who := "server " + c.Endpoints.S3
	if c.Endpoints.S3 == "" {
		if who, err = account.Identity(ctx, aws); err != nil {
			who = "unknown: " + err.Error() // a network without STS stops no push
		}
		who = "account " + who
	}
	keys, err := s.keyring()
	if err != nil {
		return nil, err
	}
	t := table.NewDynamo(table.Options{Config: aws, Endpoint: c.Endpoints.DynamoDB, Name: c.Table, Timeout: cmp.Or(s.table, tableTime)})
	return &site{
		cfg: c, table: t, ledger: fleet.NewLedger(t, c.Scope(), rand.Text), region: aws.Region, who: who, keys: keys,
		store: store.New(store.Options{
			Config: aws, Endpoint: c.Endpoints.S3, Bucket: c.Bucket, Prefix: c.Prefix, Site: c.Site, KMSKey: c.KMSKeyID,
			Grace: s.grace,
		}),
	}, nil
}

// view is a site as it stood at one moment.
type view struct {
	Read       store.Read      // the pointer's object; its ETag is empty when there is none
	Pointer    release.Pointer // zero when there is none, or it is garbage
	Garbage    error           // why the pointer is no pointer
	Untrusted  error           // why the pointer is not taken where the keys are set
	Head       fleet.Head
	HasHead    bool
	Members    []fleet.Member
	Live       int
	Now        time.Time // by the table's clock, where it said
	BucketErr  error     // what could not be read, each by itself
	PointerErr error
	HeadErr    error
	MembersErr error
}

// err is the first thing that could not be read.
func (v view) err() error {
	for _, err := range []error{v.BucketErr, v.PointerErr, v.HeadErr, v.MembersErr} {
		if err != nil {
			return err
		}
	}
	return nil
}

// look reads everything at once.
func (s *site) look(ctx context.Context) view {
	var v view
	var all sync.WaitGroup
	all.Go(func() { s.readPointer(ctx, &v) })
	all.Go(func() { v.Head, v.HasHead, v.HeadErr = s.ledger.Head(ctx, true) })
	all.Go(func() { v.Members, v.MembersErr = s.ledger.Members(ctx) })
	all.Wait()
	v.Now = s.now()
	for _, m := range v.Members {
		if live(m, v.Now) {
			v.Live++
		}
	}
	return v
}

// readPointer reads the pointer, which may have been read before.
func (s *site) readPointer(ctx context.Context, v *view) {
	v.Pointer, v.Garbage, v.Untrusted, v.BucketErr = release.Pointer{}, nil, nil, nil
	v.Read, v.PointerErr = s.store.Pointer(ctx, "")
	if v.PointerErr != nil { // a pointer that can be read is in a bucket that can
		v.BucketErr = s.store.Exists(ctx)
	}
	if errors.Is(v.PointerErr, store.ErrNotFound) {
		v.PointerErr = nil
		return
	}
	if v.PointerErr == nil {
		v.Pointer, v.Garbage = release.ParsePointer(v.Read.Text)
		if v.Garbage == nil {
			_, v.Untrusted = s.keys.Open(v.Read.Text)
		}
	}
}

// now is the time by the table's clock, else by ours.
func (s *site) now() time.Time {
	if t := s.table.Date(); !t.IsZero() {
		return t
	}
	return time.Now()
}

// age is how long ago an instance's last beat was, by the two clocks.
func (v view) age(m fleet.Member) time.Duration { return max(0, v.Now.Sub(time.Unix(m.Seen, 0))) }

// heard says whether an instance, in whatever phase, gave a sign of life of late.
func (v view) heard(m fleet.Member) bool { return m.Missed == 0 && v.age(m) < liveWithin }

// live says whether an instance will take part in a rollout that begins now.
func live(m fleet.Member, now time.Time) bool {
	return m.Phase != fleet.Leaving && m.Missed == 0 && now.Sub(time.Unix(m.Seen, 0)) < liveWithin
}

// line is the first line of a push: where it goes, as whom, who listens.
func (s *site) line(v view) string {
	instances := count(v.Live, "instance") + " live"
	switch {
	case v.MembersErr != nil:
		instances = "instances unknown"
	case v.Live == 0:
		instances = "no instance live yet"
	}
	return fmt.Sprintf("%s in %s, %s, %s", s.cfg.Site, s.cfg.Bucket, s.who, instances)
}

// newer refuses a fleet with an instance whose items this version may not understand.
func (v view) newer() error {
	for _, m := range v.Members {
		if live(m, v.Now) && m.Schema > fleet.Schema {
			return fmt.Errorf("instance %q runs version %q, whose items have schema %d where this push knows %d: %w",
				m.Instance, m.Version, m.Schema, fleet.Schema, fleet.ErrSchema)
		}
	}
	return nil
}

// older refuses a packed release for a fleet with an instance that cannot read it: its no would end the rollout anyway.
func (v view) older() error {
	for _, m := range v.Members {
		if live(m, v.Now) && !m.Packed {
			return advise(fmt.Errorf("instance %q runs version %q, which cannot read the packed layout", m.Instance, m.Version),
				"update its agent first, or push with -layout=plain")
		}
	}
	return nil
}

// versions names the versions that the live instances run, if they are several: "2 of 1.3, 1 of 1.2".
func (v view) versions() string {
	runs := map[string]int{}
	for _, m := range v.Members {
		if live(m, v.Now) {
			runs[cmp.Or(m.Version, "unknown")]++
		}
	}
	if len(runs) < 2 {
		return ""
	}
	names := slices.SortedFunc(maps.Keys(runs), func(a, b string) int {
		return cmp.Or(runs[b]-runs[a], strings.Compare(a, b))
	})
	for i, name := range names {
		names[i] = fmt.Sprintf("%d of %s", runs[name], name)
	}
	return strings.Join(names, ", ")
}

// usable refuses what neither a deploy nor a rollback can go on from.
func (v view) usable(force bool) error {
	if err := cmp.Or(v.err(), v.newer()); err != nil {
		return err
	}
	if v.Garbage == nil || force {
		return nil
	}
	return advise(fmt.Errorf("read pointer: %w; it reads %.200q", v.Garbage, v.Read.Text),
		"if it can go, -force overwrites it")
}
