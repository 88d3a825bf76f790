package account

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const (
	answerIdentity = `<GetCallerIdentityResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><GetCallerIdentityResult>
<Arn>arn:aws:iam::123456789012:user/maria</Arn><UserId>AIDA</UserId><Account>123456789012</Account>
</GetCallerIdentityResult></GetCallerIdentityResponse>`
	answerRole = `<AssumeRoleResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><AssumeRoleResult>
<Credentials><AccessKeyId>ASIAROLE</AccessKeyId><SecretAccessKey>s</SecretAccessKey><SessionToken>t</SessionToken>
<Expiration>%s</Expiration></Credentials></AssumeRoleResult></AssumeRoleResponse>`
	answerError = `<ErrorResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><Error><Type>Sender</Type>
<Code>%s</Code><Message>%s</Message></Error></ErrorResponse>`
)

// usual is what a question to STS may take, but for the tests, whose servers may stall.
var usual = identityTimeout

func TestMain(m *testing.M) {
	identityTimeout, regionTimeout = 30*time.Second, 30*time.Second
	os.Exit(m.Run())
}

// machine is a computer without any AWS settings but the given shared config.
func machine(t *testing.T, sharedConfig string) {
	t.Helper()
	for _, kv := range os.Environ() {
		if name, _, _ := strings.Cut(kv, "="); strings.HasPrefix(name, "AWS_") {
			t.Setenv(name, "") // for the restore at the end
			os.Unsetenv(name)
		}
	}
	home := t.TempDir()
	t.Setenv("HOME", home)
	t.Setenv("AWS_EC2_METADATA_DISABLED", "true")
	file := filepath.Join(home, ".aws", "config")
	t.Setenv("AWS_CONFIG_FILE", file)
	t.Setenv("AWS_SHARED_CREDENTIALS_FILE", filepath.Join(home, ".aws", "credentials"))
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(sharedConfig), 0o600); err != nil {
		t.Fatal(err)
	}
}

// serve starts a server of AWS's and makes the SDK use it through the environment variable.
func serve(t *testing.T, variable string, h http.HandlerFunc) {
	t.Helper()
	server := httptest.NewServer(h)
	t.Cleanup(server.Close)
	t.Setenv(variable, server.URL)
}

func keys(t *testing.T) {
	t.Helper()
	t.Setenv("AWS_ACCESS_KEY_ID", "AKIAENV")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "secret")
}

// use loads and fetches, as a command does.
func use(t *testing.T, o Options) (string, error) {
	t.Helper()
	cfg, err := Load(t.Context(), o)
	if err != nil {
		return "", err
	}
	return Identity(t.Context(), cfg)
}

func wantErr(t *testing.T, err, which error, text, hint string) {
	t.Helper()
	if !errors.Is(err, which) {
		t.Fatalf("got error %v, want %v", err, which)
	}
	if !strings.Contains(err.Error(), text) {
		t.Errorf("error %q does not say %q", err, text)
	}
	if got := Hint(fmt.Errorf("push: %w", err)); !strings.Contains(got, hint) || got == "" {
		t.Errorf("hint %q does not say %q", got, hint)
	}
}

func TestIdentityIsAccountAndShortName(t *testing.T) {
	machine(t, "")
	keys(t)
	serve(t, "AWS_ENDPOINT_URL_STS", func(w http.ResponseWriter, r *http.Request) {
		if !strings.Contains(r.Header.Get("Authorization"), "AKIAENV") {
			t.Errorf("signed with %q", r.Header.Get("Authorization"))
		}
		fmt.Fprint(w, answerIdentity)
	})
	who, err := use(t, Options{Region: "eu-west-1"})
	if err != nil || who != "123456789012 (user/maria)" {
		t.Errorf("%q, %v", who, err)
	}
	if got := identity("123456789012", ""); got != "123456789012" {
		t.Errorf("without a name: %q", got)
	}
}

func TestIdentityDoesNotWaitForASilentNetwork(t *testing.T) {
	machine(t, "")
	keys(t)
	silent := make(chan struct{})
	serve(t, "AWS_ENDPOINT_URL_STS", func(_ http.ResponseWriter, r *http.Request) {
		select {
		case <-silent:
		case <-r.Context().Done():
		}
	})
	defer close(silent)
	ample := identityTimeout
	identityTimeout = usual
	defer func() { identityTimeout = ample }()
	start := time.Now()
	_, err := use(t, Options{Region: "eu-west-1"})
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	if d := time.Since(start); d > 25*time.Second {
		t.Errorf("took %v", d)
	}
}

func TestRegionComesFromOptionsEnvironmentProfileOrInstance(t *testing.T) {
	const profiles = "[default]\nregion = eu-north-1\n[profile work]\nregion = eu-south-1\n"
	for _, x := range []struct {
		name, config, env, want string
		o                       Options
	}{
		{"options first", profiles, "eu-central-1", "eu-west-3", Options{Region: "eu-west-3"}},
		{"environment", profiles, "eu-central-1", "eu-central-1", Options{}},
		{"default profile", profiles, "", "eu-north-1", Options{}},
		{"named profile", profiles, "", "eu-south-1", Options{Profile: "work"}},
		{"own endpoints", "", "", "us-east-1", Options{OwnEndpoints: true}},
	} {
		t.Run(x.name, func(t *testing.T) {
			machine(t, x.config)
			if x.env != "" {
				t.Setenv("AWS_REGION", x.env)
			}
			cfg, err := Load(t.Context(), x.o)
			if err != nil || cfg.Region != x.want {
				t.Errorf("region %q, %v, want %q", cfg.Region, err, x.want)
			}
		})
	}
}

func TestNoRegionIsSaid(t *testing.T) {
	machine(t, "")
	keys(t)
	_, err := Load(t.Context(), Options{})
	wantErr(t, err, ErrNoRegion, "load AWS config: no AWS region", "AWS_REGION")
}

// metadata is an instance's metadata service that takes IMDSv2 only.
func metadata(w http.ResponseWriter, r *http.Request) {
	switch {
	case r.Method == http.MethodPut && r.URL.Path == "/latest/api/token":
		w.Header().Set("X-Aws-Ec2-Metadata-Token-Ttl-Seconds", "300")
		fmt.Fprint(w, "token")
	case r.Header.Get("X-Aws-Ec2-Metadata-Token") != "token":
		w.WriteHeader(http.StatusUnauthorized)
	case strings.HasSuffix(r.URL.Path, "/security-credentials/"):
		fmt.Fprint(w, "web")
	case strings.HasSuffix(r.URL.Path, "/security-credentials/web"):
		fmt.Fprintf(w, `{"Code":"Success","AccessKeyId":"ASIAINSTANCE","SecretAccessKey":"s","Token":"t","Expiration":%q}`,
			time.Now().Add(time.Hour).UTC().Format(time.RFC3339))
	case strings.HasSuffix(r.URL.Path, "/instance-identity/document"):
		fmt.Fprint(w, `{"region":"ap-south-1"}`)
	default:
		w.WriteHeader(http.StatusNotFound)
	}
}

func TestInstanceRoleAndRegionComeFromItsMetadata(t *testing.T) {
	machine(t, "")
	os.Unsetenv("AWS_EC2_METADATA_DISABLED")
	serve(t, "AWS_EC2_METADATA_SERVICE_ENDPOINT", metadata)
	cfg, err := Load(t.Context(), Options{})
	if err != nil {
		t.Fatal(err)
	}
	creds, err := cfg.Credentials.Retrieve(t.Context())
	if err != nil || cfg.Region != "ap-south-1" || creds.AccessKeyID != "ASIAINSTANCE" {
		t.Errorf("region %q, key %q, %v", cfg.Region, creds.AccessKeyID, err)
	}
}

func TestMetadataAddressFromTheSettingsIsUsed(t *testing.T) {
	machine(t, "")
	os.Unsetenv("AWS_EC2_METADATA_DISABLED")
	server := httptest.NewServer(http.HandlerFunc(metadata))
	defer server.Close()
	cfg, err := Load(t.Context(), Options{Region: "eu-west-1", IMDS: server.URL})
	if err != nil {
		t.Fatal(err)
	}
	if creds, err := cfg.Credentials.Retrieve(t.Context()); creds.AccessKeyID != "ASIAINSTANCE" {
		t.Errorf("key %q, %v", creds.AccessKeyID, err)
	}
}

func TestNoCredentialsAnywhere(t *testing.T) {
	machine(t, "")
	_, err := use(t, Options{Region: "eu-west-1"})
	wantErr(t, err, ErrNoCredentials, "no usable AWS credentials: none in the environment, a profile or an instance role", "-profile")
}

func TestProfileThatDoesNotExistIsNamed(t *testing.T) {
	machine(t, "[profile work]\nregion = eu-west-1\n")
	_, err := Load(t.Context(), Options{Profile: "wrok"})
	wantErr(t, err, ErrNoProfile, `load AWS config: AWS profile does not exist: "wrok"`, "list-profiles")
}

func TestExpiredLoginsSayHowToLogInAgain(t *testing.T) {
	const session = "[profile work]\nregion = eu-west-1\nsso_session = corp\nsso_account_id = 123456789012\nsso_role_name = Dev\n" +
		"[sso-session corp]\nsso_region = eu-west-1\nsso_start_url = https://corp.awsapps.com/start\n"
	const legacy = "[profile work]\nregion = eu-west-1\nsso_region = eu-west-1\nsso_start_url = https://corp.awsapps.com/start\n" +
		"sso_account_id = 123456789012\nsso_role_name = Dev\n"
	const browser = "[profile work]\nregion = eu-west-1\nlogin_session = arn:aws:iam::123456789012:user/maria\n"
	for name, x := range map[string][2]string{
		"sso session":     {session, "aws sso login --profile=work"},
		"sso in profile":  {legacy, "aws sso login --profile=work"},
		"login in browse": {browser, "aws login --profile=work"},
	} {
		t.Run(name, func(t *testing.T) {
			machine(t, x[0])
			t.Setenv("AWS_PROFILE", "work")
			_, err := use(t, Options{})
			wantErr(t, err, ErrExpired, "get credentials: AWS session has expired", x[1])
		})
	}
}

func TestExpiredSessionTokenIsFoundOutByAsking(t *testing.T) {
	machine(t, "")
	keys(t)
	serve(t, "AWS_ENDPOINT_URL_STS", func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusForbidden)
		fmt.Fprintf(w, answerError, "ExpiredToken", "The security token included in the request is expired")
	})
	_, err := use(t, Options{Region: "eu-west-1"})
	wantErr(t, err, ErrExpired, "ask AWS who we are: AWS session has expired", "session token")
}

const mfaProfile = "[profile base]\naws_access_key_id = AKIABASE\naws_secret_access_key = s\n" +
	"[profile work]\nregion = eu-west-1\nsource_profile = base\nrole_arn = arn:aws:iam::123456789012:role/Dev\n" +
	"mfa_serial = arn:aws:iam::123456789012:mfa/maria\n"

func TestMultiFactorCodeIsAskedForAndSent(t *testing.T) {
	machine(t, mfaProfile)
	serve(t, "AWS_ENDPOINT_URL_STS", func(w http.ResponseWriter, r *http.Request) {
		if code := r.FormValue("TokenCode"); code != "123456" {
			w.WriteHeader(http.StatusForbidden)
			fmt.Fprintf(w, answerError, "AccessDenied", "MultiFactorAuthentication failed with invalid MFA one time pass code.")
			return
		}
		if d := r.FormValue("DurationSeconds"); d != "3600" {
			t.Errorf("session of %s seconds", d)
		}
		fmt.Fprintf(w, answerRole, time.Now().Add(time.Hour).UTC().Format(time.RFC3339))
	})
	code, asked := "123456\n", 0
	o := Options{Profile: "work", Prompt: func(context.Context) (string, error) { asked++; return code, nil }}
	cfg, err := Load(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	if asked != 0 {
		t.Error("asked before credentials were needed")
	}
	for range 2 {
		if err := Check(t.Context(), cfg); err != nil {
			t.Fatal(err)
		}
	}
	if asked != 1 {
		t.Errorf("asked %d times", asked)
	}

	code = "000000"
	_, err = use(t, o)
	wantErr(t, err, ErrMFA, "invalid MFA one time pass code", "next one")

	o.Prompt = nil
	_, err = use(t, o)
	wantErr(t, err, ErrMFA, "get credentials: multi-factor code needed", "terminal")
}

func TestRoleThatMayNotBeAssumedSaysWhatAWSSaid(t *testing.T) {
	machine(t, mfaProfile)
	serve(t, "AWS_ENDPOINT_URL_STS", func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusForbidden)
		fmt.Fprintf(w, answerError, "AccessDenied", "User maria is not authorized to perform: sts:AssumeRole")
	})
	_, err := use(t, Options{Profile: "work", Prompt: func(context.Context) (string, error) { return "123456", nil }})
	wantErr(t, err, ErrNoCredentials, "AccessDenied: User maria is not authorized to perform: sts:AssumeRole", "-profile")
}

func TestAbortedPromptIsNoMissingCredential(t *testing.T) {
	machine(t, mfaProfile)
	_, err := use(t, Options{Profile: "work", Prompt: func(context.Context) (string, error) { return "", context.Canceled }})
	if !errors.Is(err, context.Canceled) || errors.Is(err, ErrNoCredentials) || Hint(err) != "" {
		t.Errorf("got %v, hint %q", err, Hint(err))
	}
}

func TestProfileThatNamesAMissingOneIsExplained(t *testing.T) {
	machine(t, "[profile work]\nregion = eu-west-1\nrole_arn = arn:aws:iam::123456789012:role/Dev\nsource_profile = bsae\n")
	_, err := use(t, Options{Profile: "work"})
	wantErr(t, err, ErrNoProfile, `"bsae"`, "list-profiles")
}

func TestConfigFileThatCannotBeReadIsNamed(t *testing.T) {
	machine(t, "")
	file := t.TempDir()
	t.Setenv("AWS_CONFIG_FILE", file)
	_, err := Load(t.Context(), Options{Region: "eu-west-1"})
	if err == nil || !strings.Contains(err.Error(), file) || Hint(err) != "" {
		t.Errorf("got %v, hint %q", err, Hint(err))
	}
}

// closed is a body as the SDK leaves it behind: all was read, and writing it says so as an error.
type closed struct{ io.Reader }

func (closed) Close() error                     { return nil }
func (closed) WriteTo(io.Writer) (int64, error) { return 0, io.EOF }

func TestBodyThatTheSDKHasClosedDoesNotBreakTheConnection(t *testing.T) {
	machine(t, "")
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, err := io.Copy(w, r.Body); err != nil {
			t.Error(err)
		}
	}))
	defer server.Close()
	cfg, err := Load(t.Context(), Options{OwnEndpoints: true})
	if err != nil {
		t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, server.URL, closed{strings.NewReader("text")})
	if err != nil {
		t.Fatal(err)
	}
	req.ContentLength = 4 // as the SDK does: net/http then looks whether the body has more
	resp, err := cfg.HTTPClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if text, err := io.ReadAll(resp.Body); err != nil || string(text) != "text" {
		t.Errorf("%q, %v", text, err)
	}
}
