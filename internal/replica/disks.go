package replica

import "fmt"

// Durability is how safe an epoch's disk writes are on the backup before it
// acknowledges the epoch. Zero is invalid.
type Durability uint8

// The durabilities.
const (
	DurabilityMemory Durability = 1 // handed to the backup's kernel: both hosts must fail to lose them
	DurabilityFsync  Durability = 2 // on the backup's storage
)

func (d Durability) String() string {
	switch d {
	case DurabilityMemory:
		return "memory"
	case DurabilityFsync:
		return "fsync"
	}
	return fmt.Sprintf("durability %d", uint8(d))
}

// Disk is a writable disk of the guest, as the primary has it. The order of
// Setup.Disks numbers them.
type Disk struct {
	Name      string // its target in the domain's XML, such as "vda"; of no other disk
	SizeBytes uint64 // as the guest sees it; less than 2^60
	UsedBytes uint64 // what it takes on the primary, so that the backup knows what must fit; less than 2^60
	Source    string // path on the primary
	Format    string // of Source, such as "qcow2"; the copy is raw whatever it says
	Path      string // where the primary wants the copy on the backup; empty: where the backup's own rule puts it
}

// DiskReady says what the backup has for a disk.
type DiskReady struct {
	Path  string // of the image
	Fresh bool   // made for this session: all of it reads as zeros, and no DiskSums came
}

// disks is a count (u32) and that many disks.
func (c *codec) disks(v *[]Disk) {
	n := c.count("disks", len(*v), MaxDisks, minDiskBytes)
	if !c.encoding && n > 0 {
		*v = make([]Disk, n)
	}
	for i := range n {
		d := &(*v)[i]
		c.str("disk name", &d.Name, MaxNameBytes)
		c.check(d.Name != "", "disk name", "is empty")
		for _, other := range (*v)[:i] {
			c.check(d.Name != other.Name, "disk name", "is another disk's")
		}
		c.u64("disk size", &d.SizeBytes)
		c.check(d.SizeBytes > 0 && d.SizeBytes < diskEnd, "disk size", "is zero or not below 2^60")
		c.u64("disk used", &d.UsedBytes)
		c.check(d.UsedBytes < diskEnd, "disk used", "is not below 2^60")
		c.str("disk source", &d.Source, MaxPathBytes)
		c.str("disk format", &d.Format, MaxNameBytes)
		c.str("disk path", &d.Path, MaxPathBytes)
	}
}

// DiskSums tells what is in an image that the backup still has: a checksum for
// each of its blocks of SumBlockBytes, from FirstBlock on. Blocks that are equal on the
// primary are not sent. A sum is the first half of the SHA-256 of the block, of
// which the disk's last one may be shorter; nothing weaker will do, because a
// guest chooses what is in its blocks. Between Setup and Ready the backup sends
// any number of them.
type DiskSums struct {
	Disk       uint16 // index in Setup.Disks
	FirstBlock uint64
	Sums       []byte // SumBytes for each block, 1 to MaxSums of them
}

func (*DiskSums) Type() Type { return TypeDiskSums }

func (m *DiskSums) payloadBytes() int { return diskSumsHeadBytes + len(m.Sums) }

func (m *DiskSums) fields(c *codec) {
	c.u16("disk", &m.Disk)
	c.u64("firstBlock", &m.FirstBlock)
	c.bytes("sums", &m.Sums, MaxSums*SumBytes)
	c.check(len(m.Sums) > 0 && len(m.Sums)%SumBytes == 0, "sums", "are none, or one is cut off")
	c.check(m.FirstBlock <= diskEnd/SumBlockBytes-MaxSums, "firstBlock", "is beyond any disk")
}

// DiskFlags describe a run of disk bytes.
type DiskFlags uint16

// DiskZero: the bytes are zero and have no data in the message.
const DiskZero DiskFlags = 1 << 0

// DiskRun is one write to a disk.
type DiskRun struct {
	Disk  uint16 // index in Setup.Disks
	Flags DiskFlags
	Bytes uint32 // at least 1
	Off   uint64 // bytes from the start of the disk
}

// end returns the first byte after the run; a valid run does not overflow.
func (r DiskRun) end() uint64 { return r.Off + uint64(r.Bytes) }

// DiskWrites announces writes of the header's epoch, in the order in which they
// are to be applied; the data of those that are not zero follows them, in their
// order. An epoch has any number of DiskWrites, before its EpochEnd, which
// counts their runs.
type DiskWrites struct{ Runs []DiskRun }

func (*DiskWrites) Type() Type { return TypeDiskWrites }

func (m *DiskWrites) fields(c *codec) {
	table(c, &m.Runs, func(r *DiskRun) {
		c.run(&r.Disk, (*uint16)(&r.Flags), &r.Bytes, &r.Off)
		switch {
		case r.Flags&^DiskZero != 0:
			c.fail("run flags", "%#04x has unknown bits", r.Flags)
		case r.Bytes == 0:
			c.fail("run bytes", "zero is invalid")
		case r.end() < r.Off:
			c.fail("run offset", "%#x overflows", r.Off)
		}
	})
	c.bounded(m)
}

func (m *DiskWrites) announced() uint64 {
	var n uint64 // at most MaxRuns * 2^32: no overflow
	for _, r := range m.Runs {
		if r.Flags&DiskZero == 0 {
			n += uint64(r.Bytes)
		}
	}
	return n
}

// CheckDiskRuns refuses runs that are not within disks. What RecvPages returns
// has been checked for its format only; this is the check before writing to an
// image or a journal.
func CheckDiskRuns(runs []DiskRun, disks []Disk) error {
	for i, r := range runs {
		if int(r.Disk) >= len(disks) {
			return runError(TypeDiskWrites, i, "run disk", "%d, there are %d disks", r.Disk, len(disks))
		}
		if d := disks[r.Disk]; r.end() < r.Off || r.end() > d.SizeBytes {
			return runError(TypeDiskWrites, i, "run offset", "%#x + %d bytes is beyond %s of %d bytes", r.Off, r.Bytes, d.Name, d.SizeBytes)
		}
	}
	return nil
}
