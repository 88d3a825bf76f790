package push

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"s3pulldeploy/internal/release"
)

// sums finds the SHA-256 of every file: from the index, else by reading it. It returns how many it read.
func (s *packedScanner) sums() (int, error) {
	var unread []*packedEntry
	for _, e := range s.entries {
		if e.Kind != release.File {
			continue
		}
		if sum, ok := s.index.sum(e); ok {
			e.Sum, e.known = sum, true
			continue
		}
		unread = append(unread, e)
	}
	const batch = 32 // neighbours, mostly of one directory
	var next atomic.Int64
	var g errgroup.Group
	for range runtime.GOMAXPROCS(0) {
		g.Go(func() error {
			h := &hasher{files: opener{root: s.root}, hash: sha256.New(), buffer: make([]byte, 128<<10)}
			defer h.files.Close()
			for {
				end := int(next.Add(batch))
				if end-batch >= len(unread) {
					return nil
				}
				for _, e := range unread[end-batch : min(end, len(unread))] {
					if err := h.read(e); err != nil {
						next.Store(int64(len(unread))) // the others stop
						return err
					}
				}
			}
		})
	}
	return len(unread), g.Wait()
}

// hasher reads files one after another.
type hasher struct {
	files  opener
	hash   hash.Hash
	buffer []byte
}

// read finds the sum of a file that is the same before and after it was read.
func (h *hasher) read(e *packedEntry) error {
	in, err := h.files.open(e.Path)
	if err != nil {
		return err
	}
	defer in.Close()
	h.hash.Reset()
	head, err := io.ReadFull(in, h.buffer)
	h.hash.Write(h.buffer[:head])
	e.hot = head <= keyFile && holdsKey(e.Path, h.buffer[:min(head, keyHead)])
	n := int64(head)
	if err == io.EOF || err == io.ErrUnexpectedEOF { // that was all of it
		err = nil
	} else if err == nil {
		var rest int64
		// A file as a bare reader: its own way of copying brings a buffer for each file.
		rest, err = io.CopyBuffer(h.hash, struct{ io.Reader }{in}, h.buffer)
		n += rest
	}
	if err != nil {
		return fmt.Errorf("read %q: %w", e.Path, err)
	}
	info, err := in.Stat()
	if err != nil {
		return fmt.Errorf("look at %q: %w", e.Path, err)
	}
	key, _ := keyOf(info)
	if n != e.Size || info.Size() != n || !info.ModTime().Equal(e.info.ModTime()) || key != e.key || !os.SameFile(info, e.info) {
		return changed(e.Path)
	}
	h.hash.Sum(e.Sum[:0])
	return nil
}

// changed says that a file of the tree is not what it was.
func changed(name string) error {
	return advise(fmt.Errorf("file %q changed while it was read", name),
		"let what writes there finish, or put the file into "+ignoreFile)
}

// opener opens the files of a tree. The directory of the last one stays open, because the next mostly lies in it too.
type opener struct {
	root *os.Root
	dir  string
	at   *os.Root
}

func (o *opener) open(name string) (*os.File, error) {
	dir, base := path.Split(name)
	if o.at == nil || dir != o.dir {
		o.Close()
		at, err := o.root.OpenRoot(filepath.Clean("./" + dir))
		if err != nil {
			return nil, fmt.Errorf("open directory of %q: %w", name, errors.Unwrap(err))
		}
		o.at, o.dir = at, dir
	}
	in, err := o.at.Open(base)
	if err != nil {
		return nil, fmt.Errorf("open %q: %w", name, errors.Unwrap(err))
	}
	return in, nil
}

func (o *opener) Close() {
	if o.at != nil {
		o.at.Close()
	}
	o.at = nil
}
