package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/aws/smithy-go"
	smithyhttp "github.com/aws/smithy-go/transport/http"
)

// What S3 can answer besides what was asked for. A context's own end stays what it is.
var (
	ErrNotFound      = errors.New("not found")
	ErrNotModified   = errors.New("not modified")
	ErrNoBucket      = errors.New("bucket does not exist")
	ErrRegion        = errors.New("bucket is in another region")
	ErrDenied        = errors.New("access denied")
	ErrNoCredentials = errors.New("no usable AWS credentials") // none found, or expired
	ErrUnavailable   = errors.New("S3 unavailable")            // network, 5xx, throttling, after all retries: a write may have happened
	ErrTooLarge      = errors.New("too large")
	ErrChanged       = errors.New("object has changed")   // it is not the one that was listed or read
	ErrExists        = errors.New("object exists")        // with other contents than those to be written
	ErrDamaged       = errors.New("contents are damaged") // sum or length do not agree with the listing, or with what was signed
	ErrYoung         = errors.New("object is too young to delete")
	ErrStale         = errors.New("what was listed is out of date")
)

// What only this package tells apart.
var (
	errBusy        = errors.New("another write is under way")
	errUnsupported = errors.New("not supported by the server")
)

var (
	conflictCodes = map[string]struct{}{"ConditionalRequestConflict": {}, "OperationAborted": {}}

	throttleCodes    = []string{"SlowDown", "RequestTimeout", "Throttling", "ThrottlingException", "RequestLimitExceeded", "TooManyRequests"}
	expiredCodes     = []string{"ExpiredToken", "TokenRefreshRequired", "InvalidToken"}
	regionCodes      = []string{"PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException"}
	unsupportedCodes = []string{"NotImplemented", "XNotImplemented", "MethodNotAllowed", "VersioningNotConfigured"}
)

// explain turns what the SDK returned into one of our errors; missing is which one a 404 is. The
// SDK's own text lists every layer that it went through; only the cause is kept.
func explain(ctx context.Context, err, missing error) error {
	var creds *credentialsError
	if errors.As(err, &creds) {
		return creds
	}
	var resp *smithyhttp.ResponseError
	var api smithy.APIError
	switch {
	case errors.As(err, &api):
		status := 0
		var header http.Header
		if errors.As(err, &resp) && resp.Response != nil {
			status, header = resp.HTTPStatusCode(), resp.Response.Header
		}
		return answer(status, header, api, missing)
	case errors.As(err, &resp) && resp.HTTPStatusCode() >= 300:
		return answer(resp.HTTPStatusCode(), resp.Response.Header, nil, missing)
	case ctx.Err() != nil:
		return ctx.Err()
	case connection(err):
		return fmt.Errorf("%w: %s", ErrUnavailable, reason(err))
	}
	return errors.New(err.Error())
}

// answer explains a response that is not the wished one. api is nil when it had no XML of S3's.
func answer(status int, header http.Header, api smithy.APIError, missing error) error {
	code, text := "", http.StatusText(status)
	if api != nil {
		code, text = api.ErrorCode(), detail(api)
	}
	is := func(codes []string) bool { return slices.Contains(codes, code) }
	_, conflict := conflictCodes[code]
	switch {
	case status == http.StatusNotModified:
		return ErrNotModified
	case code == "NoSuchBucket":
		return ErrNoBucket
	case status == http.StatusNotFound:
		return missing
	case status == http.StatusPreconditionFailed:
		return ErrChanged
	case status == http.StatusRequestedRangeNotSatisfiable:
		return with(ErrDamaged, "it ends before the range that was asked for")
	case conflict:
		return errBusy
	case is(expiredCodes):
		return with(ErrNoCredentials, text)
	case status == http.StatusMovedPermanently || is(regionCodes):
		if region := header.Get("X-Amz-Bucket-Region"); region != "" {
			text = region
		}
		return with(ErrRegion, text)
	case status == http.StatusForbidden || status == http.StatusUnauthorized || strings.HasPrefix(code, "KMS."):
		return with(ErrDenied, text)
	case status == http.StatusNotImplemented || is(unsupportedCodes):
		return errUnsupported
	case status == http.StatusTooManyRequests || status >= 500 || is(throttleCodes):
		return with(ErrUnavailable, text)
	case text == "":
		return fmt.Errorf("unexpected answer %d", status)
	}
	return errors.New(text)
}

// detail is S3's code and message where they say more than our own words.
func detail(api smithy.APIError) string {
	code, message := api.ErrorCode(), strings.TrimSuffix(api.ErrorMessage(), ".")
	switch {
	case code == "AccessDenied" && (message == "" || strings.EqualFold(message, "access denied")), code == "Forbidden":
		return ""
	case message == "" || message == code:
		return code
	}
	return code + ": " + message
}

func with(which error, text string) error {
	if text == "" {
		return which
	}
	return fmt.Errorf("%w: %s", which, text)
}

// connection says whether err came from the way to the server and not from our own request.
func connection(err error) bool {
	var send *smithyhttp.RequestSendError
	var parse *smithy.DeserializationError
	var network net.Error
	return errors.As(err, &send) || errors.As(err, &parse) || errors.As(err, &network) ||
		errors.Is(err, io.ErrUnexpectedEOF)
}

// reason is the innermost text that a person can use: without method and URL.
func reason(err error) string {
	var stall *stallError
	var u *url.Error
	var op *net.OpError
	switch {
	case errors.As(err, &stall):
		return stall.Error()
	case errors.As(err, &u):
		return u.Err.Error()
	case errors.As(err, &op):
		return op.Error()
	}
	return err.Error()
}

// maybeMissing adds what S3 does not say: without the right to list, a missing object is denied too.
func maybeMissing(err error) error {
	if errors.Is(err, ErrDenied) {
		return fmt.Errorf("%w (or it does not exist: without s3:ListBucket the answer is the same)", err)
	}
	return err
}
