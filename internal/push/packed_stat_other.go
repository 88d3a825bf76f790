//go:build !linux && !darwin

package push

import "io/fs"

// keyOf knows nothing of other systems, such as Windows: there every push reads every file.
func keyOf(fs.FileInfo) (statKey, bool) { return statKey{}, false }
