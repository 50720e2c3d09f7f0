// SPDX-License-Identifier: GPL-3.0-or-later
/*
 * A service of three threads that is patched, or refused. Commands on stdin, each answered:
 *   call N    step(N)
 *   enter     another thread enters step() and waits inside; leave: it goes on
 *   gs        this thread uses its GS base
 *   exec      this thread executes the program anew
 *   name HEX  the process's name becomes these bytes
 * Built with -DSTACKS it can switch stacks.
 */
#define _GNU_SOURCE
#include <asm/prctl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>
#ifdef STACKS
#include <ucontext.h>
void (*volatile switching)(void) = (void (*)(void))swapcontext;
#endif

static int enter[2], leave[2], entered[2];

__attribute__((noinline)) int step(int number)
{
	char byte;

	if (number < 0) {
		if (write(entered[1], "", 1) != 1 || read(leave[0], &byte, 1) != 1)
			abort();
	}
	return number + 1;
}

__attribute__((noinline)) int other(int number)
{
	__asm__ volatile("" : "+r"(number));
	return number + 10;
}

static void *worker(void *argument)
{
	char byte;

	while (read(enter[0], &byte, 1) == 1)
		if (step(-1) == 12345)
			abort();
	return argument;
}

static void *sleeper(void *argument)
{
	for (;;)
		pause();
	return argument;
}

int main(int argc, char **argv)
{
	pthread_t thread;
	char line[64], byte;

	if (argc < 1 || pipe(enter) || pipe(leave) || pipe(entered))
		return 1;
	pthread_create(&thread, NULL, worker, NULL);
	pthread_setname_np(thread, "worker");
	pthread_create(&thread, NULL, sleeper, NULL);
	setvbuf(stdin, NULL, _IOLBF, 4096);
	printf("ready\n");
	fflush(stdout);
	while (fgets(line, sizeof(line), stdin)) {
		if (strncmp(line, "call ", 5) == 0) {
			int number = atoi(line + 5);

			printf("%d %d\n", step(number), other(number));
		} else if (strncmp(line, "enter", 5) == 0) {
			if (write(enter[1], "", 1) != 1 || read(entered[0], &byte, 1) != 1)
				return 1;
			printf("entered\n");
		} else if (strncmp(line, "leave", 5) == 0) {
			if (write(leave[1], "", 1) != 1)
				return 1;
			printf("left\n");
		} else if (strncmp(line, "gs", 2) == 0) {
			printf("%ld\n", syscall(SYS_arch_prctl, ARCH_SET_GS, 0x123000));
		} else if (strncmp(line, "name ", 5) == 0) {
			char name[16] = "";

			for (int i = 0; i < 15 && sscanf(line + 5 + 2 * i, "%2hhx", name + i) == 1; i++)
				;
			printf("%d\n", prctl(PR_SET_NAME, name));
		} else if (strncmp(line, "exec", 4) == 0) {
			execv("/proc/self/exe", argv);
			return 1;
		}
		fflush(stdout);
	}
	return 0;
}
