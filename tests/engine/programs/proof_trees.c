/* SPDX-License-Identifier: GPL-3.0-or-later
 *
 * The program of the consistency tests: threads run call trees (proof_trees.h) at random or by
 * script, under signals, forks, clones and short-lived threads, and count mixtures of versions.
 *
 * proof_trees RANDOM SCRIPTED NAMES: numbers of threads of both kinds, and the functions that random
 * trees are made of: those that the patches replace, g among them. Commands, each answered by a line:
 *
 *   run T SCRIPT     scripted thread T runs a script, "main SCRIPT" the main thread at once
 *   child T SCRIPT   what a clone or a thread begotten by T's scripts runs
 *   handler T SCRIPT what T's handlers of SIGUSR1 run, on the interrupted stack
 *   signal T SCRIPT  the same, and send T that signal
 *   go T             one byte for T's pipe
 *   state T          "idle", or "running" and how often it came to wait for its pipe; then its tid
 *   trace T          versions of the functions it entered since the last call: "f1 g1 "
 *   expect V         a transition to version V begins: each thread may change once, to V
 *   storm N          send a signal every N microseconds, 0: no more
 *   births N         let N short-lived threads exist at any time
 *   forks N          fork every N milliseconds from a tree, 0: no more
 *   pause on|off     let the random threads rest outside of the set
 *   report           what was counted, as JSON
 *   quit
 */
#define _GNU_SOURCE
#include "proof_trees.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define MAX_THREADS 600
#define ALTERNATE 65536
#define MAX_TRANSITIONS 65536

/* Shared with forked children, so that what they find is not lost. */
struct shared {
	unsigned long mixed;
	unsigned long backward;
	unsigned long children;
	unsigned long children_ended;
	unsigned long children_blocked;
	int last_child;
	unsigned long forks_mixed;
	struct {
		int id, handler;
		unsigned long seen, caller, version;
	} first;
};

struct worker {
	struct tree tree;
	pthread_t thread;
	int scripted;
	int running;
	int alive;
	int alternate;		/* where its alternate stack is: enum place */
	char *heap;
	char script[SCRIPT];
	char signal_script[SCRIPT];
	sigjmp_buf idle;
	int start[2];
};

/* In the heap; in the thread's own stack, above its frames; there, with SS_AUTODISARM. */
enum place { HEAP, IN_STACK, IN_STACK_DISARMING, PLACES };

static struct shared *shared;
static struct worker workers[MAX_THREADS];
static int random_threads, scripted_threads;
static const char *set;		/* the functions of random trees */
static struct tree main_tree;
static __thread struct tree *own_tree;
/* volatile: the compiler takes raise() for a function that calls nothing of this file back */
static __thread const char **volatile handler_script;
static __thread int in_handler;
/* Transition n leads to version targets[n]; a thread is born into version 1. */
static unsigned char targets[MAX_TRANSITIONS] = { 1, 1 };
static int transitions = 1;
static int storm_period, births, fork_period, paused, quitting;
static unsigned long signals_handled, born;
static unsigned long former_calls[MAX_VERSION + 1];
static unsigned long gone_calls[MAX_VERSION + 1];

#define EXTRA
#ifndef MIXED
#define VERSION 1
DEFINE_f
DEFINE_g
DEFINE_k
DEFINE_r
DEFINE_x
DEFINE_y
DEFINE_d
DEFINE_e
#undef VERSION
#define VERSION 1
STEP(first_1, 'd', )
#undef VERSION
#define VERSION 2
STEP(first_2, 'd', )
#undef VERSION
#define VERSION 3
STEP(first_3, 'd', )
#else
/* The judge is judged: both versions are here, and each function changes on its own, at any time. */
#undef NAMED
#define NAMED(name) name##_old
#define VERSION 1
DEFINE_f
DEFINE_g
DEFINE_k
DEFINE_r
DEFINE_x
DEFINE_y
#undef NAMED
#undef VERSION
#define NAMED(name) name##_new
#define VERSION 2
DEFINE_f
DEFINE_g
DEFINE_k
DEFINE_r
DEFINE_x
DEFINE_y
step *volatile current[6] = { f_old, g_old, k_old, r_old, x_old, y_old };
static step *const both[6][2] = { { f_old, f_new }, { g_old, g_new }, { k_old, k_new },
				  { r_old, r_new }, { x_old, x_new }, { y_old, y_new } };
#define ENTRY(name, index) \
	__asm__(".globl " #name "\n.type " #name ", @function\n" #name ": jmp *current+8*" #index \
		"(%rip)\n.size " #name ", . - " #name)
ENTRY(f, 0);
ENTRY(g, 1);
ENTRY(k, 2);
ENTRY(r, 3);
ENTRY(x, 4);
ENTRY(y, 5);
#undef VERSION
#define VERSION 1
#undef NAMED
#define NAMED(name) name
DEFINE_e
STEP(d, 'd', )
#endif

step *const pointers[6] = { f, g, k, r, x, y };

static void fail(const char *what)
{
	perror(what);
	exit(2);
}

void rt_violation(struct tree *t, int id, unsigned long seen, unsigned long caller,
		  unsigned long version)
{
	if (t->child)
		__atomic_fetch_add(&shared->forks_mixed, 1, __ATOMIC_RELAXED);
	if (__atomic_fetch_add(&shared->mixed, 1, __ATOMIC_RELAXED) == 0) {
		shared->first.id = id;
		shared->first.handler = in_handler;
		shared->first.seen = seen;
		shared->first.caller = caller;
		shared->first.version = version;
	}
}

void rt_entered(struct tree *t, int id, unsigned long prev, unsigned long version)
{
	if (!prev && version != t->last) {
		/* A change needs a transition of its own to that version. */
		int latest = __atomic_load_n(&transitions, __ATOMIC_ACQUIRE);

		while (latest > t->transition && targets[latest] != version)
			latest--;
		if (!t->child && latest <= t->transition)
			__atomic_fetch_add(&shared->backward, 1, __ATOMIC_RELAXED);
		t->transition = latest;
		t->switches++;
		t->last = version;
	}
	if (t->traced) {
		size_t length = strlen(t->trace);

		if (length + 4 < TRACE) {
			char step[4] = { id, "0123456789abcdef"[version], ' ', 0 };

			memcpy(t->trace + length, step, 4);
		}
	}
}

/* What the other functions of the set do for themselves. */
void rt_enter(struct tree *t, int id, unsigned long prev, unsigned long caller,
	      unsigned long version)
{
	if ((t->stamp && t->stamp != version) || (caller && caller != version))
		rt_violation(t, id, t->stamp, caller, version);
	t->stamp = version;
	t->calls[version]++;
	rt_entered(t, id, prev, version);
}

static unsigned int draw(struct tree *t, unsigned int limit)
{
	t->random = t->random * 6364136223846793005UL + 1442695040888963407UL;
	return (t->random >> 33) % limit;
}

/* A function outside of the set: goes on with the script. */
__attribute__((noipa)) static void rt_script(struct tree *t, const char **pc)
{
	static const char names[] = "fgkrxyde";
	int op;

	while ((op = **pc) != 0) {
		const char *name = strchr(names, op | 0x20);

		++*pc;
		if (op == '.')
			break;
		if (name && (op & 0x20)) {
			switch (op) {
			case 'f': f(t, pc, t->stamp, 0); break;
			case 'g': g(t, pc, t->stamp, 0); break;
			case 'k': k(t, pc, t->stamp, 0); break;
			case 'r': r(t, pc, t->stamp, 0); break;
			case 'x': x(t, pc, t->stamp, 0); break;
			case 'y': y(t, pc, t->stamp, 0); break;
			case 'd': d(t, pc, t->stamp, 0); break;
			case 'e': e(t, pc, t->stamp, 0); break;
			}
		} else if (name && name - names < 6) {
			pointers[name - names](t, pc, t->stamp, 0);
		} else {
			rt_outside(t, pc, op);
		}
	}
}

static void moment_in_futex(void)
{
	static int word;
	struct timespec moment = { 0, 50000 };

	syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, 0, &moment, NULL, 0);
}

static void moment_asleep(void)
{
	struct timespec moment = { 0, 50000 };

	nanosleep(&moment, NULL);
}

static void wait_for_pipe(struct tree *t)
{
	char byte;

	t->blocked++;
	if (t->child)
		__atomic_fetch_add(&shared->children_blocked, 1, __ATOMIC_RELAXED);
	while (read(t->wake[0], &byte, 1) != 1)
		if (errno != EINTR)
			fail("read");
}

void rt_rare(struct tree *t, int op)
{
	if (op == 'q')
		wait_for_pipe(t);
	else
		moment_asleep();
}

/* Addresses of old code, entries among them, lie in a live frame. */
__attribute__((noipa)) static void with_stale_words(struct tree *t, const char **pc)
{
	unsigned long words[16];

	for (int i = 0; i < 16; i++)
		words[i] = (unsigned long)(i & 1 ? f : g) + (i & ~1) * 2;
	__asm__ volatile("" : : "r"(words) : "memory");
	rt_script(t, pc);
	__asm__ volatile("" : : "r"(words) : "memory");
}

/* What was on the stack before is still there: frames of old code, by chance. */
__attribute__((noipa)) static void with_unwritten_frame(struct tree *t, const char **pc)
{
	char frame[3000];

	__asm__ volatile("" : : "r"(frame) : "memory");
	rt_script(t, pc);
	__asm__ volatile("" : : "r"(frame) : "memory");
}

__attribute__((noipa)) static void with_huge_frame(struct tree *t, const char **pc)
{
	char frame[320 << 10];

	__asm__ volatile("" : : "r"(frame) : "memory");
	rt_script(t, pc);
	__asm__ volatile("" : : "r"(frame) : "memory");
}

/* It has no entry in .eh_frame and keeps no frame pointer. */
void without_unwind_table(struct tree *t, const char **pc) __asm__("without_unwind_table");
void script_from_assembly(struct tree *t, const char **pc) __asm__("script_from_assembly");

void script_from_assembly(struct tree *t, const char **pc)
{
	rt_script(t, pc);
}

__asm__(".text\n"
	".type without_unwind_table, @function\n"
	"without_unwind_table:\n"
	"	sub $0x1008, %rsp\n"
	"	call script_from_assembly\n"
	"	add $0x1008, %rsp\n"
	"	ret\n"
	".size without_unwind_table, . - without_unwind_table\n");

/* Have a random script call no functions but those of the set. */
static void of_the_set(struct tree *t, char *script)
{
	for (; *script; script++) {
		int call = strchr("FGKRXY", *script) != NULL;

		if ((call || strchr("fgkrxyde", *script)) && !strchr(set, *script | 0x20)) {
			int other = set[draw(t, strlen(set))];

			*script = call && strchr("fgkrxy", other) ? other & ~0x20 : other;
		}
	}
}

static void run_handler(int number)
{
	struct tree *t = own_tree;
	const char **pc = handler_script;
	int saved = errno;

	(void)number;
	if (!t)
		return;
	in_handler++;
	if (pc) {
		handler_script = NULL;
		rt_script(t, pc);
	} else if (t->traced) {
		struct worker *w = (struct worker *)t;
		const char *script = w->signal_script;

		rt_script(t, &script);
	} else {
		static const char *const scripts[] = { "g", "k.f", "fg", "hk.g", "G.F", "fs", "rx" };
		char script[8] = { 0 };
		const char *start = script;

		__atomic_fetch_add(&signals_handled, 1, __ATOMIC_RELAXED);
		strncpy(script, scripts[draw(t, 7)], 7);
		of_the_set(t, script);
		rt_script(t, &start);
	}
	in_handler--;
	errno = saved;
}

static void raise_here(struct tree *t, const char **pc, int number)
{
	(void)t;
	handler_script = pc;
	raise(number);
	handler_script = NULL;
}

static void count_child(void)
{
	shared->last_child = (int)rt_syscall(SYS_gettid, 0, 0, 0);
	__atomic_fetch_add(&shared->children, 1, __ATOMIC_RELAXED);
}

static void forked(struct tree *t, const char **pc)
{
	pid_t pid;

	if (t->child)
		return;
	pid = fork();
	if (pid == 0) {
		t->child = 1;
		count_child();
		return;	/* into the middle of the tree: the script's end finds t->child */
	}
	(void)pc;
}

__attribute__((noipa)) static void vforked(struct tree *t, const char **pc)
{
	static __thread struct tree copy;
	pid_t pid;

	if (t->child)
		return;
	copy = *t;
	copy.child = 1;
	pid = vfork();
	if (pid == 0) {
		own_tree = &copy;
		count_child();
		rt_script(&copy, pc);
		__atomic_fetch_add(&shared->children_ended, 1, __ATOMIC_RELAXED);
		_exit(0);
	}
	own_tree = t;
	if (t->traced)
		memcpy(t->trace, copy.trace, TRACE);
}

int rt_may_clone(struct tree *t)
{
	if (t->child || __atomic_load_n(&t->clone_runs, __ATOMIC_ACQUIRE))
		return 0;
	if (!t->clone_stack) {
		t->clone_stack = mmap(NULL, CLONE_STACK, PROT_READ | PROT_WRITE,
				      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		if (t->clone_stack == MAP_FAILED)
			fail("mmap");
	}
	t->clone_stamp = t->stamp;
	__atomic_store_n(&t->clone_runs, 1, __ATOMIC_RELEASE);
	return 1;
}

void rt_clone_child(struct tree *t)
{
	struct tree *copy = (struct tree *)t->clone_stack;
	const char *pc = t->child_script;

	*copy = *t;
	copy->child = 1;
	copy->clone_stack = NULL;
	count_child();
	/* It came back in the body of a function of the set, which its parent may have left. */
	copy->stamp = t->clone_stamp;
	rt_script(copy, &pc);
	if (t->traced && copy->traced)
		memcpy(t->trace, copy->trace, TRACE);
	__atomic_fetch_add(&shared->children_ended, 1, __ATOMIC_RELAXED);
	rt_syscall(SYS_exit, 0, 0, 0);
	__builtin_unreachable();
}

static void *begotten(void *argument)
{
	struct tree tree = *(struct tree *)argument;
	const char *pc = tree.child_script;

	free(argument);
	own_tree = &tree;
	tree.tid = (int)syscall(SYS_gettid);
	tree.stamp = tree.last = 0;
	tree.child = 1;
	tree.clone_stack = NULL;
	rt_script(&tree, &pc);
	for (int version = 0; version <= MAX_VERSION; version++)
		__atomic_fetch_add(&former_calls[version], tree.calls[version], __ATOMIC_RELAXED);
	__atomic_fetch_add(&shared->children_ended, 1, __ATOMIC_RELAXED);
	own_tree = NULL;
	return NULL;
}

static void beget(struct tree *t)
{
	struct tree *copy = malloc(sizeof(*copy));
	pthread_attr_t attributes;
	pthread_t thread;

	if (!copy || in_handler || t->child) {
		free(copy);
		return;
	}
	*copy = *t;
	memset(copy->calls, 0, sizeof(copy->calls));
	pthread_attr_init(&attributes);
	pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
	__atomic_fetch_add(&shared->children, 1, __ATOMIC_RELAXED);
	if (pthread_create(&thread, &attributes, begotten, copy)) {
		__atomic_fetch_sub(&shared->children, 1, __ATOMIC_RELAXED);
		free(copy);
	}
	pthread_attr_destroy(&attributes);
}

/* On a stack right beneath this thread's TCB where that is free (main thread), else anywhere; with
 * a hole between, so that a scan up to the TCB would run into it.
 */
static void on_own_stack(struct tree *t, const char **pc)
{
	char *tcb, *wanted, *stack;

	__asm__("mov %%fs:0, %0" : "=r"(tcb));
	wanted = (char *)((unsigned long)tcb & ~4095UL);
	stack = MAP_FAILED;
	for (int page = 3; page < 64 && stack == MAP_FAILED; page++) {
		stack = mmap(wanted - (CLONE_STACK + 4096UL * page), CLONE_STACK,
			     PROT_READ | PROT_WRITE,
			     MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
	}
	if (stack == MAP_FAILED)
		stack = mmap(NULL, CLONE_STACK, PROT_READ | PROT_WRITE,
			     MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (stack == MAP_FAILED)
		fail("mmap");
	__asm__ volatile("mov %%rsp, %%rbx\n\t"
			 "mov %0, %%rsp\n\t"
			 "call *%3\n\t"
			 "mov %%rbx, %%rsp"
			 :
			 : "r"(stack + CLONE_STACK), "D"(t), "S"(pc), "r"(rt_script)
			 : "rbx", "rax", "rcx", "rdx", "r8", "r9", "r10", "r11", "memory");
	munmap(stack, CLONE_STACK);
}

void rt_outside(struct tree *t, const char **pc, int op)
{
	const char *name = strchr("FGKRXY", op);

	if (name) {
		pointers[name - "FGKRXY"](t, pc, t->stamp, t->stamp);
		return;
	}
	switch (op) {
	case 'h': rt_script(t, pc); break;
	case 'z': with_stale_words(t, pc); break;
	case 'Z': with_unwritten_frame(t, pc); break;
	case 'p': wait_for_pipe(t); break;
	case 'n': moment_asleep(); break;
	case 'w': moment_in_futex(); break;
	case 's': raise_here(t, pc, SIGUSR1); break;
	case 'a': raise_here(t, pc, SIGUSR2); break;
	case 'b': with_huge_frame(t, pc); break;
	case 'u': without_unwind_table(t, pc); break;
	case '1': forked(t, pc); break;
	case '2': vforked(t, pc); break;
	case '4': beget(t); break;
	case 'o': on_own_stack(t, pc); break;
	}
}

static void end_of_child(struct tree *t, int forked_child)
{
	if (t->child && forked_child) {
		__atomic_fetch_add(&shared->children_ended, 1, __ATOMIC_RELAXED);
		_exit(0);
	}
}

/* Names weigh by how often they stand here. */
static void random_script(struct tree *t, char *script)
{
	static const char calls[] = "fffgggkkkrxydFGKRXYhhZ";
	static const char other[] = "....ttttttnniwccsaazff";
	int length = 4 + draw(t, 20), position = 0;

	while (position < length) {
		if (draw(t, 3))
			script[position++] = calls[draw(t, sizeof(calls) - 1)];
		else if (draw(t, 8) == 0)
			script[position++] = other[draw(t, sizeof(other) - 1)];
		else
			script[position++] = "..t"[draw(t, 3)];
	}
	script[position] = 0;
	of_the_set(t, script);
}

static void set_alternate_stack(void *at, size_t size, int flags)
{
	stack_t stack = { .ss_sp = at, .ss_size = size, .ss_flags = flags };

	if (sigaltstack(&stack, NULL))
		fail("sigaltstack");
}

static void run_random(struct worker *w)
{
	struct tree *t = &w->tree;
	unsigned long round = 0;
	char script[SCRIPT];

	while (!__atomic_load_n(&quitting, __ATOMIC_RELAXED)) {
		const char *pc = script;

		if (__atomic_load_n(&paused, __ATOMIC_RELAXED)) {
			moment_asleep();
			continue;
		}
		random_script(t, script);
		if (fork_period && ++round % 1024 == 0 && w == &workers[round / 1024 % random_threads]) {
			/* 1 fork, 2 vfork, 3 and 5 clones, 4 a thread: in the middle of a tree */
			script[0] = set[draw(t, strlen(set))];
			script[1] = "12345"[draw(t, 5)];
		}
		rt_script(t, &pc);
		end_of_child(t, 1);
	}
}

static void run_scripts(struct worker *w)
{
	char byte;

	if (sigsetjmp(w->idle, 0))
		__atomic_store_n(&w->running, 0, __ATOMIC_RELEASE);
	for (;;) {
		const char *pc = w->script;

		while (read(w->start[0], &byte, 1) != 1)
			if (errno != EINTR)
				return;
		rt_script(&w->tree, &pc);
		end_of_child(&w->tree, 1);
		__atomic_store_n(&w->running, 0, __ATOMIC_RELEASE);
	}
}

/* The end of e: back to where the thread waits for scripts. */
void rt_leave(struct tree *t, const char **pc)
{
	struct worker *w = (struct worker *)t;

	rt_script(t, pc);
	t->stamp = 0;
	siglongjmp(w->idle, 1);
}

static void *work(void *argument)
{
	struct worker *w = argument;
	char in_stack[ALTERNATE];
	int disarming = (int)(1U << 31);	/* SS_AUTODISARM */

	if (w->alternate == HEAP)
		set_alternate_stack(w->heap, ALTERNATE, 0);
	else
		set_alternate_stack(in_stack, sizeof(in_stack),
				    w->alternate == IN_STACK ? 0 : disarming);
	w->tree.tid = (int)syscall(SYS_gettid);
	own_tree = &w->tree;
	__atomic_store_n(&w->alive, 1, __ATOMIC_RELEASE);
	if (w->scripted)
		run_scripts(w);
	else
		run_random(w);
	own_tree = NULL;
	return NULL;
}

/* Born in the middle of whatever happens, runs some trees, goes. */
static void *short_life(void *argument)
{
	struct tree tree = { .random = (unsigned long)argument * 2654435761UL + 1, .child = 1 };
	char script[SCRIPT];

	own_tree = &tree;
	for (int round = 0; round < 20; round++) {
		const char *pc = script;

		random_script(&tree, script);
		rt_script(&tree, &pc);
	}
	own_tree = NULL;
	for (int version = 0; version <= MAX_VERSION; version++)
		__atomic_fetch_add(&gone_calls[version], tree.calls[version], __ATOMIC_RELAXED);
	return NULL;
}

static void *give_birth(void *argument)
{
	pthread_t young[16];

	(void)argument;
	while (!quitting) {
		int wanted = __atomic_load_n(&births, __ATOMIC_RELAXED), made = 0;

		if (!wanted) {
			usleep(2000);
			continue;
		}
		for (; made < wanted && made < 16; made++)
			if (pthread_create(&young[made], NULL, short_life, (void *)++born))
				break;
		while (made)
			pthread_join(young[--made], NULL);
	}
	return NULL;
}

static void *send_signals(void *argument)
{
	unsigned long turn = 0;

	(void)argument;
	while (!quitting) {
		int period = __atomic_load_n(&storm_period, __ATOMIC_RELAXED);

		if (!period) {
			usleep(2000);
			continue;
		}
		usleep(period);
		if (random_threads)
			pthread_kill(workers[turn % random_threads].thread,
				     turn / random_threads & 1 ? SIGUSR1 : SIGUSR2);
		turn++;
	}
	return NULL;
}

static void catch_signal(int number, int flags)
{
	struct sigaction action = { .sa_handler = run_handler, .sa_flags = SA_RESTART | flags };

	sigemptyset(&action.sa_mask);	/* the one may interrupt the other's handler */
	sigaction(number, &action, NULL);
}

static void report(void)
{
	unsigned long calls[MAX_VERSION + 1] = { 0 }, least = ~0UL, most = 0;
	int threads = random_threads + scripted_threads;

	for (int i = 0; i < threads; i++) {
		for (int version = 0; version <= MAX_VERSION; version++)
			calls[version] += workers[i].tree.calls[version];
		if (i < random_threads) {
			unsigned long switches = workers[i].tree.switches;

			least = switches < least ? switches : least;
			most = switches > most ? switches : most;
		}
	}
	printf("{\"mixed\": %lu, \"backward\": %lu, \"forks_mixed\": %lu, \"children\": %lu, "
	       "\"children_ended\": %lu, \"children_blocked\": %lu, \"last_child\": %d, "
	       "\"signals\": %lu, \"born\": %lu, \"switches\": [%lu, %lu], "
	       "\"first\": {\"id\": \"%c\", \"handler\": %d, \"seen\": %lu, \"caller\": %lu, "
	       "\"version\": %lu}, \"calls\": [",
	       shared->mixed, shared->backward, shared->forks_mixed, shared->children,
	       shared->children_ended, shared->children_blocked, shared->last_child, signals_handled, born, random_threads ? least : 0, most,
	       shared->first.id ? shared->first.id : '-', shared->first.handler, shared->first.seen,
	       shared->first.caller, shared->first.version);
	for (int version = 0; version <= MAX_VERSION; version++)
		printf("%s%lu", version ? ", " : "",
		       calls[version] + former_calls[version] + gone_calls[version]);
	printf("]}\n");
}

static struct worker *scripted(const char *number)
{
	int index = atoi(number);

	if (index < 0 || index >= scripted_threads)
		exit(3);
	return &workers[random_threads + index];
}

static void tell_trace(struct tree *t)
{
	printf("%s\n", t->trace);
	t->trace[0] = 0;
}

static void command(char *line)
{
	char *word[3] = { "", "", "" }, *rest = line;

	for (int i = 0; i < 3 && (word[i] = strtok_r(i ? NULL : line, " \n", &rest)); i++)
		;
	for (int i = 0; i < 3; i++)
		if (!word[i])
			word[i] = "";
	if (!strcmp(word[0], "run")) {
		struct worker *w = scripted(word[1]);

		strncpy(w->script, word[2], SCRIPT - 1);
		__atomic_store_n(&w->running, 1, __ATOMIC_RELEASE);
		if (write(w->start[1], "", 1) != 1)
			fail("write");
		puts("ok");
	} else if (!strcmp(word[0], "main")) {
		const char *pc = word[1];

		rt_script(&main_tree, &pc);
		if (main_tree.child)
			_exit(0);
		tell_trace(&main_tree);
	} else if (!strcmp(word[0], "child")) {
		strncpy(scripted(word[1])->tree.child_script, word[2], SCRIPT - 1);
		puts("ok");
	} else if (!strcmp(word[0], "handler") || !strcmp(word[0], "signal")) {
		strncpy(scripted(word[1])->signal_script, word[2], SCRIPT - 1);
		if (*word[0] == 's')
			pthread_kill(scripted(word[1])->thread, SIGUSR1);
		puts("ok");
	} else if (!strcmp(word[0], "go")) {
		if (write(scripted(word[1])->tree.wake[1], "", 1) != 1)
			fail("write");
		puts("ok");
	} else if (!strcmp(word[0], "state")) {
		struct worker *w = scripted(word[1]);

		printf("%s %d %d\n", __atomic_load_n(&w->running, __ATOMIC_ACQUIRE) ? "running" : "idle",
		       w->tree.blocked, w->tree.tid);
	} else if (!strcmp(word[0], "trace")) {
		tell_trace(&scripted(word[1])->tree);
	} else if (!strcmp(word[0], "expect")) {
		if (transitions + 1 == MAX_TRANSITIONS)
			exit(3);
		targets[transitions + 1] = atoi(word[1]);
		__atomic_fetch_add(&transitions, 1, __ATOMIC_RELEASE);
		puts("ok");
	} else if (!strcmp(word[0], "storm")) {
		__atomic_store_n(&storm_period, atoi(word[1]), __ATOMIC_RELAXED);
		puts("ok");
	} else if (!strcmp(word[0], "births")) {
		__atomic_store_n(&births, atoi(word[1]), __ATOMIC_RELAXED);
		puts("ok");
	} else if (!strcmp(word[0], "forks")) {
		__atomic_store_n(&fork_period, atoi(word[1]), __ATOMIC_RELAXED);
		puts("ok");
	} else if (!strcmp(word[0], "pause")) {
		__atomic_store_n(&paused, !strcmp(word[1], "on"), __ATOMIC_RELAXED);
		puts("ok");
#ifdef MIXED
	} else if (!strcmp(word[0], "swap")) {
		int index = strchr("fgkrxy", *word[1]) - "fgkrxy";

		current[index] = both[index][atoi(word[2]) - 1];
		puts("ok");
#endif
	} else if (!strcmp(word[0], "report")) {
		report();
	} else {
		exit(0);
	}
}

int main(int argc, char **argv)
{
	pthread_t thread;
	char line[256];

	if (argc < 4)
		return 2;
	set = argv[3];
	random_threads = atoi(argv[1]);
	scripted_threads = atoi(argv[2]);
	if (random_threads + scripted_threads > MAX_THREADS)
		return 2;
	setvbuf(stdout, NULL, _IOLBF, 0);
	signal(SIGCHLD, SIG_IGN);
	shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1,
		      0);
	if (shared == MAP_FAILED)
		fail("mmap");
	catch_signal(SIGUSR1, 0);
	catch_signal(SIGUSR2, SA_ONSTACK);
	main_tree.traced = 1;
	own_tree = &main_tree;
	for (int i = 0; i < random_threads + scripted_threads; i++) {
		struct worker *w = &workers[i];

		w->scripted = i >= random_threads;
		/* scripted: the first in the heap, the second in its stack, the third disarming ... */
		w->alternate = w->scripted ? (i - random_threads) % PLACES : i & 1;
		w->heap = malloc(ALTERNATE);	/* by the main thread: next to brk */
		w->tree.random = 88172645463325252UL + i * 7919;
		w->tree.traced = w->scripted;
		strcpy(w->tree.child_script, "kg..k.g.");
		of_the_set(&w->tree, w->tree.child_script);
		if (pipe2(w->tree.wake, O_CLOEXEC) || pipe2(w->start, O_CLOEXEC))
			fail("pipe2");
		if (pthread_create(&w->thread, NULL, work, w))
			fail("pthread_create");
		while (!__atomic_load_n(&w->alive, __ATOMIC_ACQUIRE))
			sched_yield();
	}
	if (pthread_create(&thread, NULL, send_signals, NULL) ||
	    pthread_create(&thread, NULL, give_birth, NULL))
		fail("pthread_create");
	puts("ready");
	while (fgets(line, sizeof(line), stdin))
		command(line);
	return 0;
}
