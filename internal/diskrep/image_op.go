package diskrep

// opKind names what we do to files.
type opKind int

const (
	opWrite opKind = iota + 1
	opZero
	opTruncate
	opSync    // fdatasync begins: it covers what was done before
	opSynced  // it has ended
	opCreate  // a name in a directory
	opUnlink  // the same
	opSyncDir // begins
	opSyncedDir
)

// op is one change of a file, or of its directory.
type op struct {
	kind opKind
	path string // of the file, or of the directory of opSyncDir
	off  int64
	n    int64    // of opZero, opTruncate
	data [][]byte // of opWrite
}

// hook is a test's: it is told of every operation before it is done, and may
// let it fail. Called from several goroutines.
type hook func(op) error

func (h hook) at(o op) error {
	if h == nil {
		return nil
	}
	return h(o)
}
