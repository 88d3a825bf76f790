package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"s3pulldeploy/internal/testenv/parts"
)

// TestTerraformMakesWhatPushAndAgentUse applies terraform/store to the local servers, has `push -init` look at what it made, and
// deploys with it: to the bucket, over the table, and the outcomes arrive at the topics.
func TestTerraformMakesWhatPushAndAgentUse(t *testing.T) {
	plugins := terraform(t)
	w := newWorld(t)
	name := fmt.Sprintf("terraformed-%d", sites.Add(1))
	s := &site{t: t, world: w, dir: t.TempDir(), s3: w.s3.Endpoint, table: w.dynamodb, name: name, bucket: name}
	s.app = filepath.Join(s.dir, "app")
	topics := &fakeSNS{topics: map[string]map[string]string{}, published: map[string][]string{}}
	sns := httptest.NewServer(topics)
	t.Cleanup(sns.Close)
	s.sns = sns.URL

	root, err := parts.ModuleRoot()
	check(t, err)
	dir := t.TempDir()
	check(t, os.WriteFile(filepath.Join(dir, "main.tf"), fmt.Appendf(nil, `
provider "aws" {
  region                      = %q
  access_key                  = %q
  secret_key                  = %q
  skip_credentials_validation = true
  skip_metadata_api_check     = true
  skip_requesting_account_id  = true
  s3_use_path_style           = true
  endpoints {
    s3       = %q
    dynamodb = %q
    sns      = %q
  }
}

module "store" {
  source        = %q
  bucket        = %q
  table         = %q
  topics        = "promo"
  s3_compatible = true
  force_destroy = true
}

output "topics" { value = module.store.topics }
`, parts.Region, parts.AccessKey, parts.SecretKey, w.s3.Endpoint, w.dynamodb, sns.URL, filepath.Join(root, "terraform/store"), name, name), 0o644))

	tf := terraformIn(t, dir, plugins)
	tf("apply", "-auto-approve", "-input=false", "-no-color")
	if made := topics.names(); !slices.Equal(made, []string{"promo-error", "promo-success"}) {
		t.Errorf("topics made: %q", made)
	}
	// Where servers answer otherwise than they were told, every plan would want to change something.
	if out := tf("plan", "-input=false", "-no-color"); !strings.Contains(out, "No changes.") {
		t.Errorf("the second plan is not empty:\n%s", out)
	}

	s.write("push.yml", s.settings(w.s3.Endpoint, w.dynamodb)+"table: "+name+"\n")
	r := s.push("-init")
	if r.code != 0 {
		t.Fatal(r)
	}
	for line := range strings.Lines(r.stdout + r.stderr) {
		if state, _, _ := strings.Cut(strings.TrimSpace(line), " "); state == "created" || state == "differs" {
			t.Errorf("push -init would have made something else: %s", line)
		}
	}
	var arns struct{ Success, Error string }
	check(t, json.Unmarshal([]byte(tf("output", "-json", "topics")), &arns))
	agent := s.startAgent("i-1", "table: "+name, fmt.Sprintf("notify: {sns_success: %q, sns_error: %q}", arns.Success, arns.Error),
		"hooks: {before_flip: '[ ! -e refuse ]'}")
	s.awaitPhase(30*time.Second, "serve", agent)
	good := s.live(1, map[string]string{"index.php": "<?php"})
	bad, _ := s.deploy(3, map[string]string{"index.php": "<?php", "refuse": ""})
	for topic, want := range map[string]string{
		"promo-success": name + ": deploy of " + good.Release + " is live",
		"promo-error":   name + ": deploy of " + bad.Release + " was aborted",
	} {
		s.await(30*time.Second, "a message to "+topic, func() string {
			if got := topics.messages(topic); !slices.Equal(got, []string{want}) {
				return fmt.Sprintf("it got %q, want %q", got, want)
			}
			return ""
		})
	}
}

// terraform ends the test where Terraform is not installed, unless S3PULLDEPLOY_REQUIRE_TERRAFORM=1, and returns the arguments of
// init: where its plugins are, when that is a folder.
func terraform(t *testing.T) []string {
	t.Helper()
	if _, err := exec.LookPath("terraform"); err != nil {
		if os.Getenv("S3PULLDEPLOY_REQUIRE_TERRAFORM") == "1" {
			t.Fatal(err)
		}
		t.Skipf("terraform/store is not applied, Terraform is not installed: %v", err)
	}
	found, _ := filepath.Glob("/opt/*/*/hashicorp/aws")
	if len(found) == 0 {
		return nil
	}
	return []string{"-plugin-dir=" + filepath.Join(found[0], "../../..")}
}

// terraformIn prepares a folder and returns what runs Terraform's commands there, which must work, and gives what they printed.
func terraformIn(t *testing.T, dir string, plugins []string) (run func(args ...string) string) {
	t.Helper()
	run = func(args ...string) string {
		t.Helper()
		cmd := exec.Command("terraform", append([]string{"-chdir=" + dir}, args...)...)
		cmd.Env = append(parts.Environ(), "TF_IN_AUTOMATION=1", "CHECKPOINT_DISABLE=1")
		var said bytes.Buffer // warnings, besides what is asked for
		cmd.Stderr = &said
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("terraform %s: %v\n%s%s", args[0], err, out, said.String())
		}
		return string(out)
	}
	run(append([]string{"init", "-input=false", "-no-color"}, plugins...)...)
	return run
}

// fakeSNS is as much of SNS as makes, reads and deletes topics, and keeps what is published to them.
type fakeSNS struct {
	mu        sync.Mutex
	topics    map[string]map[string]string // attributes, by name
	published map[string][]string          // subjects, by name
}

func (f *fakeSNS) names() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Sorted(maps.Keys(f.topics))
}

func (f *fakeSNS) messages(topic string) []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.published[topic])
}

func (f *fakeSNS) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := r.ParseForm(); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	const prefix = "arn:aws:sns:us-east-1:000000000000:"
	action, name := r.Form.Get("Action"), strings.TrimPrefix(r.Form.Get("TopicArn")+r.Form.Get("ResourceArn"), prefix)
	var result string
	switch action {
	case "CreateTopic":
		name = r.Form.Get("Name")
		f.topics[name] = map[string]string{"TopicArn": prefix + name, "Owner": "000000000000", "Policy": `{"Statement":[]}`}
		result = "<TopicArn>" + prefix + name + "</TopicArn>"
	case "GetTopicAttributes":
		result = "<Attributes>"
		for k, v := range f.topics[name] {
			result += "<entry><key>" + k + "</key><value>" + v + "</value></entry>"
		}
		result += "</Attributes>"
	case "SetTopicAttributes":
		f.topics[name][r.Form.Get("AttributeName")] = r.Form.Get("AttributeValue")
	case "ListTagsForResource":
		result = "<Tags/>"
	case "Publish":
		if f.topics[name] == nil {
			http.Error(w, "no topic "+url.QueryEscape(name), http.StatusNotFound)
			return
		}
		f.published[name] = append(f.published[name], r.Form.Get("Subject"))
		result = "<MessageId>1</MessageId>"
	case "DeleteTopic":
		delete(f.topics, name)
	default:
		http.Error(w, "unknown action "+url.QueryEscape(action), http.StatusBadRequest)
		return
	}
	fmt.Fprintf(w, `<%[1]sResponse xmlns="http://sns.amazonaws.com/doc/2010-03-31/"><%[1]sResult>%[2]s</%[1]sResult>`+
		`<ResponseMetadata><RequestId>1</RequestId></ResponseMetadata></%[1]sResponse>`, action, result)
}
