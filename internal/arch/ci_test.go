package arch

import (
	"bufio"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const root = "../.."

// A package of a candidate is upgraded by the release, and that by what is built after it.
func TestPackagesOfACandidateSortBeforeTheRelease(t *testing.T) {
	makefile, err := filepath.Abs(filepath.Join(root, "Makefile"))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	run := func(name string, args ...string) string {
		t.Helper()
		cmd := exec.Command(name, args...)
		cmd.Dir = dir
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%s %q: %v: %s", name, args, err, out)
		}
		return strings.TrimSpace(string(out))
	}
	commit := func() {
		run("git", "-c", "user.name=x", "-c", "user.email=x@example.com", "commit", "-q", "--allow-empty", "-m", "x")
	}
	version := func() string {
		return run("make", "--silent", "--file="+makefile, "--eval=version: ; @echo $(PACKAGE_VERSION)", "version")
	}
	run("git", "init", "-q")
	commit()
	versions := []string{version()}
	for _, tag := range []string{"v1.2.0-rc.1", "v1.2.0-rc.2", "v1.2.0"} {
		commit()
		run("git", "-c", "tag.gpgSign=false", "tag", tag)
		versions = append(versions, version())
	}
	commit()
	versions = append(versions, version())
	for i := 1; i < len(versions); i++ {
		run("dpkg", "--compare-versions", versions[i-1], "lt", versions[i])
	}
	if versions[1] != "1.2.0~rc.1" || versions[3] != "1.2.0" {
		t.Errorf("versions are %q", versions)
	}
}

// A shell script that shellcheck does not read is one that nobody reads.
func TestLintReadsEveryShellScript(t *testing.T) {
	out, err := exec.Command("make", "--silent", "--directory="+root, "--eval=scripts: ; @echo $(SCRIPTS)", "scripts").CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	read := strings.Fields(string(out))
	err = filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, _ := filepath.Rel(root, path)
		switch {
		case e.IsDir() && (name == ".git" || name == ".tools" || name == ".bench" || name == "dist"):
			return fs.SkipDir
		case e.Type().IsRegular() && isShell(t, path) && !slices.Contains(read, name):
			t.Errorf("%s is not among what lint reads: %q", name, read)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func isShell(t *testing.T, path string) bool {
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	line, _ := bufio.NewReader(f).ReadString('\n')
	return strings.HasPrefix(line, "#!/") && strings.HasSuffix(strings.TrimSpace(line), "sh")
}

// What CI leaves out it says at its end; where Terraform can be run it leaves nothing out.
func TestCISkipsTerraformOnlyWhereThereIsNone(t *testing.T) {
	plugins, err := filepath.Glob("/opt/*/*/hashicorp/aws")
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		commands []string
		required bool
	}{
		"with Terraform":    {[]string{"make", "terraform"}, true},
		"without Terraform": {[]string{"make"}, len(plugins) > 0},
	} {
		t.Run(name, func(t *testing.T) {
			bin := t.TempDir()
			for _, command := range []string{"bash", "cat", "dirname"} {
				path, err := exec.LookPath(command)
				if err != nil {
					t.Fatal(err)
				}
				if err := os.Symlink(path, filepath.Join(bin, command)); err != nil {
					t.Fatal(err)
				}
			}
			for _, command := range c.commands {
				script := "#!/bin/sh\necho \"$1 $S3PULLDEPLOY_REQUIRE_TERRAFORM.\"\n"
				if err := os.WriteFile(filepath.Join(bin, command), []byte(script), 0o755); err != nil {
					t.Fatal(err)
				}
			}
			cmd := exec.Command(filepath.Join(root, ".ci/run"))
			cmd.Env = []string{"PATH=" + bin}
			out, err := cmd.CombinedOutput()
			if err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			for _, target := range []string{"lint", "test", "test-system"} {
				if got := strings.Contains(string(out), target+" 1."); got != c.required {
					t.Errorf("make %s may not skip Terraform: %v, want %v\n%s", target, got, c.required, out)
				}
			}
			if says := strings.Contains(string(out), "NOT CHECKED"); says == c.required {
				t.Errorf("says that something was not checked: %v\n%s", says, out)
			}
		})
	}
}
