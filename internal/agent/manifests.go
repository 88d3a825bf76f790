package agent

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io/fs"
	"log/slog"
	"os"

	"s3pulldeploy/internal/disk"
	"s3pulldeploy/internal/release"
)

// manifestsDir is the directory, in the state directory, of the manifests of the releases on this disk.
const manifestsDir = "manifests"

// manifests keeps the manifest objects of packed releases, in files that are named by their SHA-256. A delta is applied to
// one of them, and a stage that was interrupted goes on without reading its manifest again. It is a cache: what is lost, or torn
// by a crash, which its name tells, costs one request. So nothing here is an error, and nothing waits for the disk.
type manifests struct {
	state string // the state directory
	log   *slog.Logger
}

// within runs f in the directory.
func (k manifests) within(f func(*os.Root) error) error {
	state, err := os.OpenRoot(k.state)
	if err != nil {
		return err
	}
	defer state.Close()
	if err := state.Mkdir(manifestsDir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	dir, err := state.OpenRoot(manifestsDir)
	if err != nil {
		return err
	}
	defer dir.Close()
	return f(dir)
}

// has says whether there is a manifest of that digest, whatever is in it.
func (k manifests) has(digest string) (is bool) {
	err := k.within(func(dir *os.Root) error {
		info, err := dir.Lstat(digest)
		is = err == nil && info.Mode().IsRegular()
		return nil
	})
	return is && err == nil
}

// get is the manifest of that digest; nil when it is not kept, or not as it was.
func (k manifests) get(digest string) (m *release.Manifest) {
	err := k.within(func(dir *os.Root) error {
		object, err := dir.ReadFile(digest)
		if err != nil {
			return err
		}
		if sum := sha256.Sum256(object); hex.EncodeToString(sum[:]) != digest {
			return errors.Join(errors.New("is not what its name says"), dir.Remove(digest))
		}
		m, err = release.ParseManifest(object)
		return err
	})
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		k.log.Warn("kept manifest not usable", "digest", digest, "error", err)
	}
	return m
}

// put keeps a manifest that was verified.
func (k manifests) put(digest string, object []byte) {
	err := k.within(func(dir *os.Root) error {
		f, err := dir.OpenFile(digest, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return err
		}
		_, err = f.Write(object)
		if err = errors.Join(err, f.Close()); err != nil {
			return errors.Join(err, dir.Remove(digest))
		}
		return nil
	})
	if err != nil {
		k.log.Warn("manifest not kept for the next deploy", "digest", digest, "error", err)
	}
}

// forget removes the manifests of releases that are not on the disk any more.
func (k manifests) forget(d *disk.Disk) error {
	here, err := d.Releases()
	if err != nil {
		return err
	}
	used := map[string]bool{}
	for _, r := range here {
		used[r.Digest] = true
	}
	return k.within(func(dir *os.Root) error {
		names, err := fs.ReadDir(dir.FS(), ".")
		for _, n := range names {
			if !used[n.Name()] {
				err = errors.Join(err, dir.Remove(n.Name()))
			}
		}
		return err
	})
}
