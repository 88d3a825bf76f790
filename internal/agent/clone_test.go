package agent

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"
)

func TestAClonedMachineHashesWhatItCameWith(t *testing.T) {
	bubble(t, func(r *rig) {
		b := r.box("i-1")
		b.boot()
		r.push(r1)
		r.live(r1, 15*time.Second, b)
		b.stop()
		page := filepath.Join(b.cfg.Root, string(r1), "a.php")
		info, err := os.Stat(page)
		if err != nil {
			t.Fatal(err)
		}
		want, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		f, err := os.OpenFile(page, os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		_, err = f.WriteAt([]byte("X"), 0) // the same inode and size, and the time is set back: no stat tells
		if err = errors.Join(err, f.Close(), os.Chtimes(page, info.ModTime(), info.ModTime())); err != nil {
			t.Fatal(err)
		}

		b.id = "i-2" // booted from an image of i-1
		b.boot()
		b.says("serving "+string(r1), 15*time.Second, true)
		if got, _ := os.ReadFile(page); string(got) != string(want) {
			t.Errorf("the clone serves %q, want %q", got, want)
		}
	})
}
