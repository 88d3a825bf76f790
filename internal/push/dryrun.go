package push

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// Plan is what a push would do. All of it is named, however long the lists are.
type Plan struct {
	Baseline bool     `json:"baseline"` // all contents are stored anew, whatever the bucket has of them; a first push is one
	Upload   []string `json:"upload"`   // paths whose contents are to be stored; of equal contents the first
	Remove   []string `json:"remove"`   // paths that only the release before has
	Ignore   []string `json:"ignore"`   // a directory ends in a slash and stands for all that is in it
}

// newPlan is of what to upload and of what the release before and this one have.
func newPlan(upload, former, now, ignored []string) *Plan {
	stays := make(map[string]bool, len(now))
	for _, path := range now {
		stays[path] = true
	}
	removed := slices.DeleteFunc(former, func(path string) bool { return stays[path] })
	return &Plan{Upload: slices.Concat([]string{}, upload), Remove: slices.Concat([]string{}, removed), Ignore: slices.Concat([]string{}, ignored)}
}

// endUnchanged ends the deploy of the very tree that the pointer names. A dry run of it has a plan, too: what is ignored is in no release.
func (s *session) endUnchanged(v view, files int, ignored []string) error {
	r := &Result{
		Release: v.Pointer.Release, Sequence: v.Pointer.Sequence, Files: files, UnchangedFiles: files, Outcome: Unchanged, Members: v.Live,
	}
	if !s.dryRun {
		return s.end(r)
	}
	r.Plan = newPlan(nil, nil, nil, ignored)
	return s.endDry(r)
}

// endDry ends a dry run: it says all of the plan, a line for each path.
func (s *session) endDry(r *Result) error {
	list := func(sign string, paths []string) string {
		var out strings.Builder
		for _, path := range paths {
			fmt.Fprintf(&out, "\n  %s %s", sign, path)
		}
		return out.String()
	}
	p := r.Plan
	if p.Baseline {
		s.say("new baseline: all contents are stored anew")
	}
	s.say("new contents: %s, %s before compression%s", count(len(p.Upload), "file"), amount(r.UploadedBytes), list("+", p.Upload))
	s.say("removed: %s%s", count(len(p.Remove), "path"), list("-", p.Remove))
	s.say("ignored: %s%s", count(len(p.Ignore), "path"), list("!", p.Ignore))
	r.Outcome = cmp.Or(r.Outcome, DryRun)
	return s.end(r)
}
