// SPDX-License-Identifier: GPL-3.0-or-later
/*
 * Threads that are born and end all the time: short ones at once, marked ones after some milliseconds.
 *
 * listed_threads CREATORS: "marked" prints the ids of the marked threads that are alive.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

#define MARKED 64
#define SHORT 8

static atomic_int marked[MARKED];

static void *short_lived(void *argument)
{
	(void)argument;
	return NULL;
}

static void *long_lived(void *argument)
{
	atomic_int *place = argument;

	*place = (int)syscall(SYS_gettid);
	usleep(20000);
	*place = 0;
	return NULL;
}

static void *create(void *argument)
{
	atomic_int *places = argument;
	pthread_attr_t detached;
	pthread_t thread;

	pthread_attr_init(&detached);
	pthread_attr_setstacksize(&detached, 65536);
	pthread_attr_setdetachstate(&detached, PTHREAD_CREATE_DETACHED);
	for (;;) {
		for (int i = 0; i < SHORT; i++)
			pthread_create(&thread, &detached, short_lived, NULL);
		for (int i = 0; i < SHORT; i++) {
			int none = 0;

			/* -1: taken, not told yet */
			if (atomic_compare_exchange_strong(&places[i], &none, -1) &&
			    pthread_create(&thread, &detached, long_lived, &places[i]) != 0)
				places[i] = 0;
		}
		usleep(100);
	}
	return NULL;
}

int main(int argc, char **argv)
{
	int creators = argc > 1 ? atoi(argv[1]) : 2;
	pthread_t thread;
	char line[64];

	for (int i = 0; i < creators; i++)
		pthread_create(&thread, NULL, create, &marked[SHORT * i]);
	printf("ready\n");
	fflush(stdout);
	while (fgets(line, sizeof(line), stdin)) {
		for (int i = 0; i < SHORT * creators; i++) {
			int tid = marked[i];

			if (tid > 0)
				printf("%d ", tid);
		}
		printf("\n");
		fflush(stdout);
	}
	return 0;
}
