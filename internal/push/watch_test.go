package push

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"s3pulldeploy/internal/testenv"
)

// paper is an output that is read while it is written.
type paper struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (p *paper) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.text.Write(b)
}

func (p *paper) String() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.text.String()
}

// await waits until the paper has a text.
func (p *paper) await(t *testing.T, text string) {
	t.Helper()
	for began := time.Now(); !strings.Contains(p.String(), text); time.Sleep(20 * time.Millisecond) {
		if time.Since(began) > time.Minute {
			t.Fatalf("no %q in\n%s", text, p)
		}
	}
}

func TestWatchSaysWhatChangesAndEndsWellWhenInterrupted(t *testing.T) {
	s3, dynamo := testenv.S3(t), testenv.DynamoDB(t)
	dir := t.TempDir()
	settings := fmt.Sprintf("site: shop\nbucket: %s\ntable: %s\nendpoints: {s3: %q, dynamodb: %q}\nregion: us-east-1\n", s3.NewBucket(t), testenv.Name(t), s3.Endpoint, dynamo)
	file, app := filepath.Join(dir, "config.yml"), filepath.Join(dir, "app")
	if err := errors.Join(os.Mkdir(app, 0o755), os.WriteFile(filepath.Join(app, "x"), nil, 0o644), os.WriteFile(file, []byte(settings), 0o644)); err != nil {
		t.Fatal(err)
	}
	call := func(ctx context.Context, out *paper, args ...string) int {
		return Main(ctx, append([]string{"-config=" + file}, args...), strings.NewReader(""), out, out)
	}
	testenv.Patiently(t, func() error {
		var said paper
		if code := call(t.Context(), &said, "-init"); code != exitDone {
			return errors.New(said.String())
		}
		return nil
	})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	lines, objects, codes := &paper{}, &paper{}, make(chan int, 2)
	go func() { codes <- call(ctx, lines, "-status", "-watch") }()
	go func() { codes <- call(ctx, objects, "-status", "-watch", "-json") }()
	lines.await(t, "nothing was pushed yet\n")
	objects.await(t, `"line":"nothing was pushed yet"`)
	if code := call(t.Context(), &paper{}, "-deploy="+app, "-wait=false"); code != exitDone {
		t.Fatalf("-deploy: exit code %d", code)
	}
	objects.await(t, `"pointer":{"release":`)
	lines.await(t, "20") // the time, or the release
	cancel()
	for range 2 {
		if code := <-codes; code != exitDone {
			t.Errorf("interrupted: exit code %d", code)
		}
	}
	if n := strings.Count(lines.String(), "nothing was pushed yet"); n != 1 || strings.Contains(lines.String(), "\x1b") {
		t.Errorf("the first line was said %d times:\n%q", n, lines)
	}
	for line := range strings.Lines(objects.String()) {
		var st Status
		if err := json.Unmarshal([]byte(line), &st); err != nil || st.Site != "shop" {
			t.Errorf("%v: %s", err, line)
		}
	}
}
