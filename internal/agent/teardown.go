package agent

import (
	"errors"
	"fmt"
	"slices"
)

// teardown is a stack of named undos, drained backwards; their errors are joined by name.
type teardown struct {
	names []string
	undos []func() error
}

func (t *teardown) add(name string, undo func() error) {
	t.names, t.undos = append(t.names, name), append(t.undos, undo)
}

func (t *teardown) run() error {
	var errs []error
	for i := range slices.Backward(t.undos) {
		if err := t.undos[i](); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", t.names[i], err))
		}
	}
	t.names, t.undos = nil, nil
	return errors.Join(errs...)
}
