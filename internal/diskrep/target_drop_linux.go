package diskrep

// Drop forgets the epochs after that one, which are not committed. Their
// numbers may come again. It does not wait for a disk.
func (t *Target) Drop(after uint64) {
	t.mu.Lock()
	t.drop(after)
	t.mu.Unlock()
	// Else whoever appends next writes it; nothing comes before it.
	if t.staging.TryLock() {
		defer t.staging.Unlock()
		if err := t.journalDrop(); err != nil {
			t.log.Warn("dropped epochs are still in the journal", "after", after, "err", err)
		}
	}
}

// drop forgets epochs in memory. mu is held.
func (t *Target) drop(after uint64) {
	after = max(after, t.committed)
	if t.open != nil && t.open.number > after {
		t.forget(t.open)
		t.open = nil
	}
	for n := len(t.epochs); n > 0 && t.epochs[n-1].number > after; n-- {
		t.forget(t.epochs[n-1])
		t.epochs = t.epochs[:n-1]
	}
	t.ended = min(t.ended, after)
	if t.dropping == nil || *t.dropping > after {
		t.dropping = &after
	}
}

// journalDrop writes a Drop that is not in the journal. staging is held.
func (t *Target) journalDrop() error {
	t.mu.Lock()
	after := t.dropping
	t.mu.Unlock()
	if after == nil {
		return nil
	}
	if err := t.j.drop(*after); err != nil {
		return err
	}
	t.mu.Lock()
	if t.dropping == after {
		t.dropping = nil
	}
	t.mu.Unlock()
	return nil
}

// forget frees what an epoch holds. mu is held.
func (t *Target) forget(e *epoch) {
	for i := range e.writes {
		w := &e.writes[i]
		if w.spilled || len(w.Data) > 0 {
			t.waiting[w.Disk] -= blocksOf(w.Off, w.Len)
		}
		t.held -= int64(len(w.Data))
		w.Free()
	}
	e.writes, e.bytes = nil, 0
}

func freeWrites(ws []Write) {
	for i := range ws {
		ws[i].Free()
	}
}
