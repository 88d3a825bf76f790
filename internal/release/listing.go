package release

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
)

// Limits of a release, checked before anything is done with it. Together they cannot overflow a sum of sizes.
const (
	// MaxFiles is the largest number of files of a release.
	MaxFiles = 1_000_000
	// MaxFileSize is the size of the largest object that S3 holds, in bytes.
	MaxFileSize = 5 << 40
)

// Object is one file of a plain release as the bucket lists it.
type Object struct {
	Path     string    // below <release>/, slashes between the parts
	Size     int64     // bytes
	ETag     string    // with or without quotes
	Modified time.Time // when it was uploaded; not part of the digest
}

// Listing is all the objects of a plain release, in any order.
type Listing []Object

// Digest identifies the release's contents as far as a listing can: hex SHA-256 over `path NUL size NUL ETag LF`
// of all objects, sorted by the path's bytes, ETags without quotes.
func (l Listing) Digest() string {
	sorted := slices.Clone(l)
	slices.SortFunc(sorted, func(a, b Object) int {
		return cmp.Or(strings.Compare(a.Path, b.Path), cmp.Compare(a.Size, b.Size), strings.Compare(a.ETag, b.ETag))
	})
	sum := sha256.New()
	for _, o := range sorted {
		io.WriteString(sum, o.Path)
		fmt.Fprintf(sum, "\x00%d\x00%s\n", o.Size, strings.Trim(o.ETag, `"`))
	}
	return hex.EncodeToString(sum.Sum(nil))
}

// Check refuses, as an [*Error], a listing that is not a release of so many files: another count, a path that
// must not be, one path twice, a file where another path needs a directory, a size out of range.
func (l Listing) Check(files int) error {
	if len(l) > MaxFiles {
		return &Error{What: "listing", Rule: fmt.Sprintf("has more than %d files", MaxFiles)}
	}
	if len(l) != files {
		return &Error{What: "listing", Rule: fmt.Sprintf("has %d files where the pointer says %d", len(l), files)}
	}
	paths := make(map[string]bool, len(l))
	for _, o := range l {
		if err := CheckPath(o.Path); err != nil {
			return err
		}
		if o.Size < 0 || o.Size > MaxFileSize {
			return &Error{"path", o.Path, fmt.Sprintf("has size %d, which must be 0 to 5 TiB", o.Size)}
		}
		if paths[o.Path] {
			return &Error{"path", o.Path, "is listed twice"}
		}
		paths[o.Path] = true
	}
	for _, o := range l {
		for i, c := range []byte(o.Path) {
			if c == '/' && paths[o.Path[:i]] {
				return &Error{"path", o.Path, "needs a directory where " + quote(o.Path[:i]) + " is a file"}
			}
		}
	}
	return nil
}

// Bytes is the sum of the sizes. It cannot overflow for a listing that passed [Listing.Check].
func (l Listing) Bytes() int64 {
	var sum int64
	for _, o := range l {
		sum += o.Size
	}
	return sum
}
