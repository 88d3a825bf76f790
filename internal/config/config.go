// Package config is the settings file that push and agent share: its schema, defaults, strict reading and reload.
//
// The file is one YAML document. config.sample.yml has every key with its default; the fields of [Config] say
// what each is for. Reading goes: defaults, strict decoding, `${ENV}`, validation; then the settings never
// change. A reload is another [Load], and the owner swaps only when it succeeded.
//
// Strict means that an unknown key, a key twice, a wrong type or a value out of range is an error with file,
// line, YAML path, rule and value, and a hint where one can be given. All of a file's errors are reported
// at once. YAML's anchors, aliases, merges and several documents in one file are refused: nothing here needs them.
//
// `${NAME}` in a value is the environment variable NAME, which must be set; `$$` is a dollar; any other dollar stands
// for itself. Hooks are left alone: their `${…}` is the shell's. A key without a value keeps its default.
// Relative paths are relative to the file. `~` is never expanded.
//
// Trust. The file belongs to the operator; what it names (paths, users, commands) is not questioned beyond its form.
// Values of type [Secret] never appear in an error, a log or the output of -show.
package config

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"s3pulldeploy/internal/release"
)

// Command says who reads the file, because each asks for other keys.
type Command int

// The commands: push needs site and bucket, agent root as well.
const (
	ForPush Command = iota
	ForAgent
)

// The values of the settings that are one of a few words.
const (
	Packed = "packed" // Layout
	Plain  = "plain"

	Refuse = "refuse" // Secrets
	Warn   = "warn"
	Allow  = "allow"

	Warm  = "warm" // Opcache.Mode
	Reset = "reset"
	Off   = "off"
)

// MaxFile is the largest settings file in bytes.
const MaxFile = 1 << 20

// Config is the settings, complete with defaults. Durations are Go's; paths are absolute and clean.
type Config struct {
	Path string `yaml:"-"` // the file it was read from

	Site      string    `yaml:"site"`   // one application of one environment
	Bucket    string    `yaml:"bucket"` // where releases are
	Prefix    string    `yaml:"prefix"` // before the site in every key; empty or ending in a slash
	Region    string    `yaml:"region"` // empty: the SDK's own chain
	Profile   string    `yaml:"profile"`
	Table     string    `yaml:"table"` // DynamoDB table of the fleet
	Endpoints Endpoints `yaml:"endpoints"`

	Layout     string   `yaml:"layout"`  // Packed or Plain
	Ignore     []string `yaml:"ignore"`  // gitignore patterns, before those of .deployignore
	Secrets    string   `yaml:"secrets"` // private keys and .env in the tree: Refuse, Warn or Allow
	KeepRemote int      `yaml:"keep_remote"`
	Rollout    Rollout  `yaml:"rollout"`
	SigningKey Secret   `yaml:"signing_key"` // a private key, or the file that has it
	KMSKeyID   string   `yaml:"kms_key_id"`

	Group           string            `yaml:"group"`  // kind of instance: web, cron, worker
	Root            string            `yaml:"root"`   // directory of the releases
	Active          string            `yaml:"active"` // name of the symlink in it
	Owner           string            `yaml:"owner"`  // user or user:group of released files; empty: the agent's own
	WebUser         string            `yaml:"web_user"`
	InstanceID      string            `yaml:"instance_id"` // empty: EC2's, else the hostname
	StateDir        string            `yaml:"state_dir"`
	PollInterval    time.Duration     `yaml:"poll_interval"`    // of the head in the table
	PointerInterval time.Duration     `yaml:"pointer_interval"` // of the pointer in S3
	PrepareTimeout  time.Duration     `yaml:"prepare_timeout"`
	KeepReleases    int               `yaml:"keep_releases"` // good ones on disk, besides what is live
	KeepFor         time.Duration     `yaml:"keep_for"`      // whatever was live within it stays
	Writable        []string          `yaml:"writable"`      // directories in the release that the web user may write
	Shared          map[string]string `yaml:"shared"`        // path in the release: absolute target outside
	Stamp           string            `yaml:"stamp"`         // PHP file that returns the release's time; empty: none
	Opcache         Opcache           `yaml:"opcache"`
	HealthCheck     HealthCheck       `yaml:"health_check"`
	Hooks           Hooks             `yaml:"hooks"`
	Restart         []string          `yaml:"restart"` // systemd units, patterns allowed
	LifecycleHook   string            `yaml:"lifecycle_hook"`
	Notify          Notify            `yaml:"notify"`
	Listen          string            `yaml:"listen"`      // host:port of metrics and status; the unix socket is always there
	VerifyKeys      []string          `yaml:"verify_keys"` // of which one must have signed a release; none: unsigned releases are taken
}

// Endpoints are the services of an S3-compatible server, of DynamoDB Local and the like; empty: AWS.
type Endpoints struct {
	S3          string `yaml:"s3"`
	DynamoDB    string `yaml:"dynamodb"`
	SNS         string `yaml:"sns"`
	IMDS        string `yaml:"imds"`
	AutoScaling string `yaml:"autoscaling"`
}

// Rollout is how a release goes out; push puts it into the pointer.
type Rollout struct {
	Waves       []string      `yaml:"waves"` // as release.CheckWave says
	Bake        time.Duration `yaml:"bake"`
	Approve     bool          `yaml:"approve"`
	MaxExcluded string        `yaml:"max_excluded"` // a count or a percentage of the members
}

// Opcache is how PHP's opcache learns of a new release.
type Opcache struct {
	Mode    string        `yaml:"mode"` // Warm, Reset or Off
	URL     URLs          `yaml:"url"`  // one for each pool; http://… or unix:/path/to.sock:/uri
	Host    string        `yaml:"host"` // Host header; empty: the URL's
	Timeout time.Duration `yaml:"timeout"`
}

// URLs is one URL or a list of them in the file.
type URLs []string

// HealthCheck is the request that proves that a release works.
type HealthCheck struct {
	URL      string        `yaml:"url"` // as of Opcache, or https://…; empty: no check
	Host     string        `yaml:"host"`
	Preview  string        `yaml:"preview"` // URL that serves the new release before it is live
	Expect   int           `yaml:"expect"`  // HTTP status
	Timeout  time.Duration `yaml:"timeout"` // of one attempt
	Attempts int           `yaml:"attempts"`
	Rollback bool          `yaml:"rollback"`
}

// Hooks are the operator's commands for /bin/sh, and the user they run as (empty: the web user).
type Hooks struct {
	AfterSync   string        `yaml:"after_sync"`
	BeforeFlip  string        `yaml:"before_flip"`
	FleetOnce   string        `yaml:"fleet_once"`
	AfterFlip   string        `yaml:"after_flip"`
	User        string        `yaml:"user"`
	Timeout     time.Duration `yaml:"timeout"`
	OnceTimeout time.Duration `yaml:"once_timeout"`
	IdleTimeout time.Duration `yaml:"idle_timeout"` // without any output, of each hook; 0: none
}

// Notify is who is told of an outcome.
type Notify struct {
	SNSSuccess string `yaml:"sns_success"` // topic ARNs
	SNSError   string `yaml:"sns_error"`
	Webhook    Secret `yaml:"webhook"` // such URLs hold a token
}

// defaults is the only place of every default, but for state_dir, which follows the site.
func defaults() *Config {
	return &Config{
		Table:      "s3-pull-deploy",
		Layout:     Packed,
		Secrets:    Refuse,
		KeepRemote: 20,
		Rollout:    Rollout{MaxExcluded: "10%"},

		Group:           "default",
		Active:          "active",
		PollInterval:    5 * time.Second,
		PointerInterval: 30 * time.Second,
		PrepareTimeout:  10 * time.Minute,
		KeepReleases:    3,
		KeepFor:         time.Hour,
		Opcache:         Opcache{Mode: Warm, Timeout: 30 * time.Second},
		HealthCheck:     HealthCheck{Expect: 200, Timeout: 5 * time.Second, Attempts: 3, Rollback: true},
		Hooks:           Hooks{Timeout: 5 * time.Minute, OnceTimeout: 30 * time.Minute},
	}
}

// Load reads and validates the file at path for one of the commands, with the process's environment. Errors are
// [*Error], joined; one about the file as a whole has no line.
func Load(path string, c Command) (*Config, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("read config %q: %w", path, err)
	}
	text, err := readFile(abs)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, &Error{File: abs, Rule: "does not exist", Hint: "name another file with -config, or start from config.sample.yml", cause: err}
	}
	if err != nil {
		return nil, &Error{File: abs, Rule: "cannot be read: " + err.Error(), cause: err}
	}
	return Parse(text, abs, c, os.LookupEnv)
}

// readFile reads no more than a little over MaxFile, so that Parse can refuse what is larger.
func readFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, errors.Unwrap(err)
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, MaxFile+1))
}

// Parse is [Load] without the file: text as it was read from path, which must be absolute, with the variables that
// getenv knows. It has no side effects.
func Parse(text []byte, path string, c Command, getenv func(string) (string, bool)) (*Config, error) {
	cfg := defaults()
	cfg.Path = path
	d := &decoder{problems: problems{file: path, lines: map[string]int{}}, getenv: getenv}
	d.document(text, cfg)
	if !d.unreadable() {
		validate(cfg, c, &d.problems)
	}
	if err := d.err(); err != nil {
		return nil, err
	}
	return cfg, nil
}

// Scope is what the table is keyed by and pointers are made for: <bucket>/<prefix><site>.
func (c *Config) Scope() string { return c.Bucket + "/" + c.Prefix + c.Site }

// Keyring is the keys of verify_keys, which were validated.
func (c *Config) Keyring() *release.Keyring {
	k, err := release.NewKeyring(c.VerifyKeys)
	if err != nil {
		panic("config: keys that were not validated: " + err.Error()) // without keys everything would be taken
	}
	return k
}

// Signer reads the key that push signs with, from the settings or the file that they name; nil where there is none. Its errors
// never quote the key.
func (c *Config) Signer() (*release.Signer, error) {
	key := c.SigningKey.Reveal()
	if key == "" {
		return nil, nil
	}
	if !isKey(key) {
		text, err := readFile(key)
		if err != nil {
			return nil, &Error{File: c.Path, Path: "signing_key", Rule: "names a file that cannot be read: " + err.Error(), Hint: "the file that push -keygen wrote, relative to the settings, or ${NAME} of a variable that holds the key itself", cause: err}
		}
		key = string(text)
	}
	s, err := release.NewSigner(key)
	if err != nil {
		return nil, &Error{File: c.Path, Path: "signing_key", Rule: brief(err), Hint: "push -keygen=NAME makes one"}
	}
	if len(c.VerifyKeys) > 0 && !slices.Contains(c.VerifyKeys, s.Public()) {
		return nil, &Error{
			File: c.Path, Path: "verify_keys", Rule: "must have the key that verifies signing_key, " + s.String(),
			Hint: "add " + s.Public() + " here and on every instance, before the first push with it",
		}
	}
	return s, nil
}

// Effective is the mode that runs: off without a URL.
func (o Opcache) Effective() string {
	if len(o.URL) == 0 {
		return Off
	}
	return o.Mode
}
