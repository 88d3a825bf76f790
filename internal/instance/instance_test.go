package instance

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// usual is the package's patience, ample the tests': no answer comes too late.
var usual = patience

const ample = 30 * time.Second

func TestMain(m *testing.M) {
	patience = ample
	os.Exit(m.Run())
}

// service is a metadata service that insists on version 2, as instances with HttpTokens=required do.
type service struct {
	*httptest.Server
	values  map[string]string // below /latest/meta-data/; "!" is a 500, "slow down" a 429
	refused atomic.Int64      // requests without the token
}

func newService(t *testing.T, values map[string]string) *service {
	t.Helper()
	s := &service{values: values}
	s.Server = httptest.NewServer(s)
	t.Cleanup(s.Close)
	return s
}

func (s *service) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	const ttl = "X-Aws-Ec2-Metadata-Token-Ttl-Seconds"
	if r.URL.Path == "/latest/api/token" {
		if r.Method != http.MethodPut || r.Header.Get(ttl) == "" {
			http.Error(w, "", http.StatusBadRequest)
			return
		}
		w.Header().Set(ttl, r.Header.Get(ttl))
		fmt.Fprint(w, "the-token")
		return
	}
	if r.Header.Get("X-Aws-Ec2-Metadata-Token") != "the-token" {
		s.refused.Add(1)
		http.Error(w, "", http.StatusUnauthorized)
		return
	}
	value, ok := s.values[strings.TrimPrefix(r.URL.Path, "/latest/meta-data/")]
	switch {
	case !ok:
		http.Error(w, "", http.StatusNotFound)
	case value == "!":
		http.Error(w, "", http.StatusInternalServerError)
	case value == "slow down":
		http.Error(w, "", http.StatusTooManyRequests)
	default:
		fmt.Fprint(w, value)
	}
}

var onEC2 = map[string]string{"instance-id": "i-0123456789abcdef0", "placement/availability-zone": "eu-central-1a"}

const noTag = "/no/such/file"

func TestIdentityIsTheSettingsThenEC2sThenTheHostname(t *testing.T) {
	host, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	nitro, other := filepath.Join(dir, "nitro"), filepath.Join(dir, "other")
	if err := errors.Join(
		os.WriteFile(nitro, []byte("i-0fedcba9876543210\n"), 0o444), os.WriteFile(other, []byte("Not Specified\n"), 0o444),
	); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, configured string
		values           map[string]string
		tag              string
		want             Identity
	}{
		{"configured on EC2", "web-1", onEC2, noTag, Identity{"web-1", "eu-central-1a", SourceConfig}},
		{"configured elsewhere", "web-1", nil, noTag, Identity{"web-1", "", SourceConfig}},
		{"EC2", "", onEC2, nitro, Identity{"i-0123456789abcdef0", "eu-central-1a", SourceEC2}},
		{"EC2 without a zone", "", map[string]string{"instance-id": "i-1"}, noTag, Identity{"i-1", "", SourceEC2}},
		{"metadata out of order on EC2", "", map[string]string{"instance-id": "!"}, nitro, Identity{"i-0fedcba9876543210", "", SourceEC2}},
		{"metadata throttled on EC2", "", map[string]string{"instance-id": "slow down"}, nitro, Identity{"i-0fedcba9876543210", "", SourceEC2}},
		{"another maker's machine", "", nil, other, Identity{host, "", SourceHostname}},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newService(t, c.values)
			got, err := identify(t.Context(), c.configured, newMetadata(s.URL), c.tag)
			if err != nil || got != c.want {
				t.Errorf("got %+v, %v; want %+v", got, err, c.want)
			}
			if n := s.refused.Load(); n > 0 {
				t.Errorf("%d requests without a token", n)
			}
		})
	}
}

func TestVersion1IsNeverSpoken(t *testing.T) {
	var asked atomic.Int64
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet { // version 1 alone: no tokens, answers everybody
			asked.Add(1)
			fmt.Fprint(w, "i-0123456789abcdef0")
			return
		}
		http.Error(w, "", http.StatusForbidden)
	}))
	defer s.Close()
	got, err := identify(t.Context(), "", newMetadata(s.URL), noTag)
	if err != nil || got.Source != SourceHostname || asked.Load() != 0 {
		t.Errorf("got %+v, %v after %d requests without a token", got, err, asked.Load())
	}
}

func TestIDsThatTheFleetCannotHaveAreRefused(t *testing.T) {
	for _, id := range []string{"-web", "web 1", "web/1", strings.Repeat("x", 129), "wéb", "web\n"} {
		if got, err := Identify(t.Context(), id, newService(t, nil).URL); err == nil || !strings.HasPrefix(err.Error(), "instance_id: ") {
			t.Errorf("%q: got %+v, %v", id, got, err)
		}
	}
	s := newService(t, map[string]string{"instance-id": "<html>"})
	if _, err := identify(t.Context(), "", newMetadata(s.URL), noTag); err == nil || !strings.Contains(err.Error(), "set instance_id") {
		t.Errorf("error is %v, want the advice", err)
	}
	if got, err := Identify(t.Context(), strings.Repeat("x", 128), s.URL); err != nil || got.Source != SourceConfig {
		t.Errorf("got %+v, %v for an id of 128 letters", got, err)
	}
}

// silent is a service that takes requests and never answers, as a firewall or a hop limit makes it.
func silent(t *testing.T) string {
	t.Helper()
	hang := make(chan struct{})
	s := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-hang }))
	t.Cleanup(s.Close)
	t.Cleanup(func() { close(hang) })
	return s.URL
}

func TestSilentServiceCostsOneSecond(t *testing.T) {
	const bound = 20 * time.Second // less than the tests' patience
	patience = usual
	defer func() { patience = ample }()
	began := time.Now()
	got, err := identify(t.Context(), "", newMetadata(silent(t)), noTag)
	if took := time.Since(began); err != nil || got.Source != SourceHostname || took > bound {
		t.Errorf("got %+v, %v after %v", got, err, took)
	}
	began = time.Now()
	l, err := Look(t.Context(), silent(t))
	if took := time.Since(began); l != (Lifecycle{}) || err == nil || took > bound {
		t.Errorf("got %+v, %v after %v; want an error", l, err, took)
	}
}

func TestLostRequestIsRepeatedWithinThePatience(t *testing.T) {
	patience = usual
	defer func() { patience = ample }()
	real := newService(t, onEC2)
	for range 10 { // of which a stall may spoil some
		var asked atomic.Int64
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if asked.Add(1) == 1 {
				http.Error(w, "", http.StatusInternalServerError)
				return
			}
			real.ServeHTTP(w, r)
		}))
		got, err := identify(t.Context(), "", newMetadata(s.URL), noTag)
		s.Close()
		if err == nil && got.Source == SourceEC2 {
			return
		}
	}
	t.Error("never repeated in time")
}

func TestCancellationEndsTheSearch(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if got, err := Identify(ctx, "", newService(t, onEC2).URL); !errors.Is(err, context.Canceled) {
		t.Errorf("got %+v, %v; want context.Canceled", got, err)
	}
}

func TestEnvironmentThatDisablesTheServiceIsObeyedUnlessTheSettingsNameOne(t *testing.T) {
	t.Setenv("AWS_EC2_METADATA_DISABLED", "true")
	s := newService(t, onEC2)
	if got, err := Identify(t.Context(), "", s.URL); err != nil || got.ID != onEC2["instance-id"] {
		t.Errorf("got %+v, %v; want the service in the settings", got, err)
	}
	t.Setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", s.URL)
	if got, err := identify(t.Context(), "", newMetadata(""), noTag); err != nil || got.Source != SourceHostname {
		t.Errorf("got %+v, %v; want the hostname", got, err)
	}
}
