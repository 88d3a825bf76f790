package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// keygen makes a pair of keys and returns the private one's file and the line that verifies it.
func (s *site) keygen(name string) (file, public string) {
	s.t.Helper()
	file = filepath.Join(s.dir, name)
	r := s.push("-keygen="+file, "-json")
	var made struct {
		VerifyKey string `json:"verify_key"`
	}
	if err := json.Unmarshal([]byte(r.stdout), &made); r.code != 0 || err != nil {
		s.t.Fatalf("push -keygen: %v: %s", err, r)
	}
	return file + ".key", made.VerifyKey
}

// signs has the site's pushes sign with a key; an empty one for none.
func (s *site) signs(file string, more ...string) {
	s.t.Helper()
	s.write("push.yml", s.settings(s.world.s3.Endpoint, s.world.dynamodb)+fmt.Sprintf("signing_key: %q\n", file)+strings.Join(more, "\n"))
}

// verifies is the line of an agent's settings.
func verifies(keys ...string) string {
	list, _ := json.Marshal(keys)
	return "verify_keys: " + string(list)
}

// refused wants an agent that serves on, and says why to who asks it and to who asks the fleet.
func (s *site) refused(a *agent, release, says string) {
	s.t.Helper()
	s.await(joinTime, "agent -status says "+says, func() string { return a.saying("serving "+release, "pointer: ", says) })
	s.await(joinTime, "push -status says "+says, func() string {
		if m := s.status().member(a.id); !strings.Contains(m.Reason, says) || m.Release != release {
			return fmt.Sprintf("%+v", m)
		}
		return ""
	})
	if on := a.active(); on != release {
		s.t.Errorf("%s is on %s, want %s", a.id, on, release)
	}
}

// signedReleases: T1, T2, T3. With keys nothing but what they signed goes live, on instances that run and on one that is born
// later; what was live stays; a key is replaced without a gap.
func signedReleases(t *testing.T, w *world) {
	s := newSite(t, w)
	first, firstKey := s.keygen("promo-ci")
	evil, _ := s.keygen("evil")
	next, nextKey := s.keygen("promo-next")
	fleet := []*agent{s.startAgent("i-0", verifies(firstKey)), s.startAgent("i-1", verifies(firstKey))}
	s.awaitPhase(joinTime, "serve", fleet...)
	s.signs(first, verifies(firstKey))
	one := s.live(2, files("one"))
	replay := s.object("latest-deploy")
	two := s.live(2, files("two"))
	current := s.object("latest-deploy")
	name := strings.Join(strings.SplitN(firstKey, "+", 3)[:2], "+")

	// Whoever can write to the bucket pushes as they like.
	s.signs("")
	for what, push := range map[string][]string{
		"unsigned":           {"-layout=packed", "is not signed, where a signature by " + name + " is needed"},
		"plain and unsigned": {"-layout=plain", "is not signed, where a signature by " + name + " is needed"},
	} {
		s.tree(files(what))
		if r := s.push("-deploy="+s.app, push[0], "-wait=false", "-force"); r.code != 0 {
			t.Fatalf("%s: %s", what, r)
		}
		for _, a := range fleet {
			s.refused(a, two.Release, push[1])
		}
	}
	s.signs(evil)
	s.tree(files("evil"))
	if r := s.push("-deploy="+s.app, "-timeout=2s"); r.code != 4 { // it hangs, and says of what
		t.Errorf("a push with a key that nobody knows: %s", r)
	}
	for _, a := range fleet {
		s.refused(a, two.Release, `is signed by "evil"+`)
		serving(t, a, "two")
	}
	if r := s.push("-status"); !strings.Contains(r.stdout, `is signed by "evil"+`) || !strings.Contains(r.stdout, name) {
		t.Errorf("push -status does not say what is wrong: %s", r)
	}

	// An older pointer, rightly signed, comes again: to the fleet, and to an instance that has never seen another.
	s.put("latest-deploy", replay)
	late := s.startAgent("late", verifies(firstKey))
	s.awaitLive(joinTime, two.Release, append(fleet, late)...)
	for _, a := range append(fleet, late) {
		s.refused(a, two.Release, "older than")
	}
	fleet = append(fleet, late)
	s.put("latest-deploy", current)
	s.await(joinTime, "nothing is wrong any more", func() string {
		for _, a := range fleet {
			if v := a.view(); len(v.Problems) > 0 {
				return fmt.Sprint(v.Problems)
			}
		}
		return ""
	})

	// Another environment's pointer, signed by the same key.
	other := newSite(t, w)
	key, err := os.ReadFile(first)
	check(t, err)
	check(t, os.WriteFile(filepath.Join(other.dir, "promo-ci.key"), key, 0o600))
	other.signs("promo-ci.key")
	if o, r := other.deploy(0, files("staging")); o.Outcome != "published" {
		t.Fatal(r)
	}
	s.put("latest-deploy", other.object("latest-deploy"))
	s.refused(fleet[0], two.Release, "is of scope "+fmt.Sprintf("%q", other.bucket+"/"+other.name))
	s.put("latest-deploy", current)

	// A rotation: instances learn the new key, then pushes use it, then instances forget the old one.
	for _, keys := range [][]string{{firstKey, nextKey}, {nextKey}} {
		for _, a := range fleet {
			lives := a.logged("msg=ready")
			a.extra = []string{verifies(keys...)}
			a.configure()
			s.await(joinTime, "the settings are in force on "+a.id, func() string { return missing(a.logged("msg=ready"), lives+1) })
		}
		s.signs(next, verifies(keys...))
		s.live(3, files(fmt.Sprintf("%d keys", len(keys))))
	}
	if o, r := s.rollOut(0, "-rollback"); o.Outcome != "done" {
		t.Fatalf("a rollback is signed too: %s", r)
	}
	// The old key's releases cannot be signed anew by mistake.
	if r := s.push("-rollback="+one.Release, "-timeout=30s"); r.code != 1 || !strings.Contains(r.stderr, "is signed by") {
		t.Errorf("a rollback to what only a key has signed that is not trusted any more: %s", r)
	}
}
