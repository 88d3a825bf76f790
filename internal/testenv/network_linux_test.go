package testenv_test

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"s3pulldeploy/internal/testenv"
)

// fetch asks a service from a host, as a new process there does.
func fetch(h *testenv.Host, service *testenv.Proxy) error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	line := append(h.Command(), "curl", "-sS", "--max-time", "1", service.URL())
	out, err := exec.CommandContext(ctx, line[0], line[1:]...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	if string(out) != "here" {
		return fmt.Errorf("it says %q", out)
	}
	return nil
}

func TestHostsOfANetworkAreCutOffOneByOne(t *testing.T) {
	n := testenv.NewNetwork(t)
	var asked atomic.Int64
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		asked.Add(1)
		fmt.Fprint(w, "here")
	}))
	defer server.Close()
	first, second := n.Service(server.URL), n.Service(server.URL)
	a, b := n.Host(), n.Host()
	reach := func(what string, h *testenv.Host, service *testenv.Proxy, want bool) {
		t.Helper()
		err := fetch(h, service)
		for end := time.Now().Add(30 * time.Second); want && err != nil && time.Now().Before(end); { // a cable that is put in takes a moment
			err = fetch(h, service)
		}
		if (err == nil) != want {
			t.Errorf("%s: reached: %v, want %v: %v", what, err == nil, want, err)
		}
	}
	reach("at first", a, first, true)

	a.Cut(first)
	reach("cut off", a, first, false)
	reach("cut off from another service", a, second, true)
	reach("another host", b, first, true)
	a.Mend(first)
	reach("mended", a, first, true)

	a.Unplug()
	reach("unplugged", a, first, false)
	reach("another host", b, second, true)
	a.Plug()
	reach("plugged", a, first, true)
	if asked.Load() == 0 {
		t.Error("nothing arrived")
	}
}

func TestANetworkShowsNothingOutside(t *testing.T) {
	links := func() string {
		out, err := exec.Command("ip", "-o", "link").CombinedOutput()
		if err != nil {
			t.Fatalf("ip link: %v: %s", err, out)
		}
		return string(out)
	}
	n := testenv.NewNetwork(t)
	n.Host()
	if text := links(); strings.Contains(text, "port1") || strings.Contains(text, "bridge:") {
		t.Errorf("this machine has links of the test's network:\n%s", text)
	}
}
