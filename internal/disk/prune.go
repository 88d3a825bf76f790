package disk

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"time"

	"s3pulldeploy/internal/failpoint"
	"s3pulldeploy/internal/release"
)

// Info is a release of this disk that was published here.
type Info struct {
	ID       release.ID
	Digest   string    // of its listing
	Built    time.Time // seconds
	LastLive time.Time // when it was last known to be live, in seconds; zero: never
	Active   bool
}

// Releases lists what was published here and is still there, the last live first. Verifying is for Has.
func (d *Disk) Releases() ([]Info, error) {
	infos, err := d.releases()
	if err != nil {
		return nil, fmt.Errorf("list releases: %w", err)
	}
	return infos, nil
}

func (d *Disk) releases() ([]Info, error) {
	names, err := readNames(d.root)
	if err != nil {
		return nil, err
	}
	active, err := d.Active()
	if err != nil {
		return nil, err
	}
	live, err := d.liveTimes()
	if err != nil {
		return nil, err
	}
	var infos []Info
	for _, n := range names {
		id := release.ID(n)
		if d.checkID(id) != nil || !d.owns(id) {
			continue
		}
		h, err := d.readHeader(id)
		if err != nil {
			return nil, err
		}
		info := Info{ID: id, Digest: h.Digest, Built: time.Unix(h.Built, 0), Active: id == active}
		if at, ok := live[id]; ok {
			info.LastLive = time.Unix(at, 0)
		}
		infos = append(infos, info)
	}
	slices.SortFunc(infos, func(a, b Info) int {
		return cmp.Or(b.LastLive.Compare(a.LastLive), b.Built.Compare(a.Built), cmp.Compare(b.ID, a.ID))
	})
	return infos, nil
}

// Retention says what Prune leaves, besides what links in the root lead to (active and previous, or
// any that a person made).
type Retention struct {
	Keep map[release.ID]bool // never removed, also while being built: current, previous, voted, head-named
	Bad  map[release.ID]bool // do not count among N: they would push the good ones out
	N    int                 // so many releases that were live, the last ones first
	For  time.Duration       // and all that were live within this time
	Now  time.Time
}

// Prune removes releases that nothing asks for any more, left-over staging directories and trash. It only
// removes what was published here, never what merely lies there, never through a link, and nothing that
// has a mount below it; open files stay readable. A release goes by losing its name first. It returns what
// was removed; an error names what could not be, after all the rest was.
func (d *Disk) Prune(r Retention) ([]release.ID, error) {
	removed, err := d.retire(r)
	if err == nil || len(removed) > 0 {
		err = errors.Join(err, d.emptyTrash())
	}
	if err != nil {
		return removed, fmt.Errorf("prune %q: %w", d.opt.Root, err)
	}
	return removed, nil
}

// retire renames what is to go to trash, durably, and then forgets its index: the other order would turn
// a release into a foreign directory.
func (d *Disk) retire(r Retention) ([]release.ID, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	active, err := d.Active()
	if err != nil {
		return nil, err // what is live is not known
	}
	if active != "" {
		d.noteLive(active)
	}
	names, err := readNames(d.root)
	if err != nil {
		return nil, err
	}
	doomed, err := d.doomed(r, names)
	if err != nil {
		return nil, err
	}
	var removed []release.ID
	var errs []error
	for _, name := range doomed {
		if err := d.unmounted(name); err != nil {
			errs = append(errs, err)
		} else if _, err := d.aside(name, trashPrefix); err != nil {
			errs = append(errs, err)
		} else if !strings.HasPrefix(name, incomingPrefix) {
			removed = append(removed, release.ID(name))
		}
	}
	if len(doomed) > 0 {
		if err := d.syncDir(d.rootDir); err != nil {
			return removed, errors.Join(append(errs, err)...)
		}
	}
	return removed, errors.Join(append(errs, d.forget(r.Keep))...)
}

// doomed lists the names in the root that are to go.
func (d *Disk) doomed(r Retention, names []string) ([]string, error) {
	linked, err := d.linkTargets(names)
	if err != nil {
		return nil, err
	}
	infos, err := d.releases()
	if err != nil {
		return nil, err
	}
	var doomed []string
	kept := 0
	for _, i := range infos {
		counts := !i.LastLive.IsZero() && !r.Bad[i.ID] && !i.Active
		if counts {
			kept++
		}
		recent := !i.LastLive.IsZero() && r.For > 0 && r.Now.Sub(i.LastLive) < r.For
		if !i.Active && !linked[string(i.ID)] && !r.Keep[i.ID] && !recent && (!counts || kept > r.N) {
			doomed = append(doomed, string(i.ID))
		}
	}
	for _, n := range names {
		id, ok := strings.CutPrefix(n, incomingPrefix)
		if ok && !r.Keep[release.ID(id)] && !d.staging[release.ID(id)] && !linked[n] {
			doomed = append(doomed, n)
		}
	}
	return doomed, nil
}

// linkTargets is every name of the root that a link in the root leads to or through.
func (d *Disk) linkTargets(names []string) (map[string]bool, error) {
	linked := map[string]bool{}
	for _, n := range names {
		info, err := d.root.Lstat(n)
		if err != nil {
			return nil, blame(err)
		}
		if info.Mode().Type() != fs.ModeSymlink || strings.HasPrefix(n, linkPrefix) {
			continue
		}
		first, _, err := d.target(n)
		if err != nil {
			return nil, err
		}
		linked[first] = true
	}
	return linked, nil
}

// forget removes indexes and live times of releases that are gone.
func (d *Disk) forget(keep map[release.ID]bool) error {
	files, err := readNames(d.state)
	if err != nil {
		return err
	}
	var errs []error
	gone := func(id release.ID) bool {
		_, err := d.root.Lstat(string(id))
		return errors.Is(err, fs.ErrNotExist) && !keep[id] && !d.staging[id]
	}
	for _, f := range files {
		id, ok := strings.CutSuffix(f, ".index")
		if ok && gone(release.ID(id)) {
			d.believed.Delete(release.ID(id))
			errs = append(errs, blame(d.state.Remove(f)))
		}
	}
	live, err := d.liveTimes()
	if err != nil {
		return errors.Join(append(errs, err)...)
	}
	before := len(live)
	for id := range live {
		if gone(id) {
			delete(live, id)
		}
	}
	if len(live) < before {
		errs = append(errs, d.Save(liveState, live))
	}
	return errors.Join(errs...)
}

// emptyTrash deletes what has been taken out of the way, now or before a crash.
func (d *Disk) emptyTrash() error {
	if err := failpoint.Hit("A24"); err != nil {
		return err
	}
	names, err := readNames(d.root)
	if err != nil {
		return err
	}
	var errs []error
	for _, n := range names {
		if !strings.HasPrefix(n, trashPrefix) {
			continue
		}
		err := d.unmounted(n)
		if err == nil {
			err = blame(d.root.RemoveAll(n))
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}
