package push

import (
	"bytes"
	"crypto/md5"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"time"

	"s3pulldeploy/internal/release"
)

// cache is what earlier pushes left on this machine: below the user's cache directory, s3-pull-deploy/manifests/<scope>/<release>,
// objects as they are in the bucket, s3-pull-deploy/index/<tree>, the sums of a tree's files, and s3-pull-deploy/cleaned/<scope>, as old
// as the last clean-up. Everything in it is verified
// before it is believed, so what is damaged or missing makes a push slower and never wrong; the same goes for what
// cannot be written. A nil cache is one that keeps nothing.
type cache struct {
	manifests string
	index     string
	cleaned   string
}

// openCache is the cache for pushes of a directory to a scope; nil where this user has no cache directory.
func openCache(scope, dir string) *cache {
	base, err := os.UserCacheDir()
	if err != nil {
		return nil
	}
	if full, err := filepath.Abs(dir); err == nil {
		dir = full
	}
	base = filepath.Join(base, "s3-pull-deploy")
	return &cache{
		manifests: filepath.Join(base, "manifests", short(scope)), index: filepath.Join(base, "index", short(dir)),
		cleaned: filepath.Join(base, "cleaned", short(scope)),
	}
}

// short is a file name that stands for a text.
func short(text string) string {
	sum := sha256.Sum256([]byte(text))
	return hex.EncodeToString(sum[:16])
}

// is256 and isMD5 verify an object: by the pointer's word, and by the ETag of a listing as far as that is an MD5 sum.
func is256(sum string) func([]byte) bool {
	return func(object []byte) bool { got := sha256.Sum256(object); return hex.EncodeToString(got[:]) == sum }
}

func isMD5(etag string) func([]byte) bool {
	return func(object []byte) bool { got := md5.Sum(object); return hex.EncodeToString(got[:]) == etag }
}

// manifest is the kept manifest of a release if it is the wanted one, else nil.
func (c *cache) manifest(id release.ID, wanted func([]byte) bool) []byte {
	if c == nil {
		return nil
	}
	object, err := os.ReadFile(filepath.Join(c.manifests, string(id)))
	if err != nil || !wanted(object) {
		return nil
	}
	return object
}

// cachedManifests is how many manifests of a scope are kept: those that a push may compare with, and some.
const cachedManifests = 32

// keepManifest keeps one, best effort, and drops the oldest by name.
func (c *cache) keepManifest(id release.ID, object []byte) {
	if c == nil || replaceFile(filepath.Join(c.manifests, string(id)), object) != nil {
		return
	}
	names, err := os.ReadDir(c.manifests)
	if err != nil {
		return
	}
	for _, old := range names[:max(0, len(names)-cachedManifests)] { // sorted by name, which is by time
		_ = os.Remove(filepath.Join(c.manifests, old.Name()))
	}
}

// due says whether the last clean-up from this machine is so long ago, and takes this as the next.
func (c *cache) due(every time.Duration) bool {
	if c == nil {
		return true
	}
	info, err := os.Stat(c.cleaned)
	if err == nil && time.Since(info.ModTime()).Abs() < every {
		return false
	}
	_ = replaceFile(c.cleaned, nil)
	return true
}

// replaceFile writes a file of the cache: whole or not at all, unless the power fails.
func replaceFile(name string, text []byte) error {
	dir := filepath.Dir(name)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	out, err := os.CreateTemp(dir, ".new-*")
	if err != nil {
		return err
	}
	_, err = out.Write(text)
	if err = errors.Join(err, out.Close()); err == nil {
		err = os.Rename(out.Name(), name)
	}
	if err != nil {
		_ = os.Remove(out.Name())
	}
	return err
}

// statKey is what the file system says of a file. A file with the same key has the same contents, unless it was changed
// within the resolution of its times: see [racy].
type statKey struct {
	Dev, Ino               uint64
	Size, MtimeNS, CtimeNS int64
}

// racy is how much older than the scan the times of a file must be for its sum to be kept. It is git's rule with
// the coarsest clock of the file systems that people develop on, FAT's 2 s.
const racy = 2 * time.Second

// statIndex knows the sums of files by what the file system says of them. It serves one scan.
//
// Its file is indexMagic, then for each file the five numbers of its key, 64 bits little endian, and its SHA-256; at the
// end the SHA-256 of all before.
type statIndex struct {
	sums    map[statKey]release.Sum // as it was read
	read    int                     // records; names of one file have the same key
	found   []*packedEntry          // what it is to be from now on
	changed bool                    // found is not what sums has
	racy    time.Duration           // how much older than the scan a file must be
}

const (
	indexMagic  = "s3pdidx2" // 1 had sums of files that were not looked into for keys
	indexRecord = 5*8 + len(release.Sum{})
)

// loadIndex reads the index; an empty one where there is none that is whole.
func (c *cache) loadIndex() *statIndex {
	x := &statIndex{sums: map[statKey]release.Sum{}, racy: racy}
	if c == nil {
		return x
	}
	text, err := os.ReadFile(c.index)
	end := len(text) - sha256.Size
	if err != nil || end < len(indexMagic) || (end-len(indexMagic))%indexRecord != 0 || !bytes.HasPrefix(text, []byte(indexMagic)) {
		return x
	}
	if sum := sha256.Sum256(text[:end]); !bytes.Equal(sum[:], text[end:]) {
		return x
	}
	x.read = end / indexRecord
	x.sums = make(map[statKey]release.Sum, x.read)
	number := binary.LittleEndian.Uint64
	for record := range slices.Chunk(text[len(indexMagic):end], indexRecord) {
		k := statKey{number(record), number(record[8:]), int64(number(record[16:])), int64(number(record[24:])), int64(number(record[32:]))}
		x.sums[k] = release.Sum(record[40:])
	}
	return x
}

// saveIndex writes the index if it has changed, best effort.
func (c *cache) saveIndex(x *statIndex) {
	if c == nil || !x.changed {
		return
	}
	out := make([]byte, 0, len(indexMagic)+len(x.found)*indexRecord+sha256.Size)
	out = append(out, indexMagic...)
	for _, e := range x.found {
		for _, n := range [...]uint64{e.key.Dev, e.key.Ino, uint64(e.key.Size), uint64(e.key.MtimeNS), uint64(e.key.CtimeNS)} {
			out = binary.LittleEndian.AppendUint64(out, n)
		}
		out = append(out, e.Sum[:]...)
	}
	sum := sha256.Sum256(out)
	_ = replaceFile(c.index, append(out, sum[:]...))
}

// sum is the sum of a file that is as it was when it was read.
func (x *statIndex) sum(e *packedEntry) (release.Sum, bool) {
	if !e.seen {
		return release.Sum{}, false
	}
	sum, ok := x.sums[e.key]
	return sum, ok
}

// replace makes the index, as it will be saved, one of these files, which were looked at since the time began. Files so young that another
// write might leave their times as they are stay out, to be read again; so do those with a private key, to be found again.
func (x *statIndex) replace(entries []*packedEntry, began time.Time) {
	x.found, x.changed = make([]*packedEntry, 0, len(entries)), false
	hot := map[statKey]bool{} // another name of the same file may say that its key is none
	for _, e := range entries {
		if e.hot {
			hot[e.key] = true
		}
	}
	limit := began.Add(-x.racy).UnixNano()
	for _, e := range entries {
		if e.Kind == release.File && e.seen && !hot[e.key] && max(e.key.MtimeNS, e.key.CtimeNS) < limit {
			x.found = append(x.found, e)
			x.changed = x.changed || !e.known
		}
	}
	x.changed = x.changed || len(x.found) != x.read
}
