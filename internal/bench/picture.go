package main

import (
	"bytes"
	"fmt"
	"html"
	"math"
	"time"
)

// pictured are the rows of the picture.
var pictured = []string{"fresh-wp", "fresh-mw", "pull-mw-50", "first-push", "push-mw-50", "idle"}

// The picture's measures, in its own units.
const (
	wide, left, right = 860, 150, 90
	lineHeight        = 20
)

// picture draws the rows that were run as bars on a logarithmic scale: a bar that is a decade longer took ten times as long. It
// reads on light and dark pages.
func (r *report) picture() []byte {
	var body bytes.Buffer
	y := 30
	text := func(x, y int, class, anchor, s string) {
		fmt.Fprintf(&body, `<text x="%d" y="%d" class="%s" text-anchor="%s">%s</text>`+"\n", x, y, class, anchor, html.EscapeString(s))
	}
	for _, key := range pictured {
		row := r.row(key)
		if row == nil {
			continue
		}
		y += 12
		text(8, y, "title", "start", row.Title)
		y += 8
		for i := range row.Entries {
			e := &row.Entries[i]
			class, label := "peer", fmt.Sprintf("%s (%s)", duration(e.synced()), ratio(row.times(e.Name)))
			if e.Name == ours {
				class, label = "ours", duration(e.synced())
			}
			end := place(e.synced())
			text(left-8, y+14, "name", "end", e.Name)
			fmt.Fprintf(&body, `<rect x="%d" y="%d" width="%d" height="%d" class="%s"/>`+"\n", left, y+3, end-left, lineHeight-6, class)
			text(end+6, y+14, "value", "start", label)
			y += lineHeight
		}
		y += 10
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="sans-serif" font-size="12">`+"\n", wide, y+26)
	fmt.Fprintln(&b, `<style>.title{font-weight:bold}.title,.name,.value{fill:#555}.ours{fill:#2a8f5b}.peer{fill:#b0a99f}.grid{stroke:#8884}.scale{fill:#888}`+
		`@media (prefers-color-scheme:dark){.title,.name,.value{fill:#ccc}.peer{fill:#77716a}}</style>`)
	fmt.Fprintln(&b, `<text x="8" y="18" class="title">Seconds until all is on the disk, logarithmic; shorter is better</text>`)
	for _, d := range []time.Duration{10 * time.Millisecond, 100 * time.Millisecond, time.Second, 10 * time.Second, 100 * time.Second} {
		x := place(d)
		fmt.Fprintf(&b, `<line x1="%d" y1="28" x2="%d" y2="%d" class="grid"/><text x="%d" y="%d" class="scale" text-anchor="middle">%s</text>`+"\n",
			x, x, y, x, y+16, d)
	}
	b.Write(body.Bytes())
	fmt.Fprintln(&b, "</svg>")
	return b.Bytes()
}

// place is where a time lies on the scale, from 10 ms to 100 s.
func place(d time.Duration) int {
	const decades = 4
	at := math.Log10(max(d.Seconds(), 0.01)/0.01) / decades
	return left + int(math.Round(min(at, 1)*(wide-left-right)))
}
