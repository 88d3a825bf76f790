package disk

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// User is a numeric owner of files.
type User struct{ UID, GID int }

// LookupUser turns "user", "user:group" (names or numbers) or "" (the process's own) into a User. A user
// alone brings its primary group; a number that no account has brings the group of the same number.
func LookupUser(spec string) (User, error) {
	if spec == "" {
		return User{UID: os.Geteuid(), GID: os.Getegid()}, nil
	}
	name, group, grouped := strings.Cut(spec, ":")
	var u User
	account, err := user.Lookup(name)
	if err != nil {
		account, err = user.LookupId(name)
	}
	if err == nil {
		u.UID, _ = strconv.Atoi(account.Uid)
		u.GID, _ = strconv.Atoi(account.Gid)
	} else if u.UID, err = parseID(name); err != nil {
		return User{}, fmt.Errorf("user %q: no such user", name)
	} else {
		u.GID = u.UID
	}
	if !grouped {
		return u, nil
	}
	if g, err := user.LookupGroup(group); err == nil {
		u.GID, _ = strconv.Atoi(g.Gid)
	} else if u.GID, err = parseID(group); err != nil {
		return User{}, fmt.Errorf("user %q: no such group %q", spec, group)
	}
	return u, nil
}

// parseID reads a numeric user or group; the highest number means "leave it" to chown and is refused.
func parseID(s string) (int, error) {
	n, err := strconv.ParseUint(s, 10, 32)
	if err == nil && n >= 1<<32-1 {
		err = strconv.ErrRange
	}
	return int(n), err
}

func self() User { return User{UID: os.Geteuid(), GID: os.Getegid()} }

func ownedBy(info fs.FileInfo, u User) bool {
	st := stat(info)
	return int(st.Uid) == u.UID && int(st.Gid) == u.GID
}

// own gives a new file or directory its owner and mode, through its descriptor and whatever the umask.
func own(f *os.File, u User, mode fs.FileMode) error {
	if info, err := f.Stat(); err != nil || !ownedBy(info, u) {
		if err := errors.Join(err, f.Chown(u.UID, u.GID)); err != nil {
			return err
		}
	}
	return f.Chmod(mode)
}

// makeDir makes one directory of mode 0755.
func makeDir(in *os.Root, name string, owner User) error {
	if err := in.Mkdir(name, 0o700); err != nil {
		return blame(err)
	}
	f, err := in.OpenFile(name, os.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return blame(err)
	}
	defer f.Close()
	made, err := f.Stat()
	if err != nil {
		return blame(err)
	}
	if there, err := in.Lstat(name); err != nil || !os.SameFile(made, there) {
		return fmt.Errorf("%q: replaced as it was made: %w", f.Name(), ErrDamaged)
	}
	return blame(own(f, owner, 0o755))
}
