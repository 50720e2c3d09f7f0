// SPDX-License-Identifier: GPL-3.0-or-later
/*
 * Reads a word all the time that the applier stores to. Prints "ready ADDRESS MISALIGNED"; "report"
 * prints "reads N torn T torn-misaligned M": a word is torn when its bytes are not all the same.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>

static char area[192] __attribute__((aligned(64)));
static atomic_long reads, torn, torn_misaligned;

static int is_torn(uint64_t word)
{
	return word != (word & 0xff) * 0x0101010101010101ull;
}

static void *reader(void *argument)
{
	volatile uint64_t *aligned = (uint64_t *)area;
	volatile uint64_t *misaligned = (uint64_t *)(area + 124); /* over the end of a cache line */

	for (;;) {
		torn += is_torn(*aligned);
		torn_misaligned += is_torn(*misaligned);
		reads++;
	}
	return argument;
}

int main(void)
{
	pthread_t thread;
	char line[64];

	pthread_create(&thread, NULL, reader, NULL);
	printf("ready %lu %lu\n", (unsigned long)area, (unsigned long)(area + 124));
	fflush(stdout);
	while (fgets(line, sizeof(line), stdin)) {
		printf("reads %ld torn %ld torn-misaligned %ld\n", reads, torn, torn_misaligned);
		fflush(stdout);
	}
	return 0;
}
