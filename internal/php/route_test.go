package php

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const good = `{"probe":"s3-pull-deploy","protocol":2,"action":"status","release":"r1","enabled":true,"scripts":3,"new field":1}`

// answers is a web server that says one thing.
func answers(t *testing.T, status int, header map[string]string, body string) string {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		for k, v := range header {
			w.Header().Set(k, v)
		}
		w.WriteHeader(status)
		fmt.Fprint(w, body)
	}))
	t.Cleanup(s.Close)
	return s.URL + "/_deploy/opcache"
}

func TestEveryWrongAnswerNamesItsCauseAndCure(t *testing.T) {
	resetAnswer := strings.Replace(good, `"status"`, `"reset"`, 1)
	for _, c := range []struct {
		name        string
		status      int
		header      map[string]string
		body        string
		cause, cure string
	}{
		{"nothing at the path", 404, nil, "<html>nginx</html>", "404 not found", cureNotFound},
		{"fpm without the script", 404, nil, "File not found.\n", "Primary script unknown", cureScript},
		{"fpm's own words", 200, nil, "Primary script unknown", "Primary script unknown", cureScript},
		{"redirect", 301, map[string]string{"Location": "https://promo.example.com/"}, "", `301 redirect to "https://promo.example.com/"`, cureBlock},
		{"source", 200, nil, "<?php\n/* probe */", "PHP source", cureSource},
		{"refused by a rule", 403, nil, "Access denied.", "403 Forbidden", cureForbidden},
		{"no fpm", 502, nil, "<html>", "502 Bad Gateway", cureGateway},
		{"slow fpm", 504, nil, "<html>", "504 Gateway Timeout", cureTimeout},
		{"fatal error", 500, nil, "", "500 Internal Server Error", cureFatal},
		{"other success", 204, nil, "", "204 No Content", cureBlock},
		{"a page", 200, nil, "<!doctype html><title>Promo</title>", "<title>Promo</title>", cureBlock},
		{"nothing", 200, nil, "", "cut short after 0 bytes", cureCut},
		{"half JSON", 200, nil, good[:40], "cut short after 40 bytes", cureCut},
		{"broken transfer", 200, map[string]string{"Content-Length": "999"}, good, "cut short", cureCut},
		{"too much", 200, nil, `{"probe":"` + strings.Repeat("x", answerSize), "over 65536 bytes", cureBlock},
		{"other JSON", 200, nil, `{"status":"ok"}`, "something else answers", cureBlock},
		{"wrong type", 200, nil, strings.Replace(good, "3", `"3"`, 1), "no JSON of the probe", cureVersion},
		{"text after it", 200, nil, good + "\nWarning: x", "no JSON of the probe", cureVersion},
		{"newer probe", 200, nil, strings.Replace(good, ":2", ":3", 1), "protocol 3", cureVersion},
		{"other action", 200, nil, resetAnswer, `did "reset"`, cureVersion},
	} {
		t.Run(c.name, func(t *testing.T) {
			address := answers(t, c.status, c.header, c.body)
			got, err := New(Options{URLs: []string{address}}).Status(t.Context())
			var route *RouteError
			if !errors.As(err, &route) {
				t.Fatalf("got %+v, %v; want a *RouteError", got, err)
			}
			if route.URL != address || !strings.Contains(route.Cause, c.cause) || route.Cure != c.cure {
				t.Errorf("cause %q, cure %q\nwant %q, %q", route.Cause, route.Cure, c.cause, c.cure)
			}
			if text := err.Error(); !strings.Contains(text, c.cause) || !strings.Contains(text, c.cure) || strings.Contains(text, "\n") {
				t.Errorf("message is %q", text)
			}
		})
	}
}

func TestResetThatDidNotHappenIsAnError(t *testing.T) {
	say := func(fields string) string {
		return `{"probe":"s3-pull-deploy","protocol":2,"action":"reset",` + fields + `}`
	}
	for _, c := range []struct {
		name, body, cure string
	}{
		{"done", say(`"enabled":true,"reset":true`), ""},
		{"already waiting", say(`"enabled":true,"reset":false,"restarting":true`), ""},
		{"opcache is off", say(`"enabled":false,"reset":false`), ""},
		{"forbidden", say(`"enabled":false,"reset":false,"restricted":true`), cureRestrict},
		{"refused", say(`"enabled":true,"reset":false`), cureReset},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := New(Options{URLs: []string{answers(t, 200, nil, c.body)}}).Reset(t.Context())
			var route *RouteError
			switch {
			case c.cure == "" && err != nil:
				t.Error(err)
			case c.cure != "" && (!errors.As(err, &route) || route.Cure != c.cure):
				t.Errorf("error is %v, want the cure %q", err, c.cure)
			}
		})
	}
}

func TestNobodyListeningAndNoSuchSocketAreNamed(t *testing.T) {
	for address, want := range map[string]string{
		"http://127.0.0.1:1/_deploy":     cureRefused,
		"unix:/no/such.sock:/_deploy":    cureSocket,
		"unix:relative.sock:/_deploy":    malformed("").Cure,
		"unix:/no/uri.sock":              malformed("").Cure,
		"127.0.0.1:80/_deploy":           malformed("").Cure,
		"ftp://127.0.0.1/_deploy":        malformed("").Cure,
		"http://127.0.0.1:1:1/_deploy":   malformed("").Cure,
		"http://127.0.0.1/\x7f_deploy":   malformed("").Cure,
		"http:///_deploy/opcache":        malformed("").Cure,
		"unix:/no/such.sock:/\x7fdeploy": malformed("").Cure,
	} {
		_, err := New(Options{URLs: []string{address}}).Status(t.Context())
		var route *RouteError
		if !errors.As(err, &route) || route.Cure != want {
			t.Errorf("%s: error is %v, want the cure %q", address, err, want)
		}
	}
}

func TestSilentServerIsGivenUpInTime(t *testing.T) {
	for name, begin := range map[string]string{"before the answer": "", "in the middle of it": "{"} {
		t.Run(name, func(t *testing.T) {
			hang := make(chan struct{})
			s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				if begin != "" {
					fmt.Fprint(w, begin)
					w.(http.Flusher).Flush()
				}
				<-hang
			}))
			defer s.Close()
			defer close(hang)
			_, err := New(Options{URLs: []string{s.URL}, Timeout: 100 * time.Millisecond}).Reset(t.Context())
			var route *RouteError
			if !errors.As(err, &route) || route.Cure != cureTimeout {
				t.Errorf("error is %v, want the cure %q", err, cureTimeout)
			}
		})
	}
}

func TestCancellationIsNoFaultOfTheRoute(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := New(Options{URLs: []string{answers(t, 200, nil, good)}}).Status(ctx)
	var route *RouteError
	if !errors.Is(err, context.Canceled) || errors.As(err, &route) {
		t.Errorf("error is %v, want context.Canceled alone", err)
	}
}

func TestRequestIsWhatTheProbeTakes(t *testing.T) {
	var got *http.Request
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_ = r.ParseForm()
		got = r
		fmt.Fprint(w, good)
	}))
	defer s.Close()
	t.Setenv("HTTP_PROXY", "http://127.0.0.1:1") // never used for the local route
	all, err := New(Options{Mode: "warm", URLs: []string{s.URL + "/_deploy/opcache"}, Host: "promo.example.com"}).Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if got.Method != "POST" || got.Host != "promo.example.com" || got.URL.Path != "/_deploy/opcache" ||
		got.Header.Get("X-Deploy-Opcache") != "1" || got.PostForm.Get("action") != "status" {
		t.Errorf("request was %s %s%s, %v, form %v", got.Method, got.Host, got.URL, got.Header, got.PostForm)
	}
	if len(all) != 1 || all[0].Release != "r1" || all[0].Scripts != 3 || !all[0].Enabled {
		t.Errorf("answer is %+v", all)
	}
}

func TestSocketIsAskedByItsPath(t *testing.T) {
	dir, err := os.MkdirTemp("", "php") // a test's own folder has too long a name
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	socket := filepath.Join(dir, "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	s := &httptest.Server{Listener: l, Config: &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/_deploy/opcache" {
			fmt.Fprint(w, good)
		}
	})}}
	s.Start()
	defer s.Close()
	address := "unix:" + socket + ":/_deploy/opcache"
	all, err := New(Options{URLs: []string{address}}).Status(t.Context())
	if err != nil || len(all) != 1 || all[0].URL != address {
		t.Errorf("got %+v, %v", all, err)
	}
}

func TestOnePoolThatFailsDoesNotHideTheOthers(t *testing.T) {
	bad, ok := answers(t, 502, nil, ""), answers(t, 200, nil, good)
	all, err := New(Options{URLs: []string{ok, bad, ok}}).Status(t.Context())
	if len(all) != 2 || err == nil || !strings.HasPrefix(err.Error(), bad+": 502") {
		t.Errorf("got %d answers and %v, want 2 and the 502 of %s", len(all), err, bad)
	}
}

func TestOffAsksNobody(t *testing.T) {
	asked := false
	s := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { asked = true }))
	defer s.Close()
	for _, o := range []Options{{Mode: ModeOff, URLs: []string{s.URL}}, {Mode: "reset"}} {
		if all, err := New(o).Reset(t.Context()); all != nil || err != nil || asked {
			t.Errorf("%+v: got %v, %v, asked %t", o, all, err, asked)
		}
	}
}
