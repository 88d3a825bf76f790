package disk

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"s3pulldeploy/internal/release"
)

// shape makes a manifest of n files like MediaWiki's: 20 in a directory, four levels deep, median 1 KB, with
// contents that a reader can make again from the sum's place in the list.
func shape(n int) (*release.Manifest, [][]byte) {
	m := &release.Manifest{}
	var bodies [][]byte
	add := func(e release.Entry, body []byte) {
		m.Entries, bodies = append(m.Entries, e), append(bodies, body)
	}
	top, mid := -1, -1
	for i := range n {
		if i/2000 != top {
			top = i / 2000
			add(release.Entry{Path: fmt.Sprintf("ext%02d", top), Kind: release.Dir}, nil)
		}
		if i/200 != mid {
			mid = i / 200
			add(release.Entry{Path: fmt.Sprintf("ext%02d/i18n%03d", top, mid), Kind: release.Dir}, nil)
		}
		dir := fmt.Sprintf("ext%02d/i18n%03d/d%04d", top, mid, i/20)
		if i%20 == 0 {
			add(release.Entry{Path: dir, Kind: release.Dir}, nil)
		}
		body := make([]byte, 64<<(i%8))
		copy(body, fmt.Sprintf("file %d", i))
		add(release.Entry{
			Path: fmt.Sprintf("%s/f%05d.php", dir, i), Kind: release.File, MTime: released.Unix(),
			Size: int64(len(body)), Sum: sha256.Sum256(body),
		}, body)
	}
	return m, bodies
}

// putAll puts what is to be fetched, as workers with frames of 50 files each would.
func putAll(t testing.TB, s *Stage, bodies [][]byte) {
	t.Helper()
	need := s.Need()
	var next atomic.Int64
	must(t, each(workers(), func(int) error {
		w := s.Writer()
		defer w.Close()
		for {
			at := int(next.Add(50)) - 50
			if at >= len(need) {
				return nil
			}
			for _, i := range need[at:min(at+50, len(need))] {
				if err := w.Put(i, 0, bodies[i]); err != nil {
					return err
				}
			}
		}
	}))
}

func buildPacked(t testing.TB, d *Disk, id release.ID, m *release.Manifest, bodies [][]byte) {
	t.Helper()
	must(t, laps(t, d, id, m, bodies, map[string]time.Duration{}))
}

// laps builds a release and adds up what its steps took.
func laps(t testing.TB, d *Disk, id release.ID, m *release.Manifest, bodies [][]byte, took map[string]time.Duration) error {
	t.Helper()
	start := time.Now()
	lap := func(step string) {
		took[step] += time.Since(start)
		start = time.Now()
	}
	s, err := d.StageManifest(t.Context(), id, "digest", m)
	must(t, err)
	lap("stage")
	putAll(t, s, bodies)
	lap("put")
	err = s.Complete()
	lap("complete")
	if err == nil {
		err = s.Publish(t.Context())
	}
	lap("publish")
	return errors.Join(err, s.Close())
}

func benchID(n int) release.ID { return release.ID(fmt.Sprintf("r%d", n)) }

func perFile(b *testing.B, n int) {
	b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(b.N)/float64(n), "us/file")
}

func BenchmarkFresh(b *testing.B) {
	for _, n := range []int{2_500, 23_000} {
		m, bodies := shape(n)
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			for b.Loop() {
				b.StopTimer()
				d := open(b, options(b))
				b.StartTimer()
				s, err := d.StageManifest(b.Context(), r1, "digest", m)
				must(b, err)
				putAll(b, s, bodies)
				must(b, s.Complete())
				b.StopTimer()
				must(b, s.Publish(b.Context()))
				d.Close()
				b.StartTimer()
			}
			perFile(b, n)
		})
	}
}

// BenchmarkLinked is a deploy of 50 changed files: all steps of the disk, with sync and index.
func BenchmarkLinked(b *testing.B) {
	for _, n := range []int{23_000, 76_000} {
		m, bodies := shape(n)
		d := open(b, options(b))
		buildPacked(b, d, benchID(0), m, bodies)
		round := 0
		took := map[string]time.Duration{}
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			for b.Loop() {
				round++
				changed, more := changeSome(m, bodies, 50, round)
				must(b, laps(b, d, benchID(round+100), changed, more, took))
			}
			perFile(b, n)
			for step, t := range took {
				b.ReportMetric(float64(t.Milliseconds())/float64(round), step+"-ms")
			}
		})
	}
}

func changeSome(m *release.Manifest, bodies [][]byte, n, salt int) (*release.Manifest, [][]byte) {
	next := &release.Manifest{Entries: append([]release.Entry(nil), m.Entries...)}
	more := append([][]byte(nil), bodies...)
	for i := range next.Entries {
		if e := &next.Entries[i]; e.Kind == release.File && n > 0 && i%7 == 0 {
			more[i] = fmt.Appendf(nil, "changed %d %d", i, salt)
			e.Size, e.Sum, e.MTime = int64(len(more[i])), sha256.Sum256(more[i]), e.MTime+60
			n--
		}
	}
	return next, more
}

func BenchmarkVerify(b *testing.B) {
	for _, n := range []int{23_000, 76_000} {
		m, bodies := shape(n)
		d := open(b, options(b))
		buildPacked(b, d, r1, m, bodies)
		info, err := os.Stat(d.opt.StateDir + "/" + indexFile(r1))
		must(b, err)
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			for b.Loop() {
				if _, ok, err := d.Has(r1); !ok {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(info.Size())/float64(len(m.Entries)), "B/entry")
			perFile(b, n)
		})
		b.Run(fmt.Sprintf("%d/load", n), func(b *testing.B) {
			for b.Loop() {
				_, err := d.readIndex(r1)
				must(b, err)
			}
		})
	}
}

// BenchmarkPut is one worker that puts files of the plain layout, four directories deep.
func BenchmarkPut(b *testing.B) {
	files := make([]File, b.N)
	for i := range files {
		files[i] = fileOf(fmt.Sprintf("a/b/c/d%d/f%d", i/50, i), "<?php // of an even length, and small.")
	}
	d := open(b, options(b))
	s := stage(b, d, r1, files)
	b.ResetTimer()
	for _, f := range files {
		must(b, s.Put(f, strings.NewReader("<?php // of an even length, and small.")))
	}
}
