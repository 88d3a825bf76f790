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
	State string `json:"state"` // "ok", "warn", "fail", or "skip" for what was not tried
	Hint  string `json:"hint,omitempty"`
}

var errCheck = errors.New("check: not everything is as it must be")

const curePush = "give this account the permissions that `push -policy=developer` prints (CI: `-policy=ci`)"

// checkup tries what a push needs, and changes nothing: writes are tried under conditions that do not hold.
func (s *session) checkup(ctx context.Context) error {
	all := append([]finding{{"settings: " + s.cfg.Path, "ok", ""}}, s.examineSigner()...)
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

// examineSigner looks at the key that a deploy signs with.
func (s *session) examineSigner() []finding {
	err := s.takeKey()
	switch {
	case err != nil:
		return []finding{{"signer: " + said(err), "fail", hint(err)}}
	case s.signs == nil:
		return nil // nothing is signed, and nobody asks for it
	case s.exposed():
		return []finding{{"signer: " + exposedKey, "warn", "chmod 600 " + s.cfg.SigningKey.Reveal()}}
	}
	return []finding{{"signer: " + s.signs.String(), "ok", ""}}
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
	}
	if v.PointerErr == nil {
		all = append(all, s.examineWrites(ctx, v.Read)...)
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

// examineWrites tries each way to write to the bucket that the policies tell apart, on a condition that does not hold.
func (s *site) examineWrites(ctx context.Context, read store.Read) []finding {
	bucket := "bucket " + s.cfg.Bucket
	try := func(way, etag string) finding {
		_, err := s.store.WritePointer(ctx, read.Text, etag) // the text that is there: whatever the server makes of conditions, it stays
		if isConflict(err) {
			err = nil // the write was allowed, and its condition did not hold
		}
		return judgeTry(bucket+": "+way, err, curePush)
	}
	once := bucket + ": write what is not there (s3:PutObject, If-None-Match)"
	all := []finding{
		try("replace the pointer (s3:PutObject, If-Match)", fmt.Sprintf("%032d", 0)),
		{once + ": not tried, nothing was pushed yet", "skip", "the first push shows it, and fails without it: " + curePush},
	}
	if read.ETag != "" {
		all[1] = try("write what is not there (s3:PutObject, If-None-Match)", "")
	}
	all = append(all, judgeTry(bucket+": clean up (s3:DeleteObject)", s.store.TryDelete(ctx), curePush))
	if key := s.cfg.KMSKeyID; key != "" {
		all = append(all, finding{"key " + key + ": encrypt (kms:GenerateDataKey): not tried, nothing is written", "skip", "the first push shows it, and fails without it: " + curePush})
	}
	return all
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
