package disk

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
)

const (
	tempPrefix  = ".tmp-"
	reserveName = "reserve"
	reserveSize = 1 << 20 // bytes; xfs wants some 200 KiB free before it makes a name, ext4 and btrfs little
	stateFormat = "s3-pull-deploy state 1 sha256 %x\n"
)

var stateName = regexp.MustCompile(`^[a-z][a-z0-9-]*$`)

// Save replaces the state file name (lower-case letters, digits, dashes) by v as JSON, atomically and
// durably: when it returns nil, v survives power loss; else the old content stands. On a full disk it
// gives back some of the reserve.
func (d *Disk) Save(name string, v any) error {
	if !stateName.MatchString(name) {
		return fmt.Errorf("save state %q: not a state file's name", name)
	}
	data, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("save state %q: %w", name, err)
	}
	return d.replaceState(name+".json", data)
}

// Load reads the state file name into v. It is false when there is none; a torn or altered file is
// [ErrState], naming it, and leaves v alone.
func (d *Disk) Load(name string, v any) (bool, error) {
	data, err := d.readState(name + ".json")
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if err := json.Unmarshal(data, v); err != nil {
		return false, fmt.Errorf("load state %q: %w: %w", d.statePath(name+".json"), ErrState, err)
	}
	return true, nil
}

func (d *Disk) statePath(file string) string { return filepath.Join(d.opt.StateDir, file) }

// replaceState writes a file of the state directory whole, durably.
func (d *Disk) replaceState(file string, data []byte) error { return d.putState(file, data, d.fsync) }

// putState is replaceState with another way to make each of its steps durable.
func (d *Disk) putState(file string, data []byte, sync func(*os.File) error) error {
	d.stateMu.Lock()
	defer d.stateMu.Unlock()
	err := d.withReserve(func() error { return d.writeState(file, data, sync) })
	if err != nil {
		return fmt.Errorf("save state %q: %w", d.statePath(file), err)
	}
	if err := d.keepReserve(); err != nil {
		d.log.Warn("reserve not kept", "path", d.statePath(reserveName), "error", err)
	}
	return nil
}

// writeState does the durable steps; after an error the file has its old content.
func (d *Disk) writeState(file string, data []byte, sync func(*os.File) error) error {
	temp := tempPrefix + file
	err := d.writeNew(temp, append(fmt.Appendf(nil, stateFormat, sha256.Sum256(data)), data...), sync)
	if err == nil {
		err = blame(d.state.Rename(temp, file))
	}
	if err != nil {
		if gone := d.state.Remove(temp); gone != nil && !errors.Is(gone, fs.ErrNotExist) {
			err = errors.Join(err, gone)
		}
		return err
	}
	return wrapSync(d.stateDir, sync(d.stateDir))
}

// writeNew makes a file of the state directory, and it durable.
func (d *Disk) writeNew(name string, data []byte, sync func(*os.File) error) error {
	f, err := d.state.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return blame(err)
	}
	_, err = f.Write(data)
	if err == nil {
		if err = sync(f); err != nil {
			err = fmt.Errorf("%w: %w", ErrSync, err)
		}
	}
	return blame(errors.Join(err, f.Close()))
}

func (d *Disk) readState(file string) ([]byte, error) {
	all, err := d.state.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("load state %q: %w", d.statePath(file), blame(err))
	}
	line, data, _ := bytes.Cut(all, []byte("\n"))
	if want := fmt.Sprintf(stateFormat, sha256.Sum256(data)); string(line)+"\n" != want {
		return nil, fmt.Errorf("load state %q: %w", d.statePath(file), ErrState)
	}
	return data, nil
}

// withReserve does what must not fail for a full disk, and where it does, again with some of the reserve given back.
func (d *Disk) withReserve(do func() error) error {
	err := do()
	for errors.Is(err, ErrNoSpace) && d.shrinkReserve() {
		err = do()
	}
	return err
}

// shrinkReserve gives back half of the reserve, in the end the file itself, and says whether there was anything to give. Not all at
// once: a vote, a decision and a flip need some each, and in between others may take what is free.
func (d *Disk) shrinkReserve() bool {
	f, err := d.state.OpenFile(reserveName, os.O_WRONLY, 0)
	if err != nil {
		return false
	}
	defer f.Close()
	if info, err := f.Stat(); err == nil && info.Size() > reserveSize/4 {
		return f.Truncate(info.Size()/2) == nil
	}
	return d.state.Remove(reserveName) == nil
}

// keepReserve makes the reserve as large as there is room for. It is written out, for a hole would reserve nothing.
func (d *Disk) keepReserve() error {
	f, err := d.state.OpenFile(reserveName, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return blame(err)
	}
	info, err := f.Stat()
	if err == nil && info.Size() < reserveSize {
		_, err = f.Write(make([]byte, reserveSize-info.Size()))
	}
	return blame(errors.Join(err, f.Close()))
}
