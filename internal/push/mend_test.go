package push

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"s3pulldeploy/internal/config"
	"s3pulldeploy/internal/fleet"
	"s3pulldeploy/internal/table"
)

// A table that was lost with its head and notes, while instances serve a packed release: of the pointer, or of one before it.
func TestInitMendsALostHeadOfPackedAndSignedReleases(t *testing.T) {
	for _, signed := range []bool{false, true} {
		for _, latest := range []bool{true, false} {
			r := newPackedRig(t, map[string]string{"index.php": "1"})
			keys := r.sign(signed)
			served, _ := r.deploy()
			want := served.Sequence
			if !latest {
				r.write("index.php", "2")
				newer, _ := r.deploy()
				want = newer.Sequence - 1
			}
			c, l := r.ledger()
			if err := l.Register(t.Context(), fleet.Member{
				Instance: "i-1", Incarnation: "x", Beat: 1, Phase: fleet.Serve, Epoch: 7, Active: fleet.Active{Epoch: 7, Release: served.Release},
			}); err != nil {
				t.Fatal(err)
			}
			code, out, said := r.push(t.Context(), "-init")
			if code != exitDone || !strings.Contains(out, "epoch 8, "+string(served.Release)) {
				t.Fatalf("signed %v, latest %v: %d %s%s", signed, latest, code, out, said)
			}
			if warned := strings.Contains(said, "signed anew"); warned != (signed && !latest) {
				t.Errorf("signed %v, latest %v: it says %q", signed, latest, said)
			}
			h, _, err := l.Head(t.Context(), true)
			if err != nil || h.CommittedRelease != served.Release || h.CommittedSequence != want {
				t.Fatalf("head %+v, %v", h, err)
			}
			note, err := l.Note(t.Context(), want)
			if err != nil || note == nil || note.Pointer.Manifest == nil || note.Digest != note.Pointer.Manifest.SHA256 || note.Pointer.Files != 1 {
				t.Errorf("note %+v, %v", note, err)
			}
			if signed == c.Keyring().Empty() || signed != (keys != "") {
				t.Error("the keys are not what this is about")
			}
		}
	}
}

// ledger is the site's table, with the settings that lead to it.
func (r *packedRig) ledger() (*config.Config, *fleet.Ledger) {
	r.Helper()
	c, err := config.Load(r.config, config.ForPush)
	if err != nil {
		r.Fatal(err)
	}
	n := 0
	t := table.NewDynamo(table.Options{Config: r.aws, Endpoint: c.Endpoints.DynamoDB, Name: c.Table, Timeout: 30 * time.Second})
	l := fleet.NewLedger(t, c.Scope(), func() string { n++; return strings.Repeat("t", n) })
	l.Keys = c.Keyring()
	return c, l
}

// A table that was lost while no instance serves what it can prove to work: the pointer says what the site is to run. Without a
// pointer there is nothing to go to, and the way out is said.
func TestInitMendsALostHeadWhereNobodyServesWithThePointer(t *testing.T) {
	r := newPackedRig(t, map[string]string{"index.php": "1"})
	_, l := r.ledger()
	lose := func() {
		if err := l.Register(t.Context(), fleet.Member{
			Instance: "i-1", Incarnation: "x", Beat: 1, Phase: fleet.Out, Epoch: 7, Failed: 7, Error: "health check: got 500, want 200",
		}); err != nil {
			t.Fatal(err)
		}
	}
	lose()
	code, _, said := r.push(t.Context(), "-init")
	if _, ok, err := l.Head(t.Context(), true); code == exitDone || ok || err != nil || !strings.Contains(said, "no instance serves a release, and there is no pointer") || !strings.Contains(said, "-deploy") {
		t.Fatalf("without a pointer: %d %s, head %v, %v", code, said, ok, err)
	}
	pushed, _ := r.deploy()
	code, out, said := r.push(t.Context(), "-init")
	if code != exitDone || !strings.Contains(out, "epoch 8, "+string(pushed.Release)) || !strings.Contains(said, "no instance serves a release that works") {
		t.Fatalf("%d %s%s", code, out, said)
	}
	h, _, err := l.Head(t.Context(), true)
	if err != nil || h.Epoch != 8 || h.State != fleet.Done || h.CommittedRelease != pushed.Release || h.CommittedSequence != pushed.Sequence {
		t.Errorf("head %+v, %v", h, err)
	}
}

// sign makes the site one of signed releases, and returns its public key.
func (r *packedRig) sign(on bool) (key string) {
	r.Helper()
	if !on {
		return ""
	}
	name := filepath.Join(r.TempDir(), "promo-ci")
	code, out, said := r.push(r.Context(), "-keygen="+name)
	if code != exitDone {
		r.Fatal(said)
	}
	_, key, _ = strings.Cut(out, "verify_keys: ")
	text, err := os.ReadFile(r.config)
	if err == nil {
		err = os.WriteFile(r.config, []byte(string(text)+"signing_key: "+name+".key\nverify_keys: "+key+"\n"), 0o644)
	}
	if err != nil {
		r.Fatal(err)
	}
	return key
}
