/* The process tests set traps in. Each round sets the termios of a terminal by
 * one system call, whose number has a neighbour that reads it instead, and checks
 * everything that it gets back: that the call was executed as it was made, or
 * read instead, or that the first bytes were replaced; never a mixture, but for
 * a struct across two pages: of that the end may have been replaced alone. Modes:
 * ioctl (the struct lies on the stack), span (across two pages), pipe (a blocking
 * write of numbered bytes to descriptor 3 goes before). Protocol as of target.c. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#define GET 0x5401 /* TCGETS */
#define SET 0x5402 /* TCSETS */
#define HEAD 24
#define CUT 12 /* bytes before the second page */
#define CHUNK 10007

struct termios_k { /* the kernel's */
	uint32_t iflag, oflag, cflag, lflag;
	uint8_t line, cc[19];
};

enum { ROUNDS, KEPT, WRITTEN, UNTOUCHED, FD, PARTIAL, CUTS };

static volatile sig_atomic_t handled, stop;
static volatile uint64_t *shared;
static const char *mode;

static void on_rt(int sig) { handled++; }
static void on_term(int sig) { stop = 1; }

static void fault(const char *what, long a, long b)
{
	printf("FAULT %s: %s %ld %ld\n", mode, what, a, b);
	fflush(stdout);
	_exit(3);
}

static uint64_t value(const struct termios_k *s) { return s->iflag | (uint64_t)s->oflag << 32; }

static void fill(struct termios_k *s, uint64_t v)
{
	uint64_t h = v * 0x9e3779b97f4a7c15ull;
	s->iflag = v, s->oflag = v >> 32;
	s->cflag = 0xbf; /* 38400 baud, CS8, CREAD: what a terminal of this kind takes */
	s->lflag = h >> 32;
	s->line = 0;
	for (int i = 0; i < 19; i++) s->cc[i] = h >> (i % 8 * 8) ^ i;
}

static long set(int fd, struct termios_k *s)
{
	long ret, rsi = SET;
	__asm__ volatile("syscall" : "=a"(ret), "+S"(rsi) : "a"(SYS_ioctl), "D"((long)fd), "d"(s) : "rcx", "r11", "memory");
	if (rsi != SET && rsi != GET) fault("rsi", rsi, 0);
	return ret;
}

/* Whether s is orig but for the end of a written head on the second page. */
static int is_cut(const struct termios_k *s, const struct termios_k *orig)
{
	struct termios_k c = *orig;
	memcpy((char *)&c + CUT, (char *)s + CUT, HEAD - CUT);
	if (strcmp(mode, "span") || memcmp(s, &c, sizeof c) || s->line) return 0;
	for (int i = 4; i < 7; i++) /* the bytes of the hash that both fields have */
		if ((s->cc[i] ^ i) != (uint8_t)(s->lflag >> (i - 4) * 8)) return 0;
	return 1;
}

static void round_of(int fd, struct termios_k *s)
{
	static struct termios_k was;
	static uint64_t n;
	struct termios_k orig, expect, k;
	uint64_t v = 1ull << 40 | ++n;
	if (n == 1 && (fill(&was, 1), ioctl(fd, SET, &was))) fault("first ioctl", errno, 0);
	memset(&k, 0xee, sizeof k);
	fill(&orig, v);
	*s = orig;
	long ret = set(fd, s);
	if (ret) fault("set returns", ret, 0);
	if (ioctl(fd, GET, &k)) fault("get", errno, 0);
	if (value(&k) == v && memcmp(s, &orig, sizeof orig) && is_cut(s, &orig) && !memcmp(&k, s, sizeof k)) {
		shared[CUTS]++;
	} else if (value(&k) == v) {
		if (memcmp(s, &orig, sizeof orig) || memcmp(&k, &orig, sizeof orig)) fault("untouched, but mixed", n, 0);
		shared[UNTOUCHED]++;
	} else if (value(&k) == value(&was)) {
		if (memcmp(&k, &was, sizeof k)) fault("kept, but mixed", n, 0);
		if (memcmp(s, &was, sizeof k)) fault("kept, but not told", n, value(s));
		shared[KEPT]++;
	} else if (value(&k) >> 48 == 0xf00d) {
		fill(&expect, value(&k));
		memcpy((char *)&expect + HEAD, (char *)&orig + HEAD, sizeof orig - HEAD);
		if (memcmp(&k, &expect, sizeof k) || memcmp(s, &expect, sizeof k)) fault("written, but mixed", n, 0);
		shared[WRITTEN]++;
	} else {
		fault("value", value(&k), v);
	}
	was = k;
}

static uint8_t at(uint64_t pos) { return pos * 2654435761u >> 24; }

static void chunk(void)
{
	static uint64_t pos;
	static uint8_t buf[CHUNK];
	for (int i = 0; i < CHUNK; i++) buf[i] = at(pos + i);
	for (int done = 0; done < CHUNK && !stop;) {
		sig_atomic_t before = handled;
		long n = write(3, buf + done, CHUNK - done);
		if (n < 0 && !(errno == EINTR && (handled != before || stop))) fault("write", n, errno);
		if (n == 0 || n > CHUNK - done) fault("write", n, CHUNK - done);
		if (n < 0) continue;
		if (n < CHUNK - done) shared[PARTIAL]++;
		done += n;
	}
	pos += CHUNK;
}

int main(int argc, char **argv)
{
	mode = argv[1];
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	int file = open(argv[2], O_RDWR | O_CLOEXEC);
	shared = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
	char *pages = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	int fd = open("/dev/ptmx", O_RDWR | O_NOCTTY | O_CLOEXEC);
	if (file < 0 || shared == MAP_FAILED || pages == MAP_FAILED || fd < 0) fault("start", errno, fd);
	shared[FD] = fd;
	struct sigaction rt = {.sa_handler = on_rt, .sa_flags = SA_RESTART};
	sigaction(SIGRTMIN, &rt, NULL);
	struct sigaction term = {.sa_handler = on_term};
	sigaction(SIGTERM, &term, NULL);
	puts("ok");
	fflush(stdout);
	struct termios_k here;
	struct termios_k *s = strcmp(mode, "span") ? &here : (void *)(pages + 4096 - CUT);
	while (!stop) {
		if (!strcmp(mode, "pipe")) chunk();
		round_of(fd, s);
		++shared[ROUNDS];
	}
	printf("handled %d\n", (int)handled);
	return 0;
}
