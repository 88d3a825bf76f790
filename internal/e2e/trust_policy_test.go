package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"s3pulldeploy/internal/testenv/parts"
)

// access is one request as IAM sees it.
type access struct {
	action, resource string
	values           map[string]string // condition keys that are there
}

func (a access) String() string {
	return fmt.Sprintf("%s on %s with %v", a.action, a.resource, a.values)
}

// recorder is a server's front that notes what is asked of it.
type recorder struct {
	*httptest.Server
	site *site

	mu   sync.Mutex
	seen map[string]access
	puts []http.Header // of objects
}

// record puts a recorder before S3 or, with table, before DynamoDB.
func (s *site) record(address string, table bool) *recorder {
	s.t.Helper()
	target, err := url.Parse(address)
	check(s.t, err)
	r := &recorder{site: s, seen: map[string]access{}}
	proxy := &httputil.ReverseProxy{Rewrite: func(p *httputil.ProxyRequest) {
		p.Out.URL.Scheme, p.Out.URL.Host, p.Out.Host = target.Scheme, target.Host, p.In.Host
	}, ModifyResponse: func(resp *http.Response) error {
		if in := resp.Request; !table && resp.StatusCode == http.StatusNotFound && strings.Count(in.URL.Path, "/") > 1 && in.Method != http.MethodPut {
			r.note(access{"s3:ListBucket", "arn:aws:s3:::" + s.bucket, nil}) // else it would have been denied
		}
		return nil
	}}
	r.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, in *http.Request) {
		if table {
			r.table(in)
		} else {
			r.bucket(in)
		}
		proxy.ServeHTTP(w, in)
	}))
	s.t.Cleanup(r.Close)
	return r
}

func (r *recorder) note(a access) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.seen[a.String()] = a
}

// sofar is what was asked until now, and the headers of what was stored: agents go on asking while a test looks.
func (r *recorder) sofar() ([]access, []http.Header) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Collect(maps.Values(r.seen)), slices.Clone(r.puts)
}

// bucketActions are the actions for requests about a bucket's settings, by the query that asks for them.
var bucketActions = map[string][2]string{ // GET, PUT
	"publicAccessBlock": {"s3:GetBucketPublicAccessBlock", "s3:PutBucketPublicAccessBlock"},
	"encryption":        {"s3:GetEncryptionConfiguration", "s3:PutEncryptionConfiguration"},
	"versioning":        {"s3:GetBucketVersioning", "s3:PutBucketVersioning"},
	"lifecycle":         {"s3:GetLifecycleConfiguration", "s3:PutLifecycleConfiguration"},
}

// bucket notes a request to S3, by the table "Actions, resources, and condition keys for Amazon S3".
func (r *recorder) bucket(in *http.Request) {
	bucket, key, _ := strings.Cut(strings.TrimPrefix(in.URL.Path, "/"), "/")
	query := in.URL.Query()
	a := access{resource: "arn:aws:s3:::" + bucket, values: map[string]string{}}
	if key != "" {
		a.resource += "/" + key
	}
	write := 0
	if in.Method == http.MethodPut {
		write = 1
	}
	for name, actions := range bucketActions {
		if query.Has(name) {
			a.action = actions[write]
		}
	}
	switch {
	case a.action != "":
	case key == "" && in.Method == http.MethodPut:
		a.action = "s3:CreateBucket"
	case key == "" && in.Method == http.MethodPost && query.Has("delete"):
		body, _ := io.ReadAll(in.Body)
		in.Body = io.NopCloser(bytes.NewReader(body))
		for _, part := range strings.Split(string(body), "<Key>")[1:] {
			name, _, _ := strings.Cut(part, "</Key>")
			r.note(access{"s3:DeleteObject", a.resource + "/" + name, nil})
		}
		return
	case key == "":
		a.action = "s3:ListBucket"
		if query.Has("prefix") {
			a.values["s3:prefix"] = query.Get("prefix")
		}
	case in.Method == http.MethodPut:
		a.action = "s3:PutObject"
		for header, name := range map[string]string{"If-None-Match": "s3:if-none-match", "If-Match": "s3:if-match"} {
			if v := in.Header.Get(header); v != "" {
				a.values[name] = v
			}
		}
		r.mu.Lock()
		r.puts = append(r.puts, in.Header.Clone())
		r.mu.Unlock()
	case in.Method == http.MethodDelete:
		a.action = "s3:DeleteObject"
	case in.Method == http.MethodGet || in.Method == http.MethodHead:
		a.action = "s3:GetObject"
	default:
		a.action = in.Method + " " + in.URL.String()
	}
	r.note(a)
}

// table notes a request to DynamoDB, with the partition that it is about.
func (r *recorder) table(in *http.Request) {
	body, _ := io.ReadAll(in.Body)
	in.Body = io.NopCloser(bytes.NewReader(body))
	_, action, _ := strings.Cut(in.Header.Get("X-Amz-Target"), ".")
	type value struct{ S string }
	var q struct {
		TableName                 string
		Key                       map[string]value
		KeyConditionExpression    string
		ExpressionAttributeNames  map[string]string
		ExpressionAttributeValues map[string]value
	}
	_ = json.Unmarshal(body, &q)
	a := access{action: "dynamodb:" + action, resource: "arn:aws:dynamodb:" + parts.Region + ":123456789012:table/" + q.TableName, values: map[string]string{}}
	if pk, ok := q.Key["pk"]; ok {
		a.values["dynamodb:LeadingKeys"] = pk.S
	}
	if first, _, _ := strings.Cut(q.KeyConditionExpression, " AND "); first != "" {
		name, val, _ := strings.Cut(first, " = ")
		if q.ExpressionAttributeNames[name] == "pk" {
			a.values["dynamodb:LeadingKeys"] = q.ExpressionAttributeValues[val].S
		}
	}
	r.note(a)
}

// amazon is a recorder that is SNS, Auto Scaling and the metadata service of machines in a group.
func (s *site) amazon() *recorder {
	s.t.Helper()
	r := &recorder{site: s, seen: map[string]access{}}
	r.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, in *http.Request) {
		name, metadata := strings.CutPrefix(in.URL.Path, "/latest/meta-data/")
		value := map[string]string{
			"instance-id": "i-0123456789abcdef0", "placement/availability-zone": parts.Region + "a",
			"autoscaling/target-lifecycle-state": "InService", "tags/instance/aws:autoscaling:groupName": "web",
		}[name]
		action := in.FormValue("Action")
		switch {
		case in.URL.Path == "/latest/api/token":
			w.Header().Set("X-Aws-Ec2-Metadata-Token-Ttl-Seconds", "60")
			fmt.Fprint(w, "token")
			return
		case metadata && value != "":
			fmt.Fprint(w, value)
			return
		case action == "Publish":
			r.note(access{"sns:Publish", in.FormValue("TopicArn"), nil})
		case action != "":
			r.note(access{"autoscaling:" + action, "arn:aws:autoscaling:" + parts.Region + ":123456789012:autoScalingGroup:1f2e:autoScalingGroupName/" + in.FormValue("AutoScalingGroupName"), nil})
		default:
			http.NotFound(w, in)
			return
		}
		fmt.Fprintf(w, "<%[1]sResponse><%[1]sResult/></%[1]sResponse>", action)
	}))
	s.t.Cleanup(r.Close)
	return r
}

// iamPolicy is what push -policy prints.
type iamPolicy struct {
	Statement []struct {
		Sid, Effect      string
		Action, Resource []string
		Condition        map[string]map[string][]string
	}
}

// like matches as StringLike and resources do: a star for any text, a question mark for one character.
func like(pattern, text string) bool {
	pattern = strings.NewReplacer("[", `\[`, "/", "\x01").Replace(pattern) // path.Match's star stops at a slash
	ok, err := path.Match(pattern, strings.ReplaceAll(text, "/", "\x01"))
	return ok && err == nil
}

// judge says whether the policy allows an access, and by which statement and action.
func (p iamPolicy) judge(a access) (by string, ok bool) {
	any := func(list []string, text string) bool {
		return slices.ContainsFunc(list, func(pattern string) bool { return like(pattern, text) })
	}
statements:
	for _, st := range p.Statement {
		if !slices.Contains(st.Action, a.action) || !any(st.Resource, a.resource) {
			continue
		}
		for operator, keys := range st.Condition {
			for key, list := range keys {
				have, there := a.values[key]
				switch operator {
				case "Null":
					ok = there == (list[0] == "false")
				case "StringLikeIfExists":
					ok = !there || any(list, have)
				case "ForAllValues:StringLike", "StringLike":
					ok = there && any(list, have)
				default:
					ok = false
				}
				if !ok {
					continue statements
				}
			}
		}
		return st.Sid + " " + a.action, true
	}
	return "", false
}

// mayBeIdle are what a short run on these servers has no use for.
var mayBeIdle = map[string]string{
	"InitBucket s3:PutBucketPublicAccessBlock":   "versitygw does not know it",
	"InitBucket s3:PutEncryptionConfiguration":   "versitygw does not know it",
	"InitBucket s3:PutLifecycleConfiguration":    "versitygw does not know it",
	"InitTable dynamodb:UpdateContinuousBackups": "DynamoDB Local does not know it",
	"UseKey kms:GenerateDataKey":                 "S3 asks for it",
	"UseKey kms:Decrypt":                         "S3 asks for it",
}

// policies lets instances, CI and a developer do all that they do, and compares it with push -policy: every request is allowed,
// every action that is allowed was needed. With a KMS key every object that is written asks for it.
func policies(t *testing.T, w *world) {
	s := newSite(t, w)
	const key = "arn:aws:kms:us-east-1:123456789012:key/1234abcd-12ab-34cd-56ef-1234567890ab"
	type role struct{ s3, table, others *recorder }
	as := map[string]role{}
	for _, name := range []string{"instance", "ci", "developer"} {
		as[name] = role{s.record(w.s3.Endpoint, false), s.record(w.dynamodb, true), s.amazon()}
	}
	const inGroup = "lifecycle_hook: launch\nnotify: {sns_success: 'arn:aws:sns:" + parts.Region + ":123456789012:good', sns_error: 'arn:aws:sns:" + parts.Region + ":123456789012:bad'}\n"
	use := func(name, bucket string, more ...string) {
		text := s.settings(as[name].s3.URL, as[name].table.URL) + "keep_remote: 2\nkms_key_id: " + key + "\n" + inGroup + strings.Join(more, "\n")
		s.write("push.yml", strings.Replace(text, "bucket: "+s.bucket, "bucket: "+bucket, 1))
	}
	newTable := "s3-pull-deploy-" + s.bucket
	start := func(id string) *agent {
		t.Helper()
		a := s.newAgent(id, inGroup)
		text := strings.Replace(a.settings(a.extra...), "endpoints: {", fmt.Sprintf("endpoints: {imds: %[1]q, autoscaling: %[1]q, ", s.sns), 1)
		s.write(filepath.Join(id, "config.yml"), text)
		a.start()
		return a
	}
	must := func(args ...string) {
		t.Helper()
		if r := s.push(args...); r.code != 0 {
			t.Fatalf("push %v: %s", args, r)
		}
	}
	s.s3, s.table, s.sns = as["instance"].s3.URL, as["instance"].table.URL, as["instance"].others.URL
	use("ci", s.bucket)
	policy := map[string]iamPolicy{}
	for name := range as {
		r := s.push("-policy=" + name)
		var p iamPolicy
		if err := json.Unmarshal([]byte(r.stdout), &p); err != nil || r.code != 0 {
			t.Fatalf("push -policy=%s: %v: %s", name, err, r)
		}
		policy[name] = p
	}
	must("-status")
	fleet := []*agent{start("i-0"), start("i-1")} // before the first push: there is no pointer
	s.awaitPhase(joinTime, "serve", fleet...)
	s.live(2, files("one"))
	s.live(2, files("two"))
	fleet = append(fleet, start("late"))
	s.awaitPhase(joinTime, "serve", fleet...)
	s.live(3, files("three"), "-layout=plain")
	s.live(3, files("four"))
	must("-rollback", "-timeout=60s")
	s.live(3, files("five"))
	cleanUp := func() {
		t.Helper()
		for range 2 { // drops, and deletes what was dropped
			check(t, age(filepath.Join(w.s3.Dir, s.bucket, s.name), 48*time.Hour))
			must("-gc")
		}
	}
	cleanUp()
	for _, verb := range []string{"-status", "-releases", "-manifest", "-check", "-freeze=sale", "-unfreeze"} {
		must(verb)
	}
	use("ci", s.bucket, "rollout: {waves: [1, 100%], approve: true}\n")
	s.tree(files("in waves"))
	pushing := in(func() result { return s.push("-deploy="+s.app, "-timeout=90s") })
	s.await(joinTime, "a wave to approve", func() string {
		if line := s.push("-status").stdout; !strings.Contains(line, "waiting for `push -approve`") {
			return line
		}
		return ""
	})
	must("-approve")
	if r := pushing(); r.code != 0 {
		t.Fatalf("a push in waves: %s", r)
	}
	use("ci", s.bucket)
	once := s.newAgent("once")
	once.configure()
	for _, verb := range []string{"-once", "-check"} {
		if r := s.call(w.agent, "-config="+once.config, verb); r.code != 0 {
			t.Fatalf("agent %s: %s", verb, r)
		}
	}
	use("developer", s.bucket)
	must("-init")
	fleet[2].Kill()
	must("-forget=late", "-force")
	s.live(2, files("six"))
	cleanUp()
	must("-check")
	fleet[0].Kill()
	fleet[1].Kill()
	use("ci", s.bucket)
	s.tree(files("seven"))
	must("-deploy="+s.app, "-wait=false")
	must("-abort")
	must("-retry")
	use("developer", s.bucket+"-new", "table: "+newTable+"\n")
	must("-init")

	for name, r := range as {
		t.Run(name, func(t *testing.T) {
			used := map[string]bool{}
			for _, rec := range []*recorder{r.s3, r.table, r.others} {
				seen, _ := rec.sofar()
				for _, a := range seen {
					a.resource = strings.Replace(a.resource, newTable, "s3-pull-deploy", 1)
					a.resource = strings.Replace(a.resource, s.bucket+"-new", s.bucket, 1)
					for k, v := range a.values {
						a.values[k] = strings.Replace(v, s.bucket+"-new", s.bucket, 1)
					}
					by, ok := policy[name].judge(a)
					if !ok {
						t.Errorf("%s is not allowed", a)
					}
					used[by] = true
				}
			}
			for _, st := range policy[name].Statement {
				for _, action := range st.Action {
					if _, idle := mayBeIdle[st.Sid+" "+action]; !idle && !used[st.Sid+" "+action] {
						t.Errorf("%s of %s was allowed and not needed", action, st.Sid)
					}
				}
			}
		})
	}
	_, ci := as["ci"].s3.sofar()
	_, developer := as["developer"].s3.sofar()
	for _, h := range slices.Concat(ci, developer) {
		if h.Get("X-Amz-Server-Side-Encryption") != "aws:kms" || h.Get("X-Amz-Server-Side-Encryption-Aws-Kms-Key-Id") != key {
			t.Errorf("an object is written without the key: %v", h)
		}
	}
	if _, puts := as["instance"].s3.sofar(); len(puts) > 0 {
		t.Errorf("instances wrote %d objects (I20)", len(puts))
	}
	// What must not be, whatever a run needs.
	site, members := "arn:aws:s3:::"+s.bucket+"/"+s.name+"/", s.bucket+"/"+s.name+"#m03"
	table := "arn:aws:dynamodb:" + parts.Region + ":123456789012:table/s3-pull-deploy"
	for _, c := range []struct {
		role string
		access
	}{
		{"instance", access{"s3:PutObject", site + "latest-deploy", map[string]string{"s3:if-none-match": "*"}}},
		{"instance", access{"s3:GetObject", "arn:aws:s3:::" + s.bucket + "/" + s.name + "-staging/latest-deploy", nil}},
		{"instance", access{"dynamodb:UpdateItem", table, map[string]string{"dynamodb:LeadingKeys": s.bucket + "/other"}}},
		{"instance", access{"sns:Publish", "arn:aws:sns:" + parts.Region + ":123456789012:another", nil}},
		{"instance", access{"dynamodb:DeleteItem", table, map[string]string{"dynamodb:LeadingKeys": s.bucket + "/" + s.name}}},
		{"ci", access{"s3:PutObject", site + "p/1", nil}},
		{"ci", access{"s3:PutObject", site + "p/1", map[string]string{"s3:if-match": "x"}}},
		{"ci", access{"s3:DeleteObject", site + "latest-deploy", nil}},
		{"ci", access{"s3:CreateBucket", "arn:aws:s3:::" + s.bucket, nil}},
		{"ci", access{"dynamodb:UpdateItem", table, map[string]string{"dynamodb:LeadingKeys": members}}},
		{"developer", access{"dynamodb:UpdateItem", table, map[string]string{"dynamodb:LeadingKeys": members}}},
		{"developer", access{"s3:DeleteBucket", "arn:aws:s3:::" + s.bucket, nil}},
	} {
		if by, ok := policy[c.role].judge(c.access); ok {
			t.Errorf("%s: %s is allowed by %s", c.role, c.access, by)
		}
	}
}
