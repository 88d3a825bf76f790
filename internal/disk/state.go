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
	reserveSize = 64 << 10 // bytes; several state files and a link, whatever the block size
	stateFormat = "s3-pull-deploy state 1 sha256 %x\n"
)

var stateName = regexp.MustCompile(`^[a-z][a-z0-9-]*$`)

// Save replaces the state file name (lower-case letters, digits, dashes) by v as JSON, atomically and
// durably: when it returns nil, v survives power loss; else the old content stands. On a full disk it
// gives back the reserve and tries once more.
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

func (d *Disk) replaceState(file string, data []byte) error {
	d.stateMu.Lock()
	defer d.stateMu.Unlock()
	err := d.writeState(file, data)
	if errors.Is(err, ErrNoSpace) && d.state.Remove(reserveName) == nil {
		err = d.writeState(file, data)
	}
	if err != nil {
		return fmt.Errorf("save state %q: %w", d.statePath(file), err)
	}
	if err := d.keepReserve(); err != nil {
		d.log.Warn("reserve not kept", "path", d.statePath(reserveName), "error", err)
	}
	return nil
}

// writeState does the durable steps; after an error the file has its old content.
func (d *Disk) writeState(file string, data []byte) error {
	temp := tempPrefix + file
	err := d.writeNew(temp, append(fmt.Appendf(nil, stateFormat, sha256.Sum256(data)), data...))
	if err == nil {
		err = blame(d.state.Rename(temp, file))
	}
	if err != nil {
		if gone := d.state.Remove(temp); gone != nil && !errors.Is(gone, fs.ErrNotExist) {
			err = errors.Join(err, gone)
		}
		return err
	}
	return d.syncDir(d.stateDir)
}

// writeNew makes a durable file of the state directory.
func (d *Disk) writeNew(name string, data []byte) error {
	f, err := d.state.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return blame(err)
	}
	_, err = f.Write(data)
	if err == nil {
		if err = d.fsync(f); err != nil {
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

// keepReserve makes the reserve if it is not there. It is written out, for a hole would reserve nothing.
func (d *Disk) keepReserve() error {
	f, err := d.state.OpenFile(reserveName, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err != nil {
		return blame(err)
	}
	_, err = f.Write(make([]byte, reserveSize))
	if err = errors.Join(err, f.Close()); err != nil {
		err = errors.Join(err, d.state.Remove(reserveName))
	}
	return blame(err)
}
