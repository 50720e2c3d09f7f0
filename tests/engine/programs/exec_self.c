// SPDX-License-Identifier: GPL-3.0-or-later
/*
 * exec_self MODE DELAY: prints "ready", waits for a line, and DELAY milliseconds later executes itself.
 *   leader DELAY | thread DELAY | exit DELAY | none 0
 * After the exec it prints "again" and sleeps with two threads until its stdin ends.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char **arguments;

static void *sleeper(void *argument)
{
	for (;;)
		pause();
	return argument;
}

static void *runner(void *argument)
{
	volatile unsigned long spin = 0;

	for (;;)
		spin++;
	return argument;
}

static void act(void)
{
	char line[64];

	if (read(0, line, sizeof(line)) <= 0)
		_exit(1);
	usleep(atoi(arguments[2]) * 1000);
	if (strcmp(arguments[1], "exit") == 0)
		_exit(7);
	execl("/proc/self/exe", arguments[0], "none", "0", NULL);
	_exit(1);
}

static void *actor(void *argument)
{
	act();
	return argument;
}

int main(int argc, char **argv)
{
	pthread_t thread;
	char byte;

	if (argc < 3)
		return 2;
	arguments = argv;
	pthread_create(&thread, NULL, sleeper, NULL);
	if (strcmp(argv[1], "none") == 0) {
		pthread_create(&thread, NULL, sleeper, NULL);
		printf("again\n");
	} else {
		pthread_create(&thread, NULL, runner, NULL);
		printf("ready\n");
	}
	fflush(stdout);
	if (strcmp(argv[1], "thread") == 0)
		pthread_create(&thread, NULL, actor, NULL);
	else if (strcmp(argv[1], "none") != 0)
		act();
	while (strcmp(argv[1], "none") != 0)
		pause();
	return read(0, &byte, 1) < 0;
}
