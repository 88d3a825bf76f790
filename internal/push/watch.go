package push

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"time"
)

// watchEvery is how often -watch looks.
const watchEvery = 2 * time.Second

// watchStatus shows the status again and again, until it is interrupted, which is its good end. On a terminal it is drawn in
// place; elsewhere the first line is printed when it changes, with -json an object a line when anything but an age does.
func (s *session) watchStatus(ctx context.Context, site *site) error {
	screen := isTerminal(s.stdout) && os.Getenv("TERM") != "dumb" && !s.json
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
		case screen:
			var page bytes.Buffer
			st.print(&console{human: &page}, site.line(v))
			// Home, the page line by line to its end, and nothing below it: no flicker.
			text := bytes.ReplaceAll(page.Bytes(), []byte("\n"), []byte("\x1b[K\n"))
			_, err = fmt.Fprintf(s.stdout, "\x1b[H%s\x1b[J", text)
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
