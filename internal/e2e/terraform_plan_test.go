package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"s3pulldeploy/internal/testenv/parts"
)

// TestTerraformPlansWhatItPromises runs the modules' own tests, which need no AWS.
func TestTerraformPlansWhatItPromises(t *testing.T) {
	plugins := terraform(t)
	w := newWorld(t)
	for module, want := range map[string]string{"store": "2 passed, 0 failed", "fleet": "2 passed, 0 failed", "examples/wordpress": "1 passed, 0 failed"} {
		t.Run(module, func(t *testing.T) {
			t.Parallel()
			dir := filepath.Join(modules(t), module)
			example := module == "examples/wordpress"
			if example {
				check(t, os.WriteFile(filepath.Join(dir, "shown.tf"), []byte(shown), 0o644))
			}
			if said := terraformIn(t, dir, plugins)("test", "-test-directory=mocked", "-no-color"); !strings.Contains(said, want) {
				t.Errorf("want %s:\n%s", want, said)
			}
			if example {
				understood(t, w, dir)
			}
		})
	}
}

// shown has the example write down what it would give to the instances.
const shown = `
resource "terraform_data" "shown" {
  provisioner "local-exec" {
    command     = "printf %s \"$USER_DATA\" >user-data"
    environment = { USER_DATA = local.user_data }
  }
}
`

// understood checks that the instances of the example get a script that the shell understands, with settings that the agent takes.
func understood(t *testing.T, w *world, dir string) {
	t.Helper()
	script, err := os.ReadFile(filepath.Join(dir, "user-data"))
	check(t, err)
	if out, err := exec.Command("sh", "-n", filepath.Join(dir, "user-data")).CombinedOutput(); err != nil {
		t.Errorf("the user data are no script: %v: %s\n%s", err, out, script)
	}
	_, settings, _ := strings.Cut(string(script), "<<'END'\n")
	settings, _, ends := strings.Cut(settings, "\nEND\n")
	s := &site{t: t, world: w, dir: dir}
	if r := s.call(w.agent, "-config="+s.write("agent.yml", settings), "-show"); !ends || r.code != 0 {
		t.Errorf("the agent does not take its settings: %s\n%s", r, script)
	}
}

// modules is a copy of the modules, where Terraform may leave things.
func modules(t *testing.T) string {
	t.Helper()
	root, err := parts.ModuleRoot()
	check(t, err)
	dir := t.TempDir()
	check(t, os.CopyFS(dir, os.DirFS(filepath.Join(root, "terraform"))))
	return dir
}
