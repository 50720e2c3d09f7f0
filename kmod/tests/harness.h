/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the programs that test the kernel service share: checks, requests, and the victim, a child with
 * threads that compute, sleep, or are made and end all the time, and that tell by shared memory what
 * happened to them.
 */
#ifndef WFPATCH_HARNESS_H
#define WFPATCH_HARNESS_H

#include <stdatomic.h>
#include <stdbool.h>
#include <string.h>
#include <sys/types.h>

#include "uapi/wfpatch.h"

#define THREADS_MOST	5000
#define PAGE		4096UL

extern int failures;

/* Says what is wrong, and goes on. */
bool check_(bool right, const char *file, int line, const char *format, ...)
	__attribute__((format(printf, 4, 5)));

#define CHECK(right, ...) check_((right), __FILE__, __LINE__, __VA_ARGS__)

#define EXPECT(call, wanted)                                                                       \
	({                                                                                         \
		int result_ = (call);                                                              \
		CHECK(result_ == (wanted), "%s gave %d (%s), expected %d", #call, result_,         \
		      strerror(result_ < 0 ? -result_ : 0), (wanted));                             \
		result_;                                                                           \
	})

/* The result of an ioctl as a negative errno. */
int ask(int fd, unsigned long command, void *arguments);
double now(void);
int open_device(void);
int attach(pid_t pid);
long counter(const char *name);
/* Of the counters that end in "_now": what the service holds. */
void check_nothing_left(void);

/*
 * `one` returns 1 from one instruction of five bytes, and `one_old` is its copy; `two` returns 1 from
 * two instructions, which a jump replaces; `two_old` is their copy, `two_new` returns 2. A poke of
 * `one` makes it return 3.
 */
extern unsigned char one[], one_old[], two[], two_old[], two_new[];

struct wfpatch_poke poke_one(bool back);
struct wfpatch_poke poke_two(bool back);
struct wfpatch_move move_of_two(void);

struct shared {
	atomic_int ready;
	atomic_int stop;
	atomic_long calls;
	atomic_long wrong;
	atomic_long forks;
	atomic_long children_failed;
	atomic_int child_status; /* of the last of them */
	atomic_long regressions; /* a GS base that became smaller */
	atomic_int tids[THREADS_MOST];
	atomic_ulong gs[THREADS_MOST];
};

extern struct shared *shared;

/* How many threads of each kind a victim has, beside its main thread. */
struct crowd {
	unsigned int sleepers;	/* asleep but for moments */
	unsigned int computing;	/* one processor each, as far as there are any */
	unsigned int hot;	/* in `one` and `two` all the time */
	unsigned int vforks;	/* asleep in vfork for a third of a second, again and again */
	unsigned int handlers;	/* in a signal handler on another stack, as long */
	unsigned int storms;	/* making threads that end at once */
	bool forks;		/* the main thread forks all the time; else it sleeps */
};

pid_t start_victim(struct crowd crowd);
/* Asks the victim to end, and checks that it went well. */
void end_victim(pid_t pid);

struct test {
	const char *name;
	void (*run)(void);
};

/* Runs the tests that are named, or all; the program's exit code: 0, 1 (failed, or none was run), 2. */
int run_tests(const struct test *tests, unsigned int n_tests, int n_names, char **names);

#endif /* WFPATCH_HARNESS_H */
