// SPDX-License-Identifier: GPL-3.0-or-later
/*
 * Functions with first instructions of every kind, called by busy threads that check every result,
 * while their entries are armed and disarmed from outside.
 *
 * Each function k takes a number x and returns x + 1000 * k + 1. Commands, one a line:
 *   map ADDRESS SIZE      mmap r-x, anonymous, MAP_FIXED_NOREPLACE (hex)
 *   data ADDRESS SIZE     the same, rw-
 *   move FROM SIZE TO     mremap over TO (hex)
 *   unmap ADDRESS SIZE
 *   call K X              the result of one call
 *   step K X N            one call, stopped after N instructions: says where, obeys until "go"
 *   count                 calls of all threads, wrong results
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <ucontext.h>

enum { KINDS = 13 };

uint64_t thousand = 1000;

asm("	.section .text.kinds,\"ax\",@progbits\n"
    "	.p2align 12\n"
    /* 0: one byte */
    "	.globl kind_0\n	.type kind_0,@function\n"
    "kind_0: push %rbx\n mov %rdi, %rbx\n lea 1(%rbx), %rax\n pop %rbx\n ret\n"
    "	.size kind_0, .-kind_0\n	.p2align 6\n"
    /* 1: four bytes */
    "kind_1: sub $8, %rsp\n lea 1001(%rdi), %rax\n add $8, %rsp\n ret\n"
    "	.size kind_1, .-kind_1\n	.p2align 6\n"
    /* 2: five bytes */
    "kind_2: mov $2001, %eax\n add %rdi, %rax\n ret\n"
    "	.size kind_2, .-kind_2\n	.p2align 6\n"
    /* 3: seven bytes, RIP-relative */
    "kind_3: mov thousand(%rip), %rax\n lea (%rax,%rax,2), %rax\n lea 1(%rdi,%rax), %rax\n ret\n"
    "	.size kind_3, .-kind_3\n	.p2align 6\n"
    /* 4: two bytes, a short branch on rdi's sign comes first */
    "kind_4: jrcxz 1f\n lea 4001(%rdi), %rax\n ret\n1: lea 4001(%rdi), %rax\n ret\n"
    "	.size kind_4, .-kind_4\n	.p2align 6\n"
    /* 5: a call of five bytes (its helper returns 5001) */
    "kind_5: call helper\n add %rdi, %rax\n ret\n"
    "	.size kind_5, .-kind_5\n	.p2align 6\n"
    /* 6: a jump of five bytes */
    "kind_6: .byte 0xe9\n .long 2f-.-4\n 2: nop\n lea 6001(%rdi), %rax\n ret\n"
    "	.size kind_6, .-kind_6\n	.p2align 6\n"
    /* 7: two bytes, then padding before the next function */
    "kind_7: mov %edi, %eax\n add $7001, %rax\n ret\n"
    "	.size kind_7, .-kind_7\n	.p2align 6\n"
    /* 8: smaller than five bytes (rsi is 8001 + rdi, as callers pass it) */
    "kind_8: mov %rsi, %rax\n ret\n"
    "	.size kind_8, .-kind_8\n	.p2align 6\n"
    "helper: mov $5001, %eax\n ret\n"
    /* 9: one byte, the last of its page */
    "	.p2align 12\n	.skip 4095\n"
    "kind_9: push %rbx\n lea 9001(%rdi), %rax\n pop %rbx\n ret\n"
    "	.size kind_9, .-kind_9\n"
    /* 10: seven bytes over the end of a page */
    "	.p2align 12\n	.skip 4093\n"
    "kind_10: lea 10001(%rdi), %rax\n ret\n"
    "	.size kind_10, .-kind_10\n	.p2align 6\n"
    /* 11: three bytes, nothing free behind it */
    "	.p2align 6\n"
    "kind_11: mov %rdi, %rax\n add $11001, %rax\n ret\n"
    "	.size kind_11, .-kind_11\n"
    /* 12: one byte, then two of two: a hold displaces all three */
    "	.p2align 6\n"
    "kind_12: push %rbp\n mov %edi, %eax\n mov %esp, %ebp\n add $12001, %rax\n pop %rbp\n ret\n"
    "	.size kind_12, .-kind_12\n"
    "	.p2align 12\n"
    "	.text\n");

#define DECLARE(n) extern uint64_t kind_##n(uint64_t, uint64_t);
DECLARE(0) DECLARE(1) DECLARE(2) DECLARE(3) DECLARE(4) DECLARE(5) DECLARE(6)
DECLARE(7) DECLARE(8) DECLARE(9) DECLARE(10) DECLARE(11) DECLARE(12)

static uint64_t (*const kinds[KINDS])(uint64_t, uint64_t) = { kind_0, kind_1, kind_2,  kind_3,	kind_4,
							      kind_5, kind_6, kind_7,  kind_8,	kind_9,
							      kind_10, kind_11, kind_12 };

static atomic_ulong calls, wrong;

static uint64_t call(unsigned int kind, uint64_t x)
{
	return kinds[kind](x, x + 8001);
}

static void *work(void *unused)
{
	for (uint64_t round = 1;; round++) {
		for (unsigned int kind = 0; kind < KINDS; kind++)
			if (call(kind, round & 0xffff) != (round & 0xffff) + 1000 * kind + 1)
				atomic_fetch_add(&wrong, 1);
		atomic_fetch_add(&calls, KINDS);
	}
	return unused;
}

/* One call with the trap flag set: SIGTRAP after each instruction. */
uint64_t stepped(void *function, uint64_t x, uint64_t y);
asm("	.text\n"
    "stepped:\n"
    "	mov %rdi, %rax\n mov %rsi, %rdi\n mov %rdx, %rsi\n mov %rdi, %rcx\n"
    "	pushf\n orq $0x100, (%rsp)\n popf\n"
    "	call *%rax\n"
    "	pushf\n andq $~0x100, (%rsp)\n popf\n"
    "	ret\n");

static uint64_t stop_entry, stop_after;
static int counting;
static bool obey(void);

static void stop(int number, siginfo_t *info, void *context)
{
	greg_t *registers = ((ucontext_t *)context)->uc_mcontext.gregs;

	(void)number;
	(void)info;
	if (!counting && (uint64_t)registers[REG_RIP] != stop_entry)
		return;
	counting = 1;
	if (stop_after--)
		return;
	registers[REG_EFL] &= ~0x100L;
	counting = 2;
	printf("at %llx\n", registers[REG_RIP]);
	fflush(stdout);
	while (obey())
		;
}

/* Does one command; false at "go" and at the end of the input. */
static bool obey(void)
{
	char line[256];
	uint64_t a, b, c;
	void *result = NULL;

	if (!fgets(line, sizeof(line), stdin) || line[0] == 'g')
		return false;
	if (sscanf(line, "map %lx %lx", &a, &b) == 2)
		result = mmap((void *)a, b, PROT_READ | PROT_EXEC,
			      MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
	else if (sscanf(line, "data %lx %lx", &a, &b) == 2)
		result = mmap((void *)a, b, PROT_READ | PROT_WRITE,
			      MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
	else if (sscanf(line, "move %lx %lx %lx", &a, &b, &c) == 3)
		result = mremap((void *)a, b, b, MREMAP_MAYMOVE | MREMAP_FIXED, (void *)c);
	else if (sscanf(line, "unmap %lx %lx", &a, &b) == 2)
		result = (void *)(uintptr_t)munmap((void *)a, b);
	if (sscanf(line, "call %lu %lu", &a, &b) == 2) {
		printf("%lu\n", call((unsigned int)a, b));
	} else if (sscanf(line, "step %lu %lu %lu", &a, &b, &stop_after) == 3) {
		counting = 0;
		stop_entry = (uint64_t)kinds[a];
		a = stepped((void *)stop_entry, b, b + 8001);
		printf(counting == 2 ? "%lu\n" : "over %lu\n", a);
	} else if (line[0] == 'c') {
		printf("%lu %lu\n", atomic_load(&calls), atomic_load(&wrong));
	} else {
		printf("%s\n", result == MAP_FAILED ? "failed" : "ok");
	}
	fflush(stdout);
	return true;
}

int main(int argc, char **argv)
{
	struct sigaction action = { .sa_sigaction = stop, .sa_flags = SA_SIGINFO };
	int threads = argc > 1 ? atoi(argv[1]) : 0;

	sigaction(SIGTRAP, &action, NULL);
	for (int index = 0; index < threads; index++) {
		pthread_t thread;

		pthread_create(&thread, NULL, work, NULL);
	}
	printf("ready");
	for (unsigned int kind = 0; kind < KINDS; kind++)
		printf(" %lx", (uint64_t)kinds[kind]);
	printf("\n");
	fflush(stdout);
	while (obey())
		;
	return 0;
}
