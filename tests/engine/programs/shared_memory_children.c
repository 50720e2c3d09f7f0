// SPDX-License-Identifier: GPL-3.0-or-later
/*
 * A process whose memory is shared by others that are no threads of it. Commands on stdin:
 *   vfork MS    vfork in the main thread; the child sleeps MS milliseconds and exits; then "back"
 *   clone       a CLONE_VM child that is no thread and sleeps; prints its pid
 *   exec MS     as clone, but after MS milliseconds it executes another program
 *   exit        the main thread ends (pthread_exit), the others go on
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static char child_stack[65536] __attribute__((aligned(16)));

static void *sleeper(void *argument)
{
	for (;;)
		pause();
	return argument;
}

static int clone_child(void *argument)
{
	(void)argument;
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	for (;;)
		syscall(SYS_pause);
	return 0;
}

static int executing_child(void *argument)
{
	struct timespec *time = argument;
	char *words[] = {"sleep", "60", NULL}, *none[] = {NULL};

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	syscall(SYS_nanosleep, time, NULL);
	syscall(SYS_execve, "/bin/sleep", words, none);
	syscall(SYS_exit, 1);
	return 0;
}

int main(void)
{
	struct timespec delay;

	pthread_t thread;
	char line[64];

	pthread_create(&thread, NULL, sleeper, NULL);
	printf("ready\n");
	fflush(stdout);
	while (fgets(line, sizeof(line), stdin)) {
		if (strncmp(line, "vfork ", 6) == 0) {
			long milliseconds = atol(line + 6);
			struct timespec time = {milliseconds / 1000, milliseconds % 1000 * 1000000};
			pid_t child = vfork();

			if (child == 0) {
				syscall(SYS_nanosleep, &time, NULL);
				_exit(0);
			}
			waitpid(child, NULL, 0);
			printf("back %d\n", child);
		} else if (strncmp(line, "clone", 5) == 0) {
			printf("%d\n", clone(clone_child, child_stack + sizeof(child_stack),
					     CLONE_VM | SIGCHLD, NULL));
		} else if (strncmp(line, "exec ", 5) == 0) {
			delay.tv_sec = 0;
			delay.tv_nsec = atol(line + 5) * 1000000;
			printf("%d\n", clone(executing_child, child_stack + sizeof(child_stack),
					     CLONE_VM | SIGCHLD, &delay));
		} else if (strncmp(line, "exit", 4) == 0) {
			pthread_exit(NULL);
		}
		fflush(stdout);
	}
	return 0;
}
