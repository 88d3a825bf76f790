package disk

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// What can be wrong. The first group is about this machine ([Fault] says so), the second about the
// release. Every error that carries one names the path.
var (
	ErrNoSpace       = errors.New("no space left")                          // bytes or inodes
	ErrReadOnly      = errors.New("filesystem is read-only")                // or was remounted so
	ErrSync          = errors.New("writing to stable storage did not work") // a staged tree is thrown away
	ErrSharedMissing = errors.New("shared target is missing")               // a mount, say, that did not come
	ErrDamaged       = errors.New("changed on disk")                        // since it was written
	ErrMounted       = errors.New("is a mount")                             // in a place that we rename or remove
	ErrState         = errors.New("state file is damaged")                  // torn or altered
	ErrLocked        = errors.New("another agent uses this directory")
	// ErrActiveNotLink is about a file or directory under the live link's name; it is never removed by us.
	ErrActiveNotLink = errors.New("is not a link: move it away, then the agent can flip")

	ErrListing = errors.New("release cannot be laid out")           // a bad path, a clash, a limit
	ErrContent = errors.New("content is not what the listing says") // size, digest, type
)

var machine = []error{
	ErrNoSpace, ErrReadOnly, ErrSync, ErrSharedMissing, ErrDamaged,
	ErrMounted, ErrState, ErrLocked, ErrActiveNotLink,
}

// Fault says whether err is about this machine (disk, space, permissions, a shared target) and not about
// the release. It is false for what a reader given to [Stage.Put] failed with: its owner knows better.
func Fault(err error) bool {
	for _, e := range machine {
		if errors.Is(err, e) {
			return true
		}
	}
	if errors.Is(err, ErrListing) || errors.Is(err, ErrContent) {
		return false
	}
	// The errors that files give; nothing else here fails with these types.
	var p *fs.PathError
	var l *os.LinkError
	return errors.As(err, &p) || errors.As(err, &l)
}

// blame adds our sentinel to what the system said.
func blame(err error) error {
	switch {
	case errors.Is(err, ErrNoSpace), errors.Is(err, ErrReadOnly):
		return err
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		return fmt.Errorf("%w: %w", ErrNoSpace, err)
	case errors.Is(err, unix.EROFS):
		return fmt.Errorf("%w: %w", ErrReadOnly, err)
	}
	return err
}
