package table

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"

	login "s3pulldeploy/internal/account"
	"s3pulldeploy/internal/fleet"
)

// server is a DynamoDB that answers each request as the test says.
type server struct {
	*Dynamo
	requests atomic.Int64
}

// serve starts one; answer gets the number of the request, from 1.
func serve(t *testing.T, answer func(n int64, w http.ResponseWriter, r *http.Request)) *server {
	t.Helper()
	s := &server{}
	h := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body) // only then the server notices that a client has gone
		answer(s.requests.Add(1), w, r)
	}))
	t.Cleanup(h.Close)
	s.Dynamo = NewDynamo(Options{Config: cloud(t), Endpoint: h.URL, Name: "table", Timeout: 30 * time.Second})
	return s
}

// cloud is a configuration that package account made: its HTTP client matters, and it asks for more
// retries than a table may use. It has nothing of the machine's own settings.
func cloud(t *testing.T) aws.Config {
	t.Helper()
	t.Setenv("AWS_CONFIG_FILE", os.DevNull)
	t.Setenv("AWS_SHARED_CREDENTIALS_FILE", os.DevNull)
	t.Setenv("AWS_PROFILE", "")
	cfg, err := login.Load(t.Context(), login.Options{Region: "us-east-1", OwnEndpoints: true})
	if err != nil {
		t.Fatal(err)
	}
	cfg.Credentials = credentials.NewStaticCredentialsProvider("id", "secret", "")
	return cfg
}

func fail(w http.ResponseWriter, status int, code string) {
	w.Header().Set("Content-Type", "application/x-amz-json-1.0")
	w.WriteHeader(status)
	fmt.Fprintf(w, `{"__type":"com.amazonaws.dynamodb.v20120810#%s","message":"because"}`, code)
}

func succeed(w http.ResponseWriter) {
	w.Header().Set("Content-Type", "application/x-amz-json-1.0")
	fmt.Fprint(w, `{"Item":{"n":{"N":"1"}},"Attributes":{"n":{"N":"1"}}}`)
}

// operations are the requests of a table; each must fail alike.
func operations(ctx context.Context, d *Dynamo) map[string]error {
	_, read := d.Get(ctx, key, true)
	_, queried := d.Query(ctx, "scope", "", true)
	_, written := d.Write(ctx, key, fleet.Write{Set: fleet.Item{"n": int64(1)}})
	return map[string]error{
		"read scope/head: get item":      read,
		"read items scope/*: query":      queried,
		"write scope/head: update item":  written,
		"delete scope/head: delete item": d.Delete(ctx, key, nil),
	}
}

func TestAnswersBecomeTheFleetsErrors(t *testing.T) {
	for _, c := range []struct {
		status int
		code   string
		want   error
	}{
		{400, "ProvisionedThroughputExceededException", fleet.ErrThrottled},
		{400, "ThrottlingException", fleet.ErrThrottled},
		{400, "RequestLimitExceeded", fleet.ErrThrottled},
		{400, "TransactionConflictException", fleet.ErrThrottled},
		{500, "InternalServerError", fleet.ErrUnavailable},
		{503, "ServiceUnavailable", fleet.ErrUnavailable},
		{400, "AccessDeniedException", fleet.ErrDenied},
		{400, "UnrecognizedClientException", fleet.ErrDenied},
		{400, "ExpiredTokenException", fleet.ErrDenied},
		{400, "InvalidSignatureException", fleet.ErrDenied},
		{400, "ResourceNotFoundException", fleet.ErrNoTable},
	} {
		s := serve(t, func(_ int64, w http.ResponseWriter, _ *http.Request) { fail(w, c.status, c.code) })
		for op, err := range operations(t.Context(), s.Dynamo) {
			want := op + ": " + c.want.Error() + ": " + c.code + ": because"
			if !errors.Is(err, c.want) || err.Error() != want {
				t.Errorf("got  %v\nwant %v", err, want)
			}
		}
	}
}

func TestAnAnswerThatIsNotDynamoDBsLeavesEverythingOpen(t *testing.T) {
	for _, status := range []int{200, 403, 407, 502} {
		s := serve(t, func(_ int64, w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(status)
			fmt.Fprint(w, "<html>log in to the network</html>")
		})
		for op, err := range operations(t.Context(), s.Dynamo) {
			if !errors.Is(err, fleet.ErrUnavailable) {
				t.Errorf("status %d, %s: got error %v, want %v", status, op, err, fleet.ErrUnavailable)
			}
		}
	}
}

func TestAnAddressWhereNobodyListensIsUnavailable(t *testing.T) {
	const address = "127.0.0.1:1"
	d := NewDynamo(Options{Config: cloud(t), Endpoint: "http://" + address, Name: "table", Timeout: 30 * time.Second})
	for op, err := range operations(t.Context(), d) {
		want := fmt.Sprintf("%s: %v: dial tcp %v: connect: connection refused", op, fleet.ErrUnavailable, address)
		if !errors.Is(err, fleet.ErrUnavailable) || err.Error() != want {
			t.Errorf("got  %v\nwant %v", err, want)
		}
	}
}

// hang holds a request until its client has gone.
func hang(_ int64, _ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }

func TestARequestEndsByItselfAndThatIsNotTheCallersEnd(t *testing.T) {
	s := serve(t, hang)
	s.timeout = 20 * time.Millisecond
	for op, err := range operations(t.Context(), s.Dynamo) {
		if !errors.Is(err, fleet.ErrUnavailable) || isContext(err) {
			t.Errorf("%s: got error %v, want unavailable and no context's", op, err)
		}
	}
	if NewDynamo(Options{Config: cloud(t)}).timeout != 2*time.Second {
		t.Error("the limit is 2 s")
	}
	if NewDynamo(Options{Config: cloud(t), Timeout: time.Minute}).timeout != time.Minute {
		t.Error("the limit is not the one that was asked for")
	}
}

func TestTheCallersEndIsTheErrorAndTheOutcomeUnknown(t *testing.T) {
	arrived := make(chan struct{})
	s := serve(t, func(n int64, w http.ResponseWriter, r *http.Request) {
		arrived <- struct{}{}
		hang(n, w, r)
	})
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-arrived
		cancel()
	}()
	_, err := s.Write(ctx, key, fleet.Write{Set: fleet.Item{"n": int64(1)}})
	if !errors.Is(err, context.Canceled) || !errors.Is(err, fleet.ErrUnavailable) {
		t.Errorf("canceled: got error %v", err)
	}
	ctx, cancel = context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	go func() { <-arrived }()
	_, err = s.Write(ctx, key, fleet.Write{Set: fleet.Item{"n": int64(1)}})
	if !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, fleet.ErrUnavailable) {
		t.Errorf("deadline: got error %v", err)
	}
}

func TestOnlyWhatCertainlyDidNothingIsWrittenTwice(t *testing.T) {
	for _, c := range []struct {
		name                  string
		status                int
		code                  string
		readTwice, writeTwice bool
	}{
		{"throttled", 400, "ThrottlingException", true, true},
		{"internal error", 500, "InternalServerError", true, false},
		{"denied", 400, "AccessDeniedException", false, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			first := func(n int64, w http.ResponseWriter, _ *http.Request) {
				if n == 1 {
					fail(w, c.status, c.code)
					return
				}
				succeed(w)
			}
			reads := serve(t, first)
			_, err := reads.Get(t.Context(), key, true)
			wantAttempts(t, "read", reads, err, c.readTwice)
			writes := serve(t, first)
			_, err = writes.Write(t.Context(), key, fleet.Write{Set: fleet.Item{"n": int64(1)}})
			wantAttempts(t, "write", writes, err, c.writeTwice)
			deletes := serve(t, first)
			wantAttempts(t, "delete", deletes, deletes.Delete(t.Context(), key, nil), c.writeTwice)
		})
	}
}

func wantAttempts(t *testing.T, op string, s *server, err error, twice bool) {
	t.Helper()
	want := int64(1)
	if twice {
		want = 2
	}
	if got := s.requests.Load(); got != want || (err == nil) != twice {
		t.Errorf("%s: %d requests, error %v; want %d requests", op, got, err, want)
	}
}

func TestNoRequestIsSentMoreThanTwice(t *testing.T) {
	s := serve(t, func(_ int64, w http.ResponseWriter, _ *http.Request) { fail(w, 400, "ThrottlingException") })
	if _, err := s.Get(t.Context(), key, true); !errors.Is(err, fleet.ErrThrottled) {
		t.Error(err)
	}
	if n := s.requests.Load(); n != attempts {
		t.Errorf("%d requests, want %d", n, attempts)
	}
	if c := s.Counts(); c.Reads != 1 || c.Writes != 0 {
		t.Errorf("counted %+v, want one read", c)
	}
}

func TestAWriteSignedWithAWrongClockIsRepeatedWithTheServers(t *testing.T) {
	s := serve(t, func(n int64, w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Date", time.Now().Add(-time.Hour).UTC().Format(http.TimeFormat))
		if n == 1 {
			fail(w, 400, "InvalidSignatureException")
			return
		}
		succeed(w)
	})
	if _, err := s.Write(t.Context(), key, fleet.Write{Set: fleet.Item{"n": int64(1)}}); err != nil {
		t.Error(err)
	}
	if n := s.requests.Load(); n != 2 {
		t.Errorf("%d requests, want 2", n)
	}
}

// noAccount is a provider that has none, and says so in a way that callers look for.
type noAccount struct{ err error }

func (n noAccount) Retrieve(context.Context) (aws.Credentials, error) {
	return aws.Credentials{}, n.err
}

func TestWithoutCredentialsNothingIsSentAndTheCauseIsKept(t *testing.T) {
	advice := errors.New("log in again")
	s := serve(t, func(_ int64, w http.ResponseWriter, _ *http.Request) { succeed(w) })
	for name, provider := range map[string]aws.CredentialsProvider{"none": nil, "failing": noAccount{advice}} {
		cfg := cloud(t)
		cfg.Credentials = provider
		d := NewDynamo(Options{Config: cfg, Endpoint: *s.client.Options().BaseEndpoint, Name: "table"})
		for op, err := range operations(t.Context(), d) {
			if !errors.Is(err, fleet.ErrNoAccount) || errors.Is(err, fleet.ErrUnavailable) {
				t.Errorf("%s, %s: got error %v, want %v", name, op, err, fleet.ErrNoAccount)
			}
			if provider != nil && !errors.Is(err, advice) {
				t.Errorf("%s: %v has lost its cause", op, err)
			}
		}
	}
	if n := s.requests.Load(); n != 0 {
		t.Errorf("%d requests were sent", n)
	}
}

func TestCredentialsThatAreTooSlowAreNotMissing(t *testing.T) {
	cfg := cloud(t)
	cfg.Credentials = noAccount{fmt.Errorf("ask the instance: %w", context.DeadlineExceeded)}
	d := NewDynamo(Options{Config: cfg, Endpoint: "http://127.0.0.1:1", Name: "table"})
	_, err := d.Get(t.Context(), key, true)
	if !errors.Is(err, fleet.ErrUnavailable) || errors.Is(err, fleet.ErrNoAccount) {
		t.Errorf("got error %v, want %v", err, fleet.ErrUnavailable)
	}
}

func TestDateIsTheServersAndGoesOn(t *testing.T) {
	s := serve(t, func(_ int64, w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Date", time.Now().Add(-time.Hour).UTC().Format(http.TimeFormat))
		succeed(w)
	})
	if d := s.Date(); !d.IsZero() {
		t.Errorf("before the first answer: %v", d)
	}
	if _, err := s.Get(t.Context(), key, false); err != nil {
		t.Fatal(err)
	}
	first := s.Date()
	if behind := time.Since(first); behind < time.Hour-time.Minute || behind > time.Hour+time.Minute {
		t.Errorf("the server's clock is %v behind, want an hour", behind)
	}
	if second := s.Date(); !second.After(first) {
		t.Errorf("the date stood still: %v, %v", first, second)
	}
}

func TestAQueryIsCompleteOrAnError(t *testing.T) {
	s := serve(t, func(n int64, w http.ResponseWriter, _ *http.Request) {
		switch n {
		case 1, 2: // the second page is empty and not the last
			items := map[int64]string{1: `{"sk":{"S":"a"}}`}[n]
			fmt.Fprintf(w, `{"Items":[%s],"LastEvaluatedKey":{"pk":{"S":"p"},"sk":{"S":"a"}}}`, items)
		default:
			fail(w, 400, "AccessDeniedException")
		}
	})
	items, err := s.Query(t.Context(), "p", "", true)
	if items != nil || !errors.Is(err, fleet.ErrDenied) || s.requests.Load() != 3 {
		t.Errorf("got %v, %v after %d requests", items, err, s.requests.Load())
	}
}

func TestExistsTellsATableThatComesFromOneThatGoes(t *testing.T) {
	for status, want := range map[string]error{"CREATING": fleet.ErrUnavailable, "DELETING": fleet.ErrNoTable} {
		s := serve(t, func(_ int64, w http.ResponseWriter, _ *http.Request) {
			fmt.Fprintf(w, `{"Table":{"TableStatus":%q}}`, status)
		})
		if err := s.Exists(t.Context()); !errors.Is(err, want) || !strings.HasPrefix(err.Error(), `check table "table": `) {
			t.Errorf("%s: got error %v, want %v", status, err, want)
		}
	}
}
