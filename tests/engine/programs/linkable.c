// SPDX-License-Identifier: GPL-3.0-or-later
// A program that new code is linked against: it maps memory where it is told to, calls what was
// written there, and has one of everything that new code may refer to. -DLIBRARY makes a library of
// it without the commands.
#define _GNU_SOURCE
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

int global = 100;
static int counter = 10;
static const char *names[3] = {"zero", "one", "two"};
__thread int thread_global = 1000;
static __thread int thread_local_ = 2000;

__attribute__((noinline)) static int helper(int x)
{
	counter += x;
	return counter;
}

__attribute__((noinline)) int other(int x)
{
	return 3 * x;
}

__attribute__((noinline)) int work(int x)
{
	static int calls = 5;

	calls++;
	return helper(x) + global + thread_global + thread_local_ + calls + (int)strlen(names[x % 3]) +
	       other(x);
}

__attribute__((noinline)) int choose(int x)
{
	return work(x) - 1;
}

#ifndef LIBRARY
#ifdef USES_LIBRARY
extern int from_library(int);
#endif
#ifdef __cplusplus
extern "C" void __register_frame(const void *);

__attribute__((noinline)) int thrower(int x)
{
	if (x > 5)
		throw x;
	return x;
}
#endif

int main(void)
{
	char line[256];

	setvbuf(stdout, NULL, _IOLBF, 0);
	printf("ready %d\n", choose(0));
	while (fgets(line, sizeof(line), stdin)) {
		uintmax_t address, size;
		int argument;

		if (sscanf(line, "map %ju %ju", &address, &size) == 2) {
			void *at = mmap((void *)(uintptr_t)address, size, PROT_READ | PROT_WRITE | PROT_EXEC,
					MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);

			printf("%d\n", at == (void *)(uintptr_t)address);
		} else if (sscanf(line, "call %ju %d", &address, &argument) == 2) {
#ifdef __cplusplus
			try {
				printf("%d\n", ((int (*)(int))(uintptr_t)address)(argument));
			} catch (int thrown) {
				printf("caught %d\n", thrown);
			}
		} else if (sscanf(line, "register %ju", &address) == 1) {
			__register_frame((const void *)(uintptr_t)address);
			printf("1\n");
#else
			printf("%d\n", ((int (*)(int))(uintptr_t)address)(argument));
#endif
		} else if (!strcmp(line, "lazy\n")) {
			// imported, and never called before: its slot stays unresolved in a lazy program
			printf("%ld\n", a64l("zz"));
		}
#ifdef USES_LIBRARY
		else if (!strcmp(line, "library\n"))
			printf("%d\n", from_library(1));
#endif
	}
	return 0;
}
#else
int from_library(int x)
{
	return choose(x);
}
#endif
