// Package account finds AWS credentials and a region for both commands, and says who they belong to.
//
// The order is the SDK's own: environment, shared config and profile, SSO, a role assumed from a
// profile (with a multi-factor code where the profile names a device), and on an instance the role
// that the metadata service (IMDSv2) hands out. An explicit region or profile goes before it.
//
// [Load] reads files and the environment only, except that a machine without any region asks the
// metadata service for one, at most two seconds. Credentials are fetched by the first request that
// needs them and renewed before they run out, so an agent starts while AWS is unreachable. [Check]
// fetches them now, which is what a command in front of a person wants.
//
// Whatever goes wrong is an [*Error]: it carries a sentinel for "which" and the advice that [Hint]
// returns, also when it comes out of a request that another package made with the configuration.
package account

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/credentials/stscreds"
	"github.com/aws/aws-sdk-go-v2/service/sts"
	"github.com/aws/smithy-go/logging"
)

// Bounds of one request. Transfers have no total limit; the callers watch that bytes move.
const (
	connectTimeout = 3 * time.Second
	tlsTimeout     = 5 * time.Second
	headerTimeout  = 30 * time.Second // from the request's last byte to the answer's first
	attempts       = 4                // the first one included
	idlePerHost    = 128              // connections kept: many small objects are moved in parallel
	sessionTime    = time.Hour        // of an assumed role: the longest that every role allows
	ownRegion      = "us-east-1"      // what S3-compatible servers and DynamoDB Local expect by default
)

// Bounds of the two questions that may be in vain. Variables for tests.
var (
	identityTimeout = 3 * time.Second
	regionTimeout   = 2 * time.Second
)

// Options says whose credentials to use. The zero value is the SDK's own chain.
type Options struct {
	Region  string // empty: environment, profile, instance
	Profile string // empty: AWS_PROFILE, else "default"

	// OwnEndpoints says that the caller talks to servers of its own instead of AWS: a missing
	// region is then "us-east-1" and no error.
	OwnEndpoints bool
	// IMDS is the metadata service's address; empty: the instance's own.
	IMDS string
	// Prompt asks a person for a multi-factor code. It gets Load's context. Nil: a profile that
	// needs a code fails with ErrMFA.
	Prompt func(context.Context) (string, error)
}

// Load returns the configuration for the service clients. It fails with ErrNoProfile, ErrNoRegion,
// or the file and line of a shared config that does not parse.
//
// Credentials of the returned configuration fail with an *Error of this package.
func Load(ctx context.Context, o Options) (aws.Config, error) {
	profile := o.profile()
	cfg, err := config.LoadDefaultConfig(ctx, o.load(ctx)...)
	if err != nil {
		return aws.Config{}, fmt.Errorf("load AWS config: %w", explain(profile, err))
	}
	if cfg.Region == "" {
		cfg.Region = o.fallbackRegion(ctx)
	}
	if cfg.Region == "" {
		return aws.Config{}, fmt.Errorf("load AWS config: %w", &Error{Which: ErrNoRegion, Advice: adviceRegion})
	}
	cfg.HTTPClient = reader{cfg.HTTPClient}
	cfg.Credentials = &provider{CredentialsProvider: cfg.Credentials, profile: profile}
	return cfg, nil
}

// profile is the profile in effect, for advice; empty means the default one.
func (o Options) profile() string {
	if o.Profile != "" {
		return o.Profile
	}
	return os.Getenv("AWS_PROFILE")
}

// load translates the options into the SDK's.
func (o Options) load(ctx context.Context) []func(*config.LoadOptions) error {
	fns := []func(*config.LoadOptions) error{
		config.WithHTTPClient(httpClient()),
		config.WithLogger(logging.Nop{}), // its default writes to stderr, in the middle of a progress bar
		config.WithRetryMode(aws.RetryModeStandard),
		config.WithRetryMaxAttempts(attempts),
		config.WithAssumeRoleCredentialOptions(func(r *stscreds.AssumeRoleOptions) {
			if r.Duration == 0 {
				r.Duration = sessionTime // the SDK's 15 minutes would ask for a second code during a long push
			}
			r.TokenProvider = func() (string, error) { return o.code(ctx) }
		}),
	}
	// Only what is set: an empty option would hide what the chain knows.
	if o.Region != "" {
		fns = append(fns, config.WithRegion(o.Region))
	}
	if o.Profile != "" {
		fns = append(fns, config.WithSharedConfigProfile(o.Profile))
	}
	if o.IMDS != "" {
		fns = append(fns, config.WithEC2IMDSEndpoint(o.IMDS))
	}
	return fns
}

// code asks the person for a multi-factor code.
func (o Options) code(ctx context.Context) (string, error) {
	if o.Prompt == nil {
		return "", &Error{Which: ErrMFA, Advice: adviceNoTerminal}
	}
	code, err := o.Prompt(ctx)
	if err != nil {
		return "", fmt.Errorf("ask for the multi-factor code: %w", err)
	}
	return strings.TrimSpace(code), nil
}

// fallbackRegion is the region when neither options, environment nor profile name one; empty when
// there is none. Only here the metadata service is asked: elsewhere than on EC2 that costs seconds.
func (o Options) fallbackRegion(ctx context.Context) string {
	if o.OwnEndpoints {
		return ownRegion
	}
	ctx, cancel := context.WithTimeout(ctx, regionTimeout)
	defer cancel()
	cfg, err := config.LoadDefaultConfig(ctx, append(o.load(ctx), config.WithEC2IMDSRegion())...)
	if err != nil {
		return ""
	}
	return cfg.Region
}

func httpClient() *awshttp.BuildableClient {
	return awshttp.NewBuildableClient().
		WithDialerOptions(func(d *net.Dialer) { d.Timeout = connectTimeout }).
		WithTransportOptions(func(t *http.Transport) {
			t.TLSHandshakeTimeout = tlsTimeout
			t.ResponseHeaderTimeout = headerTimeout
			t.MaxIdleConnsPerHost = idlePerHost
			t.MaxIdleConns = 2 * idlePerHost
		})
}

// reader sends requests whose bodies are only read, never asked to write themselves. The SDK closes a body
// when the answer's head is there; net/http may look once more whether the body has ended, and the SDK's
// WriteTo then says io.EOF, which counts as a failed request: the connection is closed while the answer is
// still being read. Read says io.EOF too, and there it is right. On a busy machine this was seen with
// DynamoDB as "use of closed network connection".
type reader struct{ aws.HTTPClient }

func (c reader) Do(r *http.Request) (*http.Response, error) {
	if r.Body != nil && r.Body != http.NoBody {
		r.Body = struct{ io.ReadCloser }{r.Body}
	}
	return c.HTTPClient.Do(r)
}

// provider makes every failure to get credentials an *Error, wherever the request came from.
type provider struct {
	aws.CredentialsProvider
	profile string
}

func (p *provider) Retrieve(ctx context.Context) (aws.Credentials, error) {
	creds, err := p.CredentialsProvider.Retrieve(ctx)
	if err != nil {
		return aws.Credentials{}, explain(p.profile, err)
	}
	return creds, nil
}

// Check fetches the credentials, asking for a multi-factor code where the profile needs one. It
// fails with ErrNoCredentials, ErrExpired or ErrMFA.
func Check(ctx context.Context, cfg aws.Config) error {
	if cfg.Credentials == nil {
		return &Error{Which: ErrNoCredentials, Advice: adviceNone}
	}
	if _, err := cfg.Credentials.Retrieve(ctx); err != nil {
		return fmt.Errorf("get credentials: %w", err)
	}
	return nil
}

// Identity returns the account number and the short name of who the credentials belong to, such as
// "123456789012 (assumed-role/Deploy/maria)". It fails as Check does; the question to AWS itself
// takes at most 3 seconds, so that a network without STS holds nobody up.
func Identity(ctx context.Context, cfg aws.Config) (string, error) {
	if err := Check(ctx, cfg); err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(ctx, identityTimeout)
	defer cancel()
	out, err := sts.NewFromConfig(cfg).GetCallerIdentity(ctx, &sts.GetCallerIdentityInput{})
	if err != nil {
		profile := ""
		if p, ok := cfg.Credentials.(*provider); ok {
			profile = p.profile
		}
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		return "", fmt.Errorf("ask AWS who we are: %w", explain(profile, err))
	}
	return identity(aws.ToString(out.Account), aws.ToString(out.Arn)), nil
}

// identity shortens an ARN to its last field: arn:aws:iam::123456789012:user/maria.
func identity(account, arn string) string {
	if arn == "" {
		return account
	}
	return fmt.Sprintf("%s (%s)", account, arn[strings.LastIndexByte(arn, ':')+1:])
}

// Hint returns the advice for a person who meets err, one line without a full stop, or "" when
// this package has none.
func Hint(err error) string {
	var e *Error
	if errors.As(err, &e) {
		return e.Advice
	}
	return ""
}
