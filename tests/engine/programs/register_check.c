// SPDX-License-Identifier: GPL-3.0-or-later
/*
 * Threads that fill every register with a pattern, wait in it, and check that nothing changed:
 * general registers, flags, the red zone, vector and x87 state, MXCSR, signal mask, alternate stack,
 * GS base.
 *
 * register_check SPINNERS SLEEPERS
 *   spinners wait in a loop that touches no memory; sleepers in read(2) of a pipe that a feeder writes.
 * Each calls version() after each round, which a patch may replace.
 * Commands on stdin: "report" prints "rounds R wrong W eintr E version V", "quit" ends.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

struct state {
	uint64_t gpr[15];     /* rax rbx rcx rdx rsi rdi rbp r8 .. r15 */
	uint64_t flags;
	uint64_t red_zone[16];
	uint32_t mxcsr;
	uint16_t control_word;
	uint16_t unused;
	uint64_t x87[2];      /* two doubles */
	uint64_t mask[8];     /* k0 .. k7 */
	uint64_t vector[32][8] __attribute__((aligned(64)));
};

/* wait_in_state_*(load, store, mode): mode 0 spins on rcx, mode 1 makes the system call in load. */
extern void wait_in_state_sse(const struct state *load, struct state *store, long mode);
extern void wait_in_state_avx(const struct state *load, struct state *store, long mode);
extern void wait_in_state_avx512(const struct state *load, struct state *store, long mode);

#define S(x) S_(x)
#define S_(x) #x
#define GPR 0
#define FLAGS 120
#define RED_ZONE 128
#define MXCSR 256
#define CONTROL_WORD 260
#define X87 264
#define KMASK 280
#define VECTOR 384

_Static_assert(__builtin_offsetof(struct state, flags) == FLAGS, "layout");
_Static_assert(__builtin_offsetof(struct state, red_zone) == RED_ZONE, "layout");
_Static_assert(__builtin_offsetof(struct state, mxcsr) == MXCSR, "layout");
_Static_assert(__builtin_offsetof(struct state, x87) == X87, "layout");
_Static_assert(__builtin_offsetof(struct state, mask) == KMASK, "layout");
_Static_assert(__builtin_offsetof(struct state, vector) == VECTOR, "layout");

asm(".macro load_sse\n"
    " .irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15\n"
    "  movups " S(VECTOR) "+64*\\n(%rdi), %xmm\\n\n"
    " .endr\n"
    ".endm\n"
    ".macro store_sse\n"
    " .irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15\n"
    "  movups %xmm\\n, " S(VECTOR) "+64*\\n(%rax)\n"
    " .endr\n"
    ".endm\n"
    ".macro load_avx\n"
    " .irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15\n"
    "  vmovups " S(VECTOR) "+64*\\n(%rdi), %ymm\\n\n"
    " .endr\n"
    ".endm\n"
    ".macro store_avx\n"
    " .irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15\n"
    "  vmovups %ymm\\n, " S(VECTOR) "+64*\\n(%rax)\n"
    " .endr\n"
    " vzeroupper\n"
    ".endm\n"
    ".macro load_avx512\n"
    " .irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31\n"
    "  vmovups " S(VECTOR) "+64*\\n(%rdi), %zmm\\n\n"
    " .endr\n"
    " .irp n,0,1,2,3,4,5,6,7\n"
    "  kmovq " S(KMASK) "+8*\\n(%rdi), %k\\n\n"
    " .endr\n"
    ".endm\n"
    ".macro store_avx512\n"
    " .irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31\n"
    "  vmovups %zmm\\n, " S(VECTOR) "+64*\\n(%rax)\n"
    " .endr\n"
    " .irp n,0,1,2,3,4,5,6,7\n"
    "  kmovq %k\\n, " S(KMASK) "+8*\\n(%rax)\n"
    " .endr\n"
    " vzeroupper\n"
    ".endm\n"
    ".macro wait_in_state level\n"
    ".globl wait_in_state_\\level\n"
    ".type wait_in_state_\\level, @function\n"
    "wait_in_state_\\level:\n"
    " push %rbx; push %rbp; push %r12; push %r13; push %r14; push %r15\n"
    " push %rsi\n"                         /* store, found again at 0(%rsp) */
    " load_\\level\n"
    " ldmxcsr " S(MXCSR) "(%rdi)\n"
    " fninit; fldcw " S(CONTROL_WORD) "(%rdi)\n"
    " fldl " S(X87) "(%rdi); fldl " S(X87) "+8(%rdi)\n"
    " .irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15\n"
    "  mov " S(RED_ZONE) "+8*\\n(%rdi), %rax; mov %rax, -128+8*\\n(%rsp)\n"
    " .endr\n"
    " sub $128, %rsp\n"                    /* popf below the red zone, then give it back */
    " push " S(FLAGS) "(%rdi); test %rdx, %rdx; jnz 2f\n"
    /* mode 0: a loop that changes rcx only, flags included */
    " popf; lea 128(%rsp), %rsp\n"
    " mov 8*0(%rdi), %rax; mov 8*1(%rdi), %rbx; mov 8*2(%rdi), %rcx; mov 8*3(%rdi), %rdx\n"
    " mov 8*4(%rdi), %rsi; mov 8*6(%rdi), %rbp; mov 8*7(%rdi), %r8; mov 8*8(%rdi), %r9\n"
    " mov 8*9(%rdi), %r10; mov 8*10(%rdi), %r11; mov 8*11(%rdi), %r12; mov 8*12(%rdi), %r13\n"
    " mov 8*13(%rdi), %r14; mov 8*14(%rdi), %r15; mov 8*5(%rdi), %rdi\n"
    "1: lea -1(%rcx), %rcx; jrcxz 3f; jmp 1b\n"
    /* mode 1: a system call; the kernel changes rax, rcx, r11 */
    "2: popf; lea 128(%rsp), %rsp\n"
    " mov 8*0(%rdi), %rax; mov 8*1(%rdi), %rbx; mov 8*2(%rdi), %rcx; mov 8*3(%rdi), %rdx\n"
    " mov 8*4(%rdi), %rsi; mov 8*6(%rdi), %rbp; mov 8*7(%rdi), %r8; mov 8*8(%rdi), %r9\n"
    " mov 8*9(%rdi), %r10; mov 8*10(%rdi), %r11; mov 8*11(%rdi), %r12; mov 8*12(%rdi), %r13\n"
    " mov 8*13(%rdi), %r14; mov 8*14(%rdi), %r15; mov 8*5(%rdi), %rdi\n"
    " syscall\n"
    "3: lea -128(%rsp), %rsp\n"
    " pushf; push %r15; push %r14; push %r13; push %r12; push %r11; push %r10; push %r9; push %r8\n"
    " push %rbp; push %rdi; push %rsi; push %rdx; push %rcx; push %rbx; push %rax\n"
    " cld\n"
    " mov 256(%rsp), %rax\n"              /* 16 words pushed, 128 of red zone, then store */
    " store_\\level\n"
    " stmxcsr " S(MXCSR) "(%rax); fnstcw " S(CONTROL_WORD) "(%rax)\n"
    " fstpl " S(X87) "+8(%rax); fstpl " S(X87) "(%rax); fninit\n"
    " .irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15\n"
    "  mov 8*\\n(%rsp), %rcx; mov %rcx, 8*\\n(%rax)\n"
    "  mov 128+8*\\n(%rsp), %rcx; mov %rcx, " S(RED_ZONE) "+8*\\n(%rax)\n"
    " .endr\n"
    " add $256+8, %rsp\n"
    " movl $0x1f80, -4(%rsp); ldmxcsr -4(%rsp)\n"
    " pop %r15; pop %r14; pop %r13; pop %r12; pop %rbp; pop %rbx\n"
    " ret\n"
    ".size wait_in_state_\\level, .-wait_in_state_\\level\n"
    ".endm\n"
    ".text\n"
    "wait_in_state sse\n"
    "wait_in_state avx\n"
    "wait_in_state avx512\n");

static void (*wait_in_state)(const struct state *, struct state *, long);
static int vectors, words;
static atomic_long rounds, wrong, interrupted;
static atomic_bool quit;

static void choose(void)
{
	__builtin_cpu_init();
	wait_in_state = wait_in_state_sse;
	vectors = 16;
	words = 2;
	if (__builtin_cpu_supports("avx")) {
		wait_in_state = wait_in_state_avx;
		words = 4;
	}
	if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw")) {
		wait_in_state = wait_in_state_avx512;
		vectors = 32;
		words = 8;
	}
}

static uint64_t next(uint64_t *seed)
{
	*seed ^= *seed << 13;
	*seed ^= *seed >> 7;
	*seed ^= *seed << 17;
	return *seed;
}

static void fill(struct state *s, uint64_t *seed)
{
	for (int i = 0; i < 15; i++)
		s->gpr[i] = next(seed);
	/* CF PF AF ZF SF DF OF at random; IF and bit 1 always */
	s->flags = (next(seed) & 0xcd5) | 0x202;
	for (int i = 0; i < 16; i++)
		s->red_zone[i] = next(seed);
	s->mxcsr = 0x1f80 | (next(seed) & 0xe03f);   /* rounding, FTZ, DAZ off, exception flags */
	s->control_word = 0x027f | (next(seed) & 0xc00);
	s->unused = 0;
	/* doubles without a NaN, so that x87 gives them back as they were */
	s->x87[0] = (next(seed) & 0x000fffffffffffffull) | 0x3ff0000000000000ull;
	s->x87[1] = (next(seed) & 0x000fffffffffffffull) | 0xc000000000000000ull;
	for (int i = 0; i < 8; i++)
		s->mask[i] = next(seed);
	for (int i = 0; i < 32; i++)
		for (int j = 0; j < 8; j++)
			s->vector[i][j] = next(seed);
}

static int differs(const struct state *want, const struct state *got, int syscall_mode, long result)
{
	static const char *const names[] = {"rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "r8", "r9",
					    "r10", "r11", "r12", "r13", "r14", "r15"};
	int bad = 0;

	for (int i = 0; i < 15; i++) {
		uint64_t expected = want->gpr[i];

		if (syscall_mode && (i == 2 || i == 10))
			continue;
		if (syscall_mode && i == 0)
			expected = result;
		if (!syscall_mode && i == 2)
			expected = 0;
		if (got->gpr[i] != expected) {
			fprintf(stderr, "%s: %#lx, expected %#lx\n", names[i], got->gpr[i], expected);
			bad++;
		}
	}
	if (got->flags != want->flags) {
		fprintf(stderr, "flags: %#lx, expected %#lx\n", got->flags, want->flags);
		bad++;
	}
	if (memcmp(got->red_zone, want->red_zone, sizeof(got->red_zone)) != 0) {
		fprintf(stderr, "red zone differs\n");
		bad++;
	}
	if (got->mxcsr != want->mxcsr) {
		fprintf(stderr, "mxcsr: %#x, expected %#x\n", got->mxcsr, want->mxcsr);
		bad++;
	}
	if (got->control_word != want->control_word || memcmp(got->x87, want->x87, sizeof(got->x87)) != 0) {
		fprintf(stderr, "x87 differs\n");
		bad++;
	}
	if (words == 8 && memcmp(got->mask, want->mask, sizeof(got->mask)) != 0) {
		fprintf(stderr, "mask registers differ\n");
		bad++;
	}
	for (int i = 0; i < vectors; i++)
		if (memcmp(got->vector[i], want->vector[i], 8 * words) != 0) {
			fprintf(stderr, "vector register %d differs\n", i);
			bad++;
		}
	return bad;
}

struct worker {
	pthread_t thread;
	int number;
	int sleeper;
	int pipe[2];
};

static int surroundings_differ(uint64_t mask, const stack_t *alternate)
{
	uint64_t found_mask, gs_base;
	stack_t found;

	syscall(SYS_rt_sigprocmask, SIG_BLOCK, NULL, &found_mask, 8);
	sigaltstack(NULL, &found);
	syscall(SYS_arch_prctl, 0x1004 /* ARCH_GET_GS */, &gs_base);
	if (found_mask != mask)
		fprintf(stderr, "signal mask: %#lx, expected %#lx\n", found_mask, mask);
	if (found.ss_sp != alternate->ss_sp || found.ss_size != alternate->ss_size ||
	    found.ss_flags != alternate->ss_flags)
		fprintf(stderr, "alternate stack changed\n");
	if (gs_base & 4095)
		fprintf(stderr, "GS base %#lx\n", gs_base);
	return found_mask != mask || found.ss_sp != alternate->ss_sp || (gs_base & 4095);
}

/* A first instruction of five bytes, so that each way of arming fits it. */
__attribute__((noipa)) int version(void)
{
	return 41000;
}

static void *work(void *argument)
{
	struct worker *self = argument;
	struct state want, got;
	uint64_t seed = 0x9e3779b97f4a7c15ull * (self->number + 1);
	uint64_t mask = (1ull << (SIGRTMIN + 2 + self->number % 20)) | (1ull << (SIGUSR2 - 1));
	stack_t alternate = {.ss_sp = malloc(65536), .ss_size = 65536};
	char byte;

	syscall(SYS_rt_sigprocmask, SIG_SETMASK, &mask, NULL, 8);
	sigaltstack(&alternate, NULL);
	sigaltstack(NULL, &alternate);
	while (!quit) {
		long result = 1;
		int seen;

		fill(&want, &seed);
		memset(&got, 0, sizeof(got));
		if (self->sleeper) {
			want.gpr[0] = SYS_read;
			want.gpr[5] = self->pipe[0];
			want.gpr[4] = (uint64_t)&byte;
			want.gpr[3] = 1;
		} else {
			want.gpr[2] = 20000 + next(&seed) % 20000;
		}
		wait_in_state(&want, &got, self->sleeper);
		if (self->sleeper && (long)got.gpr[0] == -EINTR) {
			interrupted++;
			result = -EINTR;
		}
		if (differs(&want, &got, self->sleeper, result) || surroundings_differ(mask, &alternate))
			wrong++;
		seen = version();
		if (seen != 41000 && seen != 42000)
			wrong++;
		rounds++;
	}
	return NULL;
}

static void *feed(void *argument)
{
	struct worker *workers = argument;

	for (;;) {
		for (struct worker *w = workers; w->number >= 0; w++)
			if (w->sleeper && write(w->pipe[1], "x", 1) != 1)
				return NULL;
		usleep(1500);
	}
}

int main(int argc, char **argv)
{
	int spinners = argc > 1 ? atoi(argv[1]) : 1;
	int sleepers = argc > 2 ? atoi(argv[2]) : 1;
	struct worker *workers = calloc(spinners + sleepers + 1, sizeof(*workers));
	pthread_attr_t attributes;
	pthread_t feeder;
	char line[64];

	choose();
	pthread_attr_init(&attributes);
	pthread_attr_setstacksize(&attributes, 256 * 1024);
	for (int i = 0; i < spinners + sleepers; i++) {
		workers[i].number = i;
		workers[i].sleeper = i >= spinners;
		if (pipe(workers[i].pipe) != 0)
			return 1;
	}
	workers[spinners + sleepers].number = -1;
	for (int i = 0; i < spinners + sleepers; i++)
		pthread_create(&workers[i].thread, &attributes, work, &workers[i]);
	pthread_create(&feeder, &attributes, feed, workers);
	printf("ready\n");
	fflush(stdout);
	while (fgets(line, sizeof(line), stdin)) {
		if (line[0] == 'q')
			break;
		printf("rounds %ld wrong %ld eintr %ld version %d\n", rounds, wrong, interrupted,
		       version());
		fflush(stdout);
	}
	return 0;
}
