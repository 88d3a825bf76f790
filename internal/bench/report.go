package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"
)

// report is what a run found.
type report struct {
	Date    string        `json:"date"`
	Machine string        `json:"machine"`
	Quick   bool          `json:"quick"` // the headline rows only, of three rounds at most, without the peers that take long
	Took    time.Duration `json:"took"`
	Rows    []row         `json:"rows"`
}

func (r *report) row(key string) *row {
	for i := range r.Rows {
		if r.Rows[i].Key == key {
			return &r.Rows[i]
		}
	}
	return nil
}

// entry is a contender of a row; nil when there is none.
func (r *row) entry(name string) *entry {
	for i := range r.Entries {
		if r.Entries[i].Name == name {
			return &r.Entries[i]
		}
	}
	return nil
}

// times says how many times as long as ours a contender took.
func (r *row) times(name string) float64 {
	us, them := r.entry(ours), r.entry(name)
	if us == nil || them == nil || us.synced() == 0 {
		return 0
	}
	return them.synced().Seconds() / us.synced().Seconds()
}

// duration is for people: three digits.
func duration(d time.Duration) string {
	switch s := d.Seconds(); {
	case d == 0:
		return "–"
	case s < 1:
		return fmt.Sprintf("%.0f ms", s*1000)
	case s < 10:
		return fmt.Sprintf("%.2f s", s)
	default:
		return fmt.Sprintf("%.1f s", s)
	}
}

func megabytes(n int64) string {
	switch mb := float64(n) / 1e6; {
	case n == 0:
		return "–"
	case mb < 0.01:
		return fmt.Sprintf("%.1f kB", mb*1000)
	case mb < 10:
		return fmt.Sprintf("%.2f MB", mb)
	default:
		return fmt.Sprintf("%.0f MB", mb)
	}
}

func ratio(x float64) string {
	if x < 9.95 {
		return fmt.Sprintf("%.1fx", x)
	}
	return fmt.Sprintf("%.0fx", x)
}

func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// heads are the columns of the table.
var heads = []string{"contender", "runs", "on disk", "content", "as long", "requests", "down", "up", "CPU", "memory"}

// cells are a contender's line in it.
func (r *row) cells(e *entry) []string {
	long := ""
	if e.Name != ours && r.times(e.Name) > 0 {
		long = ratio(r.times(e.Name))
	}
	requests := "–"
	if n := middle(*e, func(c cost) int64 { return c.Requests }); n > 0 {
		requests = fmt.Sprint(n)
	}
	return []string{
		e.Name, fmt.Sprint(len(e.Costs)),
		duration(middle(*e, func(c cost) time.Duration { return c.Synced })),
		duration(middle(*e, func(c cost) time.Duration { return c.Done })),
		long, requests,
		megabytes(middle(*e, func(c cost) int64 { return c.Down })),
		megabytes(middle(*e, func(c cost) int64 { return c.Up })),
		fmt.Sprintf("%.2f s", middle(*e, func(c cost) time.Duration { return c.CPU }).Seconds()),
		fmt.Sprintf("%d MiB", middle(*e, func(c cost) int64 { return c.RSS })>>20),
	}
}

// print is the report for a terminal.
func (r *report) print(w io.Writer) {
	for i := range r.Rows {
		row := &r.Rows[i]
		fmt.Fprintf(w, "\n%d. %s\n", row.Scenario, row.Title)
		tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
		fmt.Fprintln(tw, "  "+strings.Join(heads, "\t"))
		for j := range row.Entries {
			fmt.Fprintln(tw, "  "+strings.Join(row.cells(&row.Entries[j]), "\t"))
		}
		tw.Flush()
		if row.Note != "" {
			fmt.Fprintln(w, "  "+row.Note)
		}
	}
	fmt.Fprintln(w)
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, t := range r.held() {
		fmt.Fprintln(tw, strings.Join(t, "\t"))
	}
	tw.Flush()
	fmt.Fprintf(w, "\n%s, in %s\n%s\n\n%s\n", r.Date, r.Took.Round(time.Second), r.Machine, r.sum())
}

// last is the name of the file that keeps a report, for [report.load].
const last = "last.json"

// keep writes the report into dir as JSON, every run by itself.
func (r *report) keep(dir string) error {
	raw, err := json.MarshalIndent(r, "", " ")
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, last), raw, 0o644)
}

// load reads what keep wrote.
func (r *report) load(dir string) error {
	raw, err := os.ReadFile(filepath.Join(dir, last))
	if err != nil {
		return err
	}
	return json.Unmarshal(raw, r)
}

// Between these lines of docs/benchmarks.md the report stands.
const (
	opening = "<!-- bench -->"
	closing = "<!-- bench end -->"
)

// write puts the report into the page in dir and draws its picture.
func (r *report) write(dir string) error {
	page := filepath.Join(dir, "benchmarks.md")
	text, err := os.ReadFile(page)
	if err != nil {
		return err
	}
	before, rest, ok := strings.Cut(string(text), opening)
	_, after, ok2 := strings.Cut(rest, closing)
	if !ok || !ok2 {
		return fmt.Errorf("write %s: no place marked for the report", page)
	}
	text = []byte(before + opening + "\n\n" + r.markdown() + "\n" + closing + after)
	if err := os.WriteFile(page, text, 0o644); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "benchmarks.svg"), r.picture(), 0o644)
}

// markdown is the report for the page.
func (r *report) markdown() string {
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s, in %s. %s\n\n", r.Date, r.Took.Round(time.Second), r.Machine)
	if r.Quick {
		fmt.Fprintf(&b, "A quick run: the headline rows only, of three rounds at most, without the peers that take long.\n\n")
	}
	line := func(cells []string) { fmt.Fprintf(&b, "| %s |\n", strings.Join(cells, " | ")) }
	targets := r.held()
	if len(targets) > 1 {
		for i, t := range targets {
			line(t)
			if i == 0 {
				fmt.Fprintln(&b, strings.Repeat("|---", len(t))+"|")
			}
		}
		fmt.Fprintf(&b, "\n%s\n\n", r.sum())
	}
	for i := range r.Rows {
		row := &r.Rows[i]
		fmt.Fprintf(&b, "**%d. %s**\n\n", row.Scenario, row.Title)
		line(heads)
		fmt.Fprintln(&b, strings.Repeat("|---", len(heads))+"|")
		for j := range row.Entries {
			line(row.cells(&row.Entries[j]))
		}
		if row.Note != "" {
			fmt.Fprintf(&b, "\n%s\n", row.Note)
		}
		fmt.Fprintln(&b)
	}
	return strings.TrimSpace(b.String()) + "\n"
}
