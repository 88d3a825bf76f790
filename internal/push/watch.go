package push

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"
)

// watchEvery is how often -watch looks.
const watchEvery = 2 * time.Second

// watchStatus shows the status again and again, until it is interrupted, which is its good end. On a terminal it is drawn in
// place; elsewhere the first line is printed when it changes, with -json an object a line when anything but an age does.
func (s *session) watchStatus(ctx context.Context, site *site) error {
	size := screen(s.stdout)
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	said := ""
	for {
		v := site.look(ctx)
		if ctx.Err() != nil { // what it cut short is no trouble of the site
			return nil
		}
		st := v.status(s.cfg.Site)
		var err error
		switch {
		case s.json:
			said, err = s.sayObject(st, said)
		case size != nil:
			var page strings.Builder
			st.print(&console{human: &page}, site.line(v))
			_, err = io.WriteString(s.stdout, redraw(page.String(), size))
		case st.Line != said:
			said = st.Line
			_, err = fmt.Fprintf(s.stdout, "%s %s\n", time.Now().Format(time.TimeOnly), said)
		}
		if err != nil {
			return fmt.Errorf("status: %w", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// redraw shows a page from the top of a terminal, as far as it fits: line by line to its end, and nothing below, so that it does
// not flicker. Where there is more, the last line says how many.
func redraw(page string, size func() (width, height int)) string {
	width, height := size()
	lines := strings.Split(strings.TrimSuffix(page, "\n"), "\n")
	if more := len(lines) - (height - 1); more > 0 { // below the last is the cursor
		lines = append(lines[:max(1, height-2)], fmt.Sprintf("and %d more lines", more+1))
	}
	for i, line := range lines {
		lines[i] = clip(line, width) + "\x1b[K\n"
	}
	return "\x1b[H" + strings.Join(lines, "") + "\x1b[J"
}

// sayObject prints a status as one line, if it is another than the one before.
func (s *session) sayObject(st Status, before string) (string, error) {
	line, err := json.Marshal(st)
	if err != nil {
		return before, err
	}
	for i := range st.Members {
		st.Members[i].SeenS = 0
	}
	now, err := json.Marshal(st)
	if err != nil || string(now) == before {
		return before, err
	}
	_, err = fmt.Fprintf(s.stdout, "%s\n", line)
	return string(now), err
}
