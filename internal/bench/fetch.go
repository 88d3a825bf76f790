package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strconv"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"s3pulldeploy/internal/account"
	"s3pulldeploy/internal/agent"
	"s3pulldeploy/internal/config"
	"s3pulldeploy/internal/disk"
	"s3pulldeploy/internal/store"
)

// fetched is what one fetch says of itself. Time and processor are from before the pointer is read until the release is durable under
// its name; the daemon's start is not in it, nor the flip, which waits for the fleet, nor clean-up.
type fetched struct {
	Release string        `json:"release"`
	Took    time.Duration `json:"took"`
	CPU     time.Duration `json:"cpu"`
	RSS     int64         `json:"rss"` // bytes, at most so far
}

// runFetch is the process that stands for the agent: the agent's own steps, alone. It looks at the pointer as often as it is told
// to, and prints a line for each.
func runFetch(ctx context.Context, args []string, stdout io.Writer) error {
	var path string
	var times int
	var unsynced bool
	set := flag.NewFlagSet("fetch", flag.ContinueOnError)
	set.StringVar(&path, "config", "", "settings")
	set.IntVar(&times, "times", 1, "looks at the pointer")
	set.BoolVar(&unsynced, "unsynced", false, "nothing waits for the disk")
	if err := set.Parse(args); err != nil {
		return err
	}
	if unsynced {
		if err := forbidSync(); err != nil {
			return err
		}
	}
	agent.BoundMemory()
	c, err := config.Load(path, config.ForAgent)
	if err != nil {
		return err
	}
	aws, err := account.Load(ctx, account.Options{Region: c.Region, OwnEndpoints: true})
	if err != nil {
		return err
	}
	d, err := disk.Open(disk.Options{Root: c.Root, Active: c.Active, StateDir: c.StateDir})
	if err != nil {
		return err
	}
	defer d.Close()
	machine := agent.NewAlone(agent.Parts{
		Config: c, Disk: d, Log: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn})),
		Bucket: store.New(store.Options{Config: aws, Endpoint: c.Endpoints.S3, Bucket: c.Bucket, Prefix: c.Prefix, Site: c.Site}),
	})
	for range times {
		began, before := time.Now(), processor()
		id, err := machine.Fetch(ctx)
		if err != nil {
			return err
		}
		took := fetched{string(id), time.Since(began), processor() - before, resident()}
		if err := json.NewEncoder(stdout).Encode(took); err != nil {
			return err
		}
		if id == "" {
			continue
		}
		if err := machine.Live(id); err != nil {
			return err
		}
	}
	return nil
}

// processor is the processor time of this process so far.
func processor() time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// resident is the most memory that this process had, of its own: what wait4(2) tells counts from the moment before exec, when the memory was
// still the parent's.
func resident() int64 {
	kilobytes, _, _ := strings.Cut(field("/proc/self/status", "VmHWM", ":"), " ")
	n, _ := strconv.ParseInt(kilobytes, 10, 64)
	return n << 10
}

// forbidSync makes every call that waits for the disk return at once, as if it had worked: the same code then shows what its promise to
// survive a power cut costs.
func forbidSync() error {
	const allow, pretend = unix.SECCOMP_RET_ALLOW, unix.SECCOMP_RET_ERRNO        // with the number 0: no error
	filter := []unix.SockFilter{{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS}} // the call's number
	for _, call := range []uint32{unix.SYS_SYNCFS, unix.SYS_FSYNC, unix.SYS_FDATASYNC, unix.SYS_SYNC_FILE_RANGE} {
		filter = append(filter,
			unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: call, Jf: 1},
			unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: pretend})
	}
	filter = append(filter, unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: allow})
	if err := filterCalls(filter); err != nil {
		return fmt.Errorf("filter system calls: %w", err)
	}
	return nil
}

// filterCalls puts a filter over all threads of this process, for ever.
func filterCalls(filter []unix.SockFilter) error {
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	_, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&program)))
	if errno != 0 {
		return errno
	}
	return nil
}
