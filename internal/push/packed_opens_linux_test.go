package push

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// opened calls f and returns the names of the files that were opened in these directories meanwhile.
func opened(t *testing.T, dirs []string, f func()) (names []string) {
	t.Helper()
	fd, err := unix.InotifyInit1(unix.IN_NONBLOCK | unix.IN_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	for _, dir := range dirs {
		if _, err := unix.InotifyAddWatch(fd, dir, unix.IN_OPEN); err != nil {
			t.Fatal("watch a directory:", err)
		}
	}
	f()
	buffer := make([]byte, 1<<20)
	for {
		n, err := unix.Read(fd, buffer)
		if errors.Is(err, unix.EAGAIN) {
			return names
		}
		if err != nil {
			t.Fatal(err)
		}
		for event := buffer[:n]; len(event) > 0; {
			mask, length := binary.NativeEndian.Uint32(event[4:]), binary.NativeEndian.Uint32(event[12:])
			if mask&unix.IN_Q_OVERFLOW != 0 {
				t.Fatal("too many files were opened to count them")
			}
			if mask&unix.IN_ISDIR == 0 {
				names = append(names, strings.TrimRight(string(event[unix.SizeofInotifyEvent:][:length]), "\x00"))
			}
			event = event[unix.SizeofInotifyEvent+length:]
		}
	}
}

func TestOfEightyThousandFilesASecondPushOpensOnlyWhatChanged(t *testing.T) {
	const dirs, each = 400, 200
	r := newPackedRig(t, nil)
	var watched []string
	for d := range dirs {
		dir := filepath.Join(r.dir, fmt.Sprintf("d%d", d%20), fmt.Sprintf("s%d", d))
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		watched = append(watched, dir)
		for f := range each {
			if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("f%d.php", f)), fmt.Appendf(nil, "<?php return %d;", d*each+f), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	// Files that are younger than this are read again, as they must be.
	if err := waitUntil(t.Context(), time.Now().Add(racy+100*time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	r.deploy()
	for _, name := range []string{"d0/s0/f7.php", "d19/s19/new.php"} {
		r.write(name, "<?php changed")
	}
	var result Result
	var requests []string
	names := opened(t, watched, func() { result, requests = r.deploy() })
	slices.Sort(names)
	if names = slices.Compact(names); !slices.Equal(names, []string{"f7.php", "new.php"}) {
		t.Errorf("%d files were opened: %.200q", len(names), names)
	}
	if len(requests) != 4 || result.UnchangedFiles != dirs*each-1 {
		t.Errorf("%d requests, %+v", len(requests), result)
	}
}
