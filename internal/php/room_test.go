package php_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	"s3pulldeploy/internal/php"
)

// fullPool is a probe whose opcache is full until it is emptied, or, when stuck, for ever. It keeps the one file of a release.
func fullPool(t *testing.T, stuck bool) (url string, compiled *atomic.Int64) {
	compiled = new(atomic.Int64)
	var emptied atomic.Bool
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		action := r.PostFormValue("action")
		switch {
		case action == "reset" && stuck:
			w.WriteHeader(http.StatusInternalServerError)
			return
		case action == "reset":
			emptied.Store(true)
		case action == "compile":
			compiled.Add(1)
		}
		fmt.Fprintf(w, `{"probe":"s3-pull-deploy","protocol":2,"action":%q,"folder":"/f","enabled":true,"reset":true,"full":%t,"free_memory":99000000,"max_keys":9999,"missing":[0],"done":1}`,
			action, !emptied.Load())
	}))
	t.Cleanup(s.Close)
	return s.URL, compiled
}

func TestPoolThatWasEmptiedIsWarmedThoughAnotherWasNot(t *testing.T) {
	dir := release(t, t.TempDir(), "2026-11-20_21-00-00", 0)
	stuck, _ := fullPool(t, true)
	well, compiled := fullPool(t, false)
	made, err := php.New(php.Options{URLs: []string{stuck, well}}).MakeRoom(t.Context(), dir, quiet)
	if err == nil || !strings.Contains(err.Error(), stuck) || strings.Contains(err.Error(), well) {
		t.Errorf("error is %v", err)
	}
	if len(made) != 1 || made[0].URL != well || made[0].Cached != 1 || made[0].Cold != "" || compiled.Load() != 1 {
		t.Errorf("made %+v, compiled %d times", made, compiled.Load())
	}
}
