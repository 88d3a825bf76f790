package push

import (
	"time"

	"github.com/schollz/progressbar/v3"

	"s3pulldeploy/internal/store"
)

// How often an upload is shown: on a terminal, and as lines in a log.
const (
	drawEvery = 100 * time.Millisecond
	sayEvery  = 10 * time.Second
)

// progress shows how many of total bytes went out, until the returned function is called: a bar with the rate on a
// terminal, a line now and then elsewhere. Repeated requests send bytes again; the bar stays below the total then.
func (s *session) progress(total int64, counts func() store.Counts) (stop func()) {
	base := counts().Sent
	every, show := sayEvery, func(sent int64) { s.say("%s of %s", amount(sent), amount(total)) }
	finish := func() {}
	if s.bar {
		bar := progressbar.NewOptions64(max(total, 1), progressbar.OptionSetWriter(s.stderr), progressbar.OptionShowBytes(true),
			progressbar.OptionShowCount(), progressbar.OptionSetPredictTime(true), progressbar.OptionClearOnFinish(), progressbar.OptionSetWidth(30))
		every, show = drawEvery, func(sent int64) { _ = bar.Set64(sent) } // a terminal that is gone stops no push
		finish = func() { _ = bar.Clear() }
	}
	quit, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(every)
		defer tick.Stop()
		for {
			select {
			case <-quit:
				return
			case <-tick.C:
				show(min(counts().Sent-base, max(total-1, 0)))
			}
		}
	}()
	return func() {
		close(quit)
		<-done
		finish()
	}
}
