//go:build system

package systemtest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"

	"s3pulldeploy/internal/testenv"
)

// The packages' versions: the fleet begins with the first and is upgraded to the second, which is one between two tags.
const (
	oldVersion = "1.0.1"
	newVersion = "1.0.2+3.g0badcafe"
)

// dist is where the packages of this run are; in .tools, since root owns them.
const dist = "../../.tools/system-test"

func TestMain(m *testing.M) { testenv.Main(m) }

// built makes the packages of both versions as `make package` does, once.
var built = sync.OnceValue(func() error {
	if err := os.RemoveAll(dist); err != nil {
		return err
	}
	for _, version := range []string{oldVersion, newVersion} {
		cmd := exec.Command("make", "--silent", "--directory=../..", "package", "DIST="+filepath.Join(".tools/system-test", version),
			"VERSION="+version, "PACKAGE_VERSION="+version, "PACKAGE_ARCHS="+runtime.GOARCH)
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("make package: %w\n%s", err, out)
		}
	}
	return nil
})

// packageFile is the package of a version, kind "deb" or "rpm".
func packageFile(t *testing.T, kind, version string) string {
	t.Helper()
	check(t, built())
	found, err := filepath.Glob(filepath.Join(dist, version, "*."+kind))
	check(t, err)
	if len(found) != 1 {
		t.Fatalf("make package made these of %s %s: %q", kind, version, found)
	}
	path, err := filepath.Abs(found[0])
	check(t, err)
	return path
}

// TestPackerTakesWhatMakePackageMakes: `packer build` in the folder where `make package` was run finds both packages, by their version alone.
func TestPackerTakesWhatMakePackageMakes(t *testing.T) {
	root := require(t)
	if _, err := exec.LookPath("packer"); err != nil {
		testenv.LeaveOut(t, fmt.Sprintf("the image template: %v", err))
	}
	dir := t.TempDir()
	check(t, os.Symlink(filepath.Dir(packageFile(t, "deb", newVersion)), filepath.Join(dir, "dist")))
	cmd := exec.Command("packer", "validate", "-var=site=promo", "-var=package_version="+newVersion,
		"-var=architecture="+map[string]string{"amd64": "x86_64", "arm64": "arm64"}[runtime.GOARCH], filepath.Join(root, "packer"))
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("packer validate: %v\n%s", err, out)
	}
}

// TestPackageComesAndGoesInATreeThatIsNotBooted is what happens while an image is baked.
func TestPackageComesAndGoesInATreeThatIsNotBooted(t *testing.T) {
	root := require(t)
	if _, err := exec.LookPath("rpm"); err != nil {
		testenv.LeaveOut(t, fmt.Sprintf("the .rpm: %v", err))
	}
	for kind, verbs := range map[string]struct{ install, upgrade, remove []string }{
		"deb": {[]string{"dpkg", "--install"}, []string{"dpkg", "--install"}, []string{"dpkg", "--remove", "s3-pull-deploy"}},
		"rpm": {[]string{"--install"}, []string{"--upgrade"}, []string{"--erase", "s3-pull-deploy"}},
	} {
		t.Run(kind, func(t *testing.T) {
			tree := overlay(t, t.TempDir(), baseTree(t, root))
			apply := func(verb []string, version string) {
				t.Helper()
				if kind == "rpm" { // from outside: Debian's tree has no rpm
					args := append([]string{"--root=" + tree, "--nodeps"}, verb...)
					if version != "" {
						args = append(args, packageFile(t, kind, version))
					}
					run(t, "rpm", args...)
					return
				}
				if version != "" {
					file := packageFile(t, kind, version)
					check(t, os.MkdirAll(filepath.Join(tree, "opt"), 0o755))
					run(t, "cp", file, filepath.Join(tree, "opt"))
					verb = append(verb[:len(verb):len(verb)], "/opt/"+filepath.Base(file))
				}
				inTree(t, tree, nil, nil, verb...)
			}
			exists := func(path string) bool { _, err := os.Lstat(filepath.Join(tree, path)); return err == nil }
			version := func() string { return run(t, "chroot", tree, "s3-pull-deploy-agent", "-version") }

			apply(verbs.install, oldVersion)
			for _, path := range []string{
				"usr/bin/s3-pull-deploy-push", "usr/bin/s3-pull-deploy-agent", "usr/share/s3-pull-deploy/probe.php",
				"usr/share/s3-pull-deploy/nginx/site.conf", "usr/share/s3-pull-deploy/apache/site.conf", "usr/share/s3-pull-deploy/config.sample.yml",
				"usr/lib/systemd/system/s3-pull-deploy-agent@.service", "usr/lib/systemd/system/s3-pull-deploy-gate@.service",
				"usr/lib/s3-pull-deploy/await-release", "etc/s3-pull-deploy",
			} {
				if !exists(path) {
					t.Errorf("%s is not installed", path)
				}
			}
			for page, says := range map[string]string{
				"man8/s3-pull-deploy-agent.8": "the daemon", "man1/s3-pull-deploy-push.1": "\\-deploy=DIR", "man5/s3-pull-deploy.yml.5": "pointer_interval",
			} {
				if text := run(t, "zcat", filepath.Join(tree, "usr/share/man", page+".gz")); !strings.HasPrefix(text, ".TH ") || !strings.Contains(text, says) {
					t.Errorf("%s does not say %q:\n%.300s", page, says, text)
				}
			}
			if exists("usr/bin/agent") || exists("usr/bin/push") {
				t.Error("a command has a generic name")
			}
			if !strings.Contains(version(), oldVersion) {
				t.Errorf("version %s", version())
			}
			run(t, "chroot", tree, "id", "s3-pull-deploy")
			if wants, _ := filepath.Glob(filepath.Join(tree, "etc/systemd/system/*/s3-pull-deploy*")); len(wants) > 0 {
				t.Errorf("installing enabled %q", wants)
			}

			run(t, "systemctl", "--root="+tree, "enable", "s3-pull-deploy-agent@promo", "s3-pull-deploy-gate@promo")
			const release = "var/www/promo/2026-11-20_20-15-02"
			check(t, errors.Join(
				os.MkdirAll(filepath.Join(tree, release), 0o755),
				os.MkdirAll(filepath.Join(tree, "var/lib/s3-pull-deploy/promo"), 0o700),
				os.WriteFile(filepath.Join(tree, "etc/s3-pull-deploy/promo.yml"), []byte("site: promo\n"), 0o644),
			))
			apply(verbs.upgrade, newVersion)
			if !strings.Contains(version(), newVersion) {
				t.Errorf("version after the upgrade: %s", version())
			}
			enabled := "etc/systemd/system/multi-user.target.wants/s3-pull-deploy-agent@promo.service"
			if !exists(enabled) {
				t.Error("the upgrade disabled the agent")
			}

			apply(verbs.remove, "")
			if exists("usr/bin/s3-pull-deploy-agent") || exists(enabled) {
				t.Error("removing left the command, or the agent enabled")
			}
			for _, path := range []string{release, "var/lib/s3-pull-deploy/promo", "etc/s3-pull-deploy/promo.yml"} {
				if !exists(path) {
					t.Errorf("removing took %s", path)
				}
			}
		})
	}
}
