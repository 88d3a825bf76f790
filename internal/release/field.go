package release

import (
	"fmt"
	"strings"
	"time"
)

// Here are the values of a pointer's keys that are more than text. Their errors hold only a rule: line and value are
// added by ParsePointer.

func setKind(p *Pointer, v string) error {
	if v != KindRollback {
		return &Error{Rule: `kind must be "rollback"`}
	}
	p.Kind = v
	return nil
}

func (c Content) text() string { return fmt.Sprintf("%s %d", c.SHA256, c.Length) }

func parseContent(parts []string) (c Content, err error) {
	if len(parts) != 2 || !hashPattern.MatchString(parts[0]) {
		return c, &Error{Rule: "needs a SHA-256 in lower-case hex and a length"}
	}
	c.SHA256 = parts[0]
	if c.Length, err = number(parts[1]); err != nil {
		return c, &Error{Rule: "length " + rule(err)}
	}
	return c, nil
}

func (p *Pointer) manifestText() string {
	if p.Manifest == nil {
		return ""
	}
	return p.Manifest.text()
}

func setManifest(p *Pointer, v string) error {
	c, err := parseContent(strings.Split(v, " "))
	p.Manifest = &c
	return err
}

func (p *Pointer) deltaText() string {
	if p.Delta == nil {
		return ""
	}
	return string(p.Delta.Parent) + " " + p.Delta.text()
}

func setDelta(p *Pointer, v string) error {
	parent, rest, _ := strings.Cut(v, " ")
	id, err := ParseID(parent)
	if err != nil {
		return &Error{Rule: "parent " + rule(err)}
	}
	c, err := parseContent(strings.Split(rest, " "))
	p.Delta = &Delta{id, c}
	return err
}

func setWaves(p *Pointer, v string) error {
	waves := strings.Split(v, ",")
	for _, w := range waves {
		if err := CheckWave(w); err != nil {
			return &Error{Rule: "a wave " + rule(err)}
		}
	}
	p.Policy.Waves = waves
	return nil
}

func (p *Pointer) bakeText() string {
	if p.Policy.Bake == 0 {
		return ""
	}
	return p.Policy.Bake.String()
}

func setBake(p *Pointer, v string) error {
	d, err := time.ParseDuration(v)
	if err != nil || d <= 0 {
		return &Error{Rule: `bake must be a time above zero such as "5m"`}
	}
	p.Policy.Bake = d
	return nil
}

func (p *Pointer) approveText() string {
	if p.Policy.Approve {
		return "true"
	}
	return ""
}

func setApprove(p *Pointer, v string) error {
	if v != "true" {
		return &Error{Rule: `approve must be "true"`}
	}
	p.Policy.Approve = true
	return nil
}

func setMaxExcluded(p *Pointer, v string) error {
	if _, err := ParseShare(v); err != nil {
		return &Error{Rule: rule(err)}
	}
	p.Policy.MaxExcluded = v
	return nil
}
