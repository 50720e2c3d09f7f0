// SPDX-License-Identifier: GPL-2.0-only
/*
 * The kernel service asked through its uapi, on programs that this one starts: TAP on standard output.
 *
 *   selftest [--seconds N] [--rounds N] [--threads N] [--hogs N] [NAME...]
 *
 * As root, with the module loaded. --seconds or --rounds is how long the tests go on that could do so
 * for ever; --hogs how many threads compute for each processor.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "harness.h"

static unsigned int seconds_each = 3, threads_each = 16, hogs_each = 1;
static long rounds_each;

static void test_info(void)
{
	struct wfpatch_info info = { .size = sizeof(info) };
	int device = open_device();

	CHECK(device >= 0, "open: %s", strerror(errno));
	EXPECT(ask(device, WFPATCH_IOC_INFO, &info), 0);
	CHECK(info.uapi_version == WFPATCH_UAPI_VERSION, "uapi version %u", info.uapi_version);
	printf("# version %s, features %#llx\n", info.version, (unsigned long long)info.features);
	info.size = 3;
	EXPECT(ask(device, WFPATCH_IOC_INFO, &info), -EINVAL);
	EXPECT(ask(device, WFPATCH_IOC_INFO, NULL), -EFAULT);
	EXPECT(ask(device, _IO(WFPATCH_IOC_MAGIC, 99), NULL), -ENOTTY);
	EXPECT(ask(device, TIOCGWINSZ, NULL), -ENOTTY);
	close(device);
}

static int ask_as_32bit(int fd, unsigned long command, void *arguments)
{
	int result;

	/* The 32-bit system call entry: ioctl is 54 there. */
	__asm__ volatile("int $0x80"
			 : "=a"(result)
			 : "a"(54), "b"(fd), "c"(command), "d"(arguments)
			 : "memory", "cc", "r8", "r9", "r10", "r11");
	return result;
}

static void test_compat(void)
{
	struct wfpatch_info *info = mmap(NULL, PAGE, PROT_READ | PROT_WRITE,
					 MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);
	int device = open_device();

	info->size = sizeof(*info);
	EXPECT(ask_as_32bit(device, WFPATCH_IOC_INFO, info), -ENOTTY);
	munmap(info, PAGE);
	close(device);
}

static void test_attach(void)
{
	struct wfpatch_attach arguments = { .size = sizeof(arguments), .pid = 1 };
	unsigned char longer[sizeof(arguments) + 8] = { 0 };
	pid_t victim = start_victim((struct crowd){ .sleepers = 1 });
	int device = open_device(), session, other;

	session = attach(victim);
	CHECK(session >= 0, "attach gave %d", session);
	EXPECT(attach(victim), -EBUSY);
	CHECK(fcntl(session, F_GETFD) & FD_CLOEXEC, "the session is not close-on-exec");
	close(session);
	/* What a newer caller may say, as long as it means nothing. */
	arguments.size = sizeof(longer);
	arguments.pid = victim;
	memcpy(longer, &arguments, sizeof(arguments));
	other = ask(device, WFPATCH_IOC_ATTACH, longer);
	CHECK(other >= 0, "attach with a longer structure gave %d", other);
	close(other);
	longer[sizeof(arguments)] = 1;
	EXPECT(ask(device, WFPATCH_IOC_ATTACH, longer), -E2BIG);
	arguments.size = sizeof(arguments);
	arguments.flags = 1;
	EXPECT(ask(device, WFPATCH_IOC_ATTACH, &arguments), -EINVAL);
	arguments.flags = 0;
	arguments.pid = 0;
	EXPECT(ask(device, WFPATCH_IOC_ATTACH, &arguments), -EINVAL);
	arguments.pid = 4000000;
	EXPECT(ask(device, WFPATCH_IOC_ATTACH, &arguments), -ESRCH);
	arguments.pid = 2; /* kthreadd */
	EXPECT(ask(device, WFPATCH_IOC_ATTACH, &arguments), -ESRCH);
	close(device);
	end_victim(victim);
}

static void test_permission(void)
{
	pid_t victim = start_victim((struct crowd){ .sleepers = 1 }), pid;
	int device = open_device(), session = attach(victim), status = 0;

	CHECK(session >= 0, "attach gave %d", session);
	fflush(NULL);
	pid = fork();
	if (pid == 0) {
		struct wfpatch_attach arguments = { .size = sizeof(arguments), .pid = victim };
		struct wfpatch_info info = { .size = sizeof(info) };
		struct wfpatch_list list = { .size = sizeof(list) };

		if (setresuid(65534, 65534, 65534))
			_exit(100);
		/* Whoever is handed a descriptor gets nothing by it. */
		if (ask(device, WFPATCH_IOC_ATTACH, &arguments) != -EPERM)
			_exit(1);
		if (ask(device, WFPATCH_IOC_INFO, &info) != -EPERM)
			_exit(2);
		if (ask(session, WFPATCH_IOC_LIST, &list) != -EPERM)
			_exit(3);
		if (open_device() >= 0 || errno != EACCES)
			_exit(4);
		_exit(0);
	}
	waitpid(pid, &status, 0);
	CHECK(status == 0, "an unprivileged process: status %#x", status);
	close(session);
	close(device);
	end_victim(victim);
}

/* How the maps of a process say that an address is mapped ("r-xp"), or "". */
static const char *protection_of(pid_t pid, unsigned long address)
{
	static char protection[8];
	char path[64], line[512];
	unsigned long low, high;
	FILE *file;

	protection[0] = 0;
	snprintf(path, sizeof(path), "/proc/%d/maps", pid);
	file = fopen(path, "r");
	while (file && fgets(line, sizeof(line), file)) {
		char found[8];

		if (sscanf(line, "%lx-%lx %7s", &low, &high, found) == 3 && low <= address &&
		    address < high)
			strcpy(protection, found);
	}
	if (file)
		fclose(file);
	return protection;
}

static void test_load(void)
{
	pid_t victim = start_victim((struct crowd){ .sleepers = 1, .computing = 1 });
	int session = attach(victim);
	struct wfpatch_map map = { .size = sizeof(map), .fd = -1, .address = 0x200000000000,
				   .length = 3 * PAGE, .flags = WFPATCH_MAP_EXEC };
	int file = memfd_create("selftest", MFD_CLOEXEC);
	unsigned char byte = 0;
	char path[64];
	int memory;

	EXPECT(ask(session, WFPATCH_IOC_LOAD, &map), 0);
	CHECK(!strcmp(protection_of(victim, map.address), "r-xp"), "mapped %s",
	      protection_of(victim, map.address));
	EXPECT(ask(session, WFPATCH_IOC_LOAD, &map), -EEXIST);
	map.address += map.length;
	map.flags = WFPATCH_MAP_WRITE;
	EXPECT(ask(session, WFPATCH_IOC_LOAD, &map), 0);
	CHECK(!strcmp(protection_of(victim, map.address), "rw-p"), "mapped %s",
	      protection_of(victim, map.address));
	map.flags = 0;
	EXPECT(ask(session, WFPATCH_IOC_UNLOAD, &map), 0);
	CHECK(!protection_of(victim, map.address)[0], "still mapped");
	/* From a file. */
	CHECK(write(file, "\x5a", 1) == 1 && !ftruncate(file, PAGE), "memfd");
	map.fd = file;
	map.length = PAGE;
	map.flags = WFPATCH_MAP_EXEC;
	EXPECT(ask(session, WFPATCH_IOC_LOAD, &map), 0);
	snprintf(path, sizeof(path), "/proc/%d/mem", victim);
	memory = open(path, O_RDONLY);
	CHECK(pread(memory, &byte, 1, map.address) == 1 && byte == 0x5a, "read %#x", byte);
	close(memory);
	/* Never both, never nonsense. */
	map.fd = -1;
	map.address += 16 * PAGE;
	map.flags = WFPATCH_MAP_EXEC | WFPATCH_MAP_WRITE;
	EXPECT(ask(session, WFPATCH_IOC_LOAD, &map), -EINVAL);
	map.flags = 0;
	map.length = 100;
	EXPECT(ask(session, WFPATCH_IOC_LOAD, &map), -EINVAL);
	map.length = ~0ULL & ~(PAGE - 1);
	EXPECT(ask(session, WFPATCH_IOC_LOAD, &map), -EINVAL);
	map.length = PAGE;
	map.address = 0xffff800000000000;
	EXPECT(ask(session, WFPATCH_IOC_LOAD, &map), -EINVAL);
	map.address = 0;
	EXPECT(ask(session, WFPATCH_IOC_LOAD, &map), -EINVAL);
	map.address = 0x200000800000;
	map.fd = 999;
	EXPECT(ask(session, WFPATCH_IOC_LOAD, &map), -EBADF);
	close(file);
	close(session);
	end_victim(victim);
}

static void test_write(void)
{
	static unsigned char bytes[3 * PAGE], back[3 * PAGE];
	pid_t victim = start_victim((struct crowd){ .sleepers = 1, .computing = 1 });
	int session = attach(victim), memory;
	struct wfpatch_map map = { .size = sizeof(map), .fd = -1, .address = 0x200000000000,
				   .length = 3 * PAGE, .flags = WFPATCH_MAP_EXEC };
	struct wfpatch_write order = { .size = sizeof(order), .data = (uintptr_t)bytes };
	char path[64];
	size_t i;

	for (i = 0; i < sizeof(bytes); i++)
		bytes[i] = i * 7 + (i >> 8) + 1;
	EXPECT(ask(session, WFPATCH_IOC_LOAD, &map), 0);
	/* Neither end is aligned, and two boundaries of pages lie between them. */
	order.address = map.address + 5;
	order.length = 2 * PAGE + 13;
	EXPECT(ask(session, WFPATCH_IOC_WRITE, &order), 0);
	CHECK(!strcmp(protection_of(victim, map.address), "r-xp"), "mapped %s",
	      protection_of(victim, map.address));
	snprintf(path, sizeof(path), "/proc/%d/mem", victim);
	memory = open(path, O_RDONLY);
	CHECK(pread(memory, back, sizeof(back), map.address) == sizeof(back), "read");
	CHECK(!memcmp(back + 5, bytes, order.length), "other bytes were written");
	for (i = 0; i < sizeof(back); i++)
		if (i < 5 || i >= 5 + order.length)
			CHECK(!back[i], "byte %zu was written", i);
	/* Nothing at all where a part of it is not there. */
	order.address = map.address + 2 * PAGE + 1000;
	order.length = 2 * PAGE;
	EXPECT(ask(session, WFPATCH_IOC_WRITE, &order), -EFAULT);
	CHECK(pread(memory, back, PAGE, map.address + 2 * PAGE) == PAGE && !back[1000], "written");
	/* What is shared is not the program's alone. */
	order.address = (uintptr_t)shared;
	order.length = 8;
	EXPECT(ask(session, WFPATCH_IOC_WRITE, &order), -EFAULT);
	order.address = map.address;
	order.data = 8;
	EXPECT(ask(session, WFPATCH_IOC_WRITE, &order), -EFAULT);
	order.length = 0;
	EXPECT(ask(session, WFPATCH_IOC_WRITE, &order), -EINVAL);
	order.length = WFPATCH_MAX_WRITE + 1;
	EXPECT(ask(session, WFPATCH_IOC_WRITE, &order), -EINVAL);
	order.length = ~0ULL;
	EXPECT(ask(session, WFPATCH_IOC_WRITE, &order), -EINVAL);
	order.length = 8;
	order.address = 0xffff800000000000;
	EXPECT(ask(session, WFPATCH_IOC_WRITE, &order), -EINVAL);
	order.address = map.address;
	order.flags = 1;
	EXPECT(ask(session, WFPATCH_IOC_WRITE, &order), -EINVAL);
	close(memory);
	close(session);
	end_victim(victim);
}

static void test_exec_and_exit(void)
{
	struct wfpatch_map map = { .size = sizeof(map), .fd = -1, .address = 0x200000000000,
				   .length = PAGE };
	int pipes[2], session, status;
	char byte;
	pid_t pid;

	CHECK(!pipe(pipes), "pipe");
	fflush(NULL);
	pid = fork();
	if (pid == 0) {
		if (read(pipes[0], &byte, 1) != 1)
			_exit(1);
		execl("/bin/sleep", "sleep", "100", NULL);
		execl("/bin/busybox", "sleep", "100", NULL);
		_exit(1);
	}
	session = attach(pid);
	CHECK(session >= 0, "attach gave %d", session);
	EXPECT(ask(session, WFPATCH_IOC_LOAD, &map), 0);
	CHECK(write(pipes[1], "x", 1) == 1, "write");
	usleep(500000);
	map.address += PAGE;
	EXPECT(ask(session, WFPATCH_IOC_LOAD, &map), -ESRCH);
	CHECK(!protection_of(pid, map.address)[0], "mapped into the new program");
	kill(pid, SIGKILL);
	waitpid(pid, &status, 0);
	EXPECT(ask(session, WFPATCH_IOC_LOAD, &map), -ESRCH);
	EXPECT(attach(pid), -ESRCH);
	close(session);
	close(pipes[0]);
	close(pipes[1]);
}

static void test_thread(void)
{
	pid_t victim = start_victim((struct crowd){ .sleepers = 2, .computing = 2 });
	int session = attach(victim), i;
	static unsigned char stack[256 << 10];

	for (i = 0; i < 4; i++) {
		struct wfpatch_thread thread = { .size = sizeof(thread), .tid = shared->tids[i],
						 .deadline_ms = 5000, .stack = (uintptr_t)stack,
						 .stack_room = sizeof(stack), .stack_high = ~0ULL };
		struct wfpatch_thread again;
		int result, tries;

		EXPECT(ask(session, WFPATCH_IOC_THREAD, &thread), 0);
		CHECK(thread.registers.ip && thread.registers.sp, "no registers");
		CHECK(thread.stack_length, "no stack");
		CHECK(thread.registers.gs_base == 0, "GS base %#llx",
		      (unsigned long long)thread.registers.gs_base);
		/* A move needs the thread to be as it was; a sleeper may wake in between. */
		for (tries = 0; tries < 200; tries++) {
			again = thread;
			again.flags = WFPATCH_THREAD_EXPECT | WFPATCH_THREAD_MOVE;
			again.new_row = 3;
			result = ask(session, WFPATCH_IOC_THREAD, &again);
			if (result != -ESTALE)
				break;
			thread.flags = 0;
			EXPECT(ask(session, WFPATCH_IOC_THREAD, &thread), 0);
		}
		CHECK(result == 0, "thread %d: a move gave %d after %d tries", i, result, tries);
		again = thread;
		again.flags = WFPATCH_THREAD_EXPECT;
		again.registers.sp += 8;
		EXPECT(ask(session, WFPATCH_IOC_THREAD, &again), -ESTALE);
	}
	usleep(200000);
	for (i = 0; i < 4; i++)
		CHECK(shared->gs[i] == 3 * WFPATCH_ROW_SIZE, "thread %d has GS base %#lx", i,
		      (unsigned long)shared->gs[i]);
	{
		struct wfpatch_thread none = { .size = sizeof(none), .tid = 1, .deadline_ms = 10 };

		EXPECT(ask(session, WFPATCH_IOC_THREAD, &none), -ENOENT);
		none.tid = 4000000;
		EXPECT(ask(session, WFPATCH_IOC_THREAD, &none), -ENOENT);
		none.flags = WFPATCH_THREAD_MOVE;
		EXPECT(ask(session, WFPATCH_IOC_THREAD, &none), -EINVAL);
	}
	close(session);
	end_victim(victim);
}

/* A thread that goes round in a loop is moved when it comes by again, by single words of its stack. */
static void test_words(void)
{
	pid_t victim = start_victim((struct crowd){ .sleepers = 1, .computing = 2 });
	int session = attach(victim), i, tries, result = -1;
	static unsigned char stack[4096];
	struct wfpatch_word words[WFPATCH_MAX_WORDS + 1];
	struct wfpatch_thread thread, again;

	for (i = 0; i < 3; i++) {
		for (tries = 0; tries < 50; tries++) {
			thread = (struct wfpatch_thread){ .size = sizeof(thread),
				.tid = shared->tids[i], .deadline_ms = 2000,
				.stack = (uintptr_t)stack, .stack_room = sizeof(stack),
				.stack_high = ~0ULL };
			EXPECT(ask(session, WFPATCH_IOC_THREAD, &thread), 0);
			if (!CHECK(thread.stack_length >= 8, "no stack"))
				break;
			words[0].address = thread.registers.sp & ~7ULL;
			memcpy(&words[0].value, stack, 8);
			again = thread;
			again.flags = WFPATCH_THREAD_EXPECT | WFPATCH_THREAD_MOVE |
				      WFPATCH_THREAD_WORDS;
			again.stack = (uintptr_t)words;
			again.stack_room = again.stack_length = sizeof(words[0]);
			again.seen = 0; /* a sleeper, too, by its words alone */
			again.new_row = 5;
			result = ask(session, WFPATCH_IOC_THREAD, &again);
			if (result != -ESTALE)
				break;
		}
		CHECK(result == 0, "thread %d: %d after %d tries", i, result, tries);
		again.flags = WFPATCH_THREAD_EXPECT | WFPATCH_THREAD_WORDS;
		again.registers.gs_base = 5 * WFPATCH_ROW_SIZE;
		again.seen = 0; /* the answer said that it slept */
		again.deadline_ms = 100;
		words[0].value++;
		EXPECT(ask(session, WFPATCH_IOC_THREAD, &again), -ESTALE);
		words[0].address = 0xffff800000000000ULL;
		EXPECT(ask(session, WFPATCH_IOC_THREAD, &again), -ESTALE);
		again.flags |= WFPATCH_THREAD_FRAME;
		again.registers.bp = ~again.registers.bp;
		EXPECT(ask(session, WFPATCH_IOC_THREAD, &again), -ESTALE);
		again.stack_length = 0;
		EXPECT(ask(session, WFPATCH_IOC_THREAD, &again), -ESTALE);
	}
	again.stack_room = again.stack_length = sizeof(words[0]) - 8;
	EXPECT(ask(session, WFPATCH_IOC_THREAD, &again), -EINVAL);
	again.stack_room = again.stack_length = sizeof(words);
	EXPECT(ask(session, WFPATCH_IOC_THREAD, &again), -EINVAL);
	again.stack_length = sizeof(words[0]);
	again.flags = WFPATCH_THREAD_WORDS;
	EXPECT(ask(session, WFPATCH_IOC_THREAD, &again), -EINVAL);
	again.flags = WFPATCH_THREAD_EXPECT | WFPATCH_THREAD_FRAME;
	EXPECT(ask(session, WFPATCH_IOC_THREAD, &again), -EINVAL);
	usleep(200000);
	for (i = 0; i < 3; i++)
		CHECK(shared->gs[i] == 5 * WFPATCH_ROW_SIZE, "thread %d has GS base %#lx", i,
		      (unsigned long)shared->gs[i]);
	close(session);
	end_victim(victim);
}

static struct wfpatch_listed listed[THREADS_MOST + 64];

static int compare_stacks(const void *a, const void *b)
{
	const struct wfpatch_stack *x = a, *y = b;

	return x->fs_base < y->fs_base ? -1 : x->fs_base > y->fs_base;
}

/* The stacks of the threads listed: from the mapping that their stack pointer is in. */
static unsigned int stacks_of(pid_t pid, unsigned int count, struct wfpatch_stack *stacks)
{
	static struct { unsigned long low, high; } areas[2 * THREADS_MOST + 200];
	unsigned int n_areas = 0, n = 0, i, j;
	char path[64], line[512];
	FILE *file;

	snprintf(path, sizeof(path), "/proc/%d/maps", pid);
	file = fopen(path, "r");
	while (file && fgets(line, sizeof(line), file) && n_areas < 2 * THREADS_MOST + 200)
		if (sscanf(line, "%lx-%lx", &areas[n_areas].low, &areas[n_areas].high) == 2)
			n_areas++;
	if (file)
		fclose(file);
	for (i = 0; i < count; i++)
		for (j = 0; j < n_areas; j++)
			if (listed[i].sp >= areas[j].low && listed[i].sp < areas[j].high) {
				stacks[n++] = (struct wfpatch_stack){ listed[i].fs_base,
								      areas[j].low, areas[j].high };
				break;
			}
	qsort(stacks, n, sizeof(*stacks), compare_stacks);
	for (i = j = 0; i < n; i++)
		if (!j || stacks[i].fs_base != stacks[j - 1].fs_base)
			stacks[j++] = stacks[i];
	return j;
}

static struct wfpatch_list visit(int session, struct wfpatch_visit *arguments)
{
	struct wfpatch_list list = { .size = sizeof(list), .threads = (uintptr_t)listed,
				     .n_threads = THREADS_MOST + 64,
				     .entry_size = sizeof(listed[0]) };
	struct pollfd wait = { .fd = session, .events = POLLIN };

	EXPECT(ask(session, WFPATCH_IOC_VISIT, arguments), 0);
	EXPECT(poll(&wait, 1, 90000), 1);
	EXPECT(ask(session, WFPATCH_IOC_LIST, &list), 0);
	return list;
}

static void test_visit(void)
{
	static struct wfpatch_stack stacks[THREADS_MOST];
	int processors = (int)sysconf(_SC_NPROCESSORS_ONLN);
	unsigned int computing = hogs_each * processors < threads_each ? hogs_each * processors :
									  threads_each / 2;
	unsigned int storms = 2, specials = threads_each > 8 ? 2 : 0, i;
	unsigned int sleepers = threads_each - computing, settled = sleepers + computing;
	pid_t victim = start_victim((struct crowd){ .sleepers = sleepers, .computing = computing,
						     .vforks = specials, .handlers = specials,
						     .storms = storms });
	int session = attach(victim), event = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	struct wfpatch_visit arguments = { .size = sizeof(arguments), .eventfd = event,
					   .deadline_ms = 60000, .flags = WFPATCH_VISIT_ONCE,
					   .scan_limit = 1 << 20 };
	struct wfpatch_list list;
	unsigned int seen = 0, clear = 0, moved = 0;
	unsigned long long count = 0;
	double begun;

	/* Without stacks nobody can be clear, and everybody is seen. */
	list = visit(session, &arguments);
	CHECK(list.n_threads >= settled + 1, "%u threads listed", list.n_threads);
	for (i = 0; i < list.n_threads; i++)
		seen += listed[i].reason == WFPATCH_REASON_STACK;
	CHECK(seen >= settled, "%u of %u seen", seen, list.n_threads);
	CHECK(read(event, &count, 8) == 8 && count == 1, "the eventfd has %llu", count);
	/* Some number that lies on no stack: all are clear, and are moved from row 0 to row 5. */
	arguments.flags = WFPATCH_VISIT_MIGRATE;
	arguments.deadline_ms = 30000;
	arguments.n_stacks = stacks_of(victim, list.n_threads, stacks);
	arguments.stacks = (uintptr_t)stacks;
	arguments.from_rows = 1;
	arguments.left_rows = 1 << 5;
	arguments.target = 5;
	begun = now();
	list = visit(session, &arguments);
	for (i = 0; i < list.n_threads; i++) {
		clear += listed[i].state == WFPATCH_STATE_CLEAR;
		moved += !!(listed[i].flags & WFPATCH_LISTED_MIGRATED);
		CHECK(listed[i].state == WFPATCH_STATE_CLEAR || listed[i].reason,
		      "thread %d is not clear, without a reason", listed[i].tid);
		if (listed[i].state != WFPATCH_STATE_CLEAR)
			printf("# thread %d is not clear: reason %u\n", listed[i].tid,
			       listed[i].reason);
	}
	printf("# %u threads: %u clear, %u moved in %.1f ms\n", list.n_threads, clear, moved,
	       1e3 * (now() - begun));
	/* The others are in a storm, in vfork or in a handler; each that is not done has its reason. */
	CHECK(clear >= settled + 1, "%u of %u clear", clear, settled + 1);
	CHECK(moved >= settled + 1, "%u of %u moved", moved, settled + 1);
	/* Each says what it has when it is up the next time. */
	for (begun = now(), i = 0; i < settled && now() - begun < 120;)
		if (shared->gs[i] == 5 * WFPATCH_ROW_SIZE)
			i++;
		else
			usleep(20000);
	for (i = 0; i < settled; i++)
		CHECK(shared->gs[i] == 5 * WFPATCH_ROW_SIZE, "thread %u has GS base %#lx", i,
		      (unsigned long)shared->gs[i]);
	/* All stack words count: nobody is clear. */
	struct wfpatch_range everything = { .low = 1, .high = ~0ULL, .kind = WFPATCH_KIND_OLD };

	arguments.flags = WFPATCH_VISIT_ONCE;
	arguments.left_rows = 0;
	arguments.ranges = (uintptr_t)&everything;
	arguments.n_ranges = 1;
	list = visit(session, &arguments);
	for (i = clear = 0; i < list.n_threads; i++)
		clear += listed[i].state == WFPATCH_STATE_CLEAR;
	CHECK(clear == 0, "%u threads clear though every word accuses", clear);
	/* Who sleeps on is not looked at again. */
	if (threads_each <= 64) {
		long looks = counter("sleepers_examined");

		arguments.flags = 0;
		arguments.deadline_ms = 1000;
		visit(session, &arguments);
		looks = counter("sleepers_examined") - looks;
		printf("# %ld looks at sleepers in a second\n", looks);
		CHECK(looks < 2000 + 60 * (long)sleepers, "%ld looks", looks);
	}
	/* A visit under way keeps other requests out, can be cancelled, and ends with its session. */
	arguments.flags = 0;
	arguments.deadline_ms = 60000;
	EXPECT(ask(session, WFPATCH_IOC_VISIT, &arguments), 0);
	EXPECT(ask(session, WFPATCH_IOC_VISIT, &arguments), -EBUSY);
	EXPECT(ask(session, WFPATCH_IOC_CANCEL, NULL), 0);
	EXPECT(poll(&(struct pollfd){ .fd = session, .events = POLLIN }, 1, 5000), 1);
	EXPECT(ask(session, WFPATCH_IOC_VISIT, &arguments), 0);
	begun = now();
	close(session);
	CHECK(now() - begun < 10, "closing a session took %.1f s", now() - begun);
	close(event);
	end_victim(victim);
}

/* Threads that are born all the time, of threads that were moved, keep no visit open. */
static void test_births(void)
{
	static struct wfpatch_stack stacks[THREADS_MOST];
	const unsigned int rounds = 20;
	pid_t victim = start_victim((struct crowd){ .computing = 4, .storms = 4 });
	int session = attach(victim);
	struct wfpatch_visit arguments = { .size = sizeof(arguments), .eventfd = -1,
					   .deadline_ms = 10000, .flags = WFPATCH_VISIT_MIGRATE,
					   .stacks = (uintptr_t)stacks, .scan_limit = 1 << 20 };
	unsigned int row, clear = 0;
	double begun = now();

	for (row = 1; row <= rounds; row++) {
		struct wfpatch_visit look = { .size = sizeof(look), .eventfd = -1,
					      .deadline_ms = 10000, .flags = WFPATCH_VISIT_ONCE };
		struct wfpatch_list list = visit(session, &look);

		arguments.n_stacks = stacks_of(victim, list.n_threads, stacks);
		arguments.from_rows = 1 << (row - 1);
		arguments.left_rows = 1 << row;
		arguments.target = row;
		list = visit(session, &arguments);
		clear += list.state == WFPATCH_VISIT_CLEAR;
	}
	printf("# %u of %u visits were done in %.1f s\n", clear, rounds, now() - begun);
	CHECK(clear == rounds, "%u of %u visits were done", clear, rounds);
	close(session);
	end_victim(victim);
}

static void test_poke_refused(void)
{
	pid_t victim = start_victim((struct crowd){ .sleepers = 1 });
	int session = attach(victim);
	struct wfpatch_poke pokes[2] = { poke_one(false), poke_two(false) };
	struct wfpatch_arm arm = { .size = sizeof(arm), .pokes = (uintptr_t)pokes, .n_pokes = 2 };
	struct wfpatch_poke *data = malloc(sizeof(*data));

	pokes[1].before[4] ^= 1;
	EXPECT(ask(session, WFPATCH_IOC_ARM, &arm), -EILSEQ);
	CHECK(pokes[0].result == 0 && pokes[1].result == -EILSEQ, "results %d, %d", pokes[0].result,
	      pokes[1].result);
	pokes[1] = poke_two(false);
	pokes[1].address = 0x100000000000;
	EXPECT(ask(session, WFPATCH_IOC_ARM, &arm), -EFAULT);
	/* No code. */
	pokes[1].address = (uintptr_t)data;
	EXPECT(ask(session, WFPATCH_IOC_ARM, &arm), -EFAULT);
	pokes[1] = poke_one(false);
	pokes[1].address += 4;
	EXPECT(ask(session, WFPATCH_IOC_ARM, &arm), -EINVAL);
	pokes[1].length = 17;
	EXPECT(ask(session, WFPATCH_IOC_ARM, &arm), -EINVAL);
	arm.n_pokes = 0;
	EXPECT(ask(session, WFPATCH_IOC_ARM, &arm), -EINVAL);
	arm.n_pokes = 1;
	arm.pokes = 8;
	EXPECT(ask(session, WFPATCH_IOC_ARM, &arm), -EFAULT);
	free(data);
	close(session);
	end_victim(victim);
}

/* Whether all pokes are in the process's memory. */
static bool poked(pid_t pid, const struct wfpatch_poke *pokes, unsigned int count)
{
	unsigned char bytes[WFPATCH_MAX_POKE_LENGTH];
	bool all = true;
	char path[64];
	int memory;

	snprintf(path, sizeof(path), "/proc/%d/mem", pid);
	memory = open(path, O_RDONLY);
	for (; count--; pokes++)
		all &= pread(memory, bytes, pokes->length, pokes->address) == pokes->length &&
		       !memcmp(bytes, pokes->after, pokes->length);
	close(memory);
	return all;
}

/* ARM, again while it is not in time, for a minute: how often it was not; `result` is the last one. */
static long armed_after(int session, struct wfpatch_arm *arm, int *result)
{
	double latest = now() + 60;
	long again = 0;

	while ((*result = ask(session, WFPATCH_IOC_ARM, arm)) == -EAGAIN && now() < latest)
		again++;
	return again;
}

/* Hot functions armed and disarmed, while threads run through them and children are forked. */
static void test_poke_hot(void)
{
	int processors = (int)sysconf(_SC_NPROCESSORS_ONLN);
	pid_t victim = start_victim((struct crowd){ .sleepers = 2, .hot = processors + 1,
						     .forks = true });
	int session = attach(victim);
	long traps = counter("breakpoints_met"), late = counter("breakpoints_met_late");
	long rounds = 0, again = 0, undone = 0;
	double end = now() + seconds_each;
	bool back = false;

	while (rounds_each ? rounds < rounds_each : now() < end) {
		struct wfpatch_move move = move_of_two();
		struct wfpatch_poke pokes[2] = { poke_one(back), poke_two(back) };
		struct wfpatch_arm arm = { .size = sizeof(arm), .pokes = (uintptr_t)pokes,
					   .n_pokes = 2, .deadline_ms = 200 };
		int result;

		if (!back) {
			arm.moves = (uintptr_t)&move;
			arm.n_moves = 1;
		}
		/* In no time for all threads, often: what was begun is undone, then done. */
		if (rounds % 4 == 2) {
			arm.deadline_ms = 1;
			undone += ask(session, WFPATCH_IOC_ARM, &arm) == -EAGAIN;
			arm.deadline_ms = 200;
		}
		again += armed_after(session, &arm, &result);
		if (!CHECK(result == 0, "round %ld: ARM gave %d", rounds, result) ||
		    !CHECK(poked(victim, pokes, 2), "round %ld: memory is not as armed", rounds))
			break;
		/* The second time changes nothing, but looks at all threads again. */
		if (rounds % 16 == 0) {
			again += armed_after(session, &arm, &result);
			if (!CHECK(result == 0, "round %ld, again: ARM gave %d", rounds, result))
				break;
		}
		back = !back;
		rounds++;
	}
	printf("# %ld rounds, %ld undone, %ld not in time, %ld calls, %ld forks, %ld breakpoints met, "
	       "%ld late\n",
	       rounds, undone, again, atomic_load(&shared->calls), atomic_load(&shared->forks),
	       counter("breakpoints_met") - traps, counter("breakpoints_met_late") - late);
	CHECK(rounds > 4, "only %ld rounds", rounds);
	CHECK(atomic_load(&shared->calls) > 1000, "the victim made no calls");
	CHECK(counter("breakpoints_now") == 0, "breakpoints are left");
	/* Of one that is met late, a child could not be sent on. */
	late = counter("breakpoints_met_late") - late;
	CHECK(late == 0, "%ld breakpoints were met late", late);
	close(session);
	end_victim(victim);
}

/* A breakpoint that is not ours stays a breakpoint. */
static void test_foreign_breakpoint(void)
{
	int status = 0;
	pid_t pid;

	fflush(NULL);
	pid = fork();
	if (pid == 0) {
		__asm__ volatile("int3");
		_exit(0);
	}
	waitpid(pid, &status, 0);
	CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGTRAP, "status %#x", status);
}

static void test_nothing_left(void)
{
	check_nothing_left();
}

static const struct test tests[] = {
	{ "info", test_info },
	{ "compat", test_compat },
	{ "attach", test_attach },
	{ "permission", test_permission },
	{ "load", test_load },
	{ "write", test_write },
	{ "exec_and_exit", test_exec_and_exit },
	{ "thread", test_thread },
	{ "words", test_words },
	{ "visit", test_visit },
	{ "births", test_births },
	{ "poke_refused", test_poke_refused },
	{ "poke_hot", test_poke_hot },
	{ "foreign_breakpoint", test_foreign_breakpoint },
	{ "nothing_left", test_nothing_left },
};

int main(int count, char **arguments)
{
	for (arguments++, count--; count > 1 && !strncmp(arguments[0], "--", 2);
	     arguments += 2, count -= 2) {
		if (!strcmp(arguments[0], "--seconds"))
			seconds_each = atoi(arguments[1]);
		else if (!strcmp(arguments[0], "--rounds"))
			rounds_each = atol(arguments[1]);
		else if (!strcmp(arguments[0], "--hogs"))
			hogs_each = atoi(arguments[1]);
		else if (!strcmp(arguments[0], "--threads"))
			threads_each = atoi(arguments[1]);
	}
	if (threads_each < 4 || threads_each > THREADS_MOST - 8)
		return 2;
	return run_tests(tests, sizeof(tests) / sizeof(tests[0]), count, arguments);
}
