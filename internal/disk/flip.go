package disk

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"
	"time"

	"s3pulldeploy/internal/failpoint"
	"s3pulldeploy/internal/release"
)

// Active is the release that the active link names, whether it is whole or not, and also when somebody
// else made the link, absolute say; "" when there is no link or it leads to no release of this root.
// [ErrActiveNotLink] when something else has its name.
func (d *Disk) Active() (release.ID, error) {
	id, err := d.linked(d.opt.Active)
	if err != nil {
		return "", fmt.Errorf("read active link: %w", err)
	}
	return id, nil
}

// linked is the release that a link in the root names, "" for none.
func (d *Disk) linked(name string) (release.ID, error) {
	first, rest, err := d.target(name)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	if id := release.ID(first); rest == "" && d.checkID(id) == nil {
		return id, nil
	}
	return "", nil
}

// target splits where a link of the root leads, as a path from the root: its first name and the rest;
// two empty strings for a place outside.
func (d *Disk) target(name string) (first, rest string, err error) {
	info, err := d.root.Lstat(name)
	if err != nil {
		return "", "", blame(err)
	}
	if info.Mode().Type() != fs.ModeSymlink {
		return "", "", fmt.Errorf("%q: %w", filepath.Join(d.opt.Root, name), ErrActiveNotLink)
	}
	link, err := d.root.Readlink(name)
	if err != nil {
		return "", "", blame(err)
	}
	if !filepath.IsAbs(link) {
		link = filepath.Join(d.path, link)
	}
	for _, top := range []string{d.path, d.opt.Root} { // the link may have been made through a link
		if rel, err := filepath.Rel(top, link); err == nil && filepath.IsLocal(rel) {
			first, rest, _ = strings.Cut(rel, "/")
			return first, rest, nil
		}
	}
	return "", "", nil
}

// Armed is a flip that is ready: the release was verified and the temporary link lies beside the active
// one, so that the flip itself is a rename and needs neither space nor time.
type Armed struct {
	d     *Disk
	id    release.ID
	where identity
	link  string
}

// Arm verifies release id and prepares the flip to it. On a full disk it gives back some of the reserve. Errors:
// those of Has; [ErrDamaged] also when the release is not here.
func (d *Disk) Arm(id release.ID) (*Armed, error) {
	a, err := d.arm(id)
	if err != nil {
		return nil, fmt.Errorf("flip to release %s: %w", id, err)
	}
	return a, nil
}

func (d *Disk) arm(id release.ID) (*Armed, error) {
	if err := failpoint.Hit("A17"); err != nil {
		return nil, err
	}
	ix, err := d.verified(id)
	if err != nil {
		return nil, err
	}
	if ix == nil {
		return nil, fmt.Errorf("%q: not a published release: %w", d.Path(id), ErrDamaged)
	}
	if err := failpoint.Hit("A18"); err != nil {
		return nil, err
	}
	link, err := d.tempLink(string(id))
	if err != nil {
		return nil, err
	}
	return &Armed{d: d, id: id, where: ix.identity, link: link}, nil
}

// Flip makes the release the active one, durably: nil means that it survives power loss. When the link
// names it already, Flip only makes that durable. On [ErrSync] the link may have changed, and not durably.
func (a *Armed) Flip() error {
	if err := a.flip(); err != nil {
		return errors.Join(fmt.Errorf("flip to release %s: %w", a.id, err), a.Close())
	}
	return a.Close()
}

func (a *Armed) flip() error {
	d := a.d
	d.mu.Lock()
	defer d.mu.Unlock()
	there, err := d.identify(string(a.id))
	if err != nil {
		return err
	}
	if there != a.where {
		return fmt.Errorf("%q: replaced since it was verified: %w", d.Path(a.id), ErrDamaged)
	}
	old, err := d.linked(d.opt.Active)
	if err != nil {
		return err
	}
	if old != a.id {
		if old != "" {
			d.setPrevious(old)
		}
		if err := failpoint.Hit("A19"); err != nil {
			return err
		}
		if err := d.rename(a.link, d.opt.Active, 0); err != nil {
			return err
		}
		a.link = ""
	}
	if err := failpoint.Hit("A20"); err != nil {
		return err
	}
	if err := d.syncDir(d.rootDir); err != nil {
		return err
	}
	d.noteLive(old, a.id)
	return nil
}

// Close removes the temporary link of a flip that did not happen. It may be called again.
func (a *Armed) Close() error {
	if a.link == "" {
		return nil
	}
	link := a.link
	a.link = ""
	return blame(a.d.root.Remove(link))
}

// Flip is Arm and Flip in one.
func (d *Disk) Flip(id release.ID) error {
	a, err := d.Arm(id)
	if err != nil {
		return err
	}
	return a.Flip()
}

// setPrevious points the previous link at the release that is about to be left. It serves late requests
// for static files, so that a flip never fails for it.
func (d *Disk) setPrevious(id release.ID) {
	_, err := d.linked(release.PreviousLink) // refuses to replace what is not a link
	var link string
	if err == nil {
		link, err = d.tempLink(string(id))
	}
	if err == nil {
		if err = d.rename(link, release.PreviousLink, 0); err != nil {
			err = errors.Join(err, d.root.Remove(link))
		}
	}
	if err != nil {
		d.log.Warn("previous link not set", "path", filepath.Join(d.opt.Root, release.PreviousLink), "release", id, "error", err)
	}
}

// tempLink makes a relative link of a name that nobody has used.
func (d *Disk) tempLink(to string) (string, error) {
	name := linkPrefix + rand.Text()
	err := d.withReserve(func() error { return blame(d.root.Symlink(to, name)) })
	if err != nil {
		return "", fmt.Errorf("make a link in %q: %w", d.opt.Root, err)
	}
	return name, nil
}

const liveState = "live"

// noteLive records that releases are, or were until now, live: what keep_for counts from. When the record
// is lost, everything on disk counts as live now, so that nothing is removed too early.
func (d *Disk) noteLive(ids ...release.ID) {
	live, err := d.liveTimes()
	if err != nil {
		d.log.Error("record of live releases lost", "error", err)
	}
	for _, id := range ids {
		if id != "" {
			live[id] = time.Now().Unix()
		}
	}
	if err := d.Save(liveState, live); err != nil {
		d.log.Warn("record of live releases not kept", "error", err)
	}
}

// liveTimes is when each release was last known to be live, in Unix seconds. With an error it says now
// for every release.
func (d *Disk) liveTimes() (map[release.ID]int64, error) {
	live := map[release.ID]int64{}
	_, err := d.Load(liveState, &live)
	if err == nil {
		return live, nil
	}
	live = map[release.ID]int64{}
	names, listed := readNames(d.root)
	for _, n := range names {
		live[release.ID(n)] = time.Now().Unix()
	}
	return live, errors.Join(err, listed)
}
