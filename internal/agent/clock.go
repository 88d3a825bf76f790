package agent

import (
	"crypto/rand"
	"encoding/hex"
	mathrand "math/rand/v2"
	"time"

	"golang.org/x/sys/unix"
)

// bootClock is the machine's clock: CLOCK_BOOTTIME goes on in suspend and never jumps.
type bootClock struct{}

func (bootClock) Boot() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		panic("clock_gettime(CLOCK_BOOTTIME): " + err.Error()) // Linux has had it since 2.6.39
	}
	return time.Duration(ts.Nano())
}

func (bootClock) Now() time.Time { return time.Now() }

// token is 16 random bytes in hex: an incarnation, or the mark of one write.
func token() string {
	b := make([]byte, 16)
	_, _ = rand.Read(b) // never fails
	return hex.EncodeToString(b)
}

func random() float64 { return mathrand.Float64() }
