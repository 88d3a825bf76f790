package php

import (
	"errors"
	"net/http"
	"strings"
	"testing"
)

// FuzzAnswer: what answers on the route may be anything. It is the probe's reply to this very question, or an error that says on one
// line what it is and what to do; and no number of it breaks what is worked out from it.
func FuzzAnswer(f *testing.F) {
	const good = `{"probe":"s3-pull-deploy","protocol":2,"action":"status","enabled":true,"root":"/srv/promo/2026-11-20_20-15-02","free_memory":1,"settings":{"enable":true}}`
	f.Add(200, []byte(good), "status")
	f.Add(200, []byte(strings.Replace(good, "status", "compile", 1)), "compile")
	f.Add(200, []byte(`{"probe":"s3-pull-deploy","protocol":2,"action":"reset","done":-1,"broken":[9],"max_keys":-9223372036854775808,"keys":1}`), "reset")
	f.Add(200, []byte(good[:40]), "status")
	f.Add(200, []byte("<?php\n"), "status")
	f.Add(404, []byte("File not found.\n"), "status")
	f.Add(302, []byte(""), "release")
	f.Add(502, []byte("<html>\x1b[2J\xff</html>"), "status")
	f.Fuzz(func(t *testing.T, code int, body []byte, action string) {
		r := &route{name: "http://127.0.0.1:8901/_deploy/opcache"}
		got, err := r.parse(answer{status: code, header: http.Header{"Location": {string(body)}}, body: body}, action)
		if err != nil {
			var e *RouteError
			if got != nil || !errors.As(err, &e) || e.Cause == "" || e.Cure == "" || strings.ContainsAny(err.Error(), "\n\r\x1b") {
				t.Fatalf("%+v, %q", got, err)
			}
			return
		}
		if code != http.StatusOK || got.Probe != "s3-pull-deploy" || got.Protocol != protocol || got.Action != action {
			t.Fatalf("%d %q is taken for %+v", code, body, got)
		}
		z := &sizes{of: map[string]size{}}
		all := []script{{"index.php", 100}}
		_ = got.closed() + z.full(got.Status) + z.lacks(got.Status, all)
		z.learn("", Status{}, got.Status, all)
		_ = z.lacks(got.Status, all)
		if silent, err := Prove([]Status{got.Status}, "2026-11-20_20-15-02"); err == nil && len(silent) == 0 && !strings.Contains(got.Root, "2026-11-20_20-15-02") {
			t.Fatalf("root %q proves the release", got.Root)
		}
	})
}
