package main

import (
	"encoding/xml"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// sample is a report of one row: ours is ten times as quick as aws.
func sample() *report {
	us := entry{Name: ours}
	for _, ms := range []time.Duration{900, 100, 110} { // the first was unlucky
		us.Costs = append(us.Costs, cost{Synced: ms * time.Millisecond, Done: 50 * time.Millisecond, RSS: 90 << 20, traffic: traffic{Requests: 2}})
	}
	them := entry{awsName, []cost{{Synced: 1100 * time.Millisecond, Done: time.Second, traffic: traffic{Requests: 2700, Down: 51e6}}}}
	return &report{Date: "2026-11-20", Machine: "A machine.", Took: time.Minute, Rows: []row{
		{4, "fetched: 1 file & more", "pull-wp-1", "A note.", []entry{us, them}},
	}}
}

func TestRatiosAreOfMediansOnDisk(t *testing.T) {
	r := sample()
	if got := r.Rows[0].times(awsName); got != 10 {
		t.Errorf("%v times as long, want 10", got)
	}
	text := r.markdown()
	for _, want := range []string{"| s3-pull-deploy | 3 | 110 ms | 50 ms |", "| aws s3 sync | 1 | 1.10 s | 1.00 s | 10x | 2700 | 51 MB |", "A note."} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in:\n%s", want, text)
		}
	}
}

func TestMissedTargetIsCalledMissed(t *testing.T) {
	held := sample().held()
	var verdicts []string
	for _, line := range held[1:] {
		verdicts = append(verdicts, strings.Join(line, ", "))
	}
	want := []string{
		"1 file of WordPress fetched, 60x faster than aws s3 sync, 10x, missed",
		"1 file of WordPress fetched, at most 2 requests, 2 requests, holds",
	}
	if strings.Join(verdicts, "\n") != strings.Join(want, "\n") {
		t.Errorf("got %q", verdicts)
	}
}

func TestMissedCountIsAnErrorAndMissedTimeWhereItIsStrict(t *testing.T) {
	r := sample()
	if err := r.missed(false); err != nil {
		t.Errorf("a time was missed, and that is an error: %v", err)
	}
	if err := r.missed(true); err == nil || !strings.Contains(err.Error(), "1 file of WordPress fetched, 60x faster than aws s3 sync: 10x") {
		t.Errorf("a strict run says %v", err)
	}
	for i := range r.Rows[0].Entries[0].Costs {
		r.Rows[0].Entries[0].Costs[i].Requests = 3
	}
	if err := r.missed(false); err == nil || err.Error() != "missed: 1 file of WordPress fetched, at most 2 requests: 3 requests" {
		t.Errorf("a count was missed, and the run says %v", err)
	}
	var out strings.Builder
	r.print(&out)
	const last = "0 of 2 numbers hold; missed: 1 time, 1 count."
	if !strings.HasSuffix(out.String(), "\n"+last+"\n") || !strings.Contains(r.markdown(), "\n"+last+"\n") {
		t.Errorf("no %q at the end of:\n%s\nor in\n%s", last, out.String(), r.markdown())
	}
}

func TestReportGoesBetweenItsMarksOnly(t *testing.T) {
	dir := t.TempDir()
	page := filepath.Join(dir, "benchmarks.md")
	must(t, os.WriteFile(page, []byte("before\n"+opening+"\nstale\n"+closing+"\nafter\n"), 0o644))
	for range 2 {
		must(t, sample().write(dir))
	}
	text, err := os.ReadFile(page)
	must(t, err)
	got := string(text)
	if !strings.HasPrefix(got, "before\n"+opening+"\n\n2026-11-20") || !strings.HasSuffix(got, closing+"\nafter\n") || strings.Contains(got, "stale") {
		t.Errorf("page:\n%s", got)
	}
	must(t, os.WriteFile(page, []byte("no marks"), 0o644))
	if err := sample().write(dir); err == nil || !strings.Contains(err.Error(), page) {
		t.Errorf("written without marks: %v", err)
	}
}

func TestKeptReportIsTheSameAgain(t *testing.T) {
	dir, again := t.TempDir(), &report{}
	must(t, sample().keep(dir))
	must(t, again.load(dir))
	if got, want := again.markdown(), sample().markdown(); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestPictureIsXMLAndShowsEachContender(t *testing.T) {
	r := sample()
	r.Rows[0].Key = "pull-mw-50"
	picture := string(r.picture())
	for d := xml.NewDecoder(strings.NewReader(picture)); ; {
		if _, err := d.Token(); err != nil {
			if !errors.Is(err, io.EOF) {
				t.Fatalf("%v in:\n%s", err, picture)
			}
			break
		}
	}
	for _, want := range []string{ours, "110 ms", awsName, "1.10 s (10x)", "1 file &amp; more"} {
		if !strings.Contains(picture, want) {
			t.Errorf("no %q in:\n%s", want, picture)
		}
	}
	if a, b := place(10*time.Millisecond), place(time.Second); b-a != (wide-left-right)/2 {
		t.Errorf("two decades are %d of %d wide", b-a, wide-left-right)
	}
}
