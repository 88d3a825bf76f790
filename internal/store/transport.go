package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
)

// transport counts requests and bytes, and gives up one in which nothing moves. It sits below the
// SDK's retries, so each try has its own limit.
type transport struct {
	next                     aws.HTTPClient
	limit                    time.Duration
	requests, sent, received atomic.Int64
}

// wallKey is where a context has the end that the wall clock sets.
type wallKey struct{}

// patienceKey is where a context has how long its requests may stand still.
type patienceKey struct{}

// impatient makes requests give up sooner than others do: of something small, no answer is a connection that died, and a new one helps.
func impatient(ctx context.Context, limit time.Duration) context.Context {
	return context.WithValue(ctx, patienceKey{}, limit)
}

// patience is how long a request may stand still.
func (t *transport) patience(ctx context.Context) time.Duration {
	if limit, ok := ctx.Value(patienceKey{}).(time.Duration); ok {
		return limit
	}
	return t.limit
}

// onTheWall makes requests end at a time of the wall clock too. A context's own deadline stands still while the machine sleeps.
func onTheWall(ctx context.Context, end time.Time) context.Context {
	return context.WithValue(ctx, wallKey{}, end.Round(0))
}

// Do sends one request. A failure for want of progress is a *stallError, which the SDK tries again.
func (t *transport) Do(req *http.Request) (*http.Response, error) {
	if end, bounded := req.Context().Value(wallKey{}).(time.Time); bounded && time.Now().Round(0).After(end) {
		return nil, context.DeadlineExceeded
	}
	t.requests.Add(1)
	ctx, cancel := context.WithCancelCause(req.Context())
	limit := t.patience(ctx)
	w := &watch{limit: limit, ctx: ctx, cancel: cancel}
	w.timer = time.AfterFunc(limit, func() { cancel(&stallError{limit}) })

	req = req.WithContext(ctx)
	if req.Body != nil && req.Body != http.NoBody {
		meter := sentOf(ctx)
		req.Body = &requestBody{
			ReadCloser: req.Body, watch: w, left: req.ContentLength, sent: &t.sent, meter: meter, try: meter.next(),
		}
	}
	resp, err := t.next.Do(req)
	if err != nil {
		w.end()
		return nil, w.explain(err)
	}
	w.timer.Stop()
	resp.Body = &responseBody{ReadCloser: resp.Body, watch: w, received: &t.received}
	return resp, nil
}

// watch cancels one request when its timer is not reset in time.
type watch struct {
	limit  time.Duration
	timer  *time.Timer
	ctx    context.Context
	cancel context.CancelCauseFunc
}

// end releases the request's resources; what stopped it stays known to explain.
func (w *watch) end() {
	w.timer.Stop()
	w.cancel(nil)
}

// explain replaces the "canceled" that a stall looks like by the stall.
func (w *watch) explain(err error) error {
	var stall *stallError
	if err != nil && err != io.EOF && errors.As(context.Cause(w.ctx), &stall) {
		return stall
	}
	return err
}

// requestBody is watched from the first to the last byte and then until the answer comes: the
// connection takes the next bytes only when it got rid of others.
//
// The SDK closes the body, which then says io.EOF, as soon as the answer's head is there. To net/http a
// body that ends early is a failed request, and it would close the connection while the answer is still
// being read, which is S3's reason for refusing the request before it saw all of it. So such a body ends
// when the answer was read. (A body that is complete must say io.EOF here too, and net/http must not
// find the SDK's WriteTo, which says it where that is an error: only Read and Close are passed on.)
type requestBody struct {
	io.ReadCloser
	watch *watch
	left  int64 // bytes that are still to come
	sent  *atomic.Int64
	meter *sent
	try   int
}

func (b *requestBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.sent.Add(int64(n))
	b.meter.add(b.try, int64(n))
	if b.left -= int64(n); b.left > 0 && n == 0 && err == io.EOF {
		<-b.watch.ctx.Done() // by the answer's Close, its stall, or the caller
		return 0, err
	}
	if b.watch.ctx.Err() == nil {
		b.watch.timer.Reset(b.watch.limit)
	}
	return n, err
}

// responseBody is watched only inside Read: a caller who is slow to take bytes is no stall.
type responseBody struct {
	io.ReadCloser
	watch    *watch
	received *atomic.Int64
}

func (b *responseBody) Read(p []byte) (int, error) {
	b.watch.timer.Reset(b.watch.limit)
	n, err := b.ReadCloser.Read(p)
	b.watch.timer.Stop()
	b.received.Add(int64(n))
	return n, b.watch.explain(err)
}

func (b *responseBody) Close() error {
	err := b.ReadCloser.Close()
	b.watch.end()
	return err
}

// stallError ends a request in which no byte moved. It is a timeout to the SDK, so it is retried.
type stallError struct{ limit time.Duration }

func (e *stallError) Error() string   { return fmt.Sprintf("no byte moved for %s", e.limit) }
func (e *stallError) Timeout() bool   { return true }
func (e *stallError) Temporary() bool { return true }

// provider marks every failure to get credentials, so that it can be told from what S3 answers.
type provider struct{ next aws.CredentialsProvider }

func (p provider) Retrieve(ctx context.Context) (aws.Credentials, error) {
	if p.next == nil {
		return aws.Credentials{}, &credentialsError{ErrNoCredentials}
	}
	creds, err := p.next.Retrieve(ctx)
	if err != nil && ctx.Err() == nil {
		err = &credentialsError{err}
	}
	return creds, err
}

// credentialsError is ErrNoCredentials with the cause's own text, which says what is missing.
type credentialsError struct{ cause error }

func (e *credentialsError) Error() string   { return e.cause.Error() }
func (e *credentialsError) Unwrap() []error { return []error{ErrNoCredentials, e.cause} }
