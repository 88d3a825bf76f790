package account

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/credentials/ssocreds"
	"github.com/aws/smithy-go"
)

// What can be wrong with an account's settings; every one has advice, see Hint.
var (
	ErrNoCredentials = errors.New("no usable AWS credentials")
	ErrExpired       = errors.New("AWS session has expired")
	ErrNoProfile     = errors.New("AWS profile does not exist")
	ErrNoRegion      = errors.New("no AWS region")
	ErrMFA           = errors.New("multi-factor code needed") // nobody to ask, or a wrong code
)

// Error is a failure to get at an AWS account.
type Error struct {
	Which  error  // one of this package's sentinels
	Advice string // what a person can do, one line
	Cause  error  // what the SDK said; may be nil
}

func (e *Error) Error() string {
	if e.Cause == nil {
		return e.Which.Error()
	}
	return e.Which.Error() + ": " + e.Cause.Error()
}

// Unwrap returns the sentinel and the cause.
func (e *Error) Unwrap() []error {
	if e.Cause == nil {
		return []error{e.Which}
	}
	return []error{e.Which, e.Cause}
}

const (
	adviceNone = "set AWS_PROFILE or -profile (`aws configure sso` makes a profile), " +
		"or give the instance a role"
	adviceRegion     = "set `region` in the config file, AWS_REGION, or a region in the AWS profile"
	adviceProfile    = "`aws configure list-profiles` shows the profiles there are"
	adviceNoTerminal = "run it in a terminal, or export temporary credentials first"
	adviceWrongCode  = "a code works once: wait for the next one, and check the device's clock"
	adviceToken      = "the session token in the environment or profile ran out: get a new one"
)

// explain finds out which of our errors an SDK error is. The cause's text is cut to what helps: the
// SDK's own names each layer that it went through.
func explain(profile string, err error) error {
	var ours *Error
	if errors.As(err, &ours) {
		return ours
	}
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	var missing config.SharedConfigProfileNotExistError
	if errors.As(err, &missing) {
		return &Error{Which: ErrNoProfile, Advice: adviceProfile, Cause: fmt.Errorf("%q", missing.Profile)}
	}
	var file config.SharedConfigLoadError
	if errors.As(err, &file) {
		return err // names the file and the place in it
	}
	service, code, message := operation(err)
	switch {
	case service == "ec2imds":
		// The end of the chain: nothing else had any. Its text is about the metadata address only.
		return &Error{
			Which: ErrNoCredentials, Advice: adviceNone,
			Cause: errors.New("none in the environment, a profile or an instance role"),
		}
	case loginExpired(err, service, code):
		return &Error{Which: ErrExpired, Advice: loginAdvice(profile, err, service)}
	case code == "ExpiredToken" || code == "ExpiredTokenException" || code == "RequestExpired":
		return &Error{Which: ErrExpired, Advice: adviceToken}
	case strings.Contains(message, "MultiFactorAuthentication"):
		return &Error{Which: ErrMFA, Advice: adviceWrongCode, Cause: errors.New(message)}
	case code != "":
		return &Error{Which: ErrNoCredentials, Advice: adviceNone, Cause: fmt.Errorf("%s: %s", code, message)}
	}
	return &Error{Which: ErrNoCredentials, Advice: adviceNone, Cause: err}
}

// operation returns the innermost service that was asked, and what its API answered, if it did.
func operation(err error) (service, code, message string) {
	for rest := err; ; {
		var op *smithy.OperationError
		if !errors.As(rest, &op) {
			break
		}
		service, rest = op.Service(), op.Err
	}
	var api smithy.APIError
	if errors.As(err, &api) {
		code, message = api.ErrorCode(), api.ErrorMessage()
	}
	return service, code, message
}

// loginExpired says whether a browser login (`aws sso login`, `aws login`) is what is missing. The
// SDK types only one of the ways; the others are known by their text.
func loginExpired(err error, service, code string) bool {
	var invalid *ssocreds.InvalidTokenError
	if errors.As(err, &invalid) {
		return true
	}
	switch service {
	case "SSO", "SSO OIDC", "Signin":
		switch code {
		case "UnauthorizedException", "InvalidGrantException", "ExpiredTokenException", "AccessDeniedException":
			return true
		}
	}
	return mentions(err, "SSO token", "please reauthenticate")
}

func loginAdvice(profile string, err error, service string) string {
	command := "aws sso login"
	if service == "Signin" || mentions(err, "login token") {
		command = "aws login"
	}
	if profile != "" {
		command += " --profile=" + profile
	}
	return "log in again: `" + command + "`"
}

func mentions(err error, texts ...string) bool {
	for _, t := range texts {
		if strings.Contains(err.Error(), t) {
			return true
		}
	}
	return false
}
