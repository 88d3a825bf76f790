package testenv

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"
)

// Denied returns the address of an S3 and a DynamoDB that refuse every request for want of a permission, and sets the environment
// like [S3].
func Denied(t testing.TB) string {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("X-Amz-Target") != "" {
			w.Header().Set("Content-Type", "application/x-amz-json-1.0")
			w.WriteHeader(http.StatusBadRequest)
			fmt.Fprint(w, `{"__type": "com.amazon.coral.service#AccessDeniedException", "Message": "not authorized"}`)
			return
		}
		w.Header().Set("Content-Type", "application/xml")
		w.WriteHeader(http.StatusForbidden)
		fmt.Fprint(w, `<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>`)
	}))
	t.Cleanup(server.Close)
	setenv(t)
	return server.URL
}
