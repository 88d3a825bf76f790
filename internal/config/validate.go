package config

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/url"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"s3pulldeploy/internal/release"
)

// The forms of values. They keep out what could not work or would be misread; whether the thing exists is found
// out by whoever uses it (-check).
var (
	bucketForm   = newForm(`^[A-Za-z0-9][A-Za-z0-9._-]{1,61}[A-Za-z0-9]$`)
	regionForm   = newForm(`^[A-Za-z0-9-]{1,64}$`)
	tableForm    = newForm(`^[A-Za-z0-9_.-]{3,255}$`)
	lineForm     = newForm(`^[^\x00-\x1f\x7f]{1,1000}$`)
	linkForm     = newForm(`^[A-Za-z0-9_][A-Za-z0-9._-]{0,127}$`)
	userForm     = newForm(`^[A-Za-z0-9_][A-Za-z0-9_.@-]{0,63}$`)
	ownerForm    = newForm(`^[A-Za-z0-9_][A-Za-z0-9_.@-]{0,63}(:[A-Za-z0-9_][A-Za-z0-9_.@-]{0,63})?$`)
	instanceForm = newForm(`^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$`)
	hostForm     = newForm(`^[A-Za-z0-9._:\[\]-]{1,255}$`)
	unitForm     = newForm(`^[A-Za-z0-9:_.\\@*?\[\]-]{1,255}$`)
	asgHookForm  = newForm(`^[A-Za-z0-9_/-]{1,255}$`)
	topicForm    = newForm(`^arn:aws[a-z-]*:sns:[a-z0-9-]+:[0-9]{12}:[A-Za-z0-9_.-]{1,256}$`)
	unixForm     = newForm(`^unix:/[^\x00-\x20\x7f:]+:/[^\x00-\x20\x7f]*$`)
)

// form is compiled when it is first needed: with their lengths, all of them take 4 ms and 2 MB at the start of every command.
type form func() *regexp.Regexp

func newForm(pattern string) form {
	return sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(pattern) })
}

// stateRoot has a state directory for each site, unless state_dir says otherwise.
const stateRoot = "/var/lib/s3-pull-deploy"

// validate completes what depends on other keys and notes every value out of its rule.
func validate(c *Config, cmd Command, p *problems) {
	v := validator{p}
	v.common(c)
	v.push(c)
	v.agent(c, cmd)
	v.served(c)
	v.checks(c)
}

type validator struct{ *problems }

func (v validator) common(c *Config) {
	v.required("site", c.Site, "site: promo-production")
	v.required("bucket", c.Bucket, "bucket: my-deploy-bucket")
	if c.Site != "" {
		v.named("site", c.Site, release.ParseSite(c.Site))
	}
	v.form("bucket", c.Bucket, bucketForm, "must be the name of a bucket: 3 to 63 letters, digits, dots and dashes")
	v.prefix(c.Prefix)
	v.form("region", c.Region, regionForm, "must be a region such as eu-central-1")
	v.form("profile", c.Profile, lineForm, "must be the name of an AWS profile")
	v.required("table", c.Table, "table: s3-pull-deploy")
	v.form("table", c.Table, tableForm, "must be the name of a DynamoDB table: 3 to 255 of A-Z a-z 0-9 _ . -")
	v.url("endpoints.s3", c.Endpoints.S3)
	v.url("endpoints.dynamodb", c.Endpoints.DynamoDB)
	v.url("endpoints.sns", c.Endpoints.SNS)
	v.url("endpoints.imds", c.Endpoints.IMDS)
	v.url("endpoints.autoscaling", c.Endpoints.AutoScaling)
}

func (v validator) push(c *Config) {
	v.oneOf("layout", c.Layout, Packed, Plain)
	for i, pattern := range c.Ignore {
		if err := release.CheckPattern(pattern); err != nil {
			v.add(index("ignore", i), "must be a gitignore pattern", pattern, "")
		}
	}
	v.oneOf("secrets", c.Secrets, Refuse, Warn, Allow)
	within(v, "keep_remote", c.KeepRemote, 2, 1000)
	for i, wave := range c.Rollout.Waves {
		v.named(index("rollout.waves", i), wave, release.CheckWave(wave))
	}
	within(v, "rollout.bake", c.Rollout.Bake, 0, 24*time.Hour)
	_, err := release.ParseShare(c.Rollout.MaxExcluded)
	v.named("rollout.max_excluded", c.Rollout.MaxExcluded, err)
	v.form("kms_key_id", c.KMSKeyID, lineForm, "must be the id, alias or ARN of a KMS key")
	if key := c.SigningKey.Reveal(); key != "" && !isKey(key) && !filepath.IsAbs(key) {
		c.SigningKey = Secret(filepath.Join(filepath.Dir(c.Path), key)) // whether it is there is only push's concern
	}
	if c.SigningKey != "" && c.Layout == Plain {
		v.add("signing_key", "needs layout packed: no signature covers the files of a plain release", "", "")
	}
	for i, key := range c.VerifyKeys {
		if err := release.CheckVerifyKey(key); err != nil {
			v.add(index("verify_keys", i), brief(err), "", "it looks like promo-ci+1d6a0f9c+AZ…; the one of signing_key is printed by push -keygen")
		}
	}
}

// isKey says that signing_key is a key and not the name of a file.
func isKey(s string) bool { return strings.HasPrefix(strings.TrimSpace(s), "PRIVATE+KEY+") }

func (v validator) agent(c *Config, cmd Command) {
	v.required("group", c.Group, "group: default")
	if c.Group != "" {
		v.named("group", c.Group, release.ParseSite(c.Group))
	}
	if cmd == ForAgent {
		v.required("root", c.Root, "root: /var/www/promo.example.com")
	}
	c.Root = v.directory(c, "root", c.Root)
	if c.StateDir == "" {
		c.StateDir = filepath.Join(stateRoot, c.Site)
	}
	c.StateDir = v.directory(c, "state_dir", c.StateDir)
	if c.Root != "" && inside(c.StateDir, c.Root) {
		v.add("state_dir", "must not be root, nor lie in it", c.StateDir, "")
	}
	v.required("active", c.Active, "active: active")
	v.form("active", c.Active, linkForm, "must be one name without slashes")
	if c.Active == release.PreviousLink {
		v.add("active", "must not be the name of the link to the previous release", c.Active, "")
	}
	v.form("owner", c.Owner, ownerForm, "must be user or user:group")
	v.form("web_user", c.WebUser, userForm, "must be a user")
	v.form("instance_id", c.InstanceID, instanceForm, "must be 1 to 128 of A-Z a-z 0-9 . _ -, the first a letter or digit")
	within(v, "poll_interval", c.PollInterval, time.Second, 10*time.Second)
	within(v, "pointer_interval", c.PointerInterval, time.Second, time.Hour)
	within(v, "prepare_timeout", c.PrepareTimeout, time.Second, 6*time.Hour)
	within(v, "keep_releases", c.KeepReleases, 1, 100)
	within(v, "keep_for", c.KeepFor, 0, 30*24*time.Hour)
	for i, unit := range c.Restart {
		v.form(index("restart", i), unit, unitForm, "must be a systemd unit or a pattern of them")
	}
	v.form("lifecycle_hook", c.LifecycleHook, asgHookForm, "must be the name of a lifecycle hook")
	v.form("notify.sns_success", c.Notify.SNSSuccess, topicForm, "must be the ARN of an SNS topic")
	v.form("notify.sns_error", c.Notify.SNSError, topicForm, "must be the ARN of an SNS topic")
	if hook := c.Notify.Webhook.Reveal(); hook != "" && !isHTTP(hook, "http", "https") {
		v.add("notify.webhook", "must be an http:// or https:// URL", "", "")
	}
	v.listen(c.Listen)
}

// served checks the paths inside a release that are not the release's own: none may lie in another.
func (v validator) served(c *Config) {
	type place struct{ path, key string }
	var places []place
	add := func(key, path string) {
		if err := release.CheckPath(path); err != nil {
			v.add(key, "must be a clean path inside the release: "+brief(err), path, "")
			return
		}
		for _, other := range places {
			if inside(path, other.path) || inside(other.path, path) {
				v.add(key, "must not overlap with "+other.key, path, "")
			}
		}
		places = append(places, place{path, key})
	}
	for i, path := range c.Writable {
		add(index("writable", i), path)
	}
	for _, path := range slices.Sorted(maps.Keys(c.Shared)) {
		key := join("shared", path)
		add(key, path)
		if target := c.Shared[path]; !filepath.IsAbs(target) || filepath.Clean(target) != target || target == "/" {
			v.add(key, "must have an absolute, clean target", target, "")
		}
	}
	if c.Stamp != "" {
		add("stamp", c.Stamp)
	}
	if len(c.Writable) > 0 && c.WebUser == "" {
		v.add("web_user", "is required with writable", "", "the user that PHP runs as, such as www-data")
	}
}

// checks checks what asks the web server, and the hooks.
func (v validator) checks(c *Config) {
	v.oneOf("opcache.mode", c.Opcache.Mode, Warm, Reset, Off)
	for i, u := range c.Opcache.URL {
		path := index("opcache.url", i)
		if v.lines[path] == 0 {
			path = "opcache.url" // a single one
		}
		v.route(path, u, "http")
	}
	v.form("opcache.host", c.Opcache.Host, hostForm, "must be a host name")
	within(v, "opcache.timeout", c.Opcache.Timeout, 100*time.Millisecond, 10*time.Minute)
	h := c.HealthCheck
	v.route("health_check.url", h.URL, "http", "https")
	v.form("health_check.host", h.Host, hostForm, "must be a host name")
	v.route("health_check.preview", h.Preview, "http", "https")
	within(v, "health_check.expect", h.Expect, 100, 599)
	within(v, "health_check.timeout", h.Timeout, 100*time.Millisecond, 5*time.Minute)
	within(v, "health_check.attempts", h.Attempts, 1, 100)
	v.form("hooks.user", c.Hooks.User, userForm, "must be a user")
	within(v, "hooks.timeout", c.Hooks.Timeout, time.Second, 6*time.Hour)
	within(v, "hooks.idle_timeout", c.Hooks.IdleTimeout, 0, 24*time.Hour)
	within(v, "hooks.once_timeout", c.Hooks.OnceTimeout, time.Second, 24*time.Hour)
}

func (v validator) required(path, value, example string) {
	if value == "" {
		v.add(path, "is required", "", "such as `"+example+"`")
	}
}

// form checks a value that is set.
func (v validator) form(path, value string, f form, rule string) {
	if value != "" && !f().MatchString(value) {
		v.add(path, rule, value, "")
	}
}

// named notes what package release says of a value.
func (v validator) named(path, value string, err error) {
	if err != nil {
		v.add(path, brief(err), value, "")
	}
}

func (v validator) oneOf(path, value string, words ...string) {
	if slices.Contains(words, value) {
		return
	}
	hint := ""
	if near := nearest(value, words); near != "" {
		hint = "did you mean `" + near + "`?"
	}
	v.add(path, "must be "+strings.Join(words[:len(words)-1], ", ")+" or "+words[len(words)-1], value, hint)
}

// within checks a number or a duration, both ends included.
func within[T cmp.Ordered](v validator, path string, value, low, high T) {
	if value < low || value > high {
		v.add(path, "must be between "+show(low)+" and "+show(high), show(value), "")
	}
}

func show(v any) string {
	if d, ok := v.(time.Duration); ok {
		return short(d)
	}
	return fmt.Sprint(v)
}

func (v validator) prefix(prefix string) {
	switch {
	case prefix == "":
	case strings.HasPrefix(prefix, "/"):
		v.add("prefix", "must not begin with a slash", prefix, hintUnlessEmpty(strings.TrimLeft(prefix, "/")))
	case !strings.HasSuffix(prefix, "/"):
		v.add("prefix", "must end with a slash", prefix, "write `"+prefix+"/`; the scope is bucket/prefix+site")
	case len(prefix) > 512:
		v.add("prefix", "must be at most 512 bytes", prefix, "")
	default:
		if err := release.CheckPath(strings.TrimSuffix(prefix, "/")); err != nil {
			v.add("prefix", brief(err), prefix, "")
		}
	}
}

func hintUnlessEmpty(prefix string) string {
	if prefix == "" {
		return "leave it empty for none"
	}
	return "write `" + prefix + "`"
}

// directory is path as an absolute one, from the file's directory where it is relative.
func (v validator) directory(c *Config, key, path string) string {
	if path == "" {
		return ""
	}
	if strings.HasPrefix(path, "~") {
		v.add(key, "must be a path, ~ is not expanded", path, "write the whole path")
		return path
	}
	if !lineForm().MatchString(path) {
		v.add(key, "must be a path of at most 1000 characters without control characters", path, "")
		return path
	}
	abs := filepath.Clean(path)
	if !filepath.IsAbs(abs) {
		abs = filepath.Join(filepath.Dir(c.Path), abs)
	}
	if !filepath.IsAbs(abs) || abs == "/" {
		v.add(key, "must be a directory below /", path, "")
	}
	return abs
}

func (v validator) url(path, value string) {
	if value != "" && !isHTTP(value, "http", "https") {
		v.add(path, "must be an http:// or https:// URL", redact(value), "")
	}
}

// route checks a URL of the local web server, which may listen on a unix socket.
func (v validator) route(path, value string, schemes ...string) {
	if value != "" && !isHTTP(value, schemes...) && !unixForm().MatchString(value) {
		v.add(path, "must be "+strings.Join(schemes, ":// or ")+":// with a host, or unix:/path/to.sock:/uri", redact(value), "")
	}
}

func (v validator) listen(listen string) {
	if listen == "" {
		return
	}
	_, port, err := net.SplitHostPort(listen)
	if n, bad := strconv.ParseUint(port, 10, 16); err != nil || bad != nil || n == 0 {
		v.add("listen", "must be host:port", listen, "such as `127.0.0.1:9180`; without a host only this machine is served, `0.0.0.0:9180` is everybody")
	}
}

// isHTTP reports whether s is a URL of one of the schemes, with a host.
func isHTTP(s string, schemes ...string) bool {
	u, err := url.Parse(s)
	return err == nil && slices.Contains(schemes, u.Scheme) && u.Hostname() != "" && u.Opaque == ""
}

// redact hides the password that a URL may hold.
func redact(s string) string {
	if u, err := url.Parse(s); err == nil {
		return u.Redacted()
	}
	return s
}

// brief is the rule alone of an error of package release; path and value are ours to say.
func brief(err error) string {
	var e *release.Error
	if errors.As(err, &e) {
		return e.Rule
	}
	return err.Error()
}

// inside reports whether path is dir or below it; both are clean.
func inside(path, dir string) bool { return path == dir || strings.HasPrefix(path, dir+"/") }

func index(path string, i int) string { return fmt.Sprintf("%s[%d]", path, i) }
