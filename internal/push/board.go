package push

import (
	"bytes"
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"s3pulldeploy/internal/fleet"
)

// boardMost is above how many instances a board only says how many are at which stage.
const boardMost = 20

// stage is how far an instance is with an epoch.
type stage string

// The stages. An instance that flipped is live and healthy when its checks have passed: it reports itself only then.
const (
	isPreparing stage = "preparing"
	isRefusing  stage = "refusing" // it voted no
	isReady     stage = "ready"
	isFlipping  stage = "flipping"
	isUnwell    stage = "not well" // it flipped and failed the check, or could not flip
	isHealthy   stage = "live and healthy"
	isSilent    stage = "silent"
)

var stages = []stage{isPreparing, isSilent, isRefusing, isReady, isFlipping, isUnwell, isHealthy}

// stageOf is how far a member is with the head's epoch; "" for one that the epoch does not wait for.
func stageOf(h fleet.Head, m fleet.Member, now time.Time) stage {
	voted := m.Vote.Epoch == h.Epoch
	switch {
	case m.Active.Epoch == h.Epoch:
		return isHealthy
	case m.Failed == h.Epoch:
		return isUnwell
	case voted && !m.Vote.Yes:
		return isRefusing
	case m.Phase != fleet.Serve:
		return ""
	case !live(m, now):
		return isSilent
	case voted && h.State == fleet.Commit:
		return isFlipping
	case voted:
		return isReady
	}
	return isPreparing
}

// row is one instance on a board.
type row struct {
	instance string
	stage    stage
	detail   string
}

// board tells a rollout: lines that stay and, below them on a terminal, a row for each instance that is drawn anew in place.
// Elsewhere an instance gets a line for each stage.
type board struct {
	out  io.Writer
	size func() (width, height int) // of the terminal; nil: it is none

	block []string          // the rows as they are on the terminal
	told  map[string]string // elsewhere: what was said last of each instance
}

// say prints lines that stay.
func (b *board) say(format string, args ...any) {
	b.paint(plainLines(fmt.Sprintf(format, args...)), b.block)
}

// paint replaces the block on the terminal by a text that stays and a new block.
func (b *board) paint(text string, block []string) {
	var out bytes.Buffer
	if n := len(b.block); n > 0 {
		fmt.Fprintf(&out, "\x1b[%dA\r\x1b[J", n)
	}
	out.WriteString(text)
	for _, line := range block {
		fmt.Fprintln(&out, line)
	}
	b.block = block
	_, _ = b.out.Write(out.Bytes()) // a terminal that is gone ends no rollout
}

// leave makes the rows as they are part of what stays: what comes now is another attempt.
func (b *board) leave() { b.block, b.told = nil, nil }

// show says how far the instances are, as far as that is new.
func (b *board) show(rows []row) {
	slices.SortFunc(rows, func(x, y row) int { return strings.Compare(x.instance, y.instance) })
	if b.size == nil {
		b.tell(rows)
		return
	}
	width, height := b.size()
	block := columns(rows)
	if len(rows) > min(boardMost, height-2) {
		block = []string{sum(rows)}
	}
	for i, line := range block {
		block[i] = clip(line, width)
	}
	if !slices.Equal(block, b.block) {
		b.paint("", block)
	}
}

// tell prints a line for each instance that is at another step, or at another kind of work: how much of it is done makes no
// line, nor do refusals, which have lines with their reasons, and the flip, which is everybody's.
func (b *board) tell(rows []row) {
	if b.told == nil {
		b.told = map[string]string{}
	}
	news := func(key, text string) bool {
		was := b.told[key]
		b.told[key] = text
		return was != text
	}
	if len(rows) > boardMost {
		if line := sum(rows); news("", line) {
			b.say("%s", line)
		}
		return
	}
	for _, r := range rows {
		kind := strings.Map(func(c rune) rune {
			if '0' <= c && c <= '9' {
				return -1
			}
			return c
		}, r.detail)
		known := !news(r.instance, string(r.stage)+kind)
		if known || r.stage == isRefusing || r.stage == isUnwell || r.stage == isFlipping || r.stage == isPreparing && kind == "" {
			continue
		}
		b.say("%s is %s", r.instance, strings.TrimSuffix(string(r.stage)+": "+r.detail, ": "))
	}
}

// sum says how many instances are at which stage.
func sum(rows []row) string {
	counts := map[stage]int{}
	for _, r := range rows {
		counts[r.stage]++
	}
	var parts []string
	for _, s := range stages {
		if n := counts[s]; n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", n, s))
		}
	}
	return count(len(rows), "instance") + ": " + strings.Join(parts, ", ")
}

// columns are a line for each instance, in columns.
func columns(rows []row) []string {
	if len(rows) == 0 {
		return nil
	}
	widest := slices.MaxFunc(rows, func(x, y row) int { return cmp.Compare(len(x.instance), len(y.instance)) })
	lines := make([]string, len(rows))
	for i, r := range rows {
		lines[i] = strings.TrimRight(fmt.Sprintf("  %-*s  %-*s  %s", len(widest.instance), r.instance, len(isHealthy), r.stage, r.detail), " ")
	}
	return lines
}

// clip cuts a line for a terminal, where one that wraps would be two.
func clip(line string, width int) string {
	if runes := []rune(line); len(runes) > width {
		return string(runes[:max(0, width)])
	}
	return line
}
