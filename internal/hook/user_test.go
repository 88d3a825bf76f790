package hook

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"strings"
	"testing"

	"s3pulldeploy/internal/testenv"
)

// tryUser makes the test binary, started as another user, run a hook as the user that it names.
const tryUser = "HOOK_TEST_TRY_USER"

func TestMain(m *testing.M) {
	if name := os.Getenv(tryUser); name != "" {
		_, err := Run(context.Background(), Spec{Name: "x", User: name, Command: "true"})
		fmt.Printf("%t %v\n", errors.Is(err, ErrPrivilege), err)
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func TestCommandRunsAsTheUserWithItsGroupsAndHome(t *testing.T) {
	needRoot(t)
	u, err := user.Lookup("nobody")
	if err != nil {
		testenv.LeaveOut(t, "no user nobody on this machine")
	}
	r, err := Run(t.Context(), Spec{Name: "x", User: "nobody", Command: "id -u; id -g; echo $USER; echo $HOME; id -G"})
	if err != nil {
		t.Fatal(err)
	}
	got := strings.Split(strings.TrimSpace(r.Tail), "\n")
	if want := []string{u.Uid, u.Gid, "nobody", u.HomeDir}; strings.Join(got[:4], " ") != strings.Join(want, " ") {
		t.Errorf("ran as %q, want %q", got[:4], want)
	}
	ids, err := u.GroupIds()
	if err != nil {
		t.Fatal(err)
	}
	if len(strings.Fields(got[4])) != len(ids) {
		t.Errorf("groups are %s, want %v: nothing of root's", got[4], ids)
	}
}

func TestOwnUserByNameNeedsNoPrivilege(t *testing.T) {
	u, err := user.Current()
	if err != nil {
		testenv.LeaveOut(t, "nameless user")
	}
	a, err := lookup(u.Username)
	if err != nil || a.credential != nil {
		t.Errorf("got %+v, %v; want no change of user", a, err)
	}
}

func TestMissingPrivilegeIsAClearError(t *testing.T) {
	needRoot(t)
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "hook") // t.TempDir is closed to other users
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	copied := filepath.Join(dir, "hook.test")
	if err := errors.Join(os.Chmod(dir, 0o755), os.WriteFile(copied, self, 0o755)); err != nil {
		t.Fatal(err)
	}
	r, err := Run(t.Context(), Spec{Name: "outer", User: "nobody", Command: copied, Env: []string{tryUser + "=root"}})
	if err != nil {
		t.Fatal(err)
	}
	want := "true hook x: run as root: the agent may not change to this user: it needs root or CAP_SETUID and CAP_SETGID\n"
	if r.Tail != want {
		t.Errorf("got %q, want %q", r.Tail, want)
	}
}

func needRoot(t *testing.T) {
	t.Helper()
	testenv.Root(t, "changing the user")
}
