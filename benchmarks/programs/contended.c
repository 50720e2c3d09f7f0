// SPDX-License-Identifier: GPL-3.0-or-later
/*
 * Threads that contend on a mutex inside the function to be patched, so that at any moment nearly
 * all of them are in it: no global quiescence comes about by itself.
 *
 *   contended FILE THREADS
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

struct seen {
	_Atomic uint64_t old_turns;
	_Atomic uint64_t new_turns;
};

struct seen *seen;
pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
volatile int spin;

__attribute__((noinline)) int patched(int x)
{
	pthread_mutex_lock(&lock);
	for (int i = 0; i < 2000; i++)
		spin++;
	pthread_mutex_unlock(&lock);
	return x + 1;
}

static void *worker(void *argument)
{
	(void)argument;
	for (;;) {
		if (patched(1) == 2)
			atomic_fetch_add(&seen->old_turns, 1);
		else
			atomic_fetch_add(&seen->new_turns, 1);
	}
	return NULL;
}

int main(int argc, char **argv)
{
	int file, threads;

	if (argc != 3)
		return 2;
	file = open(argv[1], O_RDWR | O_CREAT, 0600);
	threads = atoi(argv[2]);
	if (file < 0 || threads < 1 || ftruncate(file, sizeof(struct seen)))
		return 2;
	seen = mmap(NULL, sizeof(*seen), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
	if (seen == MAP_FAILED)
		return 2;
	for (int i = 0; i < threads; i++) {
		pthread_t thread;

		if (pthread_create(&thread, NULL, worker, NULL))
			return 2;
	}
	puts("ready");
	fflush(stdout);
	for (;;)
		pause();
}
