package capture

import "context"

// PassesMax is a good bound for Converge: it is only reached by a guest that
// writes less and less from pass to pass.
const PassesMax = 12

const (
	// pagesFew is a dirty set that needs no live pass: the pause copies it in
	// about a quarter of a millisecond.
	pagesFew = 512
	// recentEpochs is from how many epochs the next one is foreseen.
	recentEpochs = 2
	// pagesUnknown is what is foreseen for a guest of which nothing is known.
	pagesUnknown = 1 << 40
)

// Converge copies what the guest has written while it runs, as Live does, so
// that few pages are left for the pause of a checkpoint that is about to be
// taken: in as many passes as pay, and at most passesMax. It makes none if few
// pages are to be expected, judged by the last epochs. It goes on until a pass
// has found few, or not clearly fewer than the one before: a pass finds what was
// written during the one before it, so passes become shorter for as long as
// pages are copied faster than the guest writes them, and when they do not, more
// of them only send the same pages again. An epoch but the first has no more passes once a quarter of
// the guest's memory was copied, and one at most with Options.PinnedIO. (The rule of pre-copy migration since
// Clark et al., NSDI 2005.)
//
// It returns how many pages were handed out. On error it keeps what Live keeps.
func (s *Session) Converge(ctx context.Context, passesMax int, emit func(*Batch) error) (pages int, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.epochs > 0 && s.o.PinnedIO {
		passesMax = min(passesMax, 1) // each stops the guest, and flushes its disks
	}
	before, found := pagesUnknown, s.foreseen()
	for pass := 0; pass < passesMax && passPays(before, found) && s.passFits(); pass++ {
		n, err := s.live(ctx, emit)
		pages += n
		s.livePages += n
		s.converged += n
		if err != nil {
			return pages, err
		}
		// What was foreseen is not compared with: it is of another time.
		if before, found = found, n; pass == 0 {
			before = pagesUnknown
		}
	}
	return pages, nil
}

// passFits tells whether another pass leaves the epoch small enough: those of a
// guest that writes to most of its memory all the time would add up to several
// times that. The first epoch, of which nothing is kept in one piece, may.
func (s *Session) passFits() bool { return s.epochs == 0 || s.converged <= s.ramPages/4 }

// passPays tells whether a further live pass is worth it after one that found
// so many pages, and one before it that found before.
func passPays(before, found int) bool {
	return found >= pagesFew && found <= before/4*3
}

// foreseen is how many pages the epoch that ends is expected to have written:
// as many as the fuller of the last ones, so that one quiet epoch in a busy time
// does not cost the next a long pause.
func (s *Session) foreseen() int {
	if s.epochs == 0 {
		return pagesUnknown / 2
	}
	return max(s.recent[0], s.recent[1])
}
