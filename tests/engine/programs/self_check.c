// SPDX-License-Identifier: GPL-3.0-or-later
/*
 * Calls entries of a region from stacks of every kind, and reports what ran, in which row the thread
 * is afterwards, and whether registers, flags and vector state survived.
 *
 * Built -no-pie: the test reads addresses from the symbol table. The test fills the region through
 * /proc/PID/mem. Each entry is a jump through a pointer, as an armed function's entry would be, so
 * that a call of it has the form "e8 rel32" with the entry's address as its target.
 *
 * Commands, one a line:
 *   map BASE DATA TEXT             map a region (hex)
 *   point SLOT ADDRESS             let entry SLOT lead to its stub (hex)
 *   probe WHERE HOW SLOT ROW FLAGS [RSP]
 *                                  WHERE  main pthread setstack heapalt stackalt context raw
 *                                         notls (the FS base is 0)
 *                                  HOW    direct indirect tail
 *   nest HOW SLOT ROW N RSP        a probe on the stack at RSP; after N instructions from the stub on a
 *                                  signal handler enters entry 0
 *   forbid NUMBER                  a seccomp filter: the system call fails with EPERM
 *   time WHERE SLOT ROW COUNT BYTES  nanoseconds a call with BYTES of stack in use
 */
// rdgsbase and its kin, whatever the compiler's flags
#pragma GCC target("fsgsbase")
#define _GNU_SOURCE
#include <asm/prctl.h>
#include <cpuid.h>
#include <pthread.h>
#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

enum { GPRS = 15, ENTRIES = 4, AREA = 16384 };

struct probe {
	uint64_t in[GPRS], out[GPRS];
	uint64_t flags_in, flags_out;
	uint64_t site;
	uint64_t rsp; /* to switch to, or 0 */
	uint64_t saved_rsp;
	uint64_t mask;
	uint64_t rsp_at_call;
};

struct probe P;
unsigned char xin[AREA] __attribute__((aligned(64)));
unsigned char xout[AREA] __attribute__((aligned(64)));
uint64_t pointers[ENTRIES];
volatile char ran;
volatile uint64_t residue; /* what the thunk left where the check's return address was */

void run_probe(void);
void busy_probe(void);
extern char site_direct_0[], site_indirect_0[], site_tail_0[];
extern char site_direct_1[];

/* The order of the registers is that of in[] and out[]. */
asm(".macro registers op\n"
    "	\\op 0,  %rax\n \\op 8,  %rcx\n \\op 16, %rdx\n \\op 24, %rbx\n \\op 32, %rbp\n"
    "	\\op 40, %rsi\n \\op 48, %rdi\n \\op 56, %r8\n  \\op 64, %r9\n  \\op 72, %r10\n"
    "	\\op 80, %r11\n \\op 88, %r12\n \\op 96, %r13\n \\op 104,%r14\n \\op 112,%r15\n"
    ".endm\n"
    ".macro load at, reg\n	mov P+\\at(%rip), \\reg\n .endm\n"
    ".macro store at, reg\n	mov \\reg, P+120+\\at(%rip)\n .endm\n"
    "	.text\n	.p2align 4\n"
    "run_probe:\n"
    "	push %rbx\n push %rbp\n push %r12\n push %r13\n push %r14\n push %r15\n"
    "	mov %rsp, P+272(%rip)\n"
    "	mov P+264(%rip), %rax\n"
    "	test %rax, %rax\n je 1f\n mov %rax, %rsp\n"
    "1:	mov %rsp, P+288(%rip)\n"
    "	mov P+280(%rip), %eax\n xor %edx, %edx\n"
    "	xrstor64 xin(%rip)\n"
    "	push P+240(%rip)\n popf\n"
    "	registers load\n"
    "	jmp *P+256(%rip)\n"
    "probe_back:\n"
    "	registers store\n"
    "	mov -0x20(%rsp), %rax\n mov %rax, residue(%rip)\n"
    "	pushf\n pop P+248(%rip)\n cld\n"
    "	push $2\n popf\n"
    "	mov P+280(%rip), %eax\n xor %edx, %edx\n"
    "	xsave64 xout(%rip)\n"
    "	mov P+272(%rip), %rsp\n"
    "	pop %r15\n pop %r14\n pop %r13\n pop %r12\n pop %rbp\n pop %rbx\n"
    "	ret\n"
    ".macro entry n\n"
    "	.p2align 6\n"
    "	.globl entry_\\n\n"
    "entry_\\n: jmp *pointers+8*\\n(%rip)\n"
    "	.p2align 6\n"
    "site_direct_\\n: call entry_\\n\n"
    "after_direct_\\n: jmp probe_back\n"
    "	.p2align 6\n"
    "site_indirect_\\n: call *pointers+8*\\n(%rip)\n"
    "after_indirect_\\n: jmp probe_back\n"
    "	.p2align 6\n"
    "tailer_\\n: jmp entry_\\n\n"
    "	.p2align 6\n"
    "site_tail_\\n: call tailer_\\n\n"
    "	jmp probe_back\n"
    "	.p2align 6\n"
    ".endm\n"
    "	.p2align 6\n"
    "sites:\n"
    "	entry 0\n entry 1\n entry 2\n entry 3\n"
    /* Code with an inside to return to, neither touching flags nor registers. */
    "	.p2align 6\n"
    "old_body: movb $'o', ran(%rip)\n ret\n"
    "	.p2align 6\n"
    "new_body: movb $'n', ran(%rip)\n ret\n"
    "	.p2align 6\n"
    /* busy_probe(pointer, count, bytes of stack): calls in a loop, each from row rdx>>12 */
    "busy_probe:\n"
    "	push %rbx\n push %rbp\n push %r12\n push %r13\n push %r14\n"
    "	mov %rsp, %rbp\n mov %rdi, %rbx\n mov %rsi, %r12\n mov %rcx, %r13\n mov %r8, %r14\n"
    "	sub %rdx, %rsp\n"
    "2:	test %r14, %r14\n je 3f\n wrgsbase %r13\n"
    "3:	call *%rbx\n dec %r12\n jne 2b\n"
    "	mov %rbp, %rsp\n"
    "	pop %r14\n pop %r13\n pop %r12\n pop %rbp\n pop %rbx\n ret\n");

extern char sites[];
void timed(uint64_t target, uint64_t count, uint64_t bytes, uint64_t gs, uint64_t set)
	asm("busy_probe");

static int fsgsbase;

static uint64_t get_base(int which)
{
	uint64_t value = 0;

	if (fsgsbase && which == ARCH_GET_GS)
		return __builtin_ia32_rdgsbase64();
	if (fsgsbase)
		return __builtin_ia32_rdfsbase64();
	syscall(SYS_arch_prctl, which, &value);
	return value;
}

static void set_gs(uint64_t value)
{
	if (fsgsbase)
		__builtin_ia32_wrgsbase64(value);
	else
		syscall(SYS_arch_prctl, ARCH_SET_GS, value);
}

static struct {
	char where[16], how[16];
	unsigned int slot;
	uint64_t row, flags, rsp;
	int timing, nested;
	uint64_t count, bytes;
} request;

static char answer[1024];

static void fill_state(void)
{
	unsigned int eax, ebx, ecx, edx, index;

	__asm__ volatile("xgetbv" : "=a"(eax), "=d"(edx) : "c"(0));
	P.mask = eax & 0xe7; /* x87, SSE, AVX, AVX-512; not PKRU, not AMX */
	memset(xin, 0, sizeof(xin));
	memset(xout, 0, sizeof(xout));
	__asm__ volatile("xsave64 %0" : "+m"(xin) : "a"((uint32_t)P.mask), "d"(0) : "memory");
	for (index = 160; index < 416; index++)
		xin[index] = (unsigned char)(index * 7 + 1);
	for (unsigned int component = 2; component < 8; component++) {
		if (!(P.mask >> component & 1))
			continue;
		__cpuid_count(0xd, component, eax, ebx, ecx, edx);
		for (index = 0; index < eax && ebx + index < AREA; index++)
			xin[ebx + index] = (unsigned char)(index * 13 + component);
	}
	memcpy(xin + 512, &P.mask, 8); /* XSTATE_BV: every component is in use */
	memset(xin + 520, 0, 56);
	for (index = 0; index < GPRS; index++)
		P.in[index] = 0x1111111111111111ull * (index + 1) ^ 0x5a00;
}

static int vectors_equal(void)
{
	unsigned int eax, ebx, ecx, edx;

	if (memcmp(xin + 24, xout + 24, 4) || memcmp(xin + 32, xout + 32, 384))
		return 0;
	for (unsigned int component = 2; component < 8; component++) {
		if (!(P.mask >> component & 1))
			continue;
		__cpuid_count(0xd, component, eax, ebx, ecx, edx);
		if (memcmp(xin + ebx, xout + ebx, eax))
			return 0;
	}
	return 1;
}

static double now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec * 1e9 + time.tv_nsec;
}

static struct {
	int counting;
	uint64_t rip, before, after;
	char ran;
} nested;

/* Single steps: from the stub's first instruction on they count. */
static void on_step(int number, siginfo_t *info, void *context)
{
	greg_t *registers = ((ucontext_t *)context)->uc_mcontext.gregs;

	(void)number;
	(void)info;
	if (nested.counting == 0 && (uint64_t)registers[REG_RIP] == pointers[request.slot])
		nested.counting = 1;
	if (nested.counting == 1 && request.count-- == 0) {
		nested.counting = 2;
		nested.rip = (uint64_t)registers[REG_RIP];
		nested.before = get_base(ARCH_GET_GS) >> 12;
		ran = '-';
		((void (*)(void))pointers[0])();
		nested.ran = ran;
		nested.after = get_base(ARCH_GET_GS) >> 12;
		ran = '-';
	}
	if (nested.counting == 2)
		registers[REG_EFL] &= ~0x100L;
}

static void forbid(uint32_t number)
{
	struct sock_filter filter[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, number, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog program = { sizeof(filter) / sizeof(filter[0]), filter };

	prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
	prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program);
}

/* Runs the probe with another FS base: nothing in run_probe needs the C library. */
static void run_with_fs(uint64_t fs)
{
	uint64_t own = get_base(ARCH_GET_FS);

	__builtin_ia32_wrfsbase64(fs);
	run_probe();
	__builtin_ia32_wrfsbase64(own);
}

static void probe(void)
{
	const uint64_t visible = 0x240cd5; /* CF PF AF ZF SF DF OF AC ID */
	unsigned int bad = 0;

	if (request.timing) {
		double begin = now();

		timed(pointers[request.slot], request.count, request.bytes, request.row << 12, 1);
		snprintf(answer, sizeof(answer), "%.2f", (now() - begin) / request.count);
		set_gs(0);
		return;
	}
	fill_state();
	P.flags_in = request.flags | 0x202 | (request.nested ? 0x100 : 0);
	memset(&nested, 0, sizeof(nested));
	P.rsp = request.rsp;
	P.site = (uint64_t)(request.how[0] == 'd'   ? site_direct_0
			    : request.how[0] == 'i' ? site_indirect_0
						    : site_tail_0);
	P.site += request.slot * (uint64_t)(site_direct_1 - site_direct_0);
	ran = '-';
	set_gs(request.row << 12);
	if (!strcmp(request.where, "notls"))
		run_with_fs(request.count);
	else
		run_probe();
	for (unsigned int index = 0; index < GPRS; index++)
		bad |= (P.in[index] != P.out[index]) << index;
	snprintf(answer, sizeof(answer),
		 "ran=%c row=%lu registers=%x flags=%lx vectors=%d rsp=%lx residue=%lx "
		 "nested_rip=%lx nested_before=%lu nested_after=%lu nested_ran=%c",
		 ran, get_base(ARCH_GET_GS) >> 12, bad, (P.flags_in ^ P.flags_out) & visible,
		 vectors_equal(), P.rsp_at_call, residue, nested.rip, nested.before, nested.after,
		 nested.ran ? nested.ran : '-');
	set_gs(0);
}

static void *in_thread(void *unused)
{
	probe();
	return unused;
}

static void in_handler(int number)
{
	(void)number;
	probe();
}

static void on_alternate(void *memory, size_t size)
{
	stack_t alternate = { .ss_sp = memory, .ss_size = size };
	stack_t off = { .ss_flags = SS_DISABLE };
	struct sigaction action = { .sa_handler = in_handler, .sa_flags = SA_ONSTACK };

	sigaction(SIGUSR1, &action, NULL);
	sigaltstack(&alternate, NULL);
	raise(SIGUSR1);
	sigaltstack(&off, NULL);
}

static void __attribute__((noinline)) on_stack_alternate(void)
{
	char memory[65536] __attribute__((aligned(64)));

	on_alternate(memory, sizeof(memory));
}

static ucontext_t home;

static void in_context(void)
{
	probe();
}

static void dispatch(void)
{
	pthread_t thread;
	pthread_attr_t attributes;
	const size_t size = 1 << 20;

	if (!strcmp(request.where, "main") || !strcmp(request.where, "raw") ||
	    !strcmp(request.where, "notls")) {
		probe();
	} else if (!strcmp(request.where, "pthread")) {
		pthread_create(&thread, NULL, in_thread, NULL);
		pthread_join(thread, NULL);
	} else if (!strcmp(request.where, "setstack")) {
		void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE,
				    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

		pthread_attr_init(&attributes);
		pthread_attr_setstack(&attributes, memory, size);
		pthread_create(&thread, &attributes, in_thread, NULL);
		pthread_join(thread, NULL);
		munmap(memory, size);
	} else if (!strcmp(request.where, "heapalt")) {
		void *memory = malloc(65536);

		on_alternate(memory, 65536);
		free(memory);
	} else if (!strcmp(request.where, "stackalt")) {
		on_stack_alternate();
	} else if (!strcmp(request.where, "context")) {
		ucontext_t other;
		void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE,
				    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

		getcontext(&other);
		other.uc_stack.ss_sp = memory;
		other.uc_stack.ss_size = size;
		other.uc_link = &home;
		makecontext(&other, in_context, 0);
		swapcontext(&home, &other);
		munmap(memory, size);
	}
}

/* The offset of stackblock in struct pthread, by the bounds that pthread_getattr_np reports. */
static void *find_stackblock(void *result)
{
	uint64_t tcb = get_base(ARCH_GET_FS);
	pthread_attr_t attributes;
	void *address;
	size_t size, guard;

	pthread_getattr_np(pthread_self(), &attributes);
	pthread_attr_getstack(&attributes, &address, &size);
	pthread_attr_getguardsize(&attributes, &guard);
	for (uint64_t offset = 0x100; offset < 0x900; offset += 8) {
		uint64_t block = *(uint64_t *)(tcb + offset);
		uint64_t length = *(uint64_t *)(tcb + offset + 8);

		if (block + length == (uint64_t)address + size && block + guard == (uint64_t)address)
			*(uint64_t *)result = offset;
	}
	return NULL;
}

int main(void)
{
	pthread_t thread;
	struct sigaction step = { .sa_sigaction = on_step, .sa_flags = SA_SIGINFO };
	uint64_t offset = 0;
	char line[512];

	fsgsbase = getauxval(AT_HWCAP2) >> 1 & 1;
	sigaction(SIGTRAP, &step, NULL);
	pthread_create(&thread, NULL, find_stackblock, &offset);
	pthread_join(thread, NULL);
	printf("ready %lx %lx %d\n", get_base(ARCH_GET_FS), offset,
	       fsgsbase);
	fflush(stdout);
	while (fgets(line, sizeof(line), stdin)) {
		static uint64_t a, b, c; /* not on the stack: their values would be found there */

		memset(&request, 0, sizeof(request));
		strcpy(answer, "ok");
		if (sscanf(line, "map %lx %lx %lx", &a, &b, &c) == 3) {
			if (mmap((void *)a, b, PROT_READ | PROT_WRITE,
				 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1,
				 0) == MAP_FAILED ||
			    mmap((void *)(a + b), c, PROT_READ | PROT_EXEC,
				 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1,
				 0) == MAP_FAILED) {
				perror("map");
				return 1;
			}
		} else if (sscanf(line, "point %lu %lx", &a, &b) == 2) {
			pointers[a] = b;
		} else if (sscanf(line, "forbid %lu", &a) == 1) {
			forbid((uint32_t)a);
		} else if (sscanf(line, "nest %15s %u %lu %lu %lx", request.how, &request.slot,
				  &request.row, &request.count, &request.rsp) == 5) {
			strcpy(request.where, "raw");
			request.nested = 1;
			dispatch();
		} else if (sscanf(line, "time %15s %u %lu %lu %lu", request.where, &request.slot,
				  &request.row, &request.count, &request.bytes) == 5) {
			request.timing = 1;
			dispatch();
		} else if (sscanf(line, "probe %15s %15s %u %lu %lx %lx", request.where, request.how,
				  &request.slot, &request.row, &request.flags, &request.rsp) >= 5) {
			dispatch();
		} else {
			strcpy(answer, "what?");
		}
		printf("%s\n", answer);
		fflush(stdout);
	}
	return 0;
}
