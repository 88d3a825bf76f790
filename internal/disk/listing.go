package disk

import (
	"crypto/md5"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"math"
	"path"
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

// layout is a listing that was found fit to be laid out.
type layout struct {
	files map[string]File
	order []string  // of the listing
	dirs  []string  // that the files need, parents first
	mtime time.Time // of the newest file; the stamp's
}

// lay checks a listing as a whole before anything is written: paths, limits, duplicates, files in the
// place of directories, and clashes with what the options add.
func (d *Disk) lay(files []File) (*layout, error) {
	if len(files) > MaxFiles {
		return nil, fmt.Errorf("%d files, at most %d: %w", len(files), MaxFiles, ErrListing)
	}
	l := &layout{files: make(map[string]File, len(files)), order: make([]string, 0, len(files))}
	dirs := map[string]bool{}
	total := int64(0)
	for _, f := range files {
		if err := release.CheckPath(f.Path); err != nil {
			return nil, fmt.Errorf("%w: %w", ErrListing, err)
		}
		if f.Size < 0 || f.Size > math.MaxInt64/2-total {
			return nil, fmt.Errorf("%q: size %d: %w", f.Path, f.Size, ErrListing)
		}
		if !f.Digest.valid() {
			return nil, fmt.Errorf("%q: digest %q is neither SHA-256 nor MD5: %w", f.Path, f.Digest, ErrListing)
		}
		if _, twice := l.files[f.Path]; twice {
			return nil, fmt.Errorf("%q: twice in the listing: %w", f.Path, ErrListing)
		}
		total += f.Size
		l.files[f.Path], l.order = f, append(l.order, f.Path)
		for p := path.Dir(f.Path); p != "." && !dirs[p]; p = path.Dir(p) {
			dirs[p] = true
		}
		if f.Modified.After(l.mtime) {
			l.mtime = f.Modified
		}
	}
	for p := range dirs {
		if _, clash := l.files[p]; clash {
			return nil, fmt.Errorf("%q: both a file and a directory: %w", p, ErrListing)
		}
		l.dirs = append(l.dirs, p)
	}
	slices.Sort(l.dirs) // a parent's name is a prefix: it sorts first
	return l, d.clash(l.files, dirs)
}

// clash finds release files where the options want something of their own.
func (d *Disk) clash(files map[string]File, dirs map[string]bool) error {
	free := func(p, what string) error { // p and what is above it must be no file
		for ; p != "."; p = path.Dir(p) {
			if _, taken := files[p]; taken {
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
		if dirs[p] {
			return fmt.Errorf("%q: the release has files in it, the settings make it a shared path: %w", p, ErrListing)
		}
	}
	if p := d.opt.Stamp; p != "" {
		if err := free(p, "stamp"); err != nil {
			return err
		}
		if dirs[p] {
			return fmt.Errorf("%q: the release has a directory there, the settings a stamp: %w", p, ErrListing)
		}
	}
	return nil
}

// room checks that files (not yet on disk) and their directories fit, and something stays free.
func (d *Disk) room(files []File, dirs int) error {
	var fs unix.Statfs_t
	if err := unix.Fstatfs(int(d.rootDir.Fd()), &fs); err != nil {
		return fmt.Errorf("free space of %q: %w", d.opt.Root, err)
	}
	block := uint64(fs.Bsize)
	inodes := uint64(len(files) + dirs + len(d.opt.Writable) + len(d.opt.Shared) + 2)
	bytes := uint64(dirs) * block
	for _, f := range files {
		bytes += (uint64(f.Size) + block - 1) / block * block
	}
	spare := min(reserveBytes, fs.Blocks*block/20)
	if free := fs.Bavail * block; bytes+spare > free {
		return fmt.Errorf("%q: release needs %d bytes, and %d stay free, of %d: %w", d.opt.Root, bytes, spare, free, ErrNoSpace)
	}
	spare = min(reserveInodes, fs.Files/20)
	if fs.Files > 0 && inodes+spare > fs.Ffree { // btrfs counts none
		return fmt.Errorf("%q: release needs %d inodes, and %d stay free, of %d: %w", d.opt.Root, inodes, spare, fs.Ffree, ErrNoSpace)
	}
	return nil
}

// below says whether p is one of the tops or lies in one.
func below(p string, tops []string) bool {
	return slices.ContainsFunc(tops, func(top string) bool { return p == top || strings.HasPrefix(p, top+"/") })
}
