package php

import (
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

// No test of the package asks an address that drops packets: none may be given up for being slow.
func init() { examTime = 30 * time.Second }

func TestProbeThatIsOpenOverTLSIsFoundAtThePortOfTheSite(t *testing.T) {
	l, err := net.Listen("tcp", "0.0.0.0:0")
	if err != nil {
		t.Fatal(err)
	}
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, good) }))
	s.Listener.Close()
	s.Listener, s.TLS = l, new(tls.Config)
	s.StartTLS()
	t.Cleanup(s.Close)
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	found := Setup{Site: Site{URL: "https://127.0.0.1:" + port + "/"}, Addresses: []string{"127.0.0.2"}}.outside(t.Context())
	if len(found) != 1 || found[0].Verdict != Fail || !strings.Contains(found[0].What, "https://127.0.0.2:"+port+"/_deploy/opcache") {
		t.Errorf("found %+v", found)
	}
}
