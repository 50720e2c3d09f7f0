// SPDX-License-Identifier: GPL-3.0-or-later
/*
 * Signals that must not get lost: a sender queues real-time signals, each with its number, to sleeping
 * threads with handlers (SA_RESTART), and waits for each to have been handled by the thread it was for.
 * "report" prints "sent S handled H wrong W".
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define WORKERS 4

static pthread_t threads[WORKERS];
static pid_t tids[WORKERS];
static atomic_long sent, handled, wrong;
static atomic_int started;
static __thread int self = -1;

static void handler(int number, siginfo_t *info, void *context)
{
	(void)context;
	if (number != SIGRTMIN + 1 || info->si_code != SI_QUEUE || info->si_value.sival_int != self)
		wrong++;
	handled++;
}

static void *worker(void *argument)
{
	int ends[2];
	char byte;

	self = (long)argument;
	tids[self] = syscall(SYS_gettid);
	if (pipe(ends) != 0)
		abort();
	started++;
	for (;;)
		if (read(ends[0], &byte, 1) != 1)
			wrong++; /* SA_RESTART: read must never return */
	return NULL;
}

static void *sender(void *argument)
{
	for (long round = 0;; round++) {
		union sigval value = {.sival_int = round % WORKERS};
		long before = sent++;

		pthread_sigqueue(threads[round % WORKERS], SIGRTMIN + 1, value);
		for (int i = 0; handled <= before && i < 100000; i++)
			usleep(100);
		if (handled <= before)
			wrong++;
	}
	return argument;
}

int main(void)
{
	struct sigaction action = {.sa_sigaction = handler, .sa_flags = SA_SIGINFO | SA_RESTART};
	pthread_t thread;
	char line[64];

	sigaction(SIGRTMIN + 1, &action, NULL);
	for (long i = 0; i < WORKERS; i++)
		pthread_create(&threads[i], NULL, worker, (void *)i);
	while (started < WORKERS)
		usleep(1000);
	pthread_create(&thread, NULL, sender, NULL);
	printf("ready\n");
	fflush(stdout);
	while (fgets(line, sizeof(line), stdin)) {
		printf("sent %ld handled %ld wrong %ld\n", sent, handled, wrong);
		fflush(stdout);
	}
	return 0;
}
