package capture

import "time"

// clockPaused and the two after it call Options.Clock, if there is one.
func (s *Session) clockPaused() {
	if s.o.Clock != nil {
		s.o.Clock.Paused()
	}
}

// clockResuming returns how long it took, in nanoseconds.
func (s *Session) clockResuming() int64 {
	if s.o.Clock == nil {
		return 0
	}
	start := time.Now()
	s.o.Clock.Resuming()
	return time.Since(start).Nanoseconds()
}

func (s *Session) clockResumed() {
	if s.o.Clock != nil {
		s.o.Clock.Resumed()
	}
}
