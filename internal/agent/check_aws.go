package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"

	"s3pulldeploy/internal/account"
	"s3pulldeploy/internal/config"
	"s3pulldeploy/internal/fleet"
	"s3pulldeploy/internal/instance"
	"s3pulldeploy/internal/php"
	"s3pulldeploy/internal/release"
	"s3pulldeploy/internal/store"
	"s3pulldeploy/internal/table"
)

// checkTime bounds what is asked of AWS.
const checkTime = 30 * time.Second

const (
	cureRole  = "give the instance's role the permissions that `push -policy=instance` prints"
	cureTable = "`push -init` creates it; or name the right one: `table`, `region`"
)

// found is a finding of what was tried: fine, or the error with its cure. An error's own hint goes first.
func found(err error, fine, what, cure string) php.Finding {
	if err == nil {
		return php.Finding{Verdict: php.OK, What: fine}
	}
	return php.Finding{Verdict: php.Fail, What: what + ": " + err.Error(), Cure: cmp.Or(account.Hint(err), cure)}
}

// examineAWS tries what a deploy needs of AWS. Writes are tried under a condition that does not hold: they change nothing.
func examineAWS(ctx context.Context, c *config.Config) []php.Finding {
	ctx, cancel := context.WithTimeout(ctx, checkTime)
	defer cancel()
	cfg, err := account.Load(ctx, account.Options{Region: c.Region, Profile: c.Profile, OwnEndpoints: c.Endpoints.S3 != "", IMDS: c.Endpoints.IMDS})
	if err == nil {
		err = account.Check(ctx, cfg)
	}
	all := []php.Finding{found(err, "credentials: there are some", "credentials", "give the instance a role")}
	if err != nil {
		return all // each further line would say the same
	}
	all = append(all, examineBucket(ctx, c, cfg)...)
	all = append(all, examineTable(ctx, c, cfg)...)
	all = append(all, examineInstance(ctx, c, cfg)...)
	return append(all, examineNotify(c.Notify)...)
}

// examineNotify names who would be told of an outcome: a try would tell them.
func examineNotify(n config.Notify) (all []php.Finding) {
	skip := func(what, cure string) {
		all = append(all, php.Finding{Verdict: php.Skip, What: what + ": not tried, it would tell people", Cure: cure})
	}
	for _, topic := range slices.Compact([]string{n.SNSSuccess, n.SNSError}) {
		if topic != "" {
			skip("topic "+topic+": publish (sns:Publish)", cureRole+"; without it a rollout works, and a warning in the log says that nobody was told")
		}
	}
	if n.Webhook.Reveal() != "" {
		skip("webhook", "a rollout works without an answer of it, and a warning in the log says that nobody was told")
	}
	return all
}

// examineBucket reads the pointer, and something of the release that it names.
func examineBucket(ctx context.Context, c *config.Config, cfg aws.Config) []php.Finding {
	s := store.New(store.Options{Config: cfg, Endpoint: c.Endpoints.S3, Bucket: c.Bucket, Prefix: c.Prefix, Site: c.Site})
	what := fmt.Sprintf("bucket %s: read the pointer", c.Bucket)
	read, err := s.Pointer(ctx, "")
	if errors.Is(err, store.ErrNotFound) {
		return []php.Finding{{Verdict: php.OK, What: what + ": nothing was pushed yet"}}
	}
	cure := cureRole
	if errors.Is(err, store.ErrNoBucket) {
		cure = "`push -init` creates it; or name the right one: `bucket`, `region`"
	}
	all := []php.Finding{found(err, what, what, cure)}
	if err != nil {
		return all
	}
	p, err := c.Keyring().Open(read.Text)
	what = "pointer"
	if err != nil {
		return append(all, found(err, what, what, "`verify_keys` names the keys of who pushes; or push again, signed"))
	}
	what = fmt.Sprintf("release %s: read its contents", p.Release)
	err = readSome(ctx, s, p)
	return append(all, found(err, what, what, cureRole+"; or push again"))
}

// readSome reads what an instance reads first of a release.
func readSome(ctx context.Context, s *store.Store, p release.Pointer) error {
	if !p.Plain() {
		_, err := s.GetManifest(ctx, p.Release, *p.Manifest)
		return err
	}
	l, err := s.List(ctx, p.Release)
	if err == nil {
		err = l.Check(p.Files)
	}
	if err != nil || len(l) == 0 {
		return err
	}
	r, err := s.Open(ctx, p.Release, l[0])
	if err != nil {
		return err
	}
	_, err = io.CopyN(io.Discard, r, 1)
	if errors.Is(err, io.EOF) {
		err = nil // an empty file
	}
	return errors.Join(err, r.Close())
}

// nobody is a row that is not there: no instance has a slash in its id.
const nobody = "check/nobody"

// examineTable reads as a member does, and tries to write and delete a row that is not there.
func examineTable(ctx context.Context, c *config.Config, cfg aws.Config) []php.Finding {
	l := fleet.NewLedger(table.NewDynamo(table.Options{Config: cfg, Endpoint: c.Endpoints.DynamoDB, Name: c.Table}), c.Scope(), token)
	var all []php.Finding
	try := func(action string, err error) {
		what, cure := fmt.Sprintf("table %s: %s", c.Table, action), cureRole
		if errors.Is(err, fleet.ErrNoTable) {
			cure = cureTable
		}
		all = append(all, found(err, what, what, cure))
	}
	_, _, err := l.Head(ctx, true)
	try("read the head (dynamodb:GetItem)", err)
	if errors.Is(err, fleet.ErrNoTable) {
		return all
	}
	_, err = l.Members(ctx)
	try("read the members (dynamodb:Query)", err)
	if err = l.Beat(ctx, fleet.Member{Instance: nobody, Incarnation: nobody}); errors.Is(err, fleet.ErrGone) {
		err = nil // the write was allowed, and its condition did not hold
	}
	try("write (dynamodb:UpdateItem)", err)
	try("delete (dynamodb:DeleteItem)", l.Remove(ctx, fleet.Member{Instance: nobody, Incarnation: nobody}))
	return all
}

// examineInstance looks at who this machine is, and at its launch hook.
func examineInstance(ctx context.Context, c *config.Config, cfg aws.Config) []php.Finding {
	id, err := instance.Identify(ctx, c.InstanceID, c.Endpoints.IMDS)
	all := []php.Finding{found(err, fmt.Sprintf("instance: %s (%s), zone %s", id.ID, id.Source, cmp.Or(id.Zone, "unknown")), "instance", "set instance_id")}
	if err != nil || c.LifecycleHook == "" {
		return all
	}
	what := "launch hook " + c.LifecycleHook
	if !onEC2(id) {
		return append(all, php.Finding{Verdict: php.Warn, What: what + ": there is no metadata service here, it is not completed", Cure: "remove lifecycle_hook where no Auto Scaling Group launches the machine"})
	}
	err = instance.NewLaunch(instance.LaunchOptions{
		AWS: cfg, Endpoint: c.Endpoints.AutoScaling, IMDS: c.Endpoints.IMDS, Hook: c.LifecycleHook,
	}).Try(ctx)
	return append(all, found(err, what, what, "allow the role autoscaling:RecordLifecycleActionHeartbeat and CompleteLifecycleAction on the group, with instance_metadata_tags enabled in the launch template"))
}
