package php

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"syscall"
)

// The cures. A route fails for few reasons; a message that does not say which one costs hours.
const (
	cureRefused  = "start the web server, and give the route a server block at this address: share/nginx/local.conf"
	cureSite     = "start the web server, or correct health_check.url"
	cureSocket   = "no such socket: check the path, and that the web server listens on it"
	cureDenied   = "let the agent's user write to the socket: its mode, its group, SELinux"
	cureTimeout  = "PHP is busy or hangs: look at the pool's slow log and at pm.max_children, or raise the timeout"
	cureBlock    = "another virtual host answers: give the route a server block of its own, or set opcache.host"
	cureNotFound = "no probe at this path: check the path of opcache.url and the location in share/nginx/local.conf"
	cureScript   = "php-fpm cannot open the probe: SCRIPT_FILENAME must name probe.php as the pool's user sees it " +
		"(chroot, open_basedir, PrivateTmp, permissions)"
	cureForbidden = "the web server or the pool refuses: check allow and deny, and security.limit_extensions"
	cureGateway   = "the web server does not reach php-fpm: is it running, is fastcgi_pass its socket, may nginx open it?"
	cureFatal     = "look at the pool's error log"
	cureSource    = "the location does not pass the request to PHP: fastcgi_pass is missing"
	cureCut       = "look at the logs of the web server and of php-fpm: the worker died or its answer was not buffered"
	cureVersion   = "the probe and the agent are of different packages: install the same version of both"
	cureRestrict  = "set opcache.restrict_api to /usr/share/s3-pull-deploy/ or to nothing, and take opcache_* out of disable_functions"
	cureReset     = "look at the pool's error log, or restart php-fpm"
)

// explain is why there was no answer; refused is the cure when nobody listens. A cancelled context stays
// what it is.
func (r *route) explain(err error, refused string) error {
	var outer *url.Error
	if errors.As(err, &outer) {
		err = outer.Err // its text repeats the URL
	}
	if errors.Is(err, context.Canceled) {
		return fmt.Errorf("%s: %w", r.name, err)
	}
	e := &RouteError{URL: r.name, Cause: err.Error(), Err: err}
	switch {
	case timedOut(err):
		e.Cause, e.Cure = "no answer in time", cureTimeout
	case errors.Is(err, syscall.ECONNREFUSED):
		e.Cause, e.Cure = "connection refused", refused
	case errors.Is(err, fs.ErrNotExist):
		e.Cure = cureSocket
	case errors.Is(err, fs.ErrPermission):
		e.Cure = cureDenied
	default:
		e.Cure = cureCut
	}
	return e
}

func timedOut(err error) bool {
	var e net.Error
	return errors.As(err, &e) && e.Timeout()
}

// reply is the probe's whole answer.
type reply struct {
	Probe    string `json:"probe"`
	Protocol int    `json:"protocol"`
	Action   string `json:"action"`
	Reset    bool   `json:"reset"`
	Folder   string `json:"folder"` // the release's folder; empty: the pool sees none
	// Of compile: how many files of the list were dealt with, and which of these, as numbers in the list, PHP cannot compile
	// and opcache does not keep. Missing and Linked are such numbers of cached and linked.
	Done    int   `json:"done"`
	Broken  []int `json:"broken"`
	Unkept  []int `json:"unkept"`
	Missing []int `json:"missing"`
	Linked  []int `json:"linked"`
	// Of share/release.php: whether it is the release that was asked about, and whether the root came without a link.
	Is       bool `json:"is"`
	Resolved bool `json:"resolved"`
	Status
}

// protocol is the one that share/probe.php of this version speaks.
const protocol = 2

// parse makes an answer a reply, or says what it is instead.
func (r *route) parse(a answer, action string) (*reply, error) {
	e := &RouteError{URL: r.name}
	if e.Cause, e.Cure = foreign(a); e.Cause != "" {
		return nil, e
	}
	var got reply
	if err := json.Unmarshal(a.body, &got); err != nil {
		e.Cause, e.Cure, e.Err = "the answer is no JSON of the probe: "+err.Error(), cureVersion, err
		return nil, e
	}
	switch {
	case got.Probe != "s3-pull-deploy":
		e.Cause, e.Cure = fmt.Sprintf("something else answers: %q", excerpt(a.body)), cureBlock
	case got.Protocol != protocol || got.Action != action:
		e.Cause = fmt.Sprintf("the probe speaks protocol %d and did %q", got.Protocol, got.Action)
		e.Cure = cureVersion
	case action == "reset" && got.Restricted:
		e.Cause, e.Cure = "PHP's settings forbid the probe to reset opcache", cureRestrict
	case action == "reset" && got.Enabled && !got.Reset && !got.Restarting:
		e.Cause, e.Cure = "PHP refused to reset opcache", cureReset
	default:
		return &got, nil
	}
	return nil, e
}

// foreign says what an answer is that cannot be the probe's; an empty cause: it may be.
func foreign(a answer) (cause, cure string) {
	body := bytes.TrimSpace(a.body)
	script := bytes.HasPrefix(body, []byte("File not found.")) || bytes.Contains(body, []byte("Primary script unknown"))
	switch {
	case a.status >= 300 && a.status < 400:
		return fmt.Sprintf("%d redirect to %q", a.status, a.header.Get("Location")), cureBlock
	case script:
		return "php-fpm says that there is no such script (Primary script unknown)", cureScript
	case a.status == http.StatusNotFound:
		return "404 not found", cureNotFound
	case a.status == http.StatusForbidden || a.status == http.StatusUnauthorized:
		return status(a), cureForbidden
	case a.status == http.StatusGatewayTimeout:
		return status(a), cureTimeout
	case a.status == http.StatusBadGateway || a.status == http.StatusServiceUnavailable:
		return status(a), cureGateway
	case a.status >= 500:
		return status(a), cureFatal
	case a.status != http.StatusOK:
		return status(a), cureBlock
	case bytes.HasPrefix(body, []byte("<?")):
		return "PHP source instead of its output", cureSource
	case a.tooLarge:
		return fmt.Sprintf("the answer is over %d bytes: %q", answerSize, excerpt(a.body)), cureBlock
	case timedOut(a.bodyErr):
		return "no whole answer in time", cureTimeout
	case a.bodyErr != nil || len(body) == 0 || body[0] == '{' && incomplete(body):
		return fmt.Sprintf("the answer is cut short after %d bytes", len(a.body)), cureCut
	case body[0] != '{':
		return fmt.Sprintf("something else answers: %q", excerpt(a.body)), cureBlock
	}
	return "", ""
}

func status(a answer) string {
	return fmt.Sprintf("%d %s: %q", a.status, http.StatusText(a.status), excerpt(a.body))
}

// incomplete says whether JSON ends too early, which is another thing than being wrong.
func incomplete(body []byte) bool {
	var v any
	var syntax *json.SyntaxError
	err := json.Unmarshal(body, &v)
	return errors.As(err, &syntax) && syntax.Offset >= int64(len(body)) && err.Error() == "unexpected end of JSON input"
}
