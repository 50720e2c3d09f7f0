// SPDX-License-Identifier: GPL-3.0-or-later
/*
 * Threads that are born and die all the time: thread_storm MAKERS
 *
 * "report" prints "born N held W": W is the number of times a thread made progress while the word
 * "hold" (address printed after "ready") was set, by the applier that thinks it holds everybody.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static atomic_long born, progress_while_held;
static atomic_long hold;

static void note(void)
{
	if (hold)
		progress_while_held++;
}

static void *child(void *argument)
{
	for (volatile int i = 0; i < 2000; i++)
		;
	note();
	return argument;
}

static void *maker(void *argument)
{
	pthread_attr_t attributes;
	pthread_t threads[4];

	pthread_attr_init(&attributes);
	pthread_attr_setstacksize(&attributes, 64 * 1024);
	for (;;) {
		int made = 0;

		for (int i = 0; i < 4; i++) {
			note();
			if (pthread_create(&threads[made], &attributes, child, NULL) == 0)
				made++;
		}
		born += made;
		for (int i = 0; i < made; i++) {
			pthread_join(threads[i], NULL);
			note();
		}
	}
	return argument;
}

int main(int argc, char **argv)
{
	int makers = argc > 1 ? atoi(argv[1]) : 2;
	pthread_t thread;
	char line[64];

	for (int i = 0; i < makers; i++)
		pthread_create(&thread, NULL, maker, NULL);
	printf("ready %lu\n", (unsigned long)&hold);
	fflush(stdout);
	while (fgets(line, sizeof(line), stdin)) {
		printf("born %ld held %ld\n", born, progress_while_held);
		fflush(stdout);
	}
	return 0;
}
