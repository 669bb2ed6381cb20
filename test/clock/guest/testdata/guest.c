/*
 * A guest without an operating system that looks at its clock. Every processor
 * registers a pvclock page of its own and reads it as fast as it can. What it
 * finds lies in memory for guest.go to read, at the same places.
 *
 *   0x200000            struct shared
 *   0x210000 + n*64K    struct cpu of processor n
 *   0x2a0000 + n*4K     pvclock page of processor n
 *   0x400000            pages that the first processor writes to
 */
typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long s64;

enum { cpus_max = 8, ring = 1024, skew_ns = 100, sampled = 16 };
enum { starting, no_clock, running };

struct shared {
	u32 magic, layout;      /* 0 */
	volatile u32 cpus, pad; /* 8: processors that run */
	volatile u64 latest;    /* 16: largest clock that any of them has read */
	volatile u64 latest_tsc; /* 24: and the largest TSC */
};

struct event {
	u64 tsc, clock; /* of the read */
	s64 jump;       /* ns by which the clock went on more than the TSC since the read before */
	u64 prev_tsc;   /* of that one */
};

struct cpu {
	volatile u32 state, apic;        /* 0 */
	volatile u32 seq, pvflags;       /* 8: odd while the sample is written */
	volatile u64 tsc, clock;         /* 16: the sample */
	volatile u64 reads;              /* 32 */
	volatile u64 back, back_max;     /* 40: reads below its own one before, ns */
	volatile u64 behind, behind_max; /* 56: reads below what another had read before, ns */
	volatile u64 tsc_back;           /* 72: reads with a TSC below the one before */
	volatile u64 events;             /* 80: event k is ring[k % 1024] */
	volatile u64 skew, skew_max;     /* 88: reads behind for which a TSC is to blame */
	u64 pad[3];
	struct event ring[ring]; /* 128 */
};

struct pvclock {
	volatile u32 version, pad;
	volatile u64 tsc_timestamp, system_time;
	volatile u32 mul;
	volatile signed char shift;
	volatile u8 flags, pad2[2];
};

/* start.S */
void drop(void);
extern struct {
	u32 pages;  /* that the first processor writes to, in turn */
	u32 every;  /* reads between two such writes */
	u32 gap_ns; /* between two reads of the first processor that make an event; 0: none */
} payload;

#define shared ((struct shared *)0x200000ul)
#define cpu_at(n) ((struct cpu *)(0x210000ul + (n) * 0x10000ul))
#define page_at(n) ((struct pvclock *)(0x2a0000ul + (n) * 4096ul))
#define apic_at(r) (*(volatile u32 *)(0xfee00000ul + (r)))
#define barrier() __asm__ volatile("" ::: "memory")

/* The compiler makes calls of it. */
void *memset(void *to, int c, unsigned long n)
{
	void *at = to;
	__asm__ volatile("rep stosb" : "+D"(at), "+c"(n) : "a"(c) : "memory");
	return to;
}

static u64 rdtsc(void)
{
	u32 low, high;
	__asm__ volatile("lfence; rdtsc" : "=a"(low), "=d"(high)::"memory");
	return (u64)high << 32 | low;
}

static void cpuid(u32 leaf, u32 *a, u32 *b, u32 *c, u32 *d)
{
	__asm__ volatile("cpuid" : "=a"(*a), "=b"(*b), "=c"(*c), "=d"(*d) : "a"(leaf), "c"(0));
}

static void raise(volatile u64 *at, u64 to)
{
	u64 was = __atomic_load_n(at, __ATOMIC_SEQ_CST);
	while (was < to && !__atomic_compare_exchange_n(at, &was, to, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
		;
}

static u64 scale(const struct pvclock *p, u64 ticks)
{
	int shift = p->shift;
	if (shift < 0)
		ticks >>= -shift;
	else
		ticks <<= shift;
	return (u64)(((unsigned __int128)ticks * p->mul) >> 32);
}

static u64 read_clock(const struct pvclock *p, u64 *tsc)
{
	u32 v;
	u64 clock;
	do {
		v = p->version;
		barrier();
		*tsc = rdtsc();
		clock = p->system_time + scale(p, *tsc - p->tsc_timestamp);
		barrier();
	} while ((v & 1) || v != p->version);
	return clock;
}

static int has_kvmclock(void)
{
	u32 a, b, c, d;
	cpuid(1, &a, &b, &c, &d);
	if (!(c >> 31))
		return 0;
	cpuid(0x40000000, &a, &b, &c, &d);
	if (b != 0x4b4d564b || c != 0x564b4d56 || d != 0x4d) /* KVMKVMKVM */
		return 0;
	cpuid(0x40000001, &a, &b, &c, &d);
	return a >> 3 & 1;
}

static void start_others(void)
{
	apic_at(0xf0) = 0x1ff;
	apic_at(0x310) = 0;
	apic_at(0x300) = 0x000c4500; /* INIT to all others */
	for (int i = 0; i < 2; i++) {
		for (int k = 0; k < 1000; k++)
			__asm__ volatile("outb %%al, $0x80" ::"a"(0));
		apic_at(0x300) = 0x000c46f0; /* start at 0xf0000: the image again, on any PC */
	}
}

static void note(struct cpu *c, u64 tsc, u64 clock, s64 jump, u64 prev_tsc)
{
	struct event *e = &c->ring[c->events % ring];
	e->tsc = tsc;
	e->clock = clock;
	e->jump = jump;
	e->prev_tsc = prev_tsc;
	barrier();
	c->events++;
}

/*
 * A read must not be below one that any processor had finished before it began.
 * If it is, by a few ns, while the TSC is below one that was read before as well,
 * the host's processors disagree about the TSC, and the clock is not to blame.
 */
static u64 read_and_compare(struct cpu *c, const struct pvclock *p, u64 *tsc)
{
	u64 latest = __atomic_load_n(&shared->latest, __ATOMIC_SEQ_CST);
	u64 latest_tsc = __atomic_load_n(&shared->latest_tsc, __ATOMIC_SEQ_CST);
	u64 now = read_clock(p, tsc);
	if (now < latest) {
		u64 by = latest - now;
		if (*tsc < latest_tsc && by < skew_ns) {
			c->skew++;
			if (by > c->skew_max)
				c->skew_max = by;
		} else {
			c->behind++;
			if (by > c->behind_max)
				c->behind_max = by;
		}
	}
	raise(&shared->latest_tsc, *tsc); /* first, so that a clock is never without its TSC */
	raise(&shared->latest, now);
	return now;
}

static void publish(struct cpu *c, u64 tsc, u64 clock)
{
	c->seq++;
	barrier();
	c->tsc = tsc;
	c->clock = clock;
	barrier();
	c->seq++;
}

static void look(struct cpu *c, const struct pvclock *p, int first)
{
	u64 last = 0, last_tsc = 0, last_ns = 0, gap = first && payload.gap_ns ? payload.gap_ns : ~0ull;
	u32 rounds = 0, page = 0;
	for (int begun = 0;; begun = 1) {
		u64 tsc, now = read_and_compare(c, p, &tsc);
		u64 ns = scale(p, tsc); /* what the clock would be, but for its base */
		if (begun) {
			s64 jump = (s64)((now - last) - (ns - last_ns));
			if (now < last) {
				c->back++;
				if (last - now > c->back_max)
					c->back_max = last - now;
			}
			if (tsc < last_tsc)
				c->tsc_back++;
			if (jump > 1000 || jump < -1000 || (tsc > last_tsc && ns - last_ns > gap))
				note(c, tsc, now, jump, last_tsc);
		}
		last = now, last_tsc = tsc, last_ns = ns;
		c->reads++;
		if (++rounds % sampled == 0) /* a reader must have time to read one */
			publish(c, tsc, now);
		if (first && payload.pages && rounds % payload.every == 0) {
			*(volatile u32 *)(0x400000ul + page * 4096ul) = rounds;
			page = page + 1 == payload.pages ? 0 : page + 1;
		}
	}
}

void guest_main(u32 n)
{
	struct cpu *c = cpu_at(n);
	struct pvclock *p = page_at(n);
	memset(c, 0, sizeof *c);
	memset(p, 0, sizeof *p);
	c->apic = apic_at(0x20) >> 24;
	if (n == 0) {
		memset(shared, 0, sizeof *shared);
		shared->layout = 1;
		shared->magic = 0x4b434c43;
		start_others();
	}
	if (has_kvmclock()) {
		__asm__ volatile("wrmsr" ::"c"(0x4b564d01), "a"((u32)(u64)p | 1), "d"(0));
		c->pvflags = p->flags;
		c->state = running;
	} else {
		c->state = no_clock;
	}
	__asm__ volatile("lock incl %0" : "+m"(shared->cpus)::"memory");
	while (c->state == no_clock)
		__asm__ volatile("hlt");
	drop();
	look(c, p, n == 0);
}
