package e2e

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// flip is a change of the active link: another inode, to a release.
type flip struct {
	inode  uint64
	target string
}

// witness looks at what an instance serves and what it remembers, many times a second.
type witness struct {
	root, state string // the state file
	record      *record
	end         func() // of looking

	mu     sync.Mutex
	flips  []flip
	memory memory
	wrong  string // the first thing that must never be seen
}

// watch begins to look, until the end of the test, which fails if anything was seen that must never be.
func (b *broken) watch(a *agent) *witness {
	w := &witness{root: a.root, state: a.stateFile(), record: b.record}
	ctx, cancel := context.WithCancel(context.Background())
	var ended sync.WaitGroup
	ended.Go(func() {
		tick := time.NewTicker(4 * time.Millisecond)
		defer tick.Stop()
		for n := 0; ctx.Err() == nil; n++ {
			w.look(ctx, n%16 == 0)
			<-tick.C
		}
	})
	w.end = func() {
		cancel()
		ended.Wait()
	}
	b.t.Cleanup(func() {
		w.end()
		if w.wrong != "" {
			b.t.Errorf("%s: what must never be seen: %s", w.root, w.wrong)
		}
	})
	return w
}

// look reads the link and, if it is another one or this is one of the thorough looks, everything that it leads to. What is
// remembered is part of the thorough looks.
func (w *witness) look(ctx context.Context, thorough bool) {
	link := filepath.Join(w.root, "active")
	f, err := readFlip(link)
	w.mu.Lock()
	defer w.mu.Unlock()
	if thorough {
		w.remembers()
	}
	seen := len(w.flips)
	switch {
	case errors.Is(err, fs.ErrNotExist) && seen == 0:
		return
	case err != nil:
		w.blame(fmt.Sprintf("the link: %v", err))
		return
	}
	fresh := seen == 0 || w.flips[seen-1] != f
	if fresh {
		w.flips = append(w.flips, f)
		w.lawful(ctx, f.target)
	} else if !thorough {
		return
	}
	if err := whole(filepath.Join(w.root, f.target), fresh); err != nil {
		// Between the two looks the release may have been left, and removed.
		if now, _ := readFlip(link); now == f {
			w.blame(fmt.Sprintf("%s is served: %v", f.target, err))
		}
	}
}

// lawful wants a release that the link leads to now to be one that the fleet has committed, which was on this disk before (I5, I7).
func (w *witness) lawful(ctx context.Context, release string) {
	m, err := readMemory(w.state)
	if err != nil || release != m.Decision.Release && release != m.Ahead.Release && release != m.Flipped.Release {
		w.blame(fmt.Sprintf("the link leads to %s, and the decision is not saved: %+v, %v", release, m, err))
	}
	if release == m.Ahead.Release || !w.record.look(ctx) {
		return
	}
	if yes, certain := w.record.committed(release); !yes && certain {
		w.blame(fmt.Sprintf("the link leads to %s, which is not committed: %+v", release, w.record.now()))
	}
}

// remembers wants the state file to be whole at all times, and what it has voted for and served to be on the disk (I6, I13).
func (w *witness) remembers() {
	m, err := readMemory(w.state)
	if err != nil {
		w.blame(err.Error())
	}
	if err != nil || m == w.memory {
		return
	}
	w.memory = m
	promised := []string{m.Flipped.Release}
	if m.Vote.Yes {
		promised = append(promised, m.Vote.Release)
	}
	for _, release := range promised {
		if release == "" {
			continue
		}
		if err := whole(filepath.Join(w.root, release), false); err != nil {
			if now, _ := readMemory(w.state); now == m {
				w.blame(fmt.Sprintf("%s is promised by %+v: %v", release, m, err))
			}
		}
	}
}

// memory is what an agent's state file says, as far as the oracle looks at it.
type memory struct {
	Vote struct {
		Epoch   int64
		Release string
		Yes     bool
	}
	Decision, Ahead, Flipped commitment
	Settled                  int64
}

type commitment struct {
	Epoch   int64
	Release string
}

func (a *agent) stateFile() string { return filepath.Join(a.dir, "state", "state.json") }

// readMemory reads a state file: a line with the sum of the rest, and the rest. None is nothing remembered.
func readMemory(path string) (m memory, err error) {
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return m, nil
	}
	if err != nil {
		return m, err
	}
	line, rest, _ := bytes.Cut(text, []byte("\n"))
	if sum := fmt.Sprintf("%x", sha256.Sum256(rest)); !bytes.HasSuffix(line, []byte(" "+sum)) {
		return m, fmt.Errorf("%s is torn: %q", path, text)
	}
	return m, json.Unmarshal(rest, &m)
}

func (w *witness) blame(text string) {
	if w.wrong == "" {
		w.wrong = text
	}
}

func readFlip(link string) (flip, error) {
	info, err := os.Lstat(link)
	if err != nil {
		return flip{}, err
	}
	target, err := os.Readlink(link)
	if err != nil {
		return flip{}, err
	}
	again, err := os.Lstat(link)
	if err == nil && !os.SameFile(info, again) { // it was replaced in between
		return readFlip(link)
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return flip{}, fmt.Errorf("stat of %s is a %T", link, info.Sys())
	}
	return flip{st.Ino, target}, err
}

// whole wants a directory to be one version's tree: every file by its hash (a large one only where all is asked for), and
// nothing else.
func whole(dir string, all bool) error {
	text, err := os.ReadFile(filepath.Join(dir, "index.php"))
	if err != nil {
		return err
	}
	var version int
	if _, err := fmt.Sscan(string(text), &version); err != nil {
		return fmt.Errorf("index.php is %q", text)
	}
	want := sums(version)
	if version >= large && !all {
		delete(want, "blob")
	}
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		name, err := filepath.Rel(dir, path)
		if err != nil || version >= large && !all && name == "blob" {
			return err
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if sum := sha256.Sum256(text); want[name] != hex.EncodeToString(sum[:]) {
			return fmt.Errorf("%s, of %d bytes, is none of version %d", name, len(text), version)
		}
		delete(want, name)
		return nil
	})
	if err == nil && len(want) > 0 {
		err = fmt.Errorf("version %d lacks %d files", version, len(want))
	}
	return err
}

var known sync.Map // version: map of path and hash

// sums are the hashes of a version's files; the caller may change the map.
func sums(version int) map[string]string {
	have, ok := known.Load(version)
	if !ok {
		made := map[string]string{}
		for name, text := range contents(version) {
			sum := sha256.Sum256([]byte(text))
			made[name] = hex.EncodeToString(sum[:])
		}
		have, _ = known.LoadOrStore(version, made)
	}
	out := map[string]string{}
	for k, v := range have.(map[string]string) {
		out[k] = v
	}
	return out
}

// flipped is how often the link was seen to change so far.
func (w *witness) flipped() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.flips)
}

// What the witness must see, if it were there.
func TestTheWitnessSeesWhatMustNotBe(t *testing.T) {
	const r1, r2 = "2026-11-20_20-15-01", "2026-11-20_20-15-02"
	decided := fmt.Sprintf(`"decision":{"epoch":2,"release":%q}`, r2)
	served := fmt.Sprintf(`"flipped":{"epoch":1,"release":%q}`, r1)
	voted := fmt.Sprintf(`"vote":{"epoch":2,"release":%q,"yes":true}`, r2)
	for name, c := range map[string]struct {
		state string // what is saved when the link moves to r2
		head  string
		spoil string // a file that is removed before
		want  string
	}{
		"all is well":                       {served + "," + decided + "," + voted, "commit", "", ""},
		"it flips and saves that it has":    {fmt.Sprintf(`"flipped":{"epoch":2,"release":%q}`, r2), "done", "", ""},
		"a flip before the commit is saved": {served + "," + voted, "commit", "", "the decision is not saved"},
		"a flip before the commit":          {served + "," + decided, "prepare", "", "which is not committed"},
		"a flip after an abort":             {served + "," + decided, "abort", "", "which is not committed"},
		"a vote for what is not there":      {served + "," + decided + "," + voted, "commit", r2 + "/lib/a.php", "is promised by"},
		"a release that lacks a file":       {served + "," + decided, "commit", r2 + "/blob", "is served"},
		"a release that was served is gone": {served + "," + decided, "commit", r1 + "/index.php", "is promised by"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			h := head{epoch: 1, fence: 1, state: "done", release: r1, committed: r1, committedSequence: 1}
			w := &witness{root: dir, state: filepath.Join(dir, "state.json")}
			w.record = &record{epochs: map[int64]fact{}, read: func(context.Context) (head, bool, error) { return h, true, nil }}
			turn := func(release, state string) {
				text := "{" + state + "}"
				check(t, os.WriteFile(w.state, fmt.Appendf(nil, "state sha256 %x\n%s", sha256.Sum256([]byte(text)), text), 0o644))
				check(t, os.Symlink(release, filepath.Join(dir, "new")))
				check(t, os.Rename(filepath.Join(dir, "new"), filepath.Join(dir, "active")))
				w.look(t.Context(), true)
			}
			for n, release := range []string{r1, r2} {
				for name, text := range contents(n + 1) {
					path := filepath.Join(dir, release, name)
					check(t, errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o644)))
				}
			}
			turn(r1, served)
			if w.wrong != "" {
				t.Fatal(w.wrong)
			}
			if c.spoil != "" {
				check(t, os.Remove(filepath.Join(dir, c.spoil)))
			}
			h = head{epoch: 2, fence: 2, state: c.head, release: r2, committed: r1, committedSequence: 1}
			if c.head == "commit" || c.head == "done" {
				h.committed, h.committedSequence = r2, 2
			}
			turn(r2, c.state)
			if !strings.Contains(w.wrong, c.want) || c.want == "" && w.wrong != "" {
				t.Errorf("it says %q, want %q", w.wrong, c.want)
			}
		})
	}
	torn := &witness{root: t.TempDir(), state: filepath.Join(t.TempDir(), "state.json")}
	check(t, os.WriteFile(torn.state, []byte("state sha256 0\n{"), 0o644))
	torn.look(t.Context(), true)
	if !strings.Contains(torn.wrong, "is torn") {
		t.Errorf("of a torn state it says %q", torn.wrong)
	}
}
