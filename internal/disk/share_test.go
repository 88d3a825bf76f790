package disk

import (
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"s3pulldeploy/internal/testenv"
)

// used is the room that is taken on a filesystem, in bytes.
func used(t *testing.T, d *Disk) int64 {
	t.Helper()
	must(t, d.syncfs(d.rootDir))
	var fs unix.Statfs_t
	must(t, unix.Statfs(d.opt.Root, &fs))
	return int64(fs.Blocks-fs.Bfree) * fs.Bsize
}

// Where PHP owns the files, a link would let it write to all releases at once.
func TestCopiesShareTheirBlocksWhereTheFilesystemCan(t *testing.T) {
	const size = 8 << 20
	film := make([]byte, size)
	rand.Read(film)
	for kind, shares := range map[string]bool{"ext4": false, "xfs": true, "btrfs": true} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			image := testenv.NewImage(t, kind)
			web := User{65001, 65001}
			d := open(t, Options{Root: image.Dir + "/root", Active: "active", StateDir: image.Dir + "/state", Owner: web, WebUser: web})
			p := packed{"film": string(film), "index.php": "<?php 1;"}
			deploy(t, d, r1, p)
			before := used(t, d)
			if got := deploy(t, d, r2, p); len(got) != 0 {
				t.Errorf("fetched %q", got)
			}
			if grown := used(t, d) - before; (grown < size/2) != shares {
				t.Errorf("a copy of %d bytes took %d, want blocks shared: %v", size, grown, shares)
			}
			name := d.Path(r2) + "/film"
			if inode(t, name) == inode(t, d.Path(r1)+"/film") {
				t.Error("linked")
			}
			f, err := os.OpenFile(name, os.O_WRONLY, 0)
			must(t, err)
			_, err = f.WriteAt([]byte("PHP was here"), 0)
			must(t, errors.Join(err, f.Close()))
			if got, err := os.ReadFile(d.Path(r1) + "/film"); err != nil || !slices.Equal(got, film) {
				t.Errorf("what was written to one release is in the other: %v", err)
			}
		})
	}
}

// ext4 takes 65,000 links to a file, btrfs 65,535.
func TestFileWithAllTheLinksThatItCanHaveIsCopied(t *testing.T) {
	for _, kind := range []string{"ext4", "btrfs"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			image := testenv.NewImage(t, kind, map[string][]string{"ext4": {"-i", "4096"}}[kind]...)
			d := open(t, Options{Root: image.Dir + "/root", Active: "active", StateDir: image.Dir + "/state"})
			deploy(t, d, r1, site)
			full := d.Path(r1) + "/index.php"
			var err error
			for n := 0; err == nil; n++ {
				if n%1000 == 0 {
					must(t, os.MkdirAll(fmt.Sprintf("%s/links/%d", image.Dir, n/1000), 0o755))
				}
				err = os.Link(full, fmt.Sprintf("%s/links/%d/%d", image.Dir, n/1000, n))
			}
			if !errors.Is(err, unix.EMLINK) {
				t.Fatal(err)
			}
			if got := deploy(t, d, r2, site); len(got) != 0 {
				t.Errorf("fetched %q", got)
			}
			if inode(t, full) == inode(t, d.Path(r2)+"/index.php") || inode(t, d.Path(r1)+"/bin/run") != inode(t, d.Path(r2)+"/bin/run") {
				t.Error("want the full one copied and the other linked")
			}
		})
	}
}
