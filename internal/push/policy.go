package push

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"s3pulldeploy/internal/config"
)

// policyDocument is an IAM policy.
type policyDocument struct {
	Version   string
	Statement []statement
}

// statement allows actions. Condition is by operator, then key.
type statement struct {
	Sid       string
	Effect    string
	Action    []string
	Resource  []string
	Condition map[string]map[string][]string `json:",omitempty"`
}

// roles are who a policy is for.
var roles = map[string]func(*policy){
	"instance":  (*policy).instance,
	"ci":        (*policy).ci,
	"developer": (*policy).developer,
}

// policy prints the least IAM policy for these settings, without asking AWS anything.
func (s *session) policy(context.Context) error {
	role, ok := roles[s.arg]
	if !ok {
		return kind{errUsage, fmt.Errorf("-policy must be instance, ci or developer, not %q", s.arg)}
	}
	p := newPolicy(s.cfg)
	role(p)
	text, err := json.MarshalIndent(policyDocument{"2012-10-17", p.list}, "", "  ")
	if err != nil {
		return fmt.Errorf("write JSON: %w", err)
	}
	_, err = fmt.Fprintf(s.stdout, "%s\n", text)
	return err
}

// policy collects the statements of one role.
type policy struct {
	cfg           *config.Config
	aws           string   // arn:PARTITION
	region        string   // * where the settings leave it to the environment
	bucket, site  string   // the bucket, and what all keys of the site begin with
	table         string   //
	scope, member []string // partition keys: of the head, the notes and the log; of the members' rows
	list          []statement
}

func newPolicy(c *config.Config) *policy {
	p := &policy{cfg: c, aws: "arn:aws"}
	switch {
	case strings.HasPrefix(c.Region, "cn-"):
		p.aws = "arn:aws-cn"
	case strings.HasPrefix(c.Region, "us-gov-"):
		p.aws = "arn:aws-us-gov"
	}
	if p.region = c.Region; p.region == "" {
		p.region = "*"
	}
	p.bucket = p.aws + ":s3:::" + c.Bucket
	p.site = p.bucket + "/" + literal(c.Prefix+c.Site) + "/"
	p.table = p.aws + ":dynamodb:" + p.region + ":*:table/" + c.Table
	p.scope, p.member = []string{literal(c.Scope())}, []string{literal(c.Scope()) + "#m??"}
	return p
}

// literal writes text that IAM would take for wildcards.
func literal(s string) string {
	return strings.NewReplacer("$", "${$}", "*", "${*}", "?", "${?}").Replace(s)
}

// conditions are operator, key and values of each condition.
func conditions(list ...[]string) map[string]map[string][]string {
	all := map[string]map[string][]string{}
	for _, c := range list {
		if all[c[0]] == nil {
			all[c[0]] = map[string][]string{}
		}
		all[c[0]][c[1]] = c[2:]
	}
	return all
}

func (p *policy) allow(sid string, actions, resources []string, cond ...[]string) {
	st := statement{Sid: sid, Effect: "Allow", Action: actions, Resource: resources}
	if len(cond) > 0 {
		st.Condition = conditions(cond...)
	}
	p.list = append(p.list, st)
}

// rows allows requests for items of these partitions.
func (p *policy) rows(sid string, partitions []string, actions ...string) {
	p.allow(sid, actions, []string{p.table}, append([]string{"ForAllValues:StringLike", "dynamodb:LeadingKeys"}, partitions...))
}

// read is what everybody may do with the site's objects. Who may not list hears that an object is denied where it is not there; S3
// looks for that right without a prefix, hence IfExists.
func (p *policy) read() {
	p.allow("ReadReleases", []string{"s3:GetObject"}, []string{p.site + "*"})
	p.allow("ListReleases", []string{"s3:ListBucket"}, []string{p.bucket},
		[]string{"StringLikeIfExists", "s3:prefix", literal(p.cfg.Prefix+p.cfg.Site) + "/*"})
}

// key allows the use of the KMS key for this bucket's objects, through S3 alone. With a bucket key the context is the bucket.
func (p *policy) key(actions ...string) {
	id := p.cfg.KMSKeyID
	if id == "" {
		return
	}
	cond := [][]string{
		{"StringLike", "kms:ViaService", "s3." + p.region + ".amazonaws.com*"},
		{"StringLike", "kms:EncryptionContext:aws:s3:arn", p.bucket, p.site + "*"},
	}
	resource := id
	switch {
	case strings.HasPrefix(id, "alias/"): // a policy names keys, not aliases
		resource = p.aws + ":kms:" + p.region + ":*:key/*"
		cond = append(cond, []string{"ForAnyValue:StringEquals", "kms:ResourceAliases", id})
	case strings.HasPrefix(id, "arn:") && strings.Contains(id, ":alias/"):
		at := strings.Index(id, "alias/")
		resource = id[:at] + "key/*"
		cond = append(cond, []string{"ForAnyValue:StringEquals", "kms:ResourceAliases", id[at:]})
	case !strings.HasPrefix(id, "arn:"):
		resource = p.aws + ":kms:" + p.region + ":*:key/" + id
	}
	p.allow("UseKey", actions, []string{resource}, cond...)
}

// instance reads releases, and keeps the fleet's items and rows. It writes nothing to S3 (I20).
func (p *policy) instance() {
	p.read()
	p.key("kms:Decrypt")
	p.rows("Fleet", slices.Concat(p.scope, p.member), "dynamodb:GetItem", "dynamodb:Query", "dynamodb:UpdateItem")
	p.rows("LeaveFleet", p.member, "dynamodb:DeleteItem")
	var topics []string
	for _, topic := range []string{p.cfg.Notify.SNSSuccess, p.cfg.Notify.SNSError} {
		if topic != "" && !slices.Contains(topics, topic) {
			topics = append(topics, topic)
		}
	}
	if len(topics) > 0 {
		p.allow("Notify", []string{"sns:Publish"}, topics)
	}
	if p.cfg.LifecycleHook != "" { // of whichever group the instance is in: its name is a tag, not a setting
		p.allow("CompleteLaunch", []string{"autoscaling:CompleteLifecycleAction", "autoscaling:RecordLifecycleActionHeartbeat"},
			[]string{p.aws + ":autoscaling:" + p.region + ":*:autoScalingGroup:*:autoScalingGroupName/*"})
	}
}

// ci publishes releases and waits for them: contents once, and the pointer and manifests only in place of what was read.
func (p *policy) ci() {
	p.read()
	p.allow("WriteOnce", []string{"s3:PutObject"}, []string{p.site + "*"}, []string{"Null", "s3:if-none-match", "false"})
	p.allow("ReplaceWhatWasRead", []string{"s3:PutObject"}, []string{p.site + "latest-deploy", p.site + "m/*"},
		[]string{"Null", "s3:if-match", "false"})
	p.allow("CleanUp", []string{"s3:DeleteObject"}, []string{p.site + "*/*"}) // all but the pointer
	p.key("kms:GenerateDataKey", "kms:Decrypt")
	p.rows("ReadFleet", slices.Concat(p.scope, p.member), "dynamodb:GetItem", "dynamodb:Query")
	p.rows("AskFleet", p.scope, "dynamodb:UpdateItem")
}

// developer does what ci does, sets up bucket and table, and drops the rows of instances that are gone.
func (p *policy) developer() {
	p.ci()
	p.rows("Forget", p.member, "dynamodb:DeleteItem")
	p.allow("InitBucket", []string{
		"s3:CreateBucket", "s3:GetBucketPublicAccessBlock", "s3:PutBucketPublicAccessBlock", "s3:GetEncryptionConfiguration",
		"s3:PutEncryptionConfiguration", "s3:GetBucketVersioning", "s3:PutBucketVersioning", "s3:GetLifecycleConfiguration",
		"s3:PutLifecycleConfiguration",
	}, []string{p.bucket})
	p.allow("InitTable", []string{
		"dynamodb:CreateTable", "dynamodb:DescribeTable", "dynamodb:DescribeTimeToLive", "dynamodb:UpdateTimeToLive",
		"dynamodb:DescribeContinuousBackups", "dynamodb:UpdateContinuousBackups",
	}, []string{p.table})
}
