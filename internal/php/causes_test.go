package php_test

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"s3pulldeploy/internal/php"
	"s3pulldeploy/internal/testenv"
	"s3pulldeploy/internal/testenv/parts"
)

// What operators really get wrong with nginx and php-fpm, each with the real servers' own answers.
func TestRealServersFaultsNameTheirCauseAndCure(t *testing.T) {
	const listens, location = "location = /_deploy/opcache {", "location / {\n        return 404;"
	for name, c := range map[string]struct {
		old, new    string // in share/nginx/local.conf
		cause, cure string
	}{
		"another path":                {listens, "location = /elsewhere {", "404 not found", "check the path of opcache.url"},
		"another host redirects":      {location, "location / { return 404; }\n location = /_deploy/opcache { return 301 https://promo.example.com$request_uri;", `301 redirect to "https://promo.example.com/_deploy/opcache"`, "another virtual host answers"},
		"a page of another host":      {location, "location / { return 404; }\n location = /_deploy/opcache { return 200 '<title>Shop</title>';", `something else answers: "<title>Shop</title>"`, "opcache.host"},
		"no fastcgi_pass":             {location, "location / { return 404; }\n location = /_deploy/opcache { default_type text/plain; alias PROBE; error_page 405 =200 $uri;", "PHP source instead of its output", "fastcgi_pass is missing"},
		"fpm does not see the script": {"fastcgi_param DEPLOY_ROOT", "fastcgi_param SCRIPT_FILENAME /no/such/probe.php; fastcgi_param DEPLOY_ROOT", "Primary script unknown", "SCRIPT_FILENAME must name probe.php"},
		"fpm takes no such name":      {"fastcgi_param DEPLOY_ROOT", "fastcgi_param SCRIPT_FILENAME /etc/hostname; fastcgi_param DEPLOY_ROOT", "403 Forbidden", "security.limit_extensions"},
		"nobody may":                  {"allow 127.0.0.1;", "deny all;", "403 Forbidden", "allow and deny"},
		"no fpm":                      {"fastcgi_read_timeout 10m;", "fastcgi_pass unix:/no/fpm.sock; } location = /more {", "502 Bad Gateway", "does not reach php-fpm"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			root := site(t)
			flip(t, root, "active", first)
			o := parts.WebOptions{Root: root, Edit: func(file, text string) string {
				if file != "nginx/local.conf" {
					return text
				}
				_, rest, _ := strings.Cut(text, "SCRIPT_FILENAME ")
				probe, _, _ := strings.Cut(rest, ";")
				if c.old == location { // the one in the file gives way
					text = strings.Replace(text, listens, "location = /another {", 1)
				}
				if strings.Contains(c.new, "SCRIPT_FILENAME") {
					text = strings.Replace(text, "fastcgi_param SCRIPT_FILENAME "+probe+";", "", 1)
				}
				if strings.Count(text, c.old) != 1 {
					t.Errorf("%q is not there once", c.old)
				}
				return strings.Replace(text, c.old, strings.Replace(c.new, "PROBE", probe, 1), 1)
			}}
			server := testenv.PHPWith(t, o)
			_, err := php.New(php.Options{URLs: []string{server.LocalURL}, Timeout: 5 * time.Second}).Status(t.Context())
			var route *php.RouteError
			if !errors.As(err, &route) || !strings.Contains(route.Cause, c.cause) || !strings.Contains(route.Cure, c.cure) {
				t.Errorf("error is %v\nwant %q (%q)", err, c.cause, c.cure)
			}
		})
	}
}

func TestStandingPoolIsATimeout(t *testing.T) {
	root := site(t)
	flip(t, root, "active", first)
	server := testenv.PHP(t, root)
	workers := children(t, server.FPM())
	for _, pid := range workers {
		if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		defer func() { _ = syscall.Kill(pid, syscall.SIGCONT) }()
	}
	if len(workers) == 0 {
		t.Fatal("the pool has no workers")
	}
	_, err := php.New(php.Options{URLs: []string{server.LocalURL}, Timeout: 300 * time.Millisecond}).Status(t.Context())
	var route *php.RouteError
	if !errors.As(err, &route) || route.Cause != "no answer in time" || !strings.Contains(route.Cure, "pm.max_children") {
		t.Errorf("error is %v", err)
	}
}

// children are the processes that a process has started.
func children(t *testing.T, pid int) (all []int) {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, field := range strings.Fields(string(text)) {
		var child int
		if _, err := fmt.Sscan(field, &child); err != nil {
			t.Fatal(err)
		}
		all = append(all, child)
	}
	return all
}

// A connection that is lost in the middle of PHP's answer.
func TestAnswerThatBreaksOffIsCutShort(t *testing.T) {
	root := site(t)
	flip(t, root, "active", first)
	server := testenv.PHP(t, root)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go halve(c, strings.TrimSuffix(strings.TrimPrefix(server.LocalURL, "http://"), "/_deploy/opcache"))
		}
	}()
	_, err = php.New(php.Options{URLs: []string{"http://" + l.Addr().String() + "/_deploy/opcache"}, Timeout: 10 * time.Second}).Status(t.Context())
	var route *php.RouteError
	if !errors.As(err, &route) || !strings.Contains(route.Cause, "cut short after ") || !strings.Contains(route.Cure, "php-fpm") {
		t.Errorf("error is %v", err)
	}
}

// halve passes a request on, and the first 500 bytes of the answer back.
func halve(client net.Conn, to string) {
	defer client.Close()
	server, err := net.Dial("tcp", to)
	if err != nil {
		return
	}
	defer server.Close()
	request := make([]byte, 64<<10)
	for range 2 { // head and form may come one after the other
		n, err := client.Read(request)
		if err != nil {
			return
		}
		_, _ = server.Write(request[:n])
		if strings.Contains(string(request[:n]), "action=status") {
			break
		}
	}
	answer := make([]byte, 500)
	for have := 0; have < len(answer); {
		n, err := server.Read(answer[have:])
		if err != nil {
			return
		}
		have += n
	}
	_, _ = client.Write(answer)
}
