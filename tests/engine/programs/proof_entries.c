/* SPDX-License-Identifier: GPL-3.0-or-later
 *
 * Callers that keep live values in every register, flag and vector across a call, as -fipa-ra lets
 * any caller do. Threads call each generated function (proof/entries.py) and its twin, which is
 * never replaced, with the same values, and compare all that comes back.
 *
 * proof_entries THREADS. Commands, each answered by a line:
 *
 *   allow MASK   from now on versions whose bit is set may be seen; answered when all threads know
 *   storm N      a signal every N microseconds
 *   report       rounds, the versions seen of each function, and what was wrong, as JSON
 *   quit
 */
#define _GNU_SOURCE
#include <cpuid.h>
#include <immintrin.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>
#include <unistd.h>

struct entry {
	const char *name;
	void (*functions[4])(void);	/* itself, by a direct call, by a jump, its twin */
	int silent;
	unsigned long rax;
};

#include GENERATED

#define ENTRIES (sizeof(entries) / sizeof(entries[0]))
#define VECTORS 4096
#define MAX_THREADS 64

/* The image that xrstor takes and xsave gives; 64-byte aligned. */
struct state {
	unsigned char vectors[VECTORS] __attribute__((aligned(64)));
	unsigned long registers[14];	/* rax rbx rcx rdx rsi rdi rbp r8 ... r14 */
	unsigned long flags;
};

/* What r15 points to while a function runs; the offsets stand in the assembly. */
struct cell {
	void (*function)(void);		/* 0 */
	unsigned long version;		/* 8 */
	unsigned long result;		/* 16 */
	unsigned long stack;		/* 24 */
	unsigned long stack_after;	/* 32 */
	struct state *want, *got;	/* 40, 48 */
	unsigned long components;	/* 56 */
	unsigned long rax, rdx;		/* 64, 72 */
};

void call_with(struct cell *cell);
void bystander(void);

__asm__(".text\n"
	".p2align 4\n"
	".globl bystander\n"
	".type bystander, @function\n"
	"bystander: ret\n"
	".size bystander, . - bystander\n"
	".p2align 4\n"
	".globl call_with\n"
	".type call_with, @function\n"
	"call_with:\n"
	"	push %rbx\n"
	"	push %rbp\n"
	"	push %r12\n"
	"	push %r13\n"
	"	push %r14\n"
	"	push %r15\n"
	"	mov %rdi, %r15\n"
	"	mov 40(%r15), %r14\n"
	"	mov 56(%r15), %rax\n"
	"	xor %edx, %edx\n"
	"	xrstor64 (%r14)\n"
	"	mov 4096+0(%r14), %rax\n"
	"	mov 4096+8(%r14), %rbx\n"
	"	mov 4096+16(%r14), %rcx\n"
	"	mov 4096+24(%r14), %rdx\n"
	"	mov 4096+32(%r14), %rsi\n"
	"	mov 4096+40(%r14), %rdi\n"
	"	mov 4096+48(%r14), %rbp\n"
	"	mov 4096+56(%r14), %r8\n"
	"	mov 4096+64(%r14), %r9\n"
	"	mov 4096+72(%r14), %r10\n"
	"	mov 4096+80(%r14), %r11\n"
	"	mov 4096+88(%r14), %r12\n"
	"	mov 4096+96(%r14), %r13\n"
	"	push 4096+112(%r14)\n"
	"	mov 4096+104(%r14), %r14\n"
	"	lea 8(%rsp), %rsp\n"
	"	mov %rsp, 24(%r15)\n"
	"	lea -8(%rsp), %rsp\n"
	"	popf\n"
	"	call *(%r15)\n"
	"	mov %rsp, 32(%r15)\n"
	"	mov 24(%r15), %rsp\n"
	"	mov %r14, 64(%r15)\n"
	"	mov 48(%r15), %r14\n"
	"	pushf\n"
	"	pop 4096+112(%r14)\n"
	"	cld\n"
	"	mov %rax, 4096+0(%r14)\n"
	"	mov %rbx, 4096+8(%r14)\n"
	"	mov %rcx, 4096+16(%r14)\n"
	"	mov %rdx, 4096+24(%r14)\n"
	"	mov %rsi, 4096+32(%r14)\n"
	"	mov %rdi, 4096+40(%r14)\n"
	"	mov %rbp, 4096+48(%r14)\n"
	"	mov %r8, 4096+56(%r14)\n"
	"	mov %r9, 4096+64(%r14)\n"
	"	mov %r10, 4096+72(%r14)\n"
	"	mov %r11, 4096+80(%r14)\n"
	"	mov %r12, 4096+88(%r14)\n"
	"	mov %r13, 4096+96(%r14)\n"
	"	mov 64(%r15), %rax\n"
	"	mov %rax, 4096+104(%r14)\n"
	"	mov 56(%r15), %rax\n"
	"	xor %edx, %edx\n"
	"	xsave64 (%r14)\n"
	"	pop %r15\n"
	"	pop %r14\n"
	"	pop %r13\n"
	"	pop %r12\n"
	"	pop %rbp\n"
	"	pop %rbx\n"
	"	ret\n"
	".size call_with, . - call_with\n");

static const char *const names[] = { "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "r8",
				     "r9", "r10", "r11", "r12", "r13", "r14" };

static unsigned long seen[ENTRIES][16];
static unsigned long rounds[MAX_THREADS];
static volatile unsigned long allowed = 2;
static unsigned long wrong, components;
static char first_wrong[256];
static int threads;
static unsigned char plain_state[VECTORS] __attribute__((aligned(64)));

static unsigned long draw(unsigned long *state)
{
	*state = *state * 6364136223846793005UL + 1442695040888963407UL;
	return *state >> 16 ^ *state << 32;
}

static void complain(const struct entry *entry, int how, const char *what, unsigned long want,
		     unsigned long got)
{
	if (__atomic_fetch_add(&wrong, 1, __ATOMIC_RELAXED) == 0)
		snprintf(first_wrong, sizeof(first_wrong), "%s (way %d): %s is %#lx, not %#lx",
			 entry->name, how, what, got, want);
}

/* Random contents for every component, all of them marked as in use. */
static void draw_state(struct state *state, unsigned long *seed)
{
	memcpy(state->vectors, plain_state, sizeof(plain_state));
	for (int i = 0; i < 8; i++)	/* st(0..7): ten bytes each */
		for (int byte = 0; byte < 10; byte++)
			state->vectors[32 + 16 * i + byte] = draw(seed);
	for (int i = 160; i < 416; i++)
		state->vectors[i] = draw(seed);
	for (int i = 576; i < VECTORS; i++)
		state->vectors[i] = draw(seed);
	for (int i = 0; i < 14; i++)
		state->registers[i] = draw(seed);
	if (draw(seed) & 1)
		state->registers[2] = 0;	/* rcx, for jrcxz and loop */
	/* CF PF AF ZF SF DF OF at random, IF and the fixed bit set */
	state->flags = (draw(seed) & 0xcd5) | 0x202;
	*(uint32_t *)(state->vectors + 24) = 0x1f80 | (draw(seed) & 0x6000);	/* mxcsr: rounding */
	*(uint16_t *)state->vectors = 0x37f & ~(draw(seed) & 0xc00);
	state->vectors[4] = 0xff;		/* all x87 registers are in use */
	*(uint64_t *)(state->vectors + 512) = components;
	memset(state->vectors + 520, 0, 56);
}

static void compare(const struct entry *entry, int how, const struct cell *twin,
		    const struct cell *cell)
{
	const struct state *want = twin->got, *got = cell->got;

	for (int i = 0; i < 14; i++)
		if (want->registers[i] != got->registers[i])
			complain(entry, how, names[i], want->registers[i], got->registers[i]);
	if (want->flags != got->flags)
		complain(entry, how, "flags", want->flags, got->flags);
	if (cell->stack != cell->stack_after)
		complain(entry, how, "rsp", cell->stack, cell->stack_after);
	if (twin->result != cell->result)
		complain(entry, how, "result", twin->result, cell->result);
	for (int i = 0; i < VECTORS; i++)
		if (want->vectors[i] != got->vectors[i]) {
			complain(entry, how, i < 32 ? "x87 control or mxcsr" :
				 i < 160 ? "x87" : i < 416 ? "xmm" : "wider vector",
				 want->vectors[i], got->vectors[i]);
			break;
		}
}

static void *work(void *argument)
{
	unsigned long number = (unsigned long)argument, seed = number * 7919 + 1;
	struct state *states = aligned_alloc(64, 3 * sizeof(struct state));
	struct cell twin, cell;

	for (;;) {
		for (unsigned int i = 0; i < ENTRIES; i++) {
			const struct entry *entry = &entries[i];
			unsigned long may = allowed;
			int how = draw(&seed) % 3;

			__atomic_thread_fence(__ATOMIC_ACQUIRE);
			draw_state(&states[0], &seed);
			if (entry->rax)
				states[0].registers[0] = entry->rax;
			memset(states[1].vectors, 0, VECTORS);
			memset(states[2].vectors, 0, VECTORS);
			twin = cell = (struct cell){ .want = &states[0], .components = components };
			twin.got = &states[1];
			twin.function = entry->functions[3];
			cell.got = &states[2];
			cell.function = entry->functions[how];
			call_with(&twin);
			call_with(&cell);
			compare(entry, how, &twin, &cell);
			if (cell.version == 0 && entry->silent)
				cell.version = 1;
			if (cell.version > 15 || !(may & 1UL << cell.version))
				complain(entry, how, "version", may, cell.version);
			else
				__atomic_fetch_add(&seen[i][cell.version], 1, __ATOMIC_RELAXED);
		}
		__atomic_fetch_add(&rounds[number], 1, __ATOMIC_RELEASE);
	}
	return NULL;
}

/* It uses the vector registers and leaves nothing of them as it was: the kernel puts them back. */
static void handle(int number)
{
	(void)number;
	__asm__ volatile("pxor %%xmm0, %%xmm0\n\tpxor %%xmm7, %%xmm7\n\tstd\n\tcld" : : : "xmm0", "xmm7");
}

static void let_pass(int more)
{
	for (int i = 0; i < threads; i++) {
		unsigned long goal = __atomic_load_n(&rounds[i], __ATOMIC_ACQUIRE) + more;

		while (__atomic_load_n(&rounds[i], __ATOMIC_ACQUIRE) < goal)
			usleep(100);
	}
}

static void report(void)
{
	unsigned long total = 0;

	for (int i = 0; i < threads; i++)
		total += rounds[i];
	printf("{\"rounds\": %lu, \"wrong\": %lu, \"first\": \"%s\", \"components\": %lu, \"seen\": {",
	       total, wrong, first_wrong, components);
	for (unsigned int i = 0; i < ENTRIES; i++) {
		printf("%s\"%s\": [", i ? ", " : "", entries[i].name);
		for (int version = 0; version < 16; version++)
			printf("%s%lu", version ? ", " : "", seen[i][version]);
		printf("]");
	}
	printf("}}\n");
}

int main(int argc, char **argv)
{
	unsigned int eax, ebx, ecx, edx;
	char line[64];

	if (argc < 2 || (threads = atoi(argv[1])) > MAX_THREADS)
		return 2;
	__asm__("xgetbv" : "=a"(eax), "=d"(edx) : "c"(0));
	components = eax & 0xe7;	/* x87, SSE, AVX, opmask, ZMM */
	__cpuid_count(13, 0, eax, ebx, ecx, edx);
	if (ebx > 16384)
		return 2;
	__asm__ volatile("xsave64 %0" : "=m"(plain_state) : "a"((unsigned int)components), "d"(0));
	setvbuf(stdout, NULL, _IOLBF, 0);
	for (long i = 0; i < threads; i++) {
		pthread_t thread;

		if (pthread_create(&thread, NULL, work, (void *)i))
			return 2;
	}
	puts("ready");
	while (fgets(line, sizeof(line), stdin)) {
		if (!strncmp(line, "allow ", 6)) {
			allowed = strtoul(line + 6, NULL, 0);
			let_pass(2);
			puts("ok");
		} else if (!strncmp(line, "storm ", 6)) {
			struct itimerval period = { .it_value.tv_usec = atoi(line + 6) };

			signal(SIGALRM, handle);
			period.it_interval = period.it_value;
			setitimer(ITIMER_REAL, &period, NULL);
			puts("ok");
		} else if (!strncmp(line, "report", 6)) {
			let_pass(1);
			report();
		} else {
			break;
		}
	}
	return 0;
}
