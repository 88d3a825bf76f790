package table

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	"github.com/aws/smithy-go"
	smithyhttp "github.com/aws/smithy-go/transport/http"

	"s3pulldeploy/internal/fleet"
)

// denied are the answers that say who may not, or that the signature was not believed.
var denied = map[string]bool{
	"AccessDeniedException":               true,
	"AccessDenied":                        true,
	"UnrecognizedClientException":         true,
	"ExpiredTokenException":               true,
	"ExpiredToken":                        true,
	"InvalidSignatureException":           true,
	"SignatureDoesNotMatch":               true,
	"IncompleteSignatureException":        true,
	"IncompleteSignature":                 true,
	"InvalidClientTokenId":                true,
	"MissingAuthenticationTokenException": true,
	"MissingAuthenticationToken":          true,
	"RequestExpired":                      true,
	"RequestTimeTooSkewed":                true,
	"OptInRequired":                       true,
	"NotAuthorizedException":              true,
}

// explain translates what a request ended with into fleet's errors. The SDK's types stop here; its text
// is cut to what the service or the network said. Caller is the context that the request was made for.
//
// An error that is none of fleet's is an answer that says the request itself was wrong.
func explain(caller context.Context, err error) error {
	var account *accountError
	var api smithy.APIError
	switch {
	case errors.As(err, &account) && !isContext(err):
		return fmt.Errorf("%w: %w", fleet.ErrNoAccount, account.cause) // whole: it may carry advice
	case account == nil && errors.As(err, &api):
		return answer(api, status(err))
	case caller.Err() != nil:
		return ended(caller)
	case isContext(err):
		// The request's own limit. Not wrapped: callers must not take it for their context's end.
		return fmt.Errorf("%w: no answer in time", fleet.ErrUnavailable)
	}
	return fmt.Errorf("%w: %s", fleet.ErrUnavailable, cause(err))
}

// answer translates an error that the service sent; code is the HTTP status, 0 when it is not known.
func answer(api smithy.APIError, code int) error {
	name := api.ErrorCode()
	said := fmt.Errorf("%s: %s", name, api.ErrorMessage())
	_, throttled := retry.DefaultThrottleErrorCodes[name]
	switch {
	case throttled || name == "TransactionConflictException":
		return fmt.Errorf("%w: %w", fleet.ErrThrottled, said)
	case denied[name]:
		return fmt.Errorf("%w: %w", fleet.ErrDenied, said)
	case name == "ResourceNotFoundException" || name == "TableNotFoundException":
		return fmt.Errorf("%w: %w", fleet.ErrNoTable, said)
	case name == "UnknownError": // no DynamoDB answers so: something between
		return fmt.Errorf("%w: an answer with status %d that is not DynamoDB's", fleet.ErrUnavailable, code)
	case code >= 500, code == http.StatusRequestTimeout:
		return fmt.Errorf("%w: %w", fleet.ErrUnavailable, said)
	}
	return said
}

func status(err error) int {
	var response *smithyhttp.ResponseError
	if errors.As(err, &response) {
		return response.HTTPStatusCode()
	}
	return 0
}

// cause is the innermost text that helps a person.
func cause(err error) string {
	var sent *url.Error
	if errors.As(err, &sent) {
		return sent.Err.Error()
	}
	var op *smithy.OperationError
	if errors.As(err, &op) {
		return op.Err.Error()
	}
	return err.Error()
}

func isContext(err error) bool {
	return errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)
}

// unknownOperation says that the server is not Amazon's and lacks what was asked.
func unknownOperation(err error) bool {
	var api smithy.APIError
	return errors.As(err, &api) && api.ErrorCode() == "UnknownOperationException"
}

// accountError marks an error that came from looking for credentials, not from DynamoDB.
type accountError struct{ cause error }

func (e *accountError) Error() string { return e.cause.Error() }
func (e *accountError) Unwrap() error { return e.cause }

// account marks the errors of the provider that it wraps.
type account struct{ aws.CredentialsProvider }

func (a account) Retrieve(ctx context.Context) (aws.Credentials, error) {
	if a.CredentialsProvider == nil {
		return aws.Credentials{}, &accountError{errors.New("the configuration has none")}
	}
	c, err := a.CredentialsProvider.Retrieve(ctx)
	if err != nil {
		return aws.Credentials{}, &accountError{err}
	}
	return c, nil
}
