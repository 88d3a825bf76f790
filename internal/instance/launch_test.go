package instance

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
)

// scaling is Auto Scaling's endpoint: the query protocol with its errors, for one machine in one hook.
type scaling struct {
	*httptest.Server
	t       *testing.T
	mu      sync.Mutex
	waits   bool     // the group waits for the machine
	answers []string // codes of errors for the next requests, "" for none
	actions []string
	seen    chan string
}

func newScaling(t *testing.T, waits bool, answers ...string) *scaling {
	s := &scaling{t: t, waits: waits, answers: answers, seen: make(chan string, 100)}
	s.Server = httptest.NewServer(s)
	t.Cleanup(s.Close)
	return s
}

func (s *scaling) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if !strings.Contains(r.Header.Get("Authorization"), "/eu-central-1/autoscaling/aws4_request") {
		s.t.Errorf("not signed for Auto Scaling: %q", r.Header.Get("Authorization"))
	}
	action := r.FormValue("Action")
	for k, want := range map[string]string{
		"AutoScalingGroupName": "promo-web", "LifecycleHookName": "launch", "InstanceId": "i-0123456789abcdef0",
		"LifecycleActionResult": map[string]string{"CompleteLifecycleAction": "CONTINUE"}[action],
	} {
		if got := r.FormValue(k); got != want {
			s.t.Errorf("%s: %s is %q, want %q", action, k, got, want)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	defer func() { s.seen <- action }()
	s.actions = append(s.actions, action)
	refuse := func(status int, code, message string) {
		w.WriteHeader(status)
		fmt.Fprintf(w, `<ErrorResponse xmlns="http://autoscaling.amazonaws.com/doc/2011-01-01/"><Error><Type>Sender</Type><Code>%s</Code>`+
			`<Message>%s</Message></Error><RequestId>1</RequestId></ErrorResponse>`, code, message)
	}
	w.Header().Set("Content-Type", "text/xml")
	if len(s.answers) > 0 {
		code := s.answers[0]
		s.answers = s.answers[1:]
		if code != "" {
			refuse(map[bool]int{true: 400, false: 403}[code == "Throttling"], code, "as asked")
			return
		}
	}
	if !s.waits {
		refuse(400, "ValidationError", "No active Lifecycle Action found with instance ID "+r.FormValue("InstanceId"))
		return
	}
	if action == "CompleteLifecycleAction" {
		s.waits = false
	}
	fmt.Fprintf(w, `<%sResponse xmlns="http://autoscaling.amazonaws.com/doc/2011-01-01/"><%[1]sResult/>`+
		`<ResponseMetadata><RequestId>1</RequestId></ResponseMetadata></%[1]sResponse>`, action)
}

func (s *scaling) await(action string) {
	s.t.Helper()
	for {
		select {
		case got := <-s.seen:
			if got == action {
				return
			}
		case <-time.After(30 * time.Second):
			s.t.Fatalf("no %s", action)
		}
	}
}

func (s *scaling) did() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.actions)
}

var inGroup = map[string]string{"instance-id": "i-0123456789abcdef0", "tags/instance/aws:autoscaling:groupName": "promo-web"}

// launch is a launch with short times, and its log.
func launch(t *testing.T, s *scaling, values map[string]string) (*Launch, *bytes.Buffer) {
	var log bytes.Buffer
	l := NewLaunch(LaunchOptions{
		AWS: aws.Config{Region: "eu-central-1", Credentials: aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) {
			return aws.Credentials{AccessKeyID: "a", SecretAccessKey: "b"}, nil
		})},
		Endpoint: s.URL, IMDS: newService(t, values).URL, Hook: "launch",
		Log: slog.New(slog.NewTextHandler(&log, nil)),
	})
	l.every, l.settling = 5*time.Millisecond, 50*time.Millisecond
	return l, &log
}

func closed() chan struct{} {
	c := make(chan struct{})
	close(c)
	return c
}

func TestLaunchBeatsUntilTheMachineServesAndIsCompletedOnce(t *testing.T) {
	s := newScaling(t, true)
	l, log := launch(t, s, inGroup)
	served, done := make(chan struct{}), make(chan error, 1)
	go func() { done <- l.Run(t.Context(), served) }()
	for range 3 {
		s.await("RecordLifecycleActionHeartbeat")
	}
	if slices.Contains(s.did(), "CompleteLifecycleAction") {
		t.Error("completed before it serves")
	}
	close(served)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	did := s.did()
	if i := slices.Index(did, "CompleteLifecycleAction"); i != len(did)-1 || !strings.Contains(log.String(), "launch completed") {
		t.Errorf("requests were %v, log:\n%s", did, log)
	}
}

func TestLaunchOutlivesThrottlingAndRefusals(t *testing.T) {
	s := newScaling(t, true, "", "AccessDenied", "AccessDenied", "Throttling")
	l, log := launch(t, s, inGroup)
	if err := l.Run(t.Context(), closed()); err != nil {
		t.Fatal(err)
	}
	for _, trouble := range []string{"no heartbeat", "not completed"} {
		if n := strings.Count(log.String(), trouble); n > 1 {
			t.Errorf("one trouble was logged %d times:\n%s", n, log)
		}
	}
}

func TestLaunchThatIsQuickerThanAutoScalingWaitsForIt(t *testing.T) {
	s := newScaling(t, false)
	l, _ := launch(t, s, inGroup)
	l.settling = time.Minute
	done := make(chan error, 1)
	go func() { done <- l.Run(t.Context(), closed()) }()
	s.await("CompleteLifecycleAction")
	s.mu.Lock()
	s.waits = true
	s.mu.Unlock()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.waits {
		t.Error("the group still waits")
	}
}

func TestAgentThatOnlyRestartedHasNothingToComplete(t *testing.T) {
	s := newScaling(t, false)
	l, log := launch(t, s, inGroup)
	if err := l.Run(t.Context(), closed()); err != nil || strings.Contains(log.String(), "WARN") {
		t.Errorf("%v, log:\n%s", err, log)
	}
}

func TestLaunchGivesUpAndSaysWhy(t *testing.T) {
	s := newScaling(t, true)
	l, log := launch(t, s, nil)
	l.long = 30 * time.Millisecond
	err := l.Run(t.Context(), make(chan struct{}))
	if err == nil || !strings.Contains(err.Error(), "does not serve after") || !strings.Contains(log.String(), "instance_metadata_tags") {
		t.Errorf("error is %v, log:\n%s", err, log)
	}
	l.settling = 0 // an error settles nothing
	if err := l.Run(t.Context(), closed()); !errors.Is(err, ErrNoGroup) {
		t.Errorf("error is %v, want %v", err, ErrNoGroup)
	}
	l.long = time.Hour
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := l.Run(ctx, make(chan struct{})); !errors.Is(err, context.Canceled) {
		t.Errorf("error is %v, want the context's", err)
	}
}
