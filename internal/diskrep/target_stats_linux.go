package diskrep

import "time"

// Stats returns the state of this moment.
func (t *Target) Stats() TargetStats {
	t.mu.Lock()
	s := TargetStats{
		EndedEpoch: t.ended, CommittedEpoch: t.committed, AppliedEpoch: t.applied, HeldBytes: t.held,
		ImageSyncs: t.imageSync.n, ImageSyncTime: t.imageSync.all, ImageSyncMax: t.imageSync.max,
	}
	for _, e := range t.epochs {
		s.StagedEpochs++
		s.StagedBytes += e.bytes
		if s.Lag == 0 && !e.committedAt.IsZero() {
			s.Lag = time.Since(e.committedAt)
		}
	}
	if t.open != nil {
		s.StagedEpochs++
		s.StagedBytes += t.open.bytes
	}
	t.mu.Unlock()
	s.JournalBytes = t.j.bytes()
	t.j.mu.Lock()
	defer t.j.mu.Unlock()
	s.JournalSyncs, s.JournalSyncTime, s.JournalSyncMax = t.j.syncs.n, t.j.syncs.all, t.j.syncs.max
	return s
}
