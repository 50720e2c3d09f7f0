// SPDX-License-Identifier: GPL-3.0-or-later
/*
 * Threads that sleep in a signal handler on an alternate stack: on a heap, mapped, and within the
 * thread's own stack with live frames below it. Prints "ready heap:TID mapped:TID roomy:TID tight:TID".
 * "release" lets all handlers return and prints "intact" or "broken": the live frames hold a pattern.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

static int release_pipe[2];
static atomic_int broken, waiting, finished;

struct worker {
	const char *kind;
	size_t size;
	pid_t tid;
	pthread_t thread;
};

static struct worker workers[] = {
	{.kind = "heap", .size = 65536},
	{.kind = "mapped", .size = 65536},
	{.kind = "roomy", .size = 65536},
	{.kind = "tight", .size = 9216},
};

static void handler(int number)
{
	char byte;

	(void)number;
	waiting++;
	if (read(release_pipe[0], &byte, 1) != 1)
		_exit(3);
}

/* The frame below an alternate stack that lies within the thread's own stack. */
static void __attribute__((noinline)) live_frame(void)
{
	volatile unsigned char pattern[32768];

	for (size_t i = 0; i < sizeof(pattern); i++)
		pattern[i] = i * 7 + 1;
	raise(SIGUSR1);
	for (size_t i = 0; i < sizeof(pattern); i++)
		if (pattern[i] != (unsigned char)(i * 7 + 1)) {
			broken++;
			return;
		}
}

static void *work(void *argument)
{
	struct worker *self = argument;
	char within[65536];
	stack_t alternate = {.ss_size = self->size};

	self->tid = syscall(SYS_gettid);
	if (strcmp(self->kind, "heap") == 0)
		alternate.ss_sp = malloc(self->size);
	else if (strcmp(self->kind, "mapped") == 0)
		alternate.ss_sp = mmap(NULL, self->size, PROT_READ | PROT_WRITE,
				       MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	else
		alternate.ss_sp = within;
	if (sigaltstack(&alternate, NULL) != 0)
		_exit(4);
	live_frame();
	finished++;
	return NULL;
}

int main(void)
{
	const int count = sizeof(workers) / sizeof(workers[0]);
	struct sigaction action = {.sa_handler = handler, .sa_flags = SA_ONSTACK | SA_RESTART};
	char line[64];

	if (pipe(release_pipe) != 0)
		return 1;
	sigaction(SIGUSR1, &action, NULL);
	for (int i = 0; i < count; i++)
		pthread_create(&workers[i].thread, NULL, work, &workers[i]);
	while (waiting < count)
		usleep(1000);
	usleep(20000);
	printf("ready");
	for (int i = 0; i < count; i++)
		printf(" %s:%d", workers[i].kind, workers[i].tid);
	printf("\n");
	fflush(stdout);
	if (!fgets(line, sizeof(line), stdin))
		return 0;
	if (write(release_pipe[1], "xxxx", count) != count)
		return 1;
	for (int i = 0; i < count; i++)
		pthread_join(workers[i].thread, NULL);
	printf(broken || finished != count ? "broken\n" : "intact\n");
	fflush(stdout);
	return 0;
}
