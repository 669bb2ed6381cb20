package lean

import "golang.org/x/sys/unix"

// reserve returns n zero bytes that use memory only where they are touched. No
// huge pages: one of them covers the tags of 512 MiB of a guest.
func reserve(n int) ([]byte, error) {
	mem, err := unix.Mmap(-1, 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
	if err != nil {
		return nil, err
	}
	_ = unix.Madvise(mem, unix.MADV_NOHUGEPAGE) // a kernel without huge pages refuses
	return mem, nil
}

// discard makes mem, which reserve returned, zero again, and uses no memory.
func discard(mem []byte) error { return unix.Madvise(mem, unix.MADV_DONTNEED) }

func release(mem []byte) error { return unix.Munmap(mem) }
