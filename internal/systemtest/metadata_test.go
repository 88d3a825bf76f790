//go:build system

package systemtest

import (
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
)

// metadataIP is where EC2's metadata service is.
const metadataIP = "169.254.169.254"

// keepFromMetadata loads the rule of docs/security.md in a machine that has a metadata service for as long as this takes: root and
// the agent's own user go on reaching it, the web user does not any more.
func (w *world) keepFromMetadata(m *machine) {
	stub := httptest.NewServer(http.NotFoundHandler()) // an answer is all that is asked for
	defer stub.Close()
	w.net.ip("-n", w.net.name, "address", "add", metadataIP+"/32", "dev", "br0")
	defer w.net.ip("-n", w.net.name, "address", "delete", metadataIP+"/32", "dev", "br0")
	w.net.pass(metadataIP+":80", "tcp", strings.TrimPrefix(stub.URL, "http://"))
	w.net.ip("-n", m.netns, "route", "add", metadataIP+"/32", "dev", "host0")
	defer w.net.ip("-n", m.netns, "route", "delete", metadataIP+"/32")

	reaches := func(user string) bool {
		out, err := m.try("timeout 20 setpriv --reuid=" + user + " --clear-groups bash -c '" +
			"exec 3<>/dev/tcp/" + metadataIP + "/80 && printf \"GET / HTTP/1.0\\r\\n\\r\\n\" >&3 && cat <&3'")
		if err == nil && !strings.HasPrefix(out, "HTTP/1.0 404") {
			w.t.Fatalf("%s as %s got %q", m.name, user, out)
		}
		return err == nil
	}
	if !reaches("www-data") {
		w.t.Fatalf("%s: without the rule the web user cannot reach the metadata service either", m.name)
	}
	page, err := os.ReadFile(filepath.Join(w.root, "docs/security.md"))
	check(w.t, err)
	_, rule, ok := strings.Cut(string(page), "```\n# /etc/nftables.d/imds.nft")
	rule, _, closed := strings.Cut(rule, "\n```")
	if !ok || !closed {
		w.t.Fatal("docs/security.md has no rule for nftables")
	}
	m.write("/etc/imds.nft", "#"+rule+"\n")
	m.sh("nft -f /etc/imds.nft")
	for user, want := range map[string]bool{"root": true, "s3-pull-deploy": true, "www-data": false} {
		if got := reaches(user); got != want {
			w.t.Errorf("with the rule %s reaches the metadata service: %v, want %v", user, got, want)
		}
	}
}
