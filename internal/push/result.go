package push

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"s3pulldeploy/internal/php"
	"s3pulldeploy/internal/release"
)

// Outcome is how a push ended.
type Outcome string

// The outcomes. Published is the end without waiting, or with nobody to wait for; DryRun has written nothing.
const (
	Done       Outcome = "done"
	Aborted    Outcome = "aborted"
	RolledBack Outcome = "rolled_back"
	Superseded Outcome = "superseded"
	TimedOut   Outcome = "timeout"
	Published  Outcome = "published"
	Unchanged  Outcome = "unchanged"
	DryRun     Outcome = "dry_run"
)

// Result is what -deploy and -rollback report; its JSON form is stable.
type Result struct {
	Release        release.ID `json:"release"` // empty in a dry run of -deploy
	Sequence       int64      `json:"sequence"`
	Files          int        `json:"files"`
	UploadedBytes  int64      `json:"uploaded_bytes"`  // 0 when contents were there already
	UnchangedFiles int        `json:"unchanged_files"` // files that were not uploaded
	Outcome        Outcome    `json:"outcome"`
	// Members is how many instances serve the release when the outcome is done, else how many were live at the start.
	Members int `json:"members"`
	// Excluded is how many instances the rollout did not take along; Without are their ids.
	Excluded int      `json:"excluded"`
	Without  []string `json:"-"`
	// Failed are those of them that flipped and failed the check, or could not flip.
	Failed []string `json:"-"`
	// LiveMS is from the start of push to the last flip, FlipSpreadMS from the first flip to the last; by the instances' clocks.
	LiveMS       int64  `json:"live_ms"`
	FlipSpreadMS int64  `json:"flip_spread_ms"`
	Reason       string `json:"reason"`         // of an abort; of what is wrong although it is done
	Plan         *Plan  `json:"plan,omitempty"` // of a dry run of -deploy

	unproven  bool // an instance that serves it does not ask PHP
	unhealthy bool // done, but the fleet does not call it good
	began     time.Time
}

// end prints the last line, or the object, and turns the outcome into an error where it is none to be happy with.
func (s *session) end(r *Result) error {
	if line := r.line(); line != "" {
		if r.unproven {
			line += "; PHP not verified" // an instance without opcache.url cannot prove what it serves
		}
		s.say("%s", line)
	}
	if s.json {
		if err := s.object(r); err != nil {
			return err
		}
	}
	return r.err()
}

// line is the last line of a push that ended well.
func (r *Result) line() string {
	fresh := fmt.Sprintf("%s (%s) new", count(r.Files-r.UnchangedFiles, "file"), amount(r.UploadedBytes))
	switch r.Outcome {
	case Done:
		return r.done(fresh)
	case Published:
		if r.Members == 0 {
			return fmt.Sprintf("%s is published: %s; no instance is live, the first one will bring it up", r.Release, fresh)
		}
		return fmt.Sprintf("%s is published: %s; not waiting for %s", r.Release, fresh, count(r.Members, "instance"))
	case Unchanged:
		return fmt.Sprintf("unchanged: %s is this very tree, %s; nothing was moved", r.Release, count(r.Files, "file"))
	case DryRun:
		if r.Release != "" {
			return fmt.Sprintf("dry run: would move the fleet to %s, %s", r.Release, count(r.Files, "file"))
		}
		return fmt.Sprintf("dry run: would upload %s, %s", count(len(r.Plan.Upload), "file"), amount(r.UploadedBytes))
	}
	return ""
}

// done is the line of a committed release. Where the fleet does not call it good it says who serves it, not that it is live.
func (r *Result) done(fresh string) string {
	line := fmt.Sprintf("%s is live: %s, %s, live in %s, flips within %s", r.Release, fresh, count(r.Members, "instance"),
		span(time.Duration(r.LiveMS)*time.Millisecond), span(time.Duration(r.FlipSpreadMS)*time.Millisecond))
	missing := r.Without
	if r.unhealthy {
		missing = slices.DeleteFunc(slices.Clone(missing), func(id string) bool { return slices.Contains(r.Failed, id) })
		line = fmt.Sprintf("%s is flipped to, and ", r.Release)
		if n := len(r.Failed); n > 0 {
			line += fmt.Sprintf("%d of %s failed the check: %s", n, count(r.Members+n, "instance"), strings.Join(r.Failed, ", "))
		} else {
			line += "it is served by " + count(r.Members, "instance")
		}
	}
	if len(missing) > 0 {
		line += ", without " + strings.Join(missing, ", ")
	}
	return line
}

// err is the end that the exit code tells.
func (r *Result) err() error {
	what := fmt.Sprintf("roll out %s", r.Release)
	reason := cmp.Or(r.Reason, "no reason is known")
	switch r.Outcome {
	case Done:
		if r.unhealthy {
			return advise(fmt.Errorf("%s: it is flipped to, but not healthy: %s", what, reason), cmp.Or(php.StaleCure(reason), "`push -rollback` goes back"))
		}
	case Aborted:
		return kind{errAborted, advise(fmt.Errorf("%s: aborted: %s", what, reason), "the fleet is on what it was on before; `push -status` shows each instance")}
	case RolledBack:
		again := "mend it and push again; this release is not tried any more"
		if cure := php.StaleCure(reason); cure != "" { // nothing is wrong with the release
			again = cure + "; then push again: this release is not tried any more"
		}
		return kind{errAborted, advise(fmt.Errorf("%s: rolled back: %s", what, reason), again)}
	case Superseded:
		return kind{errConflict, fmt.Errorf("%s: superseded: %s", what, reason)}
	case TimedOut:
		return kind{errTimeout, advise(fmt.Errorf("%s: %s", what, reason),
			"it may still go live; `push -abort` stops it, `push -status` shows what it waits for")}
	case "":
		return errors.New(what + ": no outcome")
	}
	return nil
}
