package push

import (
	"cmp"
	"context"
	"fmt"
	"strings"
	"text/tabwriter"
	"time"

	"golang.org/x/sync/errgroup"

	"s3pulldeploy/internal/fleet"
	"s3pulldeploy/internal/release"
)

// listed is one release of -releases; its JSON form is stable. What is not known is empty or 0: of a release that no fleet
// ever opened only the pointer knows who pushed it, and of the plain layout nobody counted the bytes.
type listed struct {
	Release   release.ID `json:"release"`
	Layout    string     `json:"layout"` // "packed" or "plain"
	State     string     `json:"state"`  // "live", "good", "bad" or "never live"
	Pointer   bool       `json:"pointer"`
	Pushed    string     `json:"pushed"` // RFC 3339, UTC
	Author    string     `json:"author"`
	Commit    string     `json:"commit"`
	Message   string     `json:"message"`
	Files     int        `json:"files"`
	Bytes     int64      `json:"bytes"`
	Instances int        `json:"instances"` // live ones that serve it
}

// releases prints what can be deployed from the bucket, newest first.
func (s *session) releases(ctx context.Context) error {
	site, err := s.open(ctx)
	if err != nil {
		return err
	}
	known, _, err := site.standing(ctx, openCache(s.cfg.Scope(), ""))
	if err != nil {
		return err
	}
	v := site.look(ctx)
	if err := v.err(); err != nil {
		return err
	}
	logs, err := site.ledger.Logs(ctx)
	if err != nil {
		return err
	}
	list := []listed{}
	for _, r := range known {
		switch {
		case r.broken != nil:
			s.warn("%v", r.broken)
		case !r.dropped:
			list = append(list, r.listed(v, logs))
		}
	}
	if err := site.credit(ctx, list, v, logs); err != nil {
		return err
	}
	if s.json {
		return s.object(struct {
			Releases []listed `json:"releases"`
		}{list})
	}
	s.printReleases(list)
	return nil
}

// listed is the release as far as the bucket and the view of the fleet know it.
func (r *standing) listed(v view, logs []fleet.Log) listed {
	l := listed{
		Release: r.id, Layout: "plain", Files: r.files, Bytes: r.bytes,
		State: stateOf(r.id, v, logs), Pointer: v.Pointer.Release == r.id,
	}
	when, known := r.id.Time()
	if r.packed {
		l.Layout = "packed"
		if !known {
			when, known = r.stored.Modified, true
		}
	}
	if known {
		l.Pushed = when.UTC().Format(time.RFC3339)
	}
	for _, m := range v.Members {
		if m.Active.Release == r.id && live(m, v.Now) {
			l.Instances++
		}
	}
	return l
}

// credit adds what the pointers said: who, which commit, and why. The note of the last epoch of a release has its pointer.
func (s *site) credit(ctx context.Context, list []listed, v view, logs []fleet.Log) error {
	sequences := map[release.ID]int64{}
	for _, l := range logs {
		if l.Kind == "" { // a rollback's message is about the rollback
			sequences[l.Release] = l.Sequence
		}
	}
	h := v.Head
	for _, t := range []fleet.Target{h.Good, h.Before, {Release: h.CommittedRelease, Sequence: h.CommittedSequence}, {Release: h.Release, Sequence: h.Sequence}} {
		if sequences[t.Release] == 0 {
			sequences[t.Release] = t.Sequence
		}
	}
	var g errgroup.Group
	g.SetLimit(readers)
	for i := range list {
		l := &list[i]
		if l.Pointer && v.Pointer.Kind == "" {
			l.said(v.Pointer)
		} else if sequence := sequences[l.Release]; sequence > 0 {
			g.Go(func() error {
				note, err := s.ledger.Note(ctx, sequence)
				if note != nil {
					l.said(note.Pointer)
				}
				return err
			})
		}
	}
	return g.Wait()
}

func (l *listed) said(p release.Pointer) {
	l.Author, l.Commit, l.Message, l.Files = p.Author, p.Commit, p.Message, p.Files
}

// stateOf says what became of a release: it is live, or was and was well, or was and was not, or never came so far.
func stateOf(id release.ID, v view, logs []fleet.Log) string {
	h := v.Head
	if h.CommittedEpoch > 0 && h.CommittedRelease == id {
		return "live"
	}
	state := "never live"
	if h.Good.Release == id || h.Before.Release == id { // logs are kept for 90 days
		state = "good"
	}
	for _, l := range logs {
		switch {
		case l.Release != id:
		case l.Outcome == string(fleet.Done) && healthy(l, h):
			state = "good"
		case l.Outcome == string(fleet.Done), l.Outcome == fleet.RolledBack:
			state = "bad"
		}
	}
	return state
}

func (s *session) printReleases(list []listed) {
	if len(list) == 0 {
		s.say("no release is in the bucket")
		return
	}
	table := tabwriter.NewWriter(s.human, 0, 0, 2, ' ', 0)
	defer table.Flush()
	fmt.Fprintln(table, "RELEASE\tPUSHED\tSTATE\tINSTANCES\tFILES\tSIZE\tBY\tCOMMIT\tMESSAGE")
	for _, l := range list {
		state := l.State
		if l.Pointer && state != "live" {
			state += ", pushed last"
		}
		files, size := "-", "-"
		if l.Files > 0 {
			files = fmt.Sprint(l.Files)
		}
		if l.Layout == "packed" {
			size = amount(l.Bytes)
		}
		message, _, _ := strings.Cut(l.Message, "\n")
		pushed := "-"
		if at, err := time.Parse(time.RFC3339, l.Pushed); err == nil {
			pushed = at.Local().Format("2006-01-02 15:04 MST")
		}
		fmt.Fprintf(table, "%s\t%s\t%s\t%d\t%s\t%s\t%s\t%.12s\t%s\n", l.Release, pushed, state, l.Instances, files, size,
			cmp.Or(printable(l.Author), "-"), cmp.Or(printable(l.Commit), "-"), printable(message))
	}
}

// plainLines is a text whose lines are all printable, with the last line's end.
func plainLines(text string) string {
	var b strings.Builder
	for line := range strings.SplitSeq(text, "\n") {
		b.WriteString(printable(line) + "\n")
	}
	return b.String()
}

// printable is a text on one line of a terminal: whoever pushed chose it.
func printable(text string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || 0x80 <= r && r < 0xa0 {
			return ' '
		}
		return r
	}, text)
}
