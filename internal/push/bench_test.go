package push

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"s3pulldeploy/internal/config"
)

// BenchmarkScan is what a push does before it asks for anything: walk 23,000 files of 1 KB, and read those that the index does not know.
func BenchmarkScan(b *testing.B) {
	const files = 23_000
	dir := b.TempDir()
	body := make([]byte, 1<<10)
	old := time.Now().Add(-time.Hour)
	for i := range files {
		name := filepath.Join(dir, fmt.Sprintf("ext%02d/d%04d/f%05d.php", i/2000, i/20, i))
		if i%20 == 0 {
			if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
				b.Fatal(err)
			}
		}
		copy(body, fmt.Sprint(i))
		if err := os.WriteFile(name, body, 0o644); err != nil {
			b.Fatal(err)
		}
		if err := os.Chtimes(name, old, old); err != nil {
			b.Fatal(err)
		}
	}
	b.Setenv("XDG_CACHE_HOME", b.TempDir())
	kept := openCache("bucket/site", dir)
	first := kept.loadIndex()
	first.racy = -time.Hour // the files are young here, and nobody changes them
	scanOnce(b, dir, first)
	kept.saveIndex(first)
	known := kept.loadIndex()
	for _, c := range []struct {
		name  string
		index func() *statIndex
		reads int
	}{
		{"all new", func() *statIndex { return (*cache)(nil).loadIndex() }, files},
		{"known", func() *statIndex { return known }, 0},
	} {
		b.Run(c.name, func(b *testing.B) {
			for b.Loop() {
				if got := scanOnce(b, dir, c.index()); got != c.reads {
					b.Fatalf("%d files read, want %d", got, c.reads)
				}
			}
			b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(b.N)/files, "us/file")
		})
	}
}

func scanOnce(b *testing.B, dir string, index *statIndex) (read int) {
	b.Helper()
	t, err := scanPacked(dir, &config.Config{}, index)
	if err != nil {
		b.Fatal(err)
	}
	t.Close()
	return t.Hashed
}
