package notify

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
)

const secretKey = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"

const topicPrefix = "arn:aws:sns:eu-west-1:123456789012:"

// topics is an SNS endpoint that checks each request's signature, version 4, by its own means.
type topics struct {
	*httptest.Server
	t       *testing.T
	mu      sync.Mutex
	got     []url.Values
	answers []string // one for each request: "", or "status code"
}

func newTopics(t *testing.T, answers ...string) *topics {
	s := &topics{t: t, answers: answers}
	s.Server = httptest.NewServer(s)
	t.Cleanup(s.Close)
	return s
}

func (s *topics) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	if err := checkSignature(r, body, "eu-west-1", "sns"); err != nil {
		s.t.Errorf("signature: %v", err)
		http.Error(w, "", http.StatusForbidden)
		return
	}
	form, err := url.ParseQuery(string(body))
	if err != nil {
		s.t.Error(err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.got = append(s.got, form)
	answer := ""
	if len(s.answers) > 0 {
		answer, s.answers = s.answers[0], s.answers[1:]
	}
	w.Header().Set("Content-Type", "text/xml")
	if status, code := 0, ""; answer != "" {
		fmt.Sscan(answer, &status, &code)
		w.WriteHeader(status)
		fmt.Fprintf(w, `<ErrorResponse xmlns="http://sns.amazonaws.com/doc/2010-03-31/"><Error><Type>Sender</Type><Code>%s</Code>`+
			`<Message>as asked</Message></Error><RequestId>1</RequestId></ErrorResponse>`, code)
		return
	}
	fmt.Fprint(w, `<PublishResponse xmlns="http://sns.amazonaws.com/doc/2010-03-31/"><PublishResult><MessageId>1</MessageId>`+
		`</PublishResult><ResponseMetadata><RequestId>1</RequestId></ResponseMetadata></PublishResponse>`)
}

// checkSignature computes a request's signature from its documented parts.
func checkSignature(r *http.Request, body []byte, region, service string) error {
	rest, ok := strings.CutPrefix(r.Header.Get("Authorization"), "AWS4-HMAC-SHA256 ")
	if !ok {
		return fmt.Errorf("not signed: %q", r.Header.Get("Authorization"))
	}
	fields := map[string]string{}
	for part := range strings.SplitSeq(rest, ", ") {
		k, v, _ := strings.Cut(part, "=")
		fields[k] = v
	}
	when := r.Header.Get("X-Amz-Date")
	at, err := time.Parse("20060102T150405Z", when)
	if err != nil || time.Since(at).Abs() > 5*time.Minute {
		return fmt.Errorf("signed at %q: %v", when, err)
	}
	scope := strings.Join([]string{when[:8], region, service, "aws4_request"}, "/")
	if want := "AKIDEXAMPLE/" + scope; fields["Credential"] != want {
		return fmt.Errorf("credential %q, want %q", fields["Credential"], want)
	}
	signed := strings.Split(fields["SignedHeaders"], ";")
	if !slices.Contains(signed, "host") || !slices.Contains(signed, "x-amz-date") {
		return fmt.Errorf("signed headers are %q", signed)
	}
	var headers strings.Builder
	for _, h := range signed {
		v := r.Header.Get(h)
		switch h {
		case "host":
			v = r.Host
		case "content-length":
			v = fmt.Sprint(r.ContentLength)
		}
		fmt.Fprintf(&headers, "%s:%s\n", h, strings.TrimSpace(v))
	}
	canonical := strings.Join([]string{r.Method, r.URL.EscapedPath(), r.URL.RawQuery, headers.String(), fields["SignedHeaders"], hash(body)}, "\n")
	text := strings.Join([]string{"AWS4-HMAC-SHA256", when, scope, hash([]byte(canonical))}, "\n")
	key := []byte("AWS4" + secretKey)
	for _, part := range append(strings.Split(scope, "/"), text) {
		m := hmac.New(sha256.New, key)
		m.Write([]byte(part))
		key = m.Sum(nil)
	}
	if got := hex.EncodeToString(key); got != fields["Signature"] {
		return fmt.Errorf("signature %s, computed %s", fields["Signature"], got)
	}
	return nil
}

func hash(p []byte) string {
	sum := sha256.Sum256(p)
	return hex.EncodeToString(sum[:])
}

func account() aws.Config {
	return aws.Config{Region: "eu-central-1", Credentials: aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) {
		return aws.Credentials{AccessKeyID: "AKIDEXAMPLE", SecretAccessKey: secretKey}, nil
	})}
}

var good = Outcome{
	Site: "promo", Epoch: 7, Outcome: Done, Kind: "deploy", Release: "2026-11-20_20-15-02", Author: "ann", Message: "größer",
	Instance: "i-1", Took: 12 * time.Second, Members: 3, Excluded: []string{"i-4: silent", "i-5: disk full"},
	Nos: []string{"i-5: disk full", "i-6: hook before_flip: exit code 1"},
}

func TestSNSGetsASignedRequestForTheRegionOfItsTopic(t *testing.T) {
	s := newTopics(t)
	n := New(Options{AWS: account(), Endpoint: s.URL, Success: topicPrefix + "good", Error: topicPrefix + "bad.fifo"})
	if err := n.Send(t.Context(), good); err != nil {
		t.Fatal(err)
	}
	bad := good
	bad.Outcome, bad.Reason = Aborted, "i-2: hook before_flip: exit code 1"
	if err := n.Send(t.Context(), bad); err != nil {
		t.Fatal(err)
	}
	half := good
	half.Reason = "1 of 3 failed after the flip"
	if err := n.Send(t.Context(), half); err != nil {
		t.Fatal(err)
	}
	if len(s.got) != 3 {
		t.Fatalf("%d requests", len(s.got))
	}
	for i, want := range []map[string]string{
		{"TopicArn": topicPrefix + "good", "Subject": "promo: deploy of 2026-11-20_20-15-02 is live", "Action": "Publish", "MessageGroupId": ""},
		{"TopicArn": topicPrefix + "bad.fifo", "Subject": "promo: deploy of 2026-11-20_20-15-02 was aborted", "MessageGroupId": "promo", "MessageDeduplicationId": "promo-7"},
		{"TopicArn": topicPrefix + "bad.fifo", "Subject": "promo: deploy of 2026-11-20_20-15-02 is live, but not well everywhere"},
	} {
		for k, v := range want {
			if got := s.got[i].Get(k); got != v {
				t.Errorf("request %d: %s is %q, want %q", i, k, got, v)
			}
		}
	}
	for _, text := range []string{"3 instances, 12s after the push", "pushed: größer ann", "left out: i-4: silent; i-5: disk full", "said no: i-6: hook before_flip: exit code 1"} {
		if m := s.got[0].Get("Message"); !strings.Contains(m, text) {
			t.Errorf("%q is not in the message:\n%s", text, m)
		}
	}
	if body := fmt.Sprint(s.got[0]); !strings.Contains(body, "outcome") || !strings.Contains(body, "epoch") {
		t.Errorf("no attributes to filter by: %s", body)
	}
}

func TestSNSThatThrottlesIsAskedAgainAndOneThatRefusesIsNot(t *testing.T) {
	busy := newTopics(t, "400 Throttling")
	if err := New(Options{AWS: account(), Endpoint: busy.URL, Success: topicPrefix + "x"}).Send(t.Context(), good); err != nil {
		t.Errorf("after one throttled request: %v", err)
	}
	closed := newTopics(t, "403 AuthorizationError")
	err := New(Options{AWS: account(), Endpoint: closed.URL, Success: topicPrefix + "x"}).Send(t.Context(), good)
	if want := "publish to " + topicPrefix + "x: AuthorizationError: as asked"; err == nil || err.Error() != want {
		t.Errorf("error is %v, want %s", err, want)
	}
	if len(busy.got) != 2 || len(closed.got) != 1 {
		t.Errorf("%d and %d requests, want 2 and 1", len(busy.got), len(closed.got))
	}
}

func TestNobodyIsToldWhoIsNotToBe(t *testing.T) {
	s := newTopics(t)
	if err := New(Options{AWS: account(), Endpoint: s.URL, Error: topicPrefix + "bad"}).Send(t.Context(), good); err != nil || len(s.got) > 0 {
		t.Errorf("%v, %d requests for a success without a topic", err, len(s.got))
	}
}

// hook is a webhook that answers with each status in turn, the last one for ever.
func hook(t *testing.T, statuses ...int) (address string, bodies func() []string) {
	var mu sync.Mutex
	var got []string
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		mu.Lock()
		defer mu.Unlock()
		got = append(got, string(body))
		if r.Method != http.MethodPost || r.Header.Get("Content-Type") != "application/json" {
			t.Errorf("%s with %s", r.Method, r.Header.Get("Content-Type"))
		}
		w.Header().Set("Location", "/elsewhere")
		w.WriteHeader(statuses[min(len(got), len(statuses))-1])
		fmt.Fprint(w, "no_service")
	}))
	t.Cleanup(s.Close)
	return s.URL + "/services/hunter2", func() []string { mu.Lock(); defer mu.Unlock(); return got }
}

func TestWebhookGetsTheTextInSlacksFormat(t *testing.T) {
	address, got := hook(t, 200)
	o := good
	o.Message = "a < b & c > d"
	if err := New(Options{Webhook: address}).Send(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	var body map[string]string
	if err := json.Unmarshal([]byte(got()[0]), &body); err != nil {
		t.Fatal(err)
	}
	if text := body["text"]; len(body) != 1 || !strings.HasPrefix(text, "promo: deploy of 2026-11-20_20-15-02 is live\n") || !strings.Contains(text, "a &lt; b &amp; c &gt; d") {
		t.Errorf("body is %q", body)
	}
}

func TestWebhookIsTriedAgainWhileThatMayHelp(t *testing.T) {
	for _, c := range []struct {
		statuses []int
		requests int
		fails    string
	}{
		{[]int{500, 429, 200}, 3, ""},
		{[]int{503}, 3, `post to webhook: status 503: "no_service"`},
		{[]int{404}, 1, `post to webhook: status 404: "no_service"`},
		{[]int{302}, 1, `post to webhook: status 302: "no_service"`},
	} {
		address, got := hook(t, c.statuses...)
		n := New(Options{Webhook: address})
		n.pause = time.Millisecond
		err := n.Send(t.Context(), good)
		text := ""
		if err != nil {
			text = err.Error()
		}
		if len(got()) != c.requests || text != c.fails {
			t.Errorf("%v: %d requests, error %q; want %d, %q", c.statuses, len(got()), text, c.requests, c.fails)
		}
	}
}

func TestWebhooksAddressIsInNoError(t *testing.T) {
	for _, address := range []string{"http://127.0.0.1:1/services/hunter2", "http://[hunter2"} {
		n := New(Options{Webhook: address})
		n.pause = time.Millisecond
		if err := n.Send(t.Context(), good); err == nil || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: error is %v", address, err)
		}
	}
}

func TestSilenceEndsWithTheContext(t *testing.T) {
	hang := make(chan struct{})
	s := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-hang }))
	defer s.Close()
	defer close(hang)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	err := New(Options{AWS: account(), Endpoint: s.URL, Success: topicPrefix + "x", Webhook: s.URL}).Send(ctx, good)
	if err == nil || !strings.Contains(err.Error(), "webhook") || !strings.Contains(err.Error(), "publish") {
		t.Errorf("error is %v, want both ways named", err)
	}
}

func TestTextStaysShortWhateverAFleetReports(t *testing.T) {
	o := good
	for i := range 200 {
		o.Nos = append(o.Nos, fmt.Sprintf("i-%d: %s", i, strings.Repeat("ö\n", 500)))
	}
	o.Reason, o.Message = strings.Repeat("x", 10_000), strings.Repeat("y", 10_000)
	o.Release = strings.Repeat("r", 128)
	if text := o.Text(); len(text) > 3000 || strings.Count(text, "\n") > 6 {
		t.Errorf("%d bytes, %d lines", len(text), strings.Count(text, "\n"))
	}
	if s := o.subject(); len(s) > 100 || strings.ContainsAny(s, "\n…") {
		t.Errorf("subject is %q", s)
	}
}
