package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// rollout sets how pushes from here go out.
func (s *site) rollout(policy string) {
	s.t.Helper()
	s.write("push.yml", s.settings(s.world.s3.Endpoint, s.world.dynamodb)+"rollout: {"+policy+"}\n")
}

// ahead waits until a wave has taken so many to the release that is pushed, and names it and them.
func (s *site) ahead(n int, fleet []*agent, old string) (release string, them []*agent) {
	s.t.Helper()
	s.await(joinTime, fmt.Sprintf("%d ahead", n), func() string {
		st := s.status()
		if st.Head == nil || st.Head.State != "wave" {
			return fmt.Sprintf("the head is %+v", st.Head)
		}
		release, them = st.Head.Release, nil
		for _, a := range fleet {
			if a.active() == release && st.member(a.id).Release == release {
				them = append(them, a)
			} else if a.active() != old && a.active() != release {
				return a.id + " is on " + a.active()
			}
		}
		if len(them) != n {
			return fmt.Sprintf("%d are", len(them))
		}
		return ""
	})
	return release, them
}

// waves: a canary that is approved and one that is taken back, one whose check fails, and who comes up meanwhile.
func waves(t *testing.T, w *world) {
	s := newSite(t, w)
	var fleet []*agent
	for n := range 4 {
		fleet = append(fleet, s.startChecked(fmt.Sprintf("i-%d", n)))
	}
	s.awaitPhase(joinTime, "serve", fleet...)
	first := s.live(4, files("one"))
	s.rollout("waves: [1, 50%, 100%], bake: 1s, approve: true")

	s.tree(files("two"))
	pushing := in(func() result { return s.push("-deploy="+s.app, "-timeout=90s") })
	release, canary := s.ahead(1, fleet, first.Release)
	serving(t, canary[0], "two")
	s.await(joinTime, "the status to say what is waited for", func() string {
		line := s.push("-status").stdout
		if !strings.Contains(line, "wave 1 of 3: healthy, waiting for `push -approve`") || !strings.Contains(line, "WAVE") {
			return line
		}
		return ""
	})
	if r := s.push("-approve=2020-01-01_00-00-00"); r.code != 1 || !strings.Contains(r.stderr, "the rollout under way is of "+release) {
		t.Errorf("another release approved: %s", r)
	}
	late := s.startAgent("late")
	s.awaitLive(joinTime, first.Release, late)
	s.awaitPhase(joinTime, "serve", late)
	if r := s.push("-approve"); r.code != 0 || !strings.Contains(r.stdout, "approved wave 1 of 3 of "+release) {
		t.Errorf("push -approve: %s", r)
	}
	everybody := append(fleet, late)
	s.await(joinTime, "the second wave", func() string {
		n := 0
		for _, a := range everybody {
			if a.active() == release {
				n++
			}
		}
		if n < 2 || n > 3 { // half of four, or of five
			return fmt.Sprintf("%d are ahead", n)
		}
		return ""
	})
	s.await(joinTime, "the second wave to be approved", func() string {
		if r := s.push("-approve=" + release); !strings.Contains(r.stdout, "approved wave 2 of 3") {
			return r.String()
		}
		return ""
	})
	if r := pushing(); r.code != 0 || !strings.Contains(r.stdout, release+" is live") {
		t.Errorf("the approved rollout: %s", r)
	}
	s.awaitLive(joinTime, release, everybody...)

	takenBack(t, s, everybody, release)
	s.rollout("waves: [1]")
	o, r := s.deploy(3, bad("four"))
	if o.Outcome != "rolled_back" || !strings.Contains(o.Reason, "wave 1: 1 of 1 failed") || !strings.Contains(o.Reason, "500") {
		t.Errorf("a canary that fails its check: %s", r)
	}
	s.awaitLive(joinTime, release, everybody...)
	s.rollout("max_excluded: 10%")
	s.live(5, files("five"))
}

// takenBack: push -abort during a wave takes back what has flipped.
func takenBack(t *testing.T, s *site, fleet []*agent, old string) {
	t.Helper()
	s.tree(files("three"))
	pushing := in(func() result { return s.push("-deploy="+s.app, "-timeout=90s") })
	_, canary := s.ahead(1, fleet, old)
	if r := s.push("-abort"); r.code != 0 {
		t.Errorf("push -abort: %s", r)
	}
	if r := pushing(); r.code != 3 || !strings.Contains(r.stderr, "aborted by hand") {
		t.Errorf("want exit code 3 for the aborted canary: %s", r)
	}
	s.awaitLive(joinTime, old, fleet...)
	serving(t, canary[0], "two")
	if n := canary[0].logged("msg=flipped"); n < 2 {
		t.Errorf("the canary flipped %d times", n)
	}
}

// fleetOnce: the hook runs on one instance, in the new release, while the old code serves; where it fails nothing goes live.
func fleetOnce(t *testing.T, w *world) {
	s := newSite(t, w)
	ran := filepath.Join(s.dir, "ran")
	g := gate(filepath.Join(s.dir, "gate"))
	hook := fmt.Sprintf("hooks: {fleet_once: %q}", "echo $DEPLOY_INSTANCE $(cat index.php) >> "+ran+"; "+g.hook()+"; test ! -e broken")
	var fleet []*agent
	for n := range 3 {
		fleet = append(fleet, s.startAgent(fmt.Sprintf("i-%d", n), hook))
	}
	s.awaitPhase(joinTime, "serve", fleet...)
	g.open(t)
	one := s.live(3, files("one"))
	g.close(t)

	s.tree(files("two"))
	pushing := in(func() result { return s.push("-deploy="+s.app, "-timeout=90s") })
	s.await(joinTime, "the hook", g.reached)
	for _, a := range fleet {
		serving(t, a, "one")
	}
	if a := fleet[0].active(); a != one.Release {
		t.Errorf("%s is live while fleet_once runs", a)
	}
	g.open(t)
	if r := pushing(); r.code != 0 {
		t.Errorf("want it live after the hook: %s", r)
	}
	for _, a := range fleet {
		serving(t, a, "two")
	}
	text, err := os.ReadFile(ran)
	check(t, err)
	if lines := strings.Split(strings.TrimSpace(string(text)), "\n"); len(lines) != 2 || !strings.HasSuffix(lines[0], " one") || !strings.HasSuffix(lines[1], " two") {
		t.Errorf("fleet_once ran as %q, want once for each release, in it", lines)
	}
	o, r := s.deploy(3, bad("three"))
	if o.Outcome != "aborted" || !strings.Contains(o.Reason, "fleet_once") {
		t.Errorf("a failing fleet_once: %s", r)
	}
	for _, a := range fleet {
		serving(t, a, "two")
	}
}
