package parts

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// MariaDB is a running database server of one's own. It listens on a unix socket only, and whoever reaches that is its
// user root, without a password.
type MariaDB struct {
	*Process
	Socket string
}

// StartMariaDB starts a database server that keeps its data, its log and its socket in dir (a short path), and waits until it
// listens. It loses data in a crash: nothing is synced.
func StartMariaDB(ctx context.Context, dir string) (*MariaDB, error) {
	install, err := exec.LookPath("mariadb-install-db")
	if err != nil {
		return nil, fmt.Errorf("start mariadbd: mariadb-install-db: %w", ErrMissing)
	}
	server, err := program("/usr/sbin/mariadbd")
	if err != nil {
		return nil, fmt.Errorf("start mariadbd: %w", err)
	}
	data := filepath.Join(dir, "mariadb")
	if err := os.MkdirAll(data, 0o700); err != nil {
		return nil, fmt.Errorf("start mariadbd: %w", err)
	}
	as := "--user=" + user()
	log := filepath.Join(dir, "mariadb.log")
	p, err := Start(Command{Name: "mariadb-install-db", Path: install, Log: log, Args: []string{
		"--no-defaults", "--datadir=" + data, as, "--auth-root-authentication-method=normal", "--skip-test-db",
	}})
	if err != nil {
		return nil, err
	}
	if err := p.Err(); err != nil {
		return nil, fmt.Errorf("mariadb-install-db: %w: %s", err, p.Tail())
	}
	m := &MariaDB{Socket: filepath.Join(dir, "mariadb.sock")}
	m.Process, err = Start(Command{Name: "mariadbd", Path: server, Log: log, Args: []string{
		"--no-defaults", "--datadir=" + data, as, "--socket=" + m.Socket, "--skip-networking", "--pid-file=" + filepath.Join(data, "pid"),
		"--innodb-flush-log-at-trx-commit=0", "--innodb-buffer-pool-size=64M", "--skip-log-bin",
	}})
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, startTime, fmt.Errorf("no answer for %v", startTime))
	defer cancel()
	if err := m.Await(ctx, func(ctx context.Context) error { return listens(ctx, "unix", m.Socket) }); err != nil {
		m.Kill()
		return nil, err
	}
	return m, nil
}

// Create creates an empty database; it may exist.
func (m *MariaDB) Create(name string) error {
	client, err := exec.LookPath("mariadb")
	if err != nil {
		return fmt.Errorf("create database %s: mariadb: %w", name, ErrMissing)
	}
	out, err := exec.Command(client, "--no-defaults", "--socket="+m.Socket, "--user=root", "-e", "CREATE DATABASE IF NOT EXISTS "+name).CombinedOutput()
	if err != nil {
		return fmt.Errorf("create database %s: %w: %s", name, err, out)
	}
	return nil
}

// user is our own name, as a daemon takes it.
func user() string {
	if os.Geteuid() == 0 {
		return "root"
	}
	return os.Getenv("USER")
}
