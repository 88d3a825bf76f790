package push

import (
	"io/fs"
	"syscall"
)

// keyOf is what the file system says of a file, and whether that is enough to know it again.
func keyOf(info fs.FileInfo) (statKey, bool) {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return statKey{}, false
	}
	//nolint:unconvert // the fields' types differ between architectures
	return statKey{uint64(st.Dev), uint64(st.Ino), st.Size, st.Mtim.Nano(), st.Ctim.Nano()}, true
}
