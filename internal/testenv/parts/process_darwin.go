package parts

import "syscall"

// attributes give a process a group of its own. This kernel has no signal for what outlives a test that was killed.
func attributes(syscall.Signal) *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true}
}
