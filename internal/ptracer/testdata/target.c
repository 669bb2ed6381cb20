/* The process tests inject into. It runs one mode in a loop and checks after
 * every round that all registers, the red zone, the signal mask and the
 * alternate signal stack are what they were and that the system call it sat in
 * returned what it may. "ok" is written once it is ready; the counter of rounds
 * is in a shared file. It prints the first fault and exits with 3; told to end
 * with SIGTERM it prints the number of SIGRTMIN it handled and exits with 0. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

struct state {
	uint64_t in_gpr[16], out_gpr[16];
	uint8_t in_ymm[512], out_ymm[512];
	double in_x87[8], out_x87[8];
	uint64_t spin, red;
};
uint64_t run(struct state *s);

enum { RAX, RBX, RCX, RDX, RSI, RDI, RBP, RSP, R8, R9, R10, R11 };

static volatile sig_atomic_t handled, stop;
static stack_t alt;
static sigset_t mask;
static const char *mode;

static void on_rt(int sig) { handled++; }
static void on_term(int sig) { stop = 1; }

static void fault(const char *what, long a, long b)
{
	printf("FAULT %s: %s %ld %ld\n", mode, what, a, b);
	fflush(stdout);
	_exit(3);
}

static uint64_t seed = 88172645463325252ull;
static uint64_t rnd(void)
{
	seed ^= seed << 13, seed ^= seed >> 7, seed ^= seed << 17;
	return seed;
}

static void fill(struct state *s)
{
	for (int i = 0; i < 16; i++) s->in_gpr[i] = rnd();
	for (int i = 0; i < 512; i++) s->in_ymm[i] = rnd();
	for (int i = 0; i < 8; i++) s->in_x87[i] = (double)(rnd() >> 12);
}

static void check(struct state *s, int is_syscall)
{
	for (int i = 0; i < 16; i++) {
		if (i == RSP || (is_syscall && (i == RAX || i == RCX || i == R11))) continue;
		if (s->in_gpr[i] != s->out_gpr[i]) fault("register", i, s->out_gpr[i]);
	}
	if (memcmp(s->in_ymm, s->out_ymm, 512)) fault("ymm", 0, 0);
	if (memcmp(s->in_x87, s->out_x87, 64)) fault("x87", 0, 0);
	if (s->red) fault("red zone", s->red, 0);
	stack_t a;
	if (sigaltstack(NULL, &a) || a.ss_sp != alt.ss_sp || a.ss_size != alt.ss_size || a.ss_flags != alt.ss_flags)
		fault("altstack", a.ss_flags, a.ss_size);
	sigset_t m;
	sigprocmask(SIG_SETMASK, NULL, &m);
	if (memcmp(&m, &mask, 8)) fault("signal mask", *(long *)&m, *(long *)&mask);
}

static long call(struct state *s, long nr, long a, long b, long c, long d, long e)
{
	fill(s);
	s->spin = 0;
	s->in_gpr[RAX] = nr, s->in_gpr[RDI] = a, s->in_gpr[RSI] = b, s->in_gpr[RDX] = c;
	s->in_gpr[R10] = d, s->in_gpr[R8] = e;
	long ret = run(s);
	check(s, 1);
	return ret;
}

static double now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec + t.tv_nsec / 1e9;
}

static void round_of(struct state *s)
{
	double begin = now();
	sig_atomic_t handled_before = handled;
	if (!strcmp(mode, "spin")) {
		fill(s);
		s->spin = 200000;
		run(s);
		check(s, 0);
	} else if (!strcmp(mode, "read")) {
		char c = 0;
		long n = call(s, SYS_read, 0, (long)&c, 1, 0, 0);
		if (n == 0) pause();
		if (n == -EINTR && stop) return;
		if (n != 1 || c != 'x') fault("read", n, c);
	} else if (!strcmp(mode, "ppoll")) {
		struct timespec t = {0, 20000000};
		uint64_t m = 1ull << (SIGBUS - 1);
		long n = call(s, SYS_ppoll, 0, 0, (long)&t, (long)&m, 8);
		if (n != 0 && !(n == -EINTR && (handled != handled_before || stop))) fault("ppoll", n, 0);
		if (n == 0 && now() - begin < 0.0199) fault("ppoll short", (now() - begin) * 1e6, 0);
		if (n == -EINTR && handled == handled_before && !stop) fault("ppoll EINTR", n, 0);
	} else if (!strcmp(mode, "nanosleep")) {
		struct timespec t = {0, 20000000};
		long n;
		while ((n = call(s, SYS_nanosleep, (long)&t, (long)&t, 0, 0, 0)) == -EINTR) ;
		if (n) fault("nanosleep", n, 0);
		if (now() - begin < 0.0199) fault("nanosleep short", (now() - begin) * 1e6, 0);
	} else { /* poll, and whatever sits in a seccomp sandbox */
		long n = call(s, SYS_poll, 0, 0, 20, 0, 0);
		if (n != 0 && n != -EINTR) fault("poll", n, 0);
	}
}

/* sandbox: getppid traps, getpgrp kills, getsid fails with EPERM */
static void sandbox(void)
{
	struct sock_filter f[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_getppid, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRAP),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_getpgrp, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_getsid, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog p = {sizeof f / sizeof *f, f};
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &p)) fault("seccomp", errno, 0);
}

int main(int argc, char **argv)
{
	static struct state s __attribute__((aligned(64)));
	mode = argv[1];
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	int fd = open(argv[2], O_RDWR | O_CLOEXEC);
	volatile uint64_t *rounds = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (!__builtin_cpu_supports("avx")) {
		puts("noavx");
		return 0;
	}
	if (fd < 0 || rounds == MAP_FAILED) fault("mmap", errno, 0);
	alt.ss_sp = malloc(65536), alt.ss_size = 65536;
	sigaltstack(&alt, NULL);
	sigaltstack(NULL, &alt);
	struct sigaction rt = {.sa_handler = on_rt, .sa_flags = SA_RESTART};
	sigaction(SIGRTMIN, &rt, NULL);
	struct sigaction term = {.sa_handler = on_term};
	sigaction(SIGTERM, &term, NULL);
	sigemptyset(&mask);
	sigaddset(&mask, SIGUSR2);
	sigaddset(&mask, SIGBUS); /* pending from now on; unblocked, it kills */
	if (!strcmp(mode, "ppoll")) sigaddset(&mask, SIGRTMIN); /* taken inside ppoll only */
	sigprocmask(SIG_SETMASK, &mask, NULL);
	raise(SIGBUS);
	if (!strcmp(mode, "sandbox")) sandbox();
	puts("ok");
	fflush(stdout);
	while (!stop) {
		round_of(&s);
		++*rounds;
	}
	if (!strcmp(mode, "ppoll")) { /* what came after the last ppoll */
		sigdelset(&mask, SIGRTMIN);
		sigprocmask(SIG_SETMASK, &mask, NULL);
	}
	printf("handled %d\n", (int)handled);
	return 0;
}
