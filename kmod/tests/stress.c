// SPDX-License-Identifier: GPL-2.0-only
/*
 * The kernel service under processes that end, execute, fork and unmap in the middle of requests, and
 * under requests that mean nothing: TAP on standard output.
 *
 *   stress [--seconds N] [--seed N] [NAME...]
 *
 * As root, with the module loaded. What the kernel itself says meanwhile is for the caller to read.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "harness.h"

static unsigned int seconds_each = 20, seed = 1;

/* Reproducible, and enough for choosing. */
static unsigned int draw(unsigned int below)
{
	seed = seed * 1103515245 + 12345;
	return (seed >> 8) % below;
}

/* -- requests in the middle of an end ---------------------------------------------------------- */

enum end { KILLED, EXECUTED, LEADER_LEFT, FORKED, UNMAPPED, ENDS };

static const char *const end_names[] = { "killed", "executed", "leader left", "forked", "unmapped" };

static void *idle(void *unused)
{
	for (;;)
		usleep(200);
	return unused;
}

static void *compute(void *unused)
{
	for (;;)
		__asm__ volatile("" ::: "memory");
	return unused;
}

static int call_one(void)
{
	int result;

	__asm__ volatile("call *%1" : "=a"(result) : "r"(one) : "cc", "memory");
	return result;
}

/* A child that comes to its end, of that kind, some time after it was told to. */
static pid_t start_ending(enum end end, int *go)
{
	int pipes[2];
	pid_t pid;

	if (pipe(pipes))
		return -1;
	fflush(NULL);
	pid = fork();
	if (pid == 0) {
		pthread_attr_t attributes;
		pthread_t thread;
		char byte;
		int i;

		prctl(PR_SET_PDEATHSIG, SIGKILL);
		close(pipes[1]);
		pthread_attr_init(&attributes);
		pthread_attr_setstacksize(&attributes, 64 << 10);
		for (i = 0; i < 6; i++)
			pthread_create(&thread, &attributes, i == 5 ? compute : idle, NULL);
		if (read(pipes[0], &byte, 1) != 1)
			_exit(0);
		usleep((unsigned char)byte * 20);
		switch (end) {
		case EXECUTED:
			execl("/bin/sleep", "sleep", "0.01", NULL);
			execl("/bin/busybox", "sleep", "0", NULL);
			_exit(1);
		case LEADER_LEFT:
			syscall(SYS_exit, 0);
			break;
		case FORKED:
			for (i = 0; i < 20; i++) {
				pid_t other = fork();

				if (other == 0)
					_exit(call_one() & ~3);
				waitpid(other, NULL, 0);
			}
			_exit(0);
		case UNMAPPED:
			/* The data that a request reads or has mapped; its own code it needs. */
			for (i = 0; i < 50; i++)
				munmap((void *)(0x200000000000 + (i % 16) * PAGE), PAGE);
			_exit(0);
		default:
			for (;;)
				pause();
		}
	}
	close(pipes[0]);
	*go = pipes[1];
	return pid;
}

/* Any request; what it answers is anybody's guess, as long as it is one of these. */
static const int allowed[] = { 0, -EPERM, -ESRCH, -EBUSY, -EFAULT, -EINVAL, -E2BIG, -ENOMEM, -ENOTTY,
			       -EEXIST, -EBADF, -EILSEQ, -EAGAIN, -ENOENT, -ESTALE, -EOPNOTSUPP,
			       -ENOSPC, -EINTR, -EACCES, -ENODEV, -EOVERFLOW };

static bool is_allowed(int result)
{
	unsigned int i;

	if (result > 0)
		return true;
	for (i = 0; i < sizeof(allowed) / sizeof(allowed[0]); i++)
		if (allowed[i] == result)
			return true;
	return false;
}

static int sensible_request(int session, pid_t pid, unsigned int which)
{
	static unsigned char stack[64 << 10];
	static struct wfpatch_listed listed[64];
	struct wfpatch_map map = { .size = sizeof(map), .fd = -1, .flags = draw(3),
				   .address = 0x200000000000 + draw(16) * PAGE, .length = PAGE };
	struct wfpatch_range range = { .low = 1, .high = 4096, .kind = WFPATCH_KIND_OLD };
	struct wfpatch_visit visit = { .size = sizeof(visit), .eventfd = -1, .deadline_ms = 200,
				       .ranges = (uintptr_t)&range, .n_ranges = 1,
				       .flags = draw(4), .from_rows = 1, .target = draw(64),
				       .scan_limit = 1 << 20 };
	struct wfpatch_thread thread = { .size = sizeof(thread), .tid = pid + draw(8),
					 .deadline_ms = 50, .stack = (uintptr_t)stack,
					 .stack_room = sizeof(stack), .stack_high = ~0ULL };
	struct wfpatch_list list = { .size = sizeof(list), .threads = (uintptr_t)listed,
				     .n_threads = 64, .entry_size = sizeof(listed[0]) };
	struct wfpatch_poke poke = poke_one(which & 8);
	struct wfpatch_arm arm = { .size = sizeof(arm), .pokes = (uintptr_t)&poke, .n_pokes = 1,
				   .deadline_ms = 20 };
	struct pollfd wait = { .fd = session, .events = POLLIN };
	int result;

	switch (which % 7) {
	case 0:
		return ask(session, WFPATCH_IOC_LOAD, &map);
	case 1:
		map.flags = 0;
		return ask(session, WFPATCH_IOC_UNLOAD, &map);
	case 2:
		return ask(session, WFPATCH_IOC_ARM, &arm);
	case 3:
		result = ask(session, WFPATCH_IOC_VISIT, &visit);
		if (result == 0 && which & 16)
			poll(&wait, 1, 5000);
		return result;
	case 4:
		return ask(session, WFPATCH_IOC_CANCEL, NULL);
	case 5:
		return ask(session, WFPATCH_IOC_LIST, &list);
	default:
		return ask(session, WFPATCH_IOC_THREAD, &thread);
	}
}

static void test_ends(void)
{
	long rounds[ENDS] = { 0 }, requests = 0, gone = 0;
	double until = now() + seconds_each;
	enum end end = KILLED;
	int i;

	while (now() < until) {
		unsigned char delay = draw(256);
		int go = -1, session, result;
		pid_t pid = start_ending(end, &go);

		session = attach(pid);
		if (session < 0) {
			CHECK(is_allowed(session), "attach gave %d", session);
		} else {
			CHECK(write(go, &delay, 1) == 1, "write");
			for (i = 0; i < 30; i++) {
				if (end == KILLED && i == (int)draw(30))
					kill(pid, SIGKILL);
				result = sensible_request(session, pid, draw(1024));
				CHECK(is_allowed(result), "%s: a request gave %d", end_names[end],
				      result);
				gone += result == -ESRCH;
				requests++;
			}
			close(session);
		}
		close(go);
		kill(pid, SIGKILL);
		waitpid(pid, NULL, 0);
		rounds[end]++;
		end = (end + 1) % ENDS;
	}
	for (i = 0; i < ENDS; i++) {
		printf("# %s: %ld times\n", end_names[i], rounds[i]);
		CHECK(rounds[i], "%s never happened", end_names[i]);
	}
	printf("# %ld requests, %ld of them to a process that was gone\n", requests, gone);
	CHECK(gone, "no request met a process that was gone");
	check_nothing_left();
}

/* -- several at a time ------------------------------------------------------------------------- */

static int contended = -1;
static pid_t contended_pid;
static atomic_int contending;
static atomic_long contended_requests, contended_odd;

static void *contend(void *unused)
{
	unsigned int mine = (unsigned int)syscall(SYS_gettid);

	while (atomic_load(&contending)) {
		struct wfpatch_thread thread = { .size = sizeof(thread), .tid = contended_pid,
						 .deadline_ms = 20 };
		struct wfpatch_visit visit = { .size = sizeof(visit), .eventfd = -1,
					       .deadline_ms = 5, .scan_limit = 4096 };
		int result;

		mine = mine * 1103515245 + 12345;
		switch ((mine >> 10) % 4) {
		case 0:
			result = ask(contended, WFPATCH_IOC_VISIT, &visit);
			break;
		case 1:
			result = ask(contended, WFPATCH_IOC_CANCEL, NULL);
			break;
		case 2:
			result = attach(contended_pid);
			if (result != -EBUSY)
				atomic_fetch_add(&contended_odd, 1);
			break;
		default:
			result = ask(contended, WFPATCH_IOC_THREAD, &thread);
		}
		if (!is_allowed(result))
			atomic_fetch_add(&contended_odd, 1);
		atomic_fetch_add(&contended_requests, 1);
	}
	return unused;
}

/* Also: the module cannot go while somebody has a session. */
static void test_concurrent(void)
{
	pthread_t threads[6];
	pid_t victim = start_victim((struct crowd){ .sleepers = 8, .computing = 1, .storms = 1 });
	long refused = 0;
	double until = now() + (double)seconds_each / 2;
	unsigned int i;

	contended = attach(victim);
	contended_pid = victim;
	CHECK(contended >= 0, "attach gave %d", contended);
	atomic_store(&contending, 1);
	for (i = 0; i < 6; i++)
		pthread_create(&threads[i], NULL, contend, NULL);
	while (now() < until) {
		if (syscall(SYS_delete_module, "wfpatch", O_NONBLOCK) == 0) {
			CHECK(false, "the module was removed under a session");
			break;
		}
		refused += errno == EWOULDBLOCK || errno == EBUSY;
		usleep(10000);
	}
	atomic_store(&contending, 0);
	for (i = 0; i < 6; i++)
		pthread_join(threads[i], NULL);
	printf("# %ld requests, %ld removals refused\n", atomic_load(&contended_requests), refused);
	CHECK(atomic_load(&contended_requests) > 100, "hardly any request");
	CHECK(!atomic_load(&contended_odd), "%ld odd answers", atomic_load(&contended_odd));
	CHECK(refused > 3, "only %ld removals were tried", refused);
	close(contended);
	end_victim(victim);
	check_nothing_left();
}

/* -- nonsense ---------------------------------------------------------------------------------- */

/* Numbers that are at some edge, or an address of ours, or none. */
static uint64_t odd_number(void)
{
	/* Room behind it for whatever the service writes there. */
	static uint64_t words[1 << 19];
	static const uint64_t edges[] = { 0, 1, 7, 8, 16, 24, 32, 64, 4095, 4096, 4097, 65535, 65536,
					  0x7fffffff, 0x80000000, 0xffffffff, 0x7fffffffffff,
					  0x800000000000, 0xffff800000000000, ~0ULL, ~0ULL - 4095 };

	switch (draw(5)) {
	case 0:
		return (uint64_t)draw(1 << 24) << draw(40) | draw(1 << 24);
	case 1:
		return (uintptr_t)&words[draw(512)];
	case 2:
		return draw(100);
	default:
		return edges[draw(sizeof(edges) / sizeof(edges[0]))];
	}
}

static const unsigned long all_requests[] = {
	WFPATCH_IOC_INFO, WFPATCH_IOC_ATTACH, WFPATCH_IOC_LOAD,	  WFPATCH_IOC_UNLOAD, WFPATCH_IOC_ARM,
	WFPATCH_IOC_VISIT, WFPATCH_IOC_CANCEL, WFPATCH_IOC_LIST, WFPATCH_IOC_THREAD,
};

static void test_nonsense(void)
{
	pid_t victim = start_victim((struct crowd){ .sleepers = 4, .computing = 1 });
	int device = open_device(), session = attach(victim);
	double until = now() + seconds_each;
	long requests = 0, accepted = 0;
	union {
		unsigned char bytes[512];
		uint32_t size;
		uint64_t words[64];
	} arguments;
	struct wfpatch_attach refuse = { .size = sizeof(refuse), .pid = -1 };

	EXPECT(ask(device, WFPATCH_IOC_ATTACH, &refuse), -EINVAL);
	while (now() < until) {
		unsigned long number = all_requests[draw(9)];
		unsigned int i;
		int result;

		for (i = 0; i < 64; i++)
			arguments.words[i] = draw(3) ? 0 : odd_number();
		if (draw(4)) {
			unsigned int nr = _IOC_SIZE(number);

			memset(arguments.bytes + nr, 0, sizeof(arguments) - nr);
			arguments.size = nr;
		}
		if (!draw(20))
			number = _IOC(draw(4), draw(2) ? WFPATCH_IOC_MAGIC : draw(256), draw(40),
				      draw(64));
		/* Whose memory is unmapped at random does not live long: it is no fault of ours. */
		if (_IOC_NR(number) == _IOC_NR(WFPATCH_IOC_UNLOAD) ||
		    (_IOC_NR(number) == _IOC_NR(WFPATCH_IOC_VISIT) && arguments.words[1] >> 32 > 50))
			arguments.words[1] = 50ULL << 32;
		result = ask(draw(8) ? session : device, number,
			     draw(16) ? (void *)&arguments : (void *)(uintptr_t)odd_number());
		CHECK(is_allowed(result), "request %#lx gave %d", number, result);
		if (result > 2 && _IOC_NR(number) == _IOC_NR(WFPATCH_IOC_ATTACH))
			close(result);
		accepted += result >= 0;
		requests++;
	}
	printf("# %ld requests, %ld accepted\n", requests, accepted);
	CHECK(requests > 1000 && accepted && accepted < requests, "no fair mixture");
	CHECK(kill(victim, 0) == 0, "the victim died");
	close(session);
	close(device);
	end_victim(victim);
	check_nothing_left();
}

static const struct test tests[] = {
	{ "ends", test_ends },
	{ "concurrent", test_concurrent },
	{ "nonsense", test_nonsense },
};

int main(int count, char **arguments)
{
	for (arguments++, count--; count > 1 && !strncmp(arguments[0], "--", 2);
	     arguments += 2, count -= 2) {
		if (!strcmp(arguments[0], "--seconds"))
			seconds_each = atoi(arguments[1]);
		else if (!strcmp(arguments[0], "--seed"))
			seed = atoi(arguments[1]);
	}
	if (!seconds_each)
		return 2;
	printf("# seed %u\n", seed);
	return run_tests(tests, sizeof(tests) / sizeof(tests[0]), count, arguments);
}
