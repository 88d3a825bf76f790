package config

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"gopkg.in/yaml.v3"
)

func TestErrorsNameFileLinePathRuleValueAndHint(t *testing.T) {
	for text, want := range map[string]string{
		"pol_interval: 5s":                    ":4: pol_interval: unknown key (did you mean `poll_interval`?)",
		"poll-interval: 5s":                   ":4: poll-interval: unknown key (did you mean `poll_interval`?)",
		"roto: /x":                            ":4: roto: unknown key (did you mean `root`?)",
		"before_flip: x":                      ":4: before_flip: unknown key (did you mean `hooks.before_flip`?)",
		"opcache: {moed: off}":                ":4: opcache.moed: unknown key (did you mean `opcache.mode`?)",
		"whatsoever: 1":                       ":4: whatsoever: unknown key",
		"Path: /x":                            ":4: Path: unknown key",
		"poll_interval: 30s":                  `:4: poll_interval: must be between 1s and 10s, not "30s"`,
		"poll_interval: 5":                    `:4: poll_interval: must be a duration, not "5" (a number with a unit, such as "30s" or "5m")`,
		"keep_releases: 0":                    `:4: keep_releases: must be between 1 and 100, not "0"`,
		"keep_releases: three":                `:4: keep_releases: must be a whole number, not "three"`,
		"keep_releases: 1.5":                  `:4: keep_releases: must be a whole number, not "1.5"`,
		"keep_releases: [1]":                  ":4: keep_releases: must be a single value",
		"ignore: x":                           `:4: ignore: must be a list, not "x" (write it as [a, b], or a line with a dash for each)`,
		"ignore: [a, [b]]":                    ":4: ignore[1]: must be a single value",
		"ignore: [a, ~]":                      ":4: ignore[1]: must not be empty",
		"ignore: ['[']":                       `:4: ignore[0]: must be a gitignore pattern, not "["`,
		"hooks: x":                            `:4: hooks: must be a mapping of keys to values, not "x"`,
		"health_check: {rollback: yes}":       `:4: health_check.rollback: must be true or false, not "yes"`,
		"health_check: {expect: 99}":          `:4: health_check.expect: must be between 100 and 599, not "99"`,
		"health_check: {url: /x}":             `:4: health_check.url: must be http:// or https:// with a host, or unix:/path/to.sock:/uri, not "/x"`,
		"table: ab":                           `:4: table: must be the name of a DynamoDB table: 3 to 255 of A-Z a-z 0-9 _ . -, not "ab"`,
		"table: ''":                           ":4: table: is required (such as `table: s3-pull-deploy`)",
		"site: promo":                         ":4: site: is set a second time, first in line 1",
		"hooks: {user: a, user: b}":           ":4: hooks.user: is set a second time, first in line 4",
		"prefix: apps":                        ":4: prefix: must end with a slash, not \"apps\" (write `apps/`; the scope is bucket/prefix+site)",
		"prefix: /apps/":                      ":4: prefix: must not begin with a slash, not \"/apps/\" (write `apps/`)",
		"prefix: a/../b/":                     `:4: prefix: has a part "..", not "a/../b/"`,
		"group: Web":                          `:4: group: must be 1 to 63 of a-z 0-9 - and begin with a letter or digit, not "Web"`,
		"active: a/b":                         `:4: active: must be one name without slashes, not "a/b"`,
		"active: ..":                          `:4: active: must be one name without slashes, not ".."`,
		"active: previous":                    `:4: active: must not be the name of the link to the previous release, not "previous"`,
		"state_dir: ~/x":                      `:4: state_dir: must be a path, ~ is not expanded, not "~/x" (write the whole path)`,
		"state_dir: /var/www/promo/x":         `:4: state_dir: must not be root, nor lie in it, not "/var/www/promo/x"`,
		"state_dir: ../../..":                 `:4: state_dir: must be a directory below /, not "../../.."`,
		"layout: pakced":                      ":4: layout: must be packed or plain, not \"pakced\" (did you mean `packed`?)",
		"secrets: off":                        `:4: secrets: must be refuse, warn or allow, not "off"`,
		"opcache: {url: /x}":                  `:4: opcache.url: must be http:// with a host, or unix:/path/to.sock:/uri, not "/x"`,
		"opcache: {url: [http://a, ftp://b]}": `:4: opcache.url[1]: must be http:// with a host, or unix:/path/to.sock:/uri, not "ftp://b"`,
		"rollout: {max_excluded: 110%}":       `:4: rollout.max_excluded: must be at most 100%, not "110%"`,
		"rollout: {max_excluded: many}":       `:4: rollout.max_excluded: must be a count such as "3" or a percentage such as "10%", not "many"`,
		"rollout: {waves: [0]}":               `:4: rollout.waves[0]: must be a share above zero such as "1", "25%" or "cron:100%", not "0"`,
		"listen: 9180":                        ":4: listen: must be host:port, not \"9180\" (such as `127.0.0.1:9180`; without a host only this machine is served, `0.0.0.0:9180` is everybody)",
		"notify: {sns_error: x}":              `:4: notify.sns_error: must be the ARN of an SNS topic, not "x"`,
		"writable: [var]":                     ": web_user: is required with writable (the user that PHP runs as, such as www-data)",
		"web_user: w\nwritable: [/var]":       `:5: writable[0]: must be a clean path inside the release: must not be absolute, not "/var"`,
		"web_user: w\nwritable: [a, a/b]":     `:5: writable[1]: must not overlap with writable[0], not "a/b"`,
		"shared: {a: b}":                      `:4: shared.a: must have an absolute, clean target, not "b"`,
		"shared: {../a: /b}":                  `:4: shared.../a: must be a clean path inside the release: has a part "..", not "../a"`,
		"shared: {a/b: /x, a: /y}":            `:4: shared.a/b: must not overlap with shared.a, not "a/b"`,
		"shared: {a: /x}\nstamp: a/_c.php":    `:5: stamp: must not overlap with shared.a, not "a/_c.php"`,
		"region: ${NOPE}":                     ":4: region: environment variable NOPE is not set",
		"region: ${NOPE":                      ":4: region: must name a variable as ${NAME}; a dollar is $$",
		"region: &x a":                        ":4: region: must not use YAML anchors or aliases",
		"ignore: &x [a]\nwritable: *x":        ":4: ignore: must not use YAML anchors or aliases",
		"region: !!binary aGk=":               ":4: region: must be a single value",
		"<<: {region: x}":                     ":4: must have plain keys",
		"verify_keys: [a]":                    ":4: verify_keys[0]: must be a public key as push -keygen prints it (it looks like promo-ci+1d6a0f9c+AZ…; the one of signing_key is printed by push -keygen)",
		"verify_keys: [PRIVATE+KEY+ci+1d6a0f9c+AZhunter2]": ":4: verify_keys[0]: is a private key, which must stay with who signs (it looks like promo-ci+1d6a0f9c+AZ…; the one of signing_key is printed by push -keygen)",
		"layout: plain\nsigning_key: hunter2":              ":5: signing_key: needs layout packed: no signature covers the files of a plain release",
		"notify: {webhook: hunter2}":                       ":4: notify.webhook: must be an http:// or https:// URL",
		"endpoints: {s3: \"ftp://u:hunter2@h\"}":           `:4: endpoints.s3: must be an http:// or https:// URL, not "ftp://u:xxxxx@h"`,
		"a: b: c":                                          ":4: is not YAML: mapping values are not allowed in this context",
		"---\nsite: x":                                     ":4: must be one YAML document, a second one begins here",
	} {
		_, err := parse(minimal + text + "\n")
		if err == nil {
			t.Errorf("%q accepted", text)
			continue
		}
		first, _, _ := strings.Cut(err.Error(), "\n")
		if first != file+want {
			t.Errorf("%q:\n got %s\nwant %s", text, err, file+want)
		}
		if strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%q: a secret in %v", text, err)
		}
	}
}

func TestRequiredAndWholeFileErrors(t *testing.T) {
	for text, want := range map[string]string{
		"": file + ": site: is required (such as `site: promo-production`)\n" +
			file + ": bucket: is required (such as `bucket: my-deploy-bucket`)\n" +
			file + ": root: is required (such as `root: /var/www/promo.example.com`)",
		"site: promo\nbucket: my-bucket\nroot: /":    file + `:3: root: must be a directory below /, not "/"`,
		"site: Promo\nbucket: a\nroot: /x":           file + `:1: site: must be 1 to 63 of a-z 0-9 - and begin with a letter or digit, not "Promo"` + "\n" + file + `:2: bucket: must be the name of a bucket: 3 to 63 letters, digits, dots and dashes, not "a"`,
		"- a":                                        file + ":1: must be a mapping of keys to values",
		"# nothing\n" + strings.Repeat(" ", MaxFile): file + ": is larger than 1048576 bytes",
	} {
		_, err := parse(text)
		if err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%.40q:\n got %v\nwant %s", text, err, want)
		}
	}
}

func TestAllErrorsOfAFileAreReportedInItsOrder(t *testing.T) {
	_, err := parse("site: promo\nbucket: x\nkeep_for: 1\nnope: 1\npoll_interval: 1h\n")
	var lines []string
	for l := range strings.SplitSeq(err.Error(), "\n") {
		path := strings.Split(strings.TrimPrefix(l, file), ": ")
		lines = append(lines, path[0]+" "+path[1])
	}
	if got := strings.Join(lines, ", "); got != ":2 bucket, :3 keep_for, :4 nope, :5 poll_interval,  root" {
		t.Errorf("reported %s", got)
	}
	var e *Error
	if !errors.As(err, &e) || e.Path != "bucket" || e.Line != 2 || e.Value != "x" || e.File != file {
		t.Errorf("first is %+v", e)
	}
}

func TestAFileOfNonsenseIsNotReportedToItsEnd(t *testing.T) {
	var text strings.Builder
	for i := range 5_000 {
		fmt.Fprintf(&text, "k%d: 1\n", i)
	}
	_, err := parse(text.String())
	if n := strings.Count(err.Error(), "unknown key"); n == 0 || n > maxProblems {
		t.Errorf("%d errors", n)
	}
}

func TestSecretsAreNeverPrinted(t *testing.T) {
	c := mustParse(t, minimal+`notify: {webhook: "https://hooks.example.com/hunter2"}`)
	var logged strings.Builder
	log := slog.New(slog.NewTextHandler(&logged, nil))
	log.Info("x", "secret", c.Notify.Webhook, "notify", c.Notify, "config", *c)
	asJSON, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	asYAML, err := yaml.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{"slog": logged.String(), "json": string(asJSON), "yaml": string(asYAML), "show": string(c.YAML())}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%d", "%x", "%T %v"} {
		out[verb] = fmt.Sprintf(verb, c.Notify.Webhook) + fmt.Sprintf(verb, *c) + fmt.Sprintf(verb, c.Notify)
	}
	for how, text := range out {
		if strings.Contains(text, "hunter2") || strings.Contains(text, fmt.Sprintf("%x", "hunter2")) {
			t.Errorf("%s shows the secret", how)
		}
	}
	if !strings.Contains(string(c.YAML()), "webhook: <secret>") || !strings.Contains(string(asJSON), "secret") {
		t.Errorf("nothing in its place:\n%s\n%s", c.YAML(), asJSON)
	}
	if c.Notify.Webhook.Reveal() != "https://hooks.example.com/hunter2" {
		t.Error("not even Reveal shows it")
	}
	if s := fmt.Sprint(Secret("")); s != "" {
		t.Errorf("an empty secret prints as %q", s)
	}
}

func FuzzParse(f *testing.F) {
	f.Add(minimal)
	f.Add(minimal + "opcache: {url: [http://a/, 'unix:/b:/c']}\nhooks: {after_sync: ${X}}\nignore: [a, '$$']\nshared: {a: /b}\n")
	f.Add("&a [*a]")
	f.Add("a: &a {b: *a}\n---\n...")
	f.Add("? {a: b}\n: c\n<<: [x]\n!!binary x: 1")
	f.Fuzz(func(t *testing.T, text string) {
		c, err := parse(text)
		if err != nil {
			var e *Error
			if !errors.As(err, &e) || e.Rule == "" {
				t.Fatalf("%q: %#v", text, err)
			}
			return
		}
		if c.Notify.Webhook != "" {
			return // prints as <secret>, which is no URL
		}
		back, err := parse(string(c.YAML()))
		if err != nil || fmt.Sprint(*back) != fmt.Sprint(*c) {
			t.Fatalf("%q: %v\n%s", text, err, c.YAML())
		}
	})
}
