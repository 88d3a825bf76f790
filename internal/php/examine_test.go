package php_test

import (
	"path/filepath"
	"strings"
	"testing"
	"time"

	"s3pulldeploy/internal/php"
	"s3pulldeploy/internal/testenv"
	"s3pulldeploy/internal/testenv/parts"
)

// worst are the findings that are not OK, a line each.
func worst(all []php.Finding) string {
	var lines []string
	for _, f := range all {
		if f.Verdict != php.OK {
			lines = append(lines, string(f.Verdict)+" "+f.What+" ("+f.Cure+")")
		}
	}
	return strings.Join(lines, "\n")
}

// preload are lines of php.ini; ROOT is the site's.
var preload = []string{"opcache.preload=ROOT/active/preload.php", "opcache.preload_user=root"}

func TestExaminationFindsWhatWillNotWork(t *testing.T) {
	for name, c := range map[string]struct {
		o      parts.WebOptions
		change func(s *php.Setup)
		want   []string // in the findings that are not OK; none: all is OK
	}{
		"all as packaged":     {},
		"before a release":    {change: func(s *php.Setup) { s.Live = "" }},
		"no route":            {change: func(s *php.Setup) { s.Opcache.URLs = nil }, want: []string{"warn opcache: no route to PHP"}},
		"no health check":     {change: func(s *php.Setup) { s.Site.URL = "" }, want: []string{"warn web server: there is no health_check.url"}},
		"nobody at the route": {change: func(s *php.Setup) { s.Opcache.URLs = []string{"unix:/no/such.sock:/x"} }, want: []string{"fail opcache route unix:/no/such.sock:/x", "no such socket"}},
		"the link is passed on": {
			o: parts.WebOptions{Edit: unresolved}, want: []string{"fail web server: it hands PHP the link", "index.php", "$realpath_root"},
		},
		"the link is passed on, and there is no page to say so": {
			o:    parts.WebOptions{Edit: func(name, text string) string { return withoutPage(name, unresolved(name, text)) }},
			want: []string{"fail web server: it hands PHP the link instead of where it leads (index.php)"},
		},
		"no page": {o: parts.WebOptions{Edit: withoutPage}, want: []string{"warn web server: the site has no page /_deploy/release"}},
		"the route of another site": {
			o: parts.WebOptions{Edit: func(_, text string) string {
				return strings.Replace(text, "fastcgi_param DEPLOY_ROOT $document_root;", "fastcgi_param DEPLOY_ROOT /var/www/html;", 1)
			}},
			want: []string{"fail opcache route", "and live is " + first, "<root>/active"},
		},
		"opcache is off":  {o: parts.WebOptions{Ini: []string{"opcache.enable=0"}}, want: []string{"fail opcache of", "opcache.enable=1"}},
		"it is forbidden": {o: parts.WebOptions{Ini: []string{"opcache.restrict_api=/nowhere"}}, want: []string{"fail opcache of", "opcache.restrict_api"}},
		"settings of a usual php.ini": {
			o:    parts.WebOptions{Ini: []string{"opcache.validate_timestamps=1", "opcache.file_update_protection=2", "opcache.use_cwd=0"}},
			want: []string{"warn opcache of", "validate_timestamps is 1", "file_update_protection is 2", "fail opcache of", "use_cwd is 0"},
		},
		"a cache on the disk": {o: parts.WebOptions{FileCache: t.TempDir()}},
		"a cache on the disk that is not there, and outlives what changes": {
			o:    parts.WebOptions{Ini: []string{"opcache.file_cache=/nowhere", "opcache.validate_timestamps=0"}},
			want: []string{"warn opcache of", "PHP does not use /nowhere", "opcache.file_cache without opcache.validate_timestamps"},
		},
		"a cache on the disk that nothing is removed from": {
			o:      parts.WebOptions{FileCache: t.TempDir()},
			change: func(s *php.Setup) { s.Opcache.Mode = php.ModeReset },
			want:   []string{"warn opcache of", "opcache.file_cache grows for ever"},
		},
		"preloaded code that nobody reloads": {
			o: parts.WebOptions{Ini: preload}, want: []string{"warn opcache of", "opcache.preload keeps code of the release that was live", "php-fpm's unit in `restart`"},
		},
		"preloaded code that is reloaded": {o: parts.WebOptions{Ini: preload}, change: func(s *php.Setup) { s.Reload = true }},
		"two releases do not fit":         {o: parts.WebOptions{Ini: small}, want: []string{"warn opcache of", "two releases do not fit", "opcache.memory_consumption"}},
		"everybody reaches the probe": {
			o: parts.WebOptions{Edit: func(_, text string) string {
				return strings.NewReplacer("listen 127.0.0.1:", "listen 0.0.0.0:", "allow 127.0.0.1;", "allow all;").Replace(text)
			}},
			want: []string{"fail probe: whoever reaches this machine can empty opcache: http://127.0.0.2:", "/_deploy/opcache", "127.0.0.1 or a socket only"},
		},
		"the probe listens to all, and lets nobody in": {
			o: parts.WebOptions{Edit: func(_, text string) string { return strings.ReplaceAll(text, "listen 127.0.0.1:", "listen 0.0.0.0:") }},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			root := site(t)
			release(t, root, first, 300)
			flip(t, root, "active", first)
			write(t, root+"/"+first+"/preload.php", "<?php function preloaded() {}")
			c.o.Root = root
			c.o.Ini = strings.Split(strings.ReplaceAll(strings.Join(c.o.Ini, "\n"), "ROOT", root), "\n")
			server := testenv.PHPWith(t, c.o)
			s := php.Setup{
				Opcache: php.Options{Mode: "warm", URLs: []string{server.LocalURL}, Timeout: 30 * time.Second},
				Site:    php.Site{URL: server.URL + "/", Timeout: 30 * time.Second}, Root: root, Live: first,
				Addresses: []string{"127.0.0.2"}, // what listens to all answers there, and sees us come from there
			}
			if c.change != nil {
				c.change(&s)
			}
			got := worst(php.Examine(t.Context(), s))
			if len(c.want) == 0 && got != "" {
				t.Errorf("found:\n%s", got)
			}
			for _, want := range c.want {
				if !strings.Contains(got, want) {
					t.Errorf("no %q in:\n%s", want, got)
				}
			}
		})
	}
}

func TestExaminationChangesNothing(t *testing.T) {
	root := site(t)
	flip(t, root, "active", first)
	server := testenv.PHP(t, root)
	get(t, server.URL+"/")
	cache := php.New(php.Options{URLs: []string{server.LocalURL}})
	before := one(t)(cache.Status(t.Context()))
	php.Examine(t.Context(), php.Setup{
		Opcache: php.Options{Mode: "warm", URLs: []string{server.LocalURL}}, Site: php.Site{URL: server.URL + "/"}, Root: root, Live: first,
	})
	after := one(t)(cache.Status(t.Context()))
	if after.LastRestart != before.LastRestart || after.Scripts > before.Scripts+1 || after.Base != filepath.Clean(root) { // release.php
		t.Errorf("before %+v\nafter %+v", before, after)
	}
}
