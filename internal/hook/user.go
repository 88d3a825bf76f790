package hook

import (
	"fmt"
	"os"
	"os/user"
	"strconv"
	"syscall"
)

// account is whom a command runs as.
type account struct {
	name, home string
	credential *syscall.Credential // nil: the agent's own
}

// lookup finds a user by name or number; "" is the agent's own.
func lookup(name string) (account, error) {
	uid := strconv.Itoa(os.Geteuid())
	if name == "" {
		u, err := user.LookupId(uid)
		if err != nil { // a number without a name, as in containers
			return account{name: uid, home: "/"}, nil
		}
		return account{name: u.Username, home: u.HomeDir}, nil
	}
	u, err := user.Lookup(name)
	if err != nil {
		if u, err = user.LookupId(name); err != nil {
			return account{}, fmt.Errorf("run as %s: no such user", name)
		}
	}
	a := account{name: u.Username, home: u.HomeDir}
	if u.Uid == uid {
		return a, nil
	}
	if a.credential, err = credential(u); err != nil {
		return account{}, fmt.Errorf("run as %s: %w", name, err)
	}
	return a, nil
}

// credential is the user with the primary and all supplementary groups.
func credential(u *user.User) (*syscall.Credential, error) {
	uid, err := number(u.Uid)
	if err != nil {
		return nil, err
	}
	gid, err := number(u.Gid)
	if err != nil {
		return nil, err
	}
	names, err := u.GroupIds()
	if err != nil {
		return nil, fmt.Errorf("list groups: %w", err)
	}
	c := &syscall.Credential{Uid: uid, Gid: gid}
	for _, n := range names {
		id, err := number(n)
		if err != nil {
			return nil, err
		}
		c.Groups = append(c.Groups, id)
	}
	return c, nil
}

func number(id string) (uint32, error) {
	n, err := strconv.ParseUint(id, 10, 32)
	if err != nil {
		return 0, fmt.Errorf("read id %q: %w", id, err)
	}
	return uint32(n), nil
}

// environment is all that a command gets besides Spec.Env. The language is the agent's, because
// /etc/passwd has none.
func (a account) environment() []string {
	lang := os.Getenv("LANG")
	if lang == "" {
		lang = "C.UTF-8"
	}
	return []string{
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"HOME=" + a.home, "USER=" + a.name, "LOGNAME=" + a.name, "LANG=" + lang,
	}
}
