package store

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"s3pulldeploy/internal/testenv"
)

// states are the steps as "what state" lines.
func states(steps []Step) []string {
	var lines []string
	for _, s := range steps {
		lines = append(lines, s.What+" "+string(s.State))
	}
	return lines
}

func TestInitCreatesABucketThatWorksAndChangesNothingTheSecondTime(t *testing.T) {
	o, _ := options(t)
	o.Bucket = testenv.Name(t)
	s := New(o)
	steps, err := s.Init(t.Context(), "us-east-1")
	if err != nil {
		t.Fatal(err)
	}
	if len(steps) != 5 || steps[0].State != StateCreated {
		t.Errorf("first time: %+v", steps)
	}
	upload(t, s, "a", "a")
	again, err := s.Init(t.Context(), "us-east-1")
	if err != nil {
		t.Fatal(err)
	}
	for i, step := range again {
		if step.State == StateCreated || step.State == StateOK != (steps[i].State == StateCreated || steps[i].State == StateOK) {
			t.Errorf("first %+v, then %+v", steps[i], step)
		}
	}
	if err := s.Exists(t.Context()); err != nil {
		t.Error(err)
	}
}

// fakeBucket answers the configuration requests of one bucket as S3 does.
type fakeBucket struct {
	exists bool
	object bool
	set    map[string]string // sub-resource: XML
	refuse map[string]string // sub-resource: error code
	puts   []string
}

func (f *fakeBucket) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	fail := func(status int, code string) {
		w.WriteHeader(status)
		fmt.Fprintf(w, "<Error><Code>%s</Code><Message>%s</Message></Error>", code, code)
	}
	q := r.URL.Query()
	for sub, missing := range map[string]string{
		"publicAccessBlock": "NoSuchPublicAccessBlockConfiguration", "encryption": "ServerSideEncryptionConfigurationNotFoundError",
		"versioning": "", "lifecycle": "NoSuchLifecycleConfiguration",
	} {
		if !q.Has(sub) {
			continue
		}
		switch code := f.refuse[sub]; {
		case code == "AccessDenied":
			fail(http.StatusForbidden, code)
		case code != "":
			fail(http.StatusNotImplemented, code)
		case r.Method == http.MethodPut:
			body, _ := io.ReadAll(r.Body)
			if f.set == nil {
				f.set = map[string]string{}
			}
			f.set[sub] = string(body) // what is set reads as it was written
			f.puts = append(f.puts, sub)
		case f.set[sub] != "":
			fmt.Fprint(w, f.set[sub])
		case missing == "":
			fmt.Fprint(w, "<VersioningConfiguration/>")
		default:
			fail(http.StatusNotFound, missing)
		}
		return
	}
	switch {
	case r.Method == http.MethodPut:
		f.exists = true
		f.puts = append(f.puts, "bucket")
	case !f.exists:
		fail(http.StatusNotFound, "NoSuchBucket")
	case f.object && !q.Has("prefix"):
		fmt.Fprint(w, "<ListBucketResult><Contents><Key>x</Key><Size>1</Size></Contents></ListBucketResult>")
	default:
		fmt.Fprint(w, "<ListBucketResult/>")
	}
}

func (f *fakeBucket) store(t *testing.T) *Store {
	server := httptest.NewServer(f)
	t.Cleanup(server.Close)
	return New(Options{Config: configWith("k", "s"), Endpoint: server.URL, Bucket: "b", Site: "promo"})
}

const (
	blocked   = "<PublicAccessBlockConfiguration><BlockPublicAcls>true</BlockPublicAcls><IgnorePublicAcls>true</IgnorePublicAcls><BlockPublicPolicy>true</BlockPublicPolicy><RestrictPublicBuckets>%v</RestrictPublicBuckets></PublicAccessBlockConfiguration>"
	suspended = "<VersioningConfiguration><Status>Suspended</Status></VersioningConfiguration>"
	expires   = "<LifecycleConfiguration><Rule><Status>Enabled</Status><Expiration><Days>30</Days></Expiration></Rule></LifecycleConfiguration>"
)

func TestInitSetsWhatIsMissingInAFreshBucketOnly(t *testing.T) {
	all := []string{"publicAccessBlock", "encryption", "versioning", "lifecycle"}
	for _, x := range []struct {
		name   string
		bucket fakeBucket
		puts   []string
		want   string
	}{
		{
			"no bucket",
			fakeBucket{},
			append([]string{"bucket"}, all...),
			"bucket created, public access created, encryption created, versions created, expiry created",
		},
		{
			"an empty bucket",
			fakeBucket{exists: true, set: map[string]string{"publicAccessBlock": fmt.Sprintf(blocked, true)}},
			all[1:],
			"bucket ok, public access ok, encryption created, versions created, expiry created",
		},
		{
			"a bucket in use",
			fakeBucket{exists: true, object: true},
			nil,
			"bucket ok, public access differs, encryption differs, versions differs, expiry differs",
		},
		{
			"an empty bucket that somebody set up otherwise",
			fakeBucket{exists: true, set: map[string]string{
				"publicAccessBlock": fmt.Sprintf(blocked, false), "versioning": suspended, "lifecycle": expires,
			}},
			[]string{"encryption"},
			"bucket ok, public access differs, encryption created, versions differs, expiry differs",
		},
		{
			"a server without half of it, and half a policy",
			fakeBucket{refuse: map[string]string{
				"publicAccessBlock": "NotImplemented", "lifecycle": "NotImplemented", "versioning": "AccessDenied",
			}},
			[]string{"bucket", "encryption"},
			"bucket created, public access unsupported, encryption created, versions denied, expiry unsupported",
		},
	} {
		t.Run(x.name, func(t *testing.T) {
			steps, err := x.bucket.store(t).Init(t.Context(), "eu-central-1")
			if err != nil {
				t.Fatal(err)
			}
			if got := strings.Join(states(steps), ", "); got != x.want {
				t.Errorf("got  %s\nwant %s", got, x.want)
			}
			if !slices.Equal(x.bucket.puts, x.puts) {
				t.Errorf("wrote %v, want %v", x.bucket.puts, x.puts)
			}
		})
	}
}

// What Init sets is what it recommends: private, encrypted, with versions of which old ones expire.
func TestWhatInitSetsIsWhatItWantsToFind(t *testing.T) {
	var f fakeBucket
	s := f.store(t)
	if _, err := s.Init(t.Context(), "eu-central-1"); err != nil {
		t.Fatal(err)
	}
	wrote := len(f.puts)
	again, err := s.Init(t.Context(), "eu-central-1")
	if got := strings.Join(states(again), ", "); err != nil || got != "bucket ok, public access ok, encryption ok, versions ok, expiry ok" || len(f.puts) != wrote {
		t.Errorf("the second time: %s, %v, wrote %v", got, err, f.puts[wrote:])
	}
	for sub, wants := range map[string][]string{
		"publicAccessBlock": {
			"<BlockPublicAcls>true<", "<IgnorePublicAcls>true<", "<BlockPublicPolicy>true<", "<RestrictPublicBuckets>true<",
		},
		"encryption": {"<SSEAlgorithm>AES256<"}, "versioning": {"<Status>Enabled<"},
		"lifecycle": {"<NoncurrentDays>30<", "<DaysAfterInitiation>7<", "<Status>Enabled<"},
	} {
		for _, want := range wants {
			if !strings.Contains(f.set[sub], want) {
				t.Errorf("%s is set to %s, without %s", sub, f.set[sub], want)
			}
		}
	}
}

func TestDifferencesSayWhatIsThereAndWhatIsRecommended(t *testing.T) {
	f := fakeBucket{exists: true, object: true, set: map[string]string{"versioning": suspended, "lifecycle": expires}}
	steps, err := f.store(t).Init(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range map[int]string{
		1: "not set; recommended: blocked",
		3: "suspended; recommended: kept",
		4: "a rule expires current objects; recommended: old versions after 30 days, broken uploads after 7",
	} {
		if steps[i].Detail != want {
			t.Errorf("%s: %q, want %q", steps[i].What, steps[i].Detail, want)
		}
	}
}
