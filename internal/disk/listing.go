package disk

import (
	"cmp"
	"crypto/md5"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"s3pulldeploy/internal/release"
)

// MaxFiles bounds a release.
const MaxFiles = 1_000_000

// What stays free whatever a release needs: the lesser of these and a twentieth of the filesystem.
const (
	reserveBytes  = 32 << 20
	reserveInodes = 1024
)

// File is one file of a release as the listing has it.
type File struct {
	Path     string    // relative, slashes; as release.CheckPath allows
	Size     int64     // bytes
	Exec     bool      // mode 0755, else 0644
	Modified time.Time // becomes the mtime; zero: whatever it is
	Digest   Digest
}

// Digest is what is known of a file's content: a SHA-256 or an MD5 in lower-case hex, told apart by
// their length, or "" when only the size is known.
type Digest string

// ETagDigest is the MD5 that an S3 ETag is for an object uploaded in one part, or "" when it does not
// look like one (several parts). The ETag of an object encrypted with KMS or a customer's key looks like
// an MD5 and is none: the caller, who knows, must not ask.
func ETagDigest(etag string) Digest {
	d := Digest(strings.ToLower(strings.Trim(etag, `"`)))
	if len(d) != 2*md5.Size || !d.valid() {
		return ""
	}
	return d
}

func (d Digest) valid() bool {
	raw, err := hex.DecodeString(string(d))
	return err == nil && strings.ToLower(string(d)) == string(d) &&
		(len(raw) == 0 || len(raw) == md5.Size || len(raw) == sha256.Size)
}

// layout is a release that was found fit to be laid out. Entries are in the order of
// [release.ComparePaths], each after its directory.
type layout struct {
	entries []release.Entry
	mtime   int64 // Unix nanoseconds, of the newest file; the stamp's; 0: none

	// Of the plain layout only, where less is known of a file than an entry says.
	files []File  // as listed
	file  []int32 // the entry of each listed file
	plain []int32 // the listed file of each entry, -1 for a directory
}

// lay checks a listing as a whole before anything is written: paths, limits, duplicates, files in the
// place of directories, and clashes with what the options add.
func (d *Disk) lay(files []File) (*layout, error) {
	if len(files) > MaxFiles {
		return nil, fmt.Errorf("%d files, at most %d: %w", len(files), MaxFiles, ErrListing)
	}
	l := &layout{files: files, file: make([]int32, len(files))}
	places := make([]place, 0, len(files))
	dirs := map[string]bool{}
	total := int64(0)
	for i, f := range files {
		if err := release.CheckPath(f.Path); err != nil {
			return nil, fmt.Errorf("%w: %w", ErrListing, err)
		}
		if f.Size < 0 || f.Size > math.MaxInt64/2-total {
			return nil, fmt.Errorf("%q: size %d: %w", f.Path, f.Size, ErrListing)
		}
		if !f.Digest.valid() {
			return nil, fmt.Errorf("%q: digest %q is neither SHA-256 nor MD5: %w", f.Path, f.Digest, ErrListing)
		}
		total += f.Size
		places = append(places, place{f.Path, int32(i)})
		for p, _ := split(f.Path); p != "" && !dirs[p]; p, _ = split(p) {
			dirs[p] = true
			places = append(places, place{p, -1})
		}
		if !f.Modified.IsZero() {
			l.mtime = max(l.mtime, f.Modified.UnixNano())
		}
	}
	if err := l.arrange(places); err != nil {
		return nil, err
	}
	return l, d.clash(l)
}

// place is a path that a listing has or needs.
type place struct {
	path string
	file int32 // number of the listed file; -1: a directory
}

// arrange makes the entries of a plain listing: one for each place, in order.
func (l *layout) arrange(places []place) error {
	slices.SortFunc(places, func(a, b place) int {
		return cmp.Or(release.ComparePaths(a.path, b.path), cmp.Compare(a.file, b.file))
	})
	for i, p := range places {
		if i > 0 && p.path == places[i-1].path {
			what := "twice in the listing"
			if places[i-1].file < 0 {
				what = "both a file and a directory"
			}
			return fmt.Errorf("%q: %s: %w", p.path, what, ErrListing)
		}
		e := release.Entry{Path: p.path, Kind: release.Dir}
		if p.file >= 0 {
			e.Kind, e.Size, e.Exec = release.File, l.files[p.file].Size, l.files[p.file].Exec
			l.file[p.file] = int32(i)
		}
		l.entries, l.plain = append(l.entries, e), append(l.plain, p.file)
	}
	return nil
}

// layEntries is [Disk.lay] for a manifest's entries. A parsed manifest keeps these rules already; they are
// looked at again because the tree below is what they protect.
func (d *Disk) layEntries(entries []release.Entry) (*layout, error) {
	if len(entries) > release.MaxEntries {
		return nil, fmt.Errorf("%d entries, at most %d: %w", len(entries), release.MaxEntries, ErrListing)
	}
	l := &layout{entries: entries}
	var within []string // the directories that the last entry lies in, or is
	total, prev := int64(0), ""
	for i := range entries {
		e := &entries[i]
		if err := checkEntry(e); err != nil {
			return nil, fmt.Errorf("%w: %w", ErrListing, err)
		}
		if i > 0 && release.ComparePaths(prev, e.Path) >= 0 {
			return nil, fmt.Errorf("%q: after %q, out of order: %w", e.Path, prev, ErrListing)
		}
		dir, _ := split(e.Path)
		for len(within) > 0 && within[len(within)-1] != dir {
			within = within[:len(within)-1]
		}
		if dir != "" && len(within) == 0 {
			return nil, fmt.Errorf("%q: in no listed directory: %w", e.Path, ErrListing)
		}
		if e.Size > math.MaxInt64/2-total {
			return nil, fmt.Errorf("%q: size %d: %w", e.Path, e.Size, ErrListing)
		}
		total, prev = total+e.Size, e.Path
		switch e.Kind {
		case release.Dir:
			within = append(within, e.Path)
		case release.File:
			l.mtime = max(l.mtime, e.MTime*1e9)
		}
	}
	return l, d.clash(l)
}

// checkEntry looks at one entry of a manifest by itself.
func checkEntry(e *release.Entry) error {
	if e.Kind == release.Symlink {
		return release.CheckLinkTarget(e.Path, e.Target)
	}
	if err := release.CheckPath(e.Path); err != nil {
		return err
	}
	if e.Kind != release.Dir && e.Kind != release.File {
		return fmt.Errorf("%q: neither file, directory nor link", e.Path)
	}
	if e.Size < 0 || e.MTime < 0 || e.MTime > math.MaxInt64/int64(time.Second) {
		return fmt.Errorf("%q: size %d, time %d", e.Path, e.Size, e.MTime)
	}
	return nil
}

// find is the number of the entry with this path, and whether there is one.
func (l *layout) find(p string) (int, bool) {
	return slices.BinarySearchFunc(l.entries, p, func(e release.Entry, p string) int {
		return release.ComparePaths(e.Path, p)
	})
}

// isDir says whether the release has a directory p; filled, whether there is something in it.
func (l *layout) isDir(p string) (is, filled bool) {
	i, ok := l.find(p)
	if !ok || l.entries[i].Kind != release.Dir {
		return false, false
	}
	return true, i+1 < len(l.entries) && strings.HasPrefix(l.entries[i+1].Path, p+"/")
}

// time is the mtime that entry i shall have, in Unix nanoseconds, and false where any will do.
func (l *layout) time(i int) (int64, bool) {
	if l.plain == nil {
		return l.entries[i].MTime * 1e9, true
	}
	at := l.files[l.plain[i]].Modified
	return at.UnixNano(), !at.IsZero()
}

// digest is what is known of the content of file i.
func (l *layout) digest(i int) Digest {
	if l.plain == nil {
		return Digest(l.entries[i].Sum.String())
	}
	return l.files[l.plain[i]].Digest
}

// clash finds release files where the options want something of their own.
func (d *Disk) clash(l *layout) error {
	free := func(p, what string) error { // p and what is above it must be no file
		for ; p != ""; p, _ = split(p) {
			if i, taken := l.find(p); taken && l.entries[i].Kind != release.Dir {
				return fmt.Errorf("%q: the release has a file there, the settings a %s: %w", p, what, ErrListing)
			}
		}
		return nil
	}
	for _, p := range d.opt.Writable {
		if err := free(p, "writable directory"); err != nil {
			return err
		}
	}
	for p := range d.opt.Shared {
		if err := free(p, "shared path"); err != nil {
			return err
		}
		if _, filled := l.isDir(p); filled {
			return fmt.Errorf("%q: the release has files in it, the settings make it a shared path: %w", p, ErrListing)
		}
	}
	if p := d.opt.Stamp; p != "" {
		if err := free(p, "stamp"); err != nil {
			return err
		}
		if is, _ := l.isDir(p); is {
			return fmt.Errorf("%q: the release has a directory there, the settings a stamp: %w", p, ErrListing)
		}
	}
	return nil
}

// room checks that what is new fits (files of these sizes and so many other names), and something stays free.
func (d *Disk) room(sizes []int64, others int) error {
	var fs unix.Statfs_t
	if err := unix.Fstatfs(int(d.rootDir.Fd()), &fs); err != nil {
		return fmt.Errorf("free space of %q: %w", d.opt.Root, err)
	}
	block := uint64(fs.Bsize)
	inodes := uint64(len(sizes) + others + len(d.opt.Writable) + len(d.opt.Shared) + 2)
	bytes := uint64(others) * block
	for _, size := range sizes {
		bytes += (uint64(size) + block - 1) / block * block
	}
	spareBytes, spareInodes := Spare(&fs)
	if free := fs.Bavail * block; bytes+spareBytes > free {
		return fmt.Errorf("%q: release needs %d bytes, and %d stay free, of %d: %w", d.opt.Root, bytes, spareBytes, free, ErrNoSpace)
	}
	if fs.Files > 0 && inodes+spareInodes > fs.Ffree { // btrfs counts none
		return fmt.Errorf("%q: release needs %d inodes, and %d stay free, of %d: %w", d.opt.Root, inodes, spareInodes, fs.Ffree, ErrNoSpace)
	}
	return nil
}

// Spare is how many bytes and inodes stay free of a filesystem: 32 MiB and 1,024, or 5 % of a small one. No release is brought to it that would need them.
func Spare(fs *unix.Statfs_t) (bytes, inodes uint64) {
	return min(reserveBytes, fs.Blocks*uint64(fs.Bsize)/20), min(reserveInodes, fs.Files/20)
}

// below says whether p is one of the tops or lies in one.
func below(p string, tops []string) bool {
	return slices.ContainsFunc(tops, func(top string) bool { return p == top || strings.HasPrefix(p, top+"/") })
}
