package config

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

// file is where the tests' settings pretend to lie.
const file = "/etc/s3pd/promo.yml"

const minimal = "site: promo\nbucket: my-bucket\nroot: /var/www/promo\n"

func env(name string) (string, bool) {
	v, ok := map[string]string{"SITE": "promo", "EMPTY": "", "NUMBER": "7", "DOLLAR": "${SITE}"}[name]
	return v, ok
}

func parse(text string) (*Config, error) { return Parse([]byte(text), file, ForAgent, env) }

func mustParse(t *testing.T, text string) *Config {
	t.Helper()
	c, err := parse(text)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestMinimalFileGetsEveryDefault(t *testing.T) {
	got := mustParse(t, minimal)
	want := defaults()
	want.Path, want.Site, want.Bucket, want.Root = file, "promo", "my-bucket", "/var/www/promo"
	want.StateDir = "/var/lib/s3-pull-deploy/promo"
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v", got)
	}
	if got.Scope() != "my-bucket/promo" || got.Opcache.Effective() != Off {
		t.Errorf("scope %q, opcache %q", got.Scope(), got.Opcache.Effective())
	}
}

func TestDefaultsAreTheDesigns(t *testing.T) {
	c := mustParse(t, minimal)
	for what, ok := range map[string]bool{
		"table":         c.Table == "s3-pull-deploy",
		"keep_remote":   c.KeepRemote == 20,
		"rollout":       reflect.DeepEqual(c.Rollout, Rollout{MaxExcluded: "10%"}),
		"secrets":       c.Secrets == Refuse,
		"group, active": c.Group == "default" && c.Active == "active",
		"intervals":     c.PollInterval == 5*time.Second && c.PointerInterval == 30*time.Second && c.PrepareTimeout == 10*time.Minute,
		"keep":          c.KeepReleases == 3 && c.KeepFor == time.Hour,
		"opcache":       reflect.DeepEqual(c.Opcache, Opcache{Mode: "warm", Timeout: 30 * time.Second}),
		"health_check":  c.HealthCheck == HealthCheck{Expect: 200, Timeout: 5 * time.Second, Attempts: 3, Rollback: true},
		"hooks":         c.Hooks == Hooks{Timeout: 5 * time.Minute, OnceTimeout: 30 * time.Minute},
	} {
		if !ok {
			t.Errorf("%s differs", what)
		}
	}
}

func TestEachCommandAsksForItsOwnKeys(t *testing.T) {
	text := []byte("site: promo\nbucket: my-bucket\n")
	if c, err := Parse(text, file, ForPush, env); err != nil || c.Root != "" {
		t.Errorf("push: %+v, %v", c, err)
	}
	_, err := Parse(text, file, ForAgent, env)
	if want := file + ": root: is required (such as `root: /var/www/promo.example.com`)"; err == nil || err.Error() != want {
		t.Errorf("agent: %v", err)
	}
}

func TestValuesAreRead(t *testing.T) {
	c := mustParse(t, `
site: "${SITE}"
bucket: my-bucket
prefix: apps/
root: ../www
state_dir: state
web_user: www-data
owner: deploy:www-data
writable: [var/cache, var/log]
shared: {public/uploads: /srv/uploads, .env: "/etc/${SITE}/env"}
stamp: _cache.php
keep_remote: ${NUMBER}
instance_id: 007
rollout: {max_excluded: 3}
restart:
region:
kms_key_id: "a$$b$c${EMPTY}${DOLLAR}"
opcache: {url: ["http://127.0.0.1:80/x", "unix:/run/x.sock:/y"], mode: reset}
hooks: {after_flip: "echo ${RELEASE} $$ ${"}
health_check: {timeout: 1.5s, rollback: false}
`)
	for what, ok := range map[string]bool{
		"site":      c.Site == "promo" && c.Scope() == "my-bucket/apps/promo",
		"paths":     c.Root == "/etc/www" && c.StateDir == "/etc/s3pd/state",
		"writable":  slices.Equal(c.Writable, []string{"var/cache", "var/log"}),
		"shared":    len(c.Shared) == 2 && c.Shared[".env"] == "/etc/promo/env",
		"number":    c.KeepRemote == 7,
		"digits":    c.InstanceID == "007",
		"share":     c.Rollout.MaxExcluded == "3",
		"empty key": c.Restart == nil && c.Region == "",
		"dollars":   c.KMSKeyID == "a$b$c${SITE}",
		"urls":      len(c.Opcache.URL) == 2 && c.Opcache.Effective() == Reset,
		"hook":      c.Hooks.AfterFlip == "echo ${RELEASE} $$ ${",
		"check":     c.HealthCheck == HealthCheck{Expect: 200, Timeout: 1500 * time.Millisecond, Attempts: 3},
	} {
		if !ok {
			t.Errorf("%s: %+v", what, c)
		}
	}
	if one := mustParse(t, minimal+"opcache: {url: http://localhost/x}"); !slices.Equal(one.Opcache.URL, URLs{"http://localhost/x"}) {
		t.Errorf("one url: %q", one.Opcache.URL)
	}
}

func TestLoadReadsTheFileBesideWhichPathsLie(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "config.yml")
	if err := os.WriteFile(path, []byte("site: a\nbucket: my-bucket\nroot: www\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	t.Chdir(dir)
	c, err := Load("config.yml", ForAgent)
	if err != nil || c.Root != filepath.Join(dir, "www") || c.Path != path {
		t.Errorf("%+v, %v", c, err)
	}
}

func TestLoadOfAMissingFileSaysWhatToDo(t *testing.T) {
	path := filepath.Join(t.TempDir(), "none.yml")
	_, err := Load(path, ForPush)
	var e *Error
	if !errors.As(err, &e) || !errors.Is(err, fs.ErrNotExist) ||
		err.Error() != path+": does not exist (name another file with -config, or start from config.sample.yml)" {
		t.Errorf("%v", err)
	}
	if _, err := Load(t.TempDir(), ForPush); err == nil || !strings.Contains(err.Error(), "is a directory") {
		t.Errorf("a directory: %v", err)
	}
}

func TestYAMLReadsBackToTheSameSettings(t *testing.T) {
	for name, text := range map[string]string{
		"minimal": minimal,
		"full": minimal + `
prefix: "a$$b/"
ignore: ["*.log", "!x", "# no", "", "${DOLLAR}", "y: z"]
writable: [var]
web_user: "1000"
shared: {a: "/x$$y", "true": /b, "b: c": "/d"}
opcache: {url: [http://a/, "unix:/b:/c"], timeout: 90s}
hooks: {after_sync: "a $$ ${B}\nc\n", user: www}
instance_id: 0x10
profile: "null"
rollout: {waves: ["1", "10%"], bake: 1h0m1s, max_excluded: 0}
keep_for: 0
`,
	} {
		c := mustParse(t, text)
		back, err := parse(string(c.YAML()))
		if err != nil || !reflect.DeepEqual(back, c) {
			t.Errorf("%s: %v\n got %+v\nwant %+v\n%s", name, err, back, c, c.YAML())
		}
	}
}
