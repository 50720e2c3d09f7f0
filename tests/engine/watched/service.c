/* SPDX-License-Identifier: GPL-3.0-or-later
 *
 * A service that says what its code answers: "PID ANSWER" each time it is asked by a line of input,
 * and once when it is "ready". With "fork" as input it forks a worker that answers from then on.
 * With arguments: THREADS that sleep, and "daemon": it forks at once, and the parent ends.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int answer(int number);

__attribute__((noinline)) int answer(int number)
{
	__asm__ volatile("" : "+r"(number));
	return number + 1;
}

static void *sleeper(void *unused)
{
	for (;;)
		pause();
	return unused;
}

int main(int argc, char **argv)
{
	int threads = argc > 1 ? atoi(argv[1]) : 0;
	char line[64];

	if (argc > 2 && !strcmp(argv[2], "daemon") && fork())
		_exit(0);
	setvbuf(stdout, NULL, _IOLBF, 0);
	while (threads-- > 0) {
		pthread_t thread;

		if (pthread_create(&thread, NULL, sleeper, NULL))
			return 1;
	}
	printf("ready %d\n", (int)getpid());
	while (fgets(line, sizeof(line), stdin)) {
		if (!strcmp(line, "fork\n") && fork()) {
			pause();
			return 0;
		}
		printf("%d %d\n", (int)getpid(), answer(0));
	}
	return 0;
}
