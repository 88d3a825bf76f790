package push

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"s3pulldeploy/internal/account"
	"s3pulldeploy/internal/fleet"
	"s3pulldeploy/internal/store"
)

// finding is one line of -check.
type finding struct {
	What  string `json:"what"`
	State string `json:"state"` // "ok", "warn" or "fail"
	Hint  string `json:"hint,omitempty"`
}

var errCheck = errors.New("check: not everything is as it must be")

const curePush = "give this account the permissions that `push -policy=developer` prints (CI: `-policy=ci`)"

// checkup tries what a push needs, and changes nothing: writes are tried under conditions that do not hold.
func (s *session) checkup(ctx context.Context) error {
	all := []finding{{"settings: " + s.cfg.Path, "ok", ""}}
	site, err := s.open(ctx)
	if err != nil {
		all = append(all, judgeTry("account", err, ""))
	} else {
		all = append(all, finding{"credentials: " + site.who, "ok", ""})
		all = append(all, site.examine(ctx)...)
	}
	bad := slices.ContainsFunc(all, func(f finding) bool { return f.State == "fail" })
	for _, f := range all {
		s.say("%-4s  %s", f.State, f.What)
		if f.Hint != "" {
			s.say("      hint: %s", f.Hint)
		}
	}
	if s.json {
		err := s.object(struct {
			OK       bool      `json:"ok"`
			Findings []finding `json:"findings"`
		}{!bad, all})
		if err != nil {
			return err
		}
	}
	if bad {
		return errCheck
	}
	return nil
}

// judgeTry is a finding of something that was tried; an error's own advice goes before cure.
func judgeTry(what string, err error, cure string) finding {
	if err == nil {
		return finding{what, "ok", ""}
	}
	if hint := account.Hint(err); hint != "" {
		cure = hint
	}
	if errors.Is(err, store.ErrNoBucket) || errors.Is(err, fleet.ErrNoTable) {
		cure = "`push -init` creates it; or name the right one in the settings"
	}
	return finding{what + ": " + said(err), "fail", cure}
}

// examine looks at bucket, table and fleet.
func (s *site) examine(ctx context.Context) []finding {
	v := s.look(ctx)
	bucket, table := "bucket "+s.cfg.Bucket, "table "+s.cfg.Table
	all := []finding{
		judgeTry(bucket+": reach it", v.BucketErr, curePush),
		judgeTry(bucket+": read the pointer (s3:GetObject)", v.PointerErr, curePush),
	}
	switch {
	case v.Garbage != nil:
		all = append(all, finding{"pointer: " + v.Garbage.Error(), "fail", "`push -deploy=DIR -force` overwrites it"})
	case v.Untrusted != nil:
		all = append(all, finding{"pointer: " + v.Untrusted.Error(), "warn", "push again with signing_key"})
	case v.PointerErr == nil && v.Read.ETag == "":
		all = append(all, finding{bucket + ": writing was not tried: nothing was pushed yet", "warn", "the first push shows it; `push -deploy=DIR -dry-run` checks the tree"})
	case v.PointerErr == nil:
		// Were the server one that knows no conditions, the pointer would be what it is.
		_, err := s.store.WritePointer(ctx, v.Read.Text, `"`+fmt.Sprintf("%032d", 0)+`"`)
		var lost *store.ConflictError
		if errors.As(err, &lost) {
			err = nil // another push came meanwhile
		}
		all = append(all, judgeTry(bucket+": write (s3:PutObject)", err, curePush))
	}
	_, err := s.store.Releases(ctx)
	all = append(all, judgeTry(bucket+": list (s3:ListBucket)", err, curePush),
		judgeTry(table+": read the head (dynamodb:GetItem)", v.HeadErr, curePush),
		judgeTry(table+": read the members (dynamodb:Query)", v.MembersErr, curePush))
	if v.HeadErr == nil {
		_, err = s.ledger.Request(ctx, fleet.Head{Epoch: -1}, fleet.Item{})
		if errors.Is(err, fleet.ErrOvertaken) {
			err = nil // the write was allowed, and its condition did not hold
		}
		all = append(all, judgeTry(table+": write (dynamodb:UpdateItem)", err, curePush))
	}
	return append(all, s.examineFleet(v)...)
}

// examineFleet looks at what would meet a push.
func (s *site) examineFleet(v view) []finding {
	if v.MembersErr != nil || v.HeadErr != nil {
		return nil
	}
	fleetLine := finding{"fleet: " + count(v.Live, "instance") + " live", "ok", ""}
	if v.Live == 0 {
		fleetLine.State, fleetLine.Hint = "warn", "a release is published and waits for agents: start s3-pull-deploy-agent@"+s.cfg.Site+" on the instances"
	}
	all := []finding{fleetLine}
	if err := v.newer(); err != nil {
		all = append(all, finding{"fleet: " + err.Error(), "fail", "update push"})
	}
	if runs := v.versions(); runs != "" {
		all = append(all, finding{"fleet: different versions: " + runs, "warn", "finish the update of the agents"})
	}
	if f := v.Head.Frozen; f != nil {
		all = append(all, finding{"fleet: frozen " + f.String(), "warn", "`push -unfreeze`, or wait"})
	}
	if v.lostHead() {
		all = append(all, finding{"table " + s.cfg.Table + ": its head is lost", "fail", "`push -init` writes it anew from what the instances report"})
	}
	return all
}
