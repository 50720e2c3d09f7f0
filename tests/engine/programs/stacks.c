// SPDX-License-Identifier: GPL-3.0-or-later
// Threads on stacks of every kind that sleep where they are told to.
//
// "spawn KIND" starts one and prints "tid descriptor low high" as pthread_getattr_np(3) tells them.
// "do N C" gives thread N (0 is the first one spawned) the byte C: idle, it goes to sleep in what
// C stands for; elsewhere any byte lets it come back. "signal N" sends it SIGUSR1. Each "do" and
// "signal" is answered with "asleep" when the thread is about to read again.
#define _GNU_SOURCE
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#define STACK (64 << 10)

struct worker {
	int in[2], out[2];
	pthread_t thread;
	pid_t tid;
};

static struct worker workers[1024];
static int count;
static __thread struct worker *self;
static volatile int spinning = 1, spun;
static char *arena;

static char next(void)
{
	char c = 0;

	if (write(self->out[1], "", 1) != 1 || read(self->in[0], &c, 1) != 1)
		_exit(3);
	return c;
}

__attribute__((noinline)) static void inner(void)
{
	next();
	__asm__ volatile("");
}

__attribute__((noinline)) static void outer(void)
{
	inner();
	__asm__ volatile("");
}

__attribute__((noinline, noreturn)) static void stay(void)
{
	for (;;)
		next();
}

// its last instruction is a call: the return address lies behind it
__attribute__((noinline)) static void ends_in_call(void)
{
	stay();
}

// a leaf: what a signal interrupts here is preceded by no call
__attribute__((noinline)) static void spin(void)
{
	if (write(self->out[1], "", 1) != 1)
		_exit(4);
	while (spinning) {
		spun = 1;
		__asm__ volatile("pause");
	}
	spinning = 1;
}

static void on_signal(int number)
{
	(void)number;
	next();
}

__attribute__((noinline)) static void raise_inside(int number)
{
	// the call as code of its own, so that this very function is the interrupted one
	long pid = getpid(), tid = gettid();
	register long process __asm__("rdi") = pid;
	register long thread __asm__("rsi") = tid;
	register long which __asm__("rdx") = number;
	long result = SYS_tgkill;

	__asm__ volatile("syscall" : "+a"(result) : "r"(process), "r"(thread), "r"(which) : "rcx", "r11", "memory");
}

__attribute__((noinline)) static void on_alternate(char *stack)
{
	stack_t alternate = {.ss_sp = stack, .ss_size = STACK / 4};
	stack_t none = {.ss_flags = SS_DISABLE};

	sigaltstack(&alternate, NULL);
	raise_inside(SIGUSR2);
	sigaltstack(&none, NULL);
}

__attribute__((noinline)) static void alternate_inside(void)
{
	char stack[STACK / 4];

	memset(stack, 0, sizeof(stack));
	on_alternate(stack);
	__asm__ volatile("" : : "r"(stack) : "memory");
}

static void *work(void *argument)
{
	char *heap = calloc(1, STACK / 4);

	self = argument;
	self->tid = gettid();
	for (;;) {
		switch (next()) {
		case 'o':
			outer();
			break;
		case 'p':
			spin();
			break;
		case 's':
			raise_inside(SIGUSR1);
			break;
		case 'h':
			on_alternate(heap);
			break;
		case 'i':
			alternate_inside();
			break;
		case 'n':
			ends_in_call();
			break;
		case 'x':
			return NULL;
		}
	}
}

static void spawn(const char *kind)
{
	struct worker *worker = &workers[count];
	pthread_attr_t attributes;
	void *low = NULL;
	size_t size = 0;
	char byte;

	pthread_attr_init(&attributes);
	if (!strcmp(kind, "small")) {
		pthread_attr_setstacksize(&attributes, STACK);
	} else if (!strcmp(kind, "noguard")) {
		pthread_attr_setstacksize(&attributes, STACK);
		pthread_attr_setguardsize(&attributes, 0);
	} else if (!strcmp(kind, "supplied")) {
		pthread_attr_setstack(&attributes, malloc(STACK + 48) + 48, STACK);
	} else if (!strcmp(kind, "adjacent")) {
		// all in one mapping, one right behind the other
		if (!arena)
			arena = mmap(NULL, 64 * STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		pthread_attr_setstack(&attributes, arena, STACK);
		arena += STACK;
	}
	if (pipe(worker->in) || pipe(worker->out) ||
	    pthread_create(&worker->thread, &attributes, work, worker))
		_exit(5);
	if (read(worker->out[0], &byte, 1) != 1)
		_exit(6);
	pthread_getattr_np(worker->thread, &attributes);
	pthread_attr_getstack(&attributes, &low, &size);
	printf("%d %ju %ju %ju\n", worker->tid, (uintmax_t)worker->thread,
	       (uintmax_t)(uintptr_t)low, (uintmax_t)(uintptr_t)low + size);
	count++;
}

int main(void)
{
	struct sigaction action = {.sa_handler = on_signal};
	char line[256], word[64], byte;
	int number;

	sigaction(SIGUSR1, &action, NULL);
	action.sa_flags = SA_ONSTACK;
	sigaction(SIGUSR2, &action, NULL);
	setvbuf(stdout, NULL, _IOLBF, 0);
	printf("ready %ju\n", (uintmax_t)pthread_self());
	while (fgets(line, sizeof(line), stdin)) {
		if (sscanf(line, "spawn %63s", word) == 1) {
			spawn(word);
			continue;
		}
		if (sscanf(line, "do %d %c", &number, &byte) == 2) {
			if (write(workers[number].in[1], &byte, 1) != 1)
				return 7;
		} else if (sscanf(line, "signal %d", &number) == 1) {
			// past the write that told of it
			while (!spun)
				usleep(1000);
			pthread_kill(workers[number].thread, SIGUSR1);
		} else if (!strcmp(line, "unspin\n")) {
			spinning = 0;
			printf("0\n");
			continue;
		}
		if (byte == 'x' && line[0] == 'd') {
			pthread_join(workers[number].thread, NULL);
		} else if (read(workers[number].out[0], &byte, 1) != 1) {
			return 8;
		}
		printf("asleep\n");
	}
	return 0;
}
