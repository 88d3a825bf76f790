package disk

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"s3pulldeploy/internal/release"
)

// Findings is what a scrub has read and found.
type Findings struct {
	Files   int                     // whole files, those that releases share once
	Bytes   int64                   // that were read
	Damaged map[release.ID][]string // paths in a release
}

// Scrub reads what the releases on this disk are made of, at most rate bytes a second, the live one first. What is not as it was
// published, or cannot be read, is believed no more: from then on [Disk.Has] and [Disk.Arm] say [ErrDamaged] of each release that
// has it, and nothing is linked to it, until it has been fetched again ([Stage.Mend], [Stage.Publish]). A scrub that was ended
// early has marked what it found.
func (d *Disk) Scrub(ctx context.Context, rate int64) (Findings, error) {
	s := &scrub{d: d, ctx: ctx, rate: rate, seen: map[uint64]bool{}, bad: map[uint64]bool{}}
	s.found.Damaged = map[release.ID][]string{}
	infos, err := d.releases()
	slices.SortStableFunc(infos, func(a, b Info) int {
		switch {
		case a.Active == b.Active:
			return 0
		case a.Active:
			return -1
		}
		return 1
	})
	for _, i := range infos {
		if err == nil {
			err = s.release(i.ID)
		}
	}
	if len(s.bad) > 0 {
		for _, i := range infos {
			err = errors.Join(err, s.mark(i.ID))
		}
	}
	if err != nil {
		return s.found, fmt.Errorf("scrub %q: %w", d.opt.Root, err)
	}
	return s.found, nil
}

// scrub is one pass.
type scrub struct {
	d     *Disk
	ctx   context.Context
	rate  int64           // bytes a second
	seen  map[uint64]bool // inodes that were read: releases share them
	bad   map[uint64]bool // those that are not what they were
	found Findings
}

// release reads the files of one release, a directory at a time.
func (s *scrub) release(id release.ID) error {
	ix, err := s.d.readIndex(id)
	if errors.Is(err, ErrState) {
		s.found.Damaged[id] = []string{indexFile(id)}
		return nil
	}
	if err != nil {
		return err
	}
	tree, err := openDir(s.d.root, string(id))
	if err != nil {
		return err
	}
	defer tree.Close()
	top, err := tree.Open(".")
	if err != nil {
		return blame(err)
	}
	defer top.Close()
	whole := folder{int(top.Fd()), s.d.Path(id)}
	for _, dir := range byDirectory(len(ix.entries), func(i int) (string, bool) { return ix.entries[i].path, true }) {
		in, missing := whole.enter(dir.path)
		for _, i := range dir.members {
			e := &ix.entries[i]
			if err = missing; err == nil {
				err = s.entry(in, e)
			}
			if err != nil && (s.ctx.Err() != nil || !isDamage(err)) {
				break
			}
			if err != nil {
				s.bad[e.inode] = true
				s.found.Damaged[id] = append(s.found.Damaged[id], e.path)
				s.d.log.Error("file of a release is damaged", "release", id, "path", e.path, "error", err)
				err = nil
			}
		}
		in.close()
		if err != nil {
			return err
		}
	}
	return nil
}

// isDamage says whether an error means that a file is not what it was, and not that it could not be looked at.
func isDamage(err error) bool {
	return errors.Is(err, ErrDamaged) || errors.Is(err, ErrContent) || errors.Is(err, fs.ErrNotExist) ||
		errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) || errors.Is(err, unix.EIO)
}

// entry compares one entry with what is there: by a stat, and a file's content, once, by its hash.
func (s *scrub) entry(in folder, e *entry) error {
	if _, err := e.verify(in, false); err != nil {
		return err
	}
	if e.kind != 'f' || s.seen[e.inode] {
		return s.ctx.Err()
	}
	_, name := split(e.path)
	file, _, err := in.open(name)
	if err != nil {
		return err
	}
	defer file.Close()
	// What is read once must not count as used: the files of the site would be pushed out of memory. A hint, since Linux 6.3.
	_ = unix.Fadvise(int(file.Fd()), 0, 0, unix.FADV_NOREUSE)
	h := newSums("")
	if _, err = copyAll(h, slow{s, file}); err == nil {
		_, err = h.check(Digest(e.sum.String()))
	}
	if err != nil {
		return fmt.Errorf("read %q: %w", path.Join(in.name, name), err)
	}
	s.seen[e.inode] = true
	s.found.Files++
	return nil
}

// slow reads no faster than the scrub's rate.
type slow struct {
	*scrub
	r io.Reader
}

func (s slow) Read(b []byte) (int, error) {
	n, err := s.r.Read(b)
	s.found.Bytes += int64(n)
	timer := time.NewTimer(time.Duration(n) * time.Second / time.Duration(s.rate))
	defer timer.Stop()
	select {
	case <-s.ctx.Done():
		return n, s.ctx.Err()
	case <-timer.C:
		return n, err
	}
}

// mark makes a release's index know nothing of the inodes that are damaged, so that whoever meets them hashes them, and finds what
// the scrub found, after a restart too.
func (s *scrub) mark(id release.ID) error {
	ix, err := s.d.readIndex(id)
	if errors.Is(err, ErrState) {
		return nil // believed by nobody
	}
	if err != nil {
		return err
	}
	marked := false
	for i := range ix.entries {
		if e := &ix.entries[i]; e.kind == 'f' && s.bad[e.inode] && e.inode != 0 {
			e.inode, marked = 0, true
		}
	}
	if !marked {
		return nil
	}
	return s.d.writeIndex(ix)
}
