//go:build !failpoints

package failpoint

// Hit is called before a step. It returns the error that the step shall fail with: here, always nil.
func Hit(string) error { return nil }

// Landed is called when a step's write has landed at a server, before its answer is looked at.
func Landed(string) {}
