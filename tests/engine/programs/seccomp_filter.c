// SPDX-License-Identifier: GPL-3.0-or-later
/*
 * seccomp_filter KIND: a process with two sleeping threads under a seccomp filter.
 *   allow        a filter that allows everything
 *   errno-mmap   mmap gives ENOMEM where it asks for PROT_EXEC
 *   kill-mmap    mmap with PROT_EXEC kills the process
 *   kill-return  rt_sigreturn kills
 *   errno-sigaltstack, errno-arch_prctl  that call gives EPERM
 *   one-thread   as kill-mmap, but in one thread only (the other has none)
 *   strict       strict mode
 */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <stddef.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#define LOAD(field) BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, field))

static const char *kind;
static atomic_int started;

static void install(unsigned int number, unsigned int action, int only_executable)
{
	struct sock_filter code[] = {
		LOAD(arch),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, AUDIT_ARCH_X86_64, 1, 0),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
		LOAD(nr),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, number, 0, 3),
		LOAD(args[2]),
		BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, only_executable ? PROT_EXEC : 0xffffffff, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, action),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog program = {sizeof(code) / sizeof(code[0]), code};

	if (!only_executable)
		code[4].jf = 3, code[5] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_IMM, 1);
	prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
	if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) != 0) {
		perror("seccomp");
		exit(1);
	}
}

static void install_kind(void)
{
	if (strcmp(kind, "allow") == 0)
		install(SYS_mmap, SECCOMP_RET_ALLOW, 1);
	else if (strcmp(kind, "errno-mmap") == 0)
		install(SYS_mmap, SECCOMP_RET_ERRNO | ENOMEM, 1);
	else if (strcmp(kind, "kill-mmap") == 0 || strcmp(kind, "one-thread") == 0)
		install(SYS_mmap, SECCOMP_RET_KILL_PROCESS, 1);
	else if (strcmp(kind, "errno-sigaltstack") == 0)
		install(SYS_sigaltstack, SECCOMP_RET_ERRNO | EPERM, 0);
	else if (strcmp(kind, "errno-arch_prctl") == 0)
		install(SYS_arch_prctl, SECCOMP_RET_ERRNO | EPERM, 0);
	else if (strcmp(kind, "kill-return") == 0)
		install(SYS_rt_sigreturn, SECCOMP_RET_KILL_PROCESS, 0);
}

static void *sleeper(void *argument)
{
	int ends[2];
	char byte;

	if (pipe(ends) != 0)
		abort();
	if (strcmp(kind, "one-thread") == 0 && argument)
		install_kind();
	if (strcmp(kind, "strict") == 0)
		prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT);
	started++;
	while (read(ends[0], &byte, 1) != 1)
		;
	return NULL;
}

int main(int argc, char **argv)
{
	pthread_t thread;
	char byte;

	kind = argc > 1 ? argv[1] : "allow";
	if (strcmp(kind, "one-thread") != 0)
		install_kind();
	/* the first thread made is the one with a filter of its own */
	pthread_create(&thread, NULL, sleeper, (void *)1);
	while (started < 1)
		usleep(1000);
	usleep(20000);
	if (strcmp(kind, "strict") == 0)
		prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT);
	if (write(1, "ready\n", 6) != 6)
		return 1;
	while (read(0, &byte, 1) > 0)
		;
	if (strcmp(kind, "strict") == 0)
		syscall(SYS_getpid); /* forbidden: ends it */
	return 0;
}
