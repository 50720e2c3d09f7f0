// SPDX-License-Identifier: GPL-3.0-or-later
/*
 * Threads that sleep or compute: threads SLEEPERS RUNNERS [STACK_KIB]
 *
 * Sleepers wait in epoll_wait for ever, runners count. "report" prints "counts C wakes W": wakes are
 * returns of epoll_wait, which nothing should cause. "gs" prints each thread's GS base.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/syscall.h>
#include <unistd.h>

static atomic_long counts, wakes;
static atomic_int started;

static void *sleeper(void *argument)
{
	struct epoll_event event;
	int fd = epoll_create1(0);

	started++;
	for (;;) {
		epoll_wait(fd, &event, 1, -1);
		wakes++;
	}
	return argument;
}

static void *runner(void *argument)
{
	volatile unsigned long spin = 0;

	started++;
	for (;;) {
		for (int i = 0; i < 10000; i++)
			spin++;
		counts++;
	}
	return argument;
}

int main(int argc, char **argv)
{
	int sleepers = argc > 1 ? atoi(argv[1]) : 1;
	int runners = argc > 2 ? atoi(argv[2]) : 0;
	long stack = argc > 3 ? atol(argv[3]) : 256;
	pthread_attr_t attributes;
	pthread_t thread;
	char line[64];

	pthread_attr_init(&attributes);
	pthread_attr_setstacksize(&attributes, stack * 1024);
	for (int i = 0; i < sleepers + runners; i++)
		if (pthread_create(&thread, &attributes, i < sleepers ? sleeper : runner, NULL) != 0)
			return 1;
	while (started < sleepers + runners)
		usleep(1000);
	usleep(20000);
	printf("ready\n");
	fflush(stdout);
	while (fgets(line, sizeof(line), stdin)) {
		printf("counts %ld wakes %ld\n", counts, wakes);
		fflush(stdout);
	}
	return 0;
}
