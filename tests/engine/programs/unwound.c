// SPDX-License-Identifier: GPL-3.0-or-later
// Code whose frames are of every kind: lazily bound calls, the vdso, frames of variable size,
// realigned stacks, callbacks out of the C library. It stops itself first, to be stepped through.
#define _GNU_SOURCE
#include <alloca.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static volatile int sink;

static int compare(const void *a, const void *b)
{
	return *(const int *)a - *(const int *)b;
}

__attribute__((noinline)) static int variable_frame(int n)
{
	char *text = alloca((size_t)n * 16);

	memset(text, n, (size_t)n * 16);
	return snprintf(text, (size_t)n * 16, "%d %.15g", n, n / 7.0);
}

__attribute__((noinline)) static int realigned(int n)
{
	_Alignas(64) char text[128];
	char *more = alloca((size_t)n);

	memset(text, n, sizeof(text));
	more[0] = text[n];
	return variable_frame(n) + more[0];
}

__attribute__((noinline)) static int recurse(int n)
{
	if (n == 0)
		return realigned(5);
	return recurse(n - 1) + n;
}

__attribute__((noinline)) static int many_arguments(int a, int b, int c, int d, int e, int f, int g, int h)
{
	sink = a + b + c + d + e + f;
	return recurse(g) + h;
}

__attribute__((noinline)) static int leaf(int n)
{
	return n * 3 + sink;
}

__attribute__((noinline)) static int tail(int n)
{
	return leaf(n + 1);
}

int main(void)
{
	int numbers[] = {5, 3, 9, 1, 7, 2};
	struct timespec now;

	raise(SIGSTOP);
	clock_gettime(CLOCK_MONOTONIC, &now);
	sink = many_arguments(1, 2, 3, 4, 5, 6, 3, 8);
	qsort(numbers, 6, sizeof(numbers[0]), compare);
	sink += tail(numbers[2]);
	clock_gettime(CLOCK_REALTIME, &now);
	sink += (int)strtol("123", NULL, 10);
	return 0;
}
