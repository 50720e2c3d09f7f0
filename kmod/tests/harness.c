// SPDX-License-Identifier: GPL-2.0-only
#define _GNU_SOURCE
#include <asm/prctl.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "harness.h"

int failures;

bool check_(bool right, const char *file, int line, const char *format, ...)
{
	va_list arguments;

	if (right)
		return true;
	failures++;
	printf("# %s:%d: ", file, line);
	va_start(arguments, format);
	vprintf(format, arguments);
	va_end(arguments);
	printf("\n");
	return false;
}

int ask(int fd, unsigned long command, void *arguments)
{
	int result = ioctl(fd, command, arguments);

	return result < 0 ? -errno : result;
}

double now(void)
{
	struct timespec at;

	clock_gettime(CLOCK_MONOTONIC, &at);
	return at.tv_sec + at.tv_nsec / 1e9;
}

int open_device(void)
{
	return open(WFPATCH_DEVICE, O_RDWR | O_CLOEXEC);
}

int attach(pid_t pid)
{
	struct wfpatch_attach arguments = { .size = sizeof(arguments), .pid = pid };
	int device = open_device(), result;

	if (device < 0)
		return -errno;
	result = ask(device, WFPATCH_IOC_ATTACH, &arguments);
	close(device);
	return result;
}

long counter(const char *name)
{
	char path[128];
	long value = -1;
	FILE *file;

	snprintf(path, sizeof(path), "/sys/class/misc/wfpatch/counters/%s", name);
	file = fopen(path, "r");
	if (!file || fscanf(file, "%ld", &value) != 1)
		CHECK(false, "cannot read %s", path);
	if (file)
		fclose(file);
	return value;
}

/* -- the victim ------------------------------------------------------------------------------ */

__asm__(".pushsection .text\n"
	".globl one, one_old, two, two_old, two_new\n"
	".balign 512\n"	/* all in one page */
	"one: .byte 0xb8, 1, 0, 0, 0\n ret\n"
	".balign 64\n"
	"one_old: .byte 0xb8, 1, 0, 0, 0\n jmp one + 5\n"
	".balign 64\n"
	"two: xor %eax, %eax\n add $1, %eax\n nop\n ret\n"
	".balign 64\n"
	"two_old: xor %eax, %eax\n add $1, %eax\n jmp two + 5\n"
	".balign 64\n"
	"two_new: mov $2, %eax\n ret\n"
	".popsection\n");

static int call(const unsigned char *function)
{
	int result;

	__asm__ volatile("call *%1" : "=a"(result) : "r"(function) : "cc", "memory");
	return result;
}

struct shared *shared;

enum kind { SLEEP, COMPUTE, HOT, VFORK, HANDLER, STORM };

struct life {
	unsigned int index;
	enum kind kind;
};

static unsigned long read_gs_base(void)
{
	unsigned long base = ~0UL;

	syscall(SYS_arch_prctl, ARCH_GET_GS, &base);
	return base;
}

static void *storm_child(void *unused)
{
	return unused;
}

static void third_of_a_second(int unused)
{
	struct timespec time = { .tv_nsec = 333000000 };

	(void)unused;
	syscall(SYS_nanosleep, &time, NULL);
}

static void on_another_stack(void)
{
	/* In the same mapping as the stack that it is another than, and above what is called here. */
	char stack[16 << 10];
	stack_t alternate = { .ss_sp = stack, .ss_size = sizeof(stack) };
	struct sigaction action = { .sa_handler = third_of_a_second, .sa_flags = SA_ONSTACK };

	sigaltstack(&alternate, NULL);
	sigaction(SIGUSR1, &action, NULL);
	raise(SIGUSR1);
	usleep(20000);
}

/* How long a sleeper sleeps, in microseconds: all together wake 1000 times a second, or few do. */
static unsigned int nap;

static unsigned int nap_of(unsigned int sleepers)
{
	return sleepers < 20 ? 20000 : sleepers * 1000;
}

static void *live(void *of)
{
	struct life life = *(struct life *)of;
	unsigned long before = 0, base;

	free(of);
	atomic_store(&shared->tids[life.index], (int)syscall(SYS_gettid));
	atomic_fetch_add(&shared->ready, 1);
	while (!atomic_load(&shared->stop)) {
		pthread_t other;
		int i, got;

		switch (life.kind) {
		case SLEEP:
			usleep(nap);
			break;
		case COMPUTE:
			for (i = 0; i < 100000; i++)
				__asm__ volatile("" ::: "memory");
			break;
		case HOT:
			for (i = 0; i < 2000; i++) {
				got = call(one);
				if (got != 1 && got != 3)
					atomic_fetch_add(&shared->wrong, 1);
				got = call(two);
				if (got != 1 && got != 2)
					atomic_fetch_add(&shared->wrong, 1);
			}
			atomic_fetch_add(&shared->calls, 4000);
			break;
		case VFORK:
			if (vfork() == 0) {
				third_of_a_second(0);
				_exit(0);
			}
			usleep(20000);
			break;
		case HANDLER:
			on_another_stack();
			break;
		case STORM:
			if (!pthread_create(&other, NULL, storm_child, NULL))
				pthread_join(other, NULL);
			break;
		}
		base = read_gs_base();
		if (base < before)
			atomic_fetch_add(&shared->regressions, 1);
		before = base;
		atomic_store(&shared->gs[life.index], base);
	}
	return NULL;
}

/* Forks all the time; each child calls what may be in the middle of a change. */
static void fork_storm(void)
{
	while (!atomic_load(&shared->stop)) {
		int status = 0, i;
		pid_t pid = fork();

		if (pid == 0) {
			for (i = 0; i < 200; i++) {
				int first = call(one), second = call(two);

				if ((first != 1 && first != 3) || (second != 1 && second != 2))
					_exit(1);
			}
			_exit(0);
		}
		if (pid < 0 || waitpid(pid, &status, 0) != pid)
			continue;
		atomic_fetch_add(&shared->forks, 1);
		if (status) {
			atomic_store(&shared->child_status, status);
			atomic_fetch_add(&shared->children_failed, 1);
		}
		usleep(500);
	}
}

pid_t start_victim(struct crowd crowd)
{
	const unsigned int numbers[] = { crowd.sleepers, crowd.computing, crowd.hot, crowd.vforks,
					 crowd.handlers, crowd.storms };
	unsigned int count = 0, i, j, index = 0;
	pid_t pid;

	for (i = 0; i <= STORM; i++)
		count += numbers[i];

	memset(shared, 0, sizeof(*shared));
	nap = nap_of(crowd.sleepers);
	fflush(NULL);
	pid = fork();
	if (pid == 0) {
		pthread_attr_t attributes;

		prctl(PR_SET_PDEATHSIG, SIGKILL);
		pthread_attr_init(&attributes);
		pthread_attr_setstacksize(&attributes, 64 << 10);
		for (i = 0; i <= STORM; i++) {
			for (j = 0; j < numbers[i]; j++) {
				struct life *life = malloc(sizeof(*life));
				pthread_t thread;

				life->index = index++;
				life->kind = i;
				if (pthread_create(&thread, &attributes, live, life))
					_exit(9);
			}
		}
		if (crowd.forks)
			fork_storm();
		while (!atomic_load(&shared->stop))
			usleep(10000);
		usleep(700000);
		_exit(0);
	}
	for (i = 0; i < 60000 && atomic_load(&shared->ready) < (int)count; i++) {
		siginfo_t ended = { .si_pid = 0 };

		if (!waitid(P_PID, pid, &ended, WEXITED | WNOHANG | WNOWAIT) && ended.si_pid)
			break;
		usleep(1000);
	}
	CHECK(atomic_load(&shared->ready) == (int)count, "the victim did not start");
	return pid;
}

void end_victim(pid_t pid)
{
	int status = -1;

	atomic_store(&shared->stop, 1);
	CHECK(waitpid(pid, &status, 0) == pid && status == 0, "the victim ended with status %#x", status);
	CHECK(!atomic_load(&shared->wrong), "%ld wrong calls", atomic_load(&shared->wrong));
	CHECK(!atomic_load(&shared->regressions), "%ld threads went back",
	      atomic_load(&shared->regressions));
	CHECK(!atomic_load(&shared->children_failed), "%ld children failed, one with status %#x",
	      atomic_load(&shared->children_failed), atomic_load(&shared->child_status));
}

/* -- pokes ----------------------------------------------------------------------------------- */

static void jump(unsigned char *to, const unsigned char *at, const unsigned char *target)
{
	int distance = (int)(target - (at + 5));

	to[0] = 0xe9;
	memcpy(to + 1, &distance, 4);
}

struct wfpatch_poke poke_one(bool back)
{
	struct wfpatch_poke poke = { .address = (uintptr_t)one, .redirect = (uintptr_t)one_old,
				     .length = 5 };

	memcpy(back ? poke.after : poke.before, "\xb8\x01\x00\x00\x00", 5);
	memcpy(back ? poke.before : poke.after, "\xb8\x03\x00\x00\x00", 5);
	return poke;
}

struct wfpatch_poke poke_two(bool back)
{
	struct wfpatch_poke poke = { .address = (uintptr_t)two, .length = 5,
				     .redirect = (uintptr_t)(back ? two_new : two_old) };

	memcpy(back ? poke.after : poke.before, "\x31\xc0\x83\xc0\x01", 5);
	jump(back ? poke.before : poke.after, two, two_new);
	return poke;
}

struct wfpatch_move move_of_two(void)
{
	return (struct wfpatch_move){ (uintptr_t)two + 2, (uintptr_t)two_old + 2 };
}

void check_nothing_left(void)
{
	static const char *const now_files[] = { "sessions_now", "breakpoints_now", "tasks_now",
						 "pages_now" };
	unsigned int i;

	for (i = 0; i < sizeof(now_files) / sizeof(now_files[0]); i++)
		CHECK(counter(now_files[i]) == 0, "%s is %ld", now_files[i], counter(now_files[i]));
}

/* Maps what victims share with their test. */
static bool share(void)
{
	shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1,
		      0);
	return shared != MAP_FAILED;
}

static bool is_wanted(const char *name, int n_names, char **names)
{
	int i;

	for (i = 0; i < n_names; i++)
		if (!strcmp(names[i], name))
			return true;
	return !n_names;
}

int run_tests(const struct test *tests, unsigned int n_tests, int n_names, char **names)
{
	unsigned int i, number = 0, failed = 0;

	if (!share())
		return 2;
	setvbuf(stdout, NULL, _IOLBF, 0);
	for (i = 0; i < n_tests; i++) {
		double begun = now();

		if (!is_wanted(tests[i].name, n_names, names))
			continue;
		failures = 0;
		tests[i].run();
		failed += !!failures;
		printf("%s %u %s # %.2f s\n", failures ? "not ok" : "ok", ++number, tests[i].name,
		       now() - begun);
	}
	printf("1..%u\n", number);
	return !number || failed ? 1 : 0;
}
