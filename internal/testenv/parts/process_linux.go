package parts

import "syscall"

// attributes give a process a group of its own, and the signal death when the thread that started it dies.
func attributes(death syscall.Signal) *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: death}
}
