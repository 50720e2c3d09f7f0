// SPDX-License-Identifier: GPL-3.0-or-later
/*
 * One busy thread that records the longest gap between two turns of its loop, and N - 1 threads
 * asleep in epoll_wait. What they saw lies in a file that the benchmark maps.
 *
 *   gaps FILE THREADS
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

struct seen {
	_Atomic uint64_t epoch;		/* written by the benchmark: begin anew */
	_Atomic uint64_t epoch_seen;
	_Atomic uint64_t longest_gap_ns;
	_Atomic uint64_t turns;
	_Atomic uint64_t new_turns;	/* turns in which the patched function answered */
	_Atomic uint64_t eintr;
};

static struct seen *seen;

__attribute__((noinline)) int patched(int x)
{
	__asm__ volatile("" : "+r"(x));
	return x + 1;
}

static uint64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void *sleeper(void *argument)
{
	int set = epoll_create1(0);
	struct epoll_event event;

	(void)argument;
	for (;;) {
		if (epoll_wait(set, &event, 1, -1) < 0 && errno == EINTR)
			atomic_fetch_add(&seen->eintr, 1);
	}
	return NULL;
}

static void busy(void)
{
	uint64_t last = now_ns(), epoch = 0;

	for (;;) {
		uint64_t now = now_ns();

		if (atomic_load(&seen->epoch) != epoch) {
			epoch = atomic_load(&seen->epoch);
			atomic_store(&seen->longest_gap_ns, 0);
			atomic_store(&seen->turns, 0);
			atomic_store(&seen->new_turns, 0);
			atomic_store(&seen->epoch_seen, epoch);
		} else if (now - last > atomic_load(&seen->longest_gap_ns)) {
			atomic_store(&seen->longest_gap_ns, now - last);
		}
		last = now;
		if (patched(1) != 2)
			atomic_fetch_add(&seen->new_turns, 1);
		atomic_fetch_add(&seen->turns, 1);
	}
}

int main(int argc, char **argv)
{
	int file, threads;
	pthread_attr_t attributes;

	if (argc != 3)
		return 2;
	file = open(argv[1], O_RDWR | O_CREAT, 0600);
	threads = atoi(argv[2]);
	if (file < 0 || threads < 1 || ftruncate(file, sizeof(struct seen)))
		return 2;
	seen = mmap(NULL, sizeof(*seen), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
	if (seen == MAP_FAILED)
		return 2;
	pthread_attr_init(&attributes);
	pthread_attr_setstacksize(&attributes, 65536);
	for (int i = 1; i < threads; i++) {
		pthread_t thread;

		if (pthread_create(&thread, &attributes, sleeper, NULL))
			return 2;
	}
	puts("ready");
	fflush(stdout);
	busy();
}
