package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"s3pulldeploy/internal/testenv"
	"s3pulldeploy/internal/testenv/parts"
)

// TestMain lets the test binary be the children that the bench starts.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case "fetch":
			if err := run(context.Background(), os.Args[1:], os.Stdout); err != nil {
				fmt.Fprintln(os.Stderr, err)
				os.Exit(1)
			}
			os.Exit(0)
		case "sync-nothing":
			os.Exit(syncNothing())
		}
	}
	testenv.Main(m)
}

// syncNothing syncs what cannot be synced, before and after that was forbidden.
func syncNothing() int {
	for _, sync := range []func(int) error{unix.Fsync, unix.Fdatasync, unix.Syncfs} {
		if !errors.Is(sync(-1), unix.EBADF) {
			return 1
		}
	}
	if forbidSync() != nil {
		return 2
	}
	for _, sync := range []func(int) error{unix.Fsync, unix.Fdatasync, unix.Syncfs} {
		if sync(-1) != nil {
			return 3
		}
	}
	return 0
}

func TestUnsyncedProcessWaitsForNoDisk(t *testing.T) {
	if out, err := exec.Command(os.Args[0], "sync-nothing").CombinedOutput(); err != nil {
		t.Errorf("%v %s", err, out)
	}
}

// smallLab is a lab with real servers, and directories instead of disks.
func smallLab(t *testing.T) *lab {
	t.Helper()
	s3, dynamodb := testenv.S3(t), testenv.DynamoDB(t)
	p, err := startProxy(s3.Endpoint[len("http://"):])
	must(t, err)
	t.Cleanup(func() { must(t, p.Close()) })
	l := &lab{
		out: t.Output(), began: time.Now(), dir: t.TempDir(), disk: t.TempDir(), proxy: p, push: testenv.Bin(t, "push"), runs: 2, least: 2, patience: patience,
		dynamodb: &parts.DynamoDB{Endpoint: dynamodb}, trees: map[string]*tree{},
	}
	s, err := l.site(l.dir)
	must(t, err)
	testenv.Patiently(t, func() error {
		_, _, err := l.measure(t.Context(), command{args: []string{l.push, "-config=" + s.config, "-init"}})
		return err
	})
	return l
}

// smallTree has a few directories of files.
func smallTree(t *testing.T, l *lab) *tree {
	t.Helper()
	from := t.TempDir()
	for i := range 40 {
		name := filepath.Join(from, fmt.Sprint(i%4), fmt.Sprintf("file%d.php", i))
		must(t, os.MkdirAll(filepath.Dir(name), 0o755))
		must(t, os.WriteFile(name, fmt.Appendf(nil, "<?php // %d", i), 0o644))
	}
	must(t, os.Symlink("file0.php", filepath.Join(from, "0/stays")))
	must(t, os.Symlink("/etc/passwd", filepath.Join(from, "0/leaves")))
	must(t, os.Symlink("../../above", filepath.Join(from, "0/leaves-too")))
	must(t, os.Symlink("nothing", filepath.Join(from, "0/dangles")))
	tr, err := plant(l.disk, "small", "a small tree", from)
	must(t, err)
	l.trees["small"] = tr
	return tr
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TestRowsOfOursAreMeasured runs our side of the scenarios on the real servers: what they promise in requests, and that what was fetched is
// what was pushed, which delta checks itself.
func TestRowsOfOursAreMeasured(t *testing.T) {
	l := smallLab(t)
	smallTree(t, l)
	fresh, err := l.fresh(t.Context(), 1, "fresh", "small", 0)
	must(t, err)
	delta, err := l.delta(t.Context(), change{pull: 4, push: 9, key: "few", tree: "small", files: 3, idle: true})
	must(t, err)
	rows := append(fresh, delta...)
	want := map[string]int64{"fresh": 3, "pull-few": 2, "push-few": 4, "idle": 1}
	if len(rows) != len(want) {
		t.Fatalf("%d rows, want %d", len(rows), len(want))
	}
	for _, r := range rows {
		us := r.entry(ours)
		if us == nil || len(us.Costs) != l.runs {
			t.Fatalf("%s: %+v, want %d runs", r.Key, us, l.runs)
		}
		for _, c := range us.Costs {
			if c.Synced+c.Done == 0 || c.RSS == 0 {
				t.Errorf("%s: nothing measured: %+v", r.Key, c)
			}
			if fetched := r.Key == "fresh" || r.Key == "pull-few"; fetched && (c.Synced == 0 || c.Done == 0 || c.Read == 0) {
				t.Errorf("%s: with and without waiting for the disk, and read: %+v", r.Key, c)
			}
		}
		// A fresh machine may ask for several ranges, and for the pointer twice: once for each half of the row.
		if got := middle(*us, requestsOf); got != want[r.Key] {
			t.Errorf("%s: %d requests, want %d", r.Key, got, want[r.Key])
		}
	}
}

func TestKilledFetchGoesOn(t *testing.T) {
	l := smallLab(t)
	tr := smallTree(t, l)
	s, err := l.site(l.dir)
	must(t, err)
	_, err = s.deploy(t.Context(), tr)
	must(t, err)
	s.bytes = 600 // of the pointer and what follows it
	must(t, s.move(t.TempDir()))
	defer l.network(2 * time.Second)() // or the first try has ended when it is to be killed
	took, err := l.killed(t.Context(), s, false)
	must(t, err)
	if took.Synced == 0 || took.Requests < 3 {
		t.Errorf("second try: %+v", took)
	}
	must(t, sameFiles(tr.dir, filepath.Join(s.root(), "active")))
}

func TestLinksThatLeaveATreeAreLeftOut(t *testing.T) {
	l := &lab{disk: t.TempDir(), trees: map[string]*tree{}}
	tr := smallTree(t, l)
	names, err := filepath.Glob(filepath.Join(tr.dir, "0/[a-e]*"))
	must(t, err)
	more, err := filepath.Glob(filepath.Join(tr.dir, "0/[l-s]*"))
	must(t, err)
	if len(names) != 0 || len(more) != 1 || filepath.Base(more[0]) != "stays" {
		t.Errorf("links: %q %q", names, more)
	}
	if tr.count != 40 || len(tr.files) != 40 {
		t.Errorf("%d files, %d to be changed", tr.count, len(tr.files))
	}
}

func TestChangesAreOfNewSizeAndTheOthersStay(t *testing.T) {
	l := &lab{disk: t.TempDir(), trees: map[string]*tree{}}
	tr := smallTree(t, l)
	sizes := func() map[string]int64 {
		all := map[string]int64{}
		for _, name := range tr.files {
			info, err := os.Stat(name)
			must(t, err)
			all[name] = info.Size()
		}
		return all
	}
	for _, neighbours := range []bool{false, true, true} {
		before := sizes()
		must(t, tr.change(7, neighbours))
		changed := 0
		for name, size := range sizes() {
			if size != before[name] {
				changed++
			}
		}
		if changed != 7 {
			t.Errorf("%d files of another size, want 7", changed)
		}
	}
}

func TestSameFilesFindsEveryDifference(t *testing.T) {
	a, b := t.TempDir(), t.TempDir()
	for _, dir := range []string{a, b} {
		must(t, os.WriteFile(dir+"/x", []byte("x"), 0o644))
	}
	must(t, sameFiles(a, b))
	must(t, os.WriteFile(b+"/more", nil, 0o644))
	if sameFiles(a, b) == nil || sameFiles(b, a) == nil {
		t.Error("one file more or less is not seen")
	}
	must(t, os.Remove(b+"/more"))
	must(t, os.WriteFile(b+"/x", []byte("y"), 0o644))
	if sameFiles(a, b) == nil {
		t.Error("other contents are not seen")
	}
}
