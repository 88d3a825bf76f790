package e2e

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"s3pulldeploy/internal/testenv"
)

// TestPowerLossOfARealAgent cuts the power of a machine whose agent stands still just before a step, on a filesystem of its own, and
// boots what is left. A stranger's sync just before brings out what the filesystem's journal holds.
func TestPowerLossOfARealAgent(t *testing.T) {
	w := breakable(t)
	for _, kind := range testenv.Filesystems {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			s := newSite(t, w)
			image := testenv.NewImage(t, kind)
			a := s.newAgent("i-0", "keep_releases: 1", "keep_for: 0s")
			a.root = filepath.Join(image.Dir, "www")
			check(t, errors.Join(os.Mkdir(filepath.Join(image.Dir, "state"), 0o700), os.Symlink(filepath.Join(image.Dir, "state"), filepath.Join(a.dir, "state"))))
			a.env = append(a.env, "S3PULLDEPLOY_FAILPOINTS="+a.armed())
			a.arm("")
			a.configure()
			a.start()
			s.awaitPhase(joinTime, "serve", a)
			s.live(1, files("start"))
			was := "start"
			for _, step := range []string{"A8", "A9", "A10", "A11", "A12", "A16", "A18", "A19", "A20"} {
				a.arm(step + "=hang")
				s.tree(files(step))
				o, _ := s.rollOut(0, "-deploy="+s.app, "-wait=false")
				s.await(joinTime, step, func() string { return missing(a.fired(step), 1) })
				f, err := os.Create(filepath.Join(image.Dir, "stranger"))
				check(t, err)
				check(t, errors.Join(f.Sync(), f.Close()))
				left := image.Cut(t)
				check(t, a.Signal(syscall.SIGKILL))
				<-a.Done()
				image.Unmount(t)
				image.Boot(t, left)
				if on := a.file("index.php"); on != was && (on != step || step != "A20") {
					t.Errorf("%s: %q is live after the power loss, want %q", step, on, was)
				}
				serving(t, a, a.file("index.php"))
				a.arm("")
				a.start()
				s.awaitLive(healTime, o.Release, a)
				serving(t, a, step)
				was = step
			}
			a.end()
		})
	}
}
