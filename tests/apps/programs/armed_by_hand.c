// SPDX-License-Identifier: GPL-3.0-or-later
/*
 * A process that looks as if it had been patched, made without the product: the entry of answer()
 * jumps to a landing, that to a stub, and the stub through a table by the GS base. The entry of
 * prefixed() does so with a jump that carries a prefix, and its landing by an absolute jump. Prints the
 * addresses, then waits; on each line "slot N ADDRESS" of its input it changes row N's slot.
 */
#define _GNU_SOURCE
#include <asm/prctl.h>
#include <err.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#define PAGE 4096

__attribute__((noinline, aligned(16))) int answer(void)
{
	__asm__ volatile("nop; nop; nop; nop; nop");
	return 1;
}

__attribute__((noinline, aligned(16))) int prefixed(void)
{
	__asm__ volatile("nop; nop; nop; nop; nop; nop");
	return 3;
}

__attribute__((noinline, aligned(16))) int untouched(void)
{
	__asm__ volatile("");
	return 2;
}

static void jump(unsigned char *at, const unsigned char *to)
{
	int32_t distance = to - (at + 5);

	at[0] = 0xe9;
	memcpy(at + 1, &distance, 4);
}

static void *in_row_one(void *nothing)
{
	if (syscall(SYS_arch_prctl, ARCH_SET_GS, PAGE))
		err(2, "arch_prctl");
	pause();
	return nothing;
}

int main(void)
{
	unsigned char *own = (unsigned char *)answer;
	unsigned char *other = (unsigned char *)prefixed;
	unsigned char *page = (unsigned char *)((uintptr_t)own & -PAGE);
	unsigned char *region;
	uint64_t *table;
	unsigned char *text;
	uint64_t destination;
	int32_t distance;
	pthread_t thread;
	char line[128];

	/* Within reach of a rel32 jump from here. */
	region = mmap(page + (64 << 20), 4 * PAGE, PROT_READ | PROT_WRITE,
		      MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
	if (region == MAP_FAILED)
		err(2, "mmap");
	table = (uint64_t *)region;
	text = region + 2 * PAGE;
	jump(text, text + 64);
	memcpy(text + 64, "\x65\xff\x25", 3);
	distance = region - (text + 64 + 7);
	memcpy(text + 64 + 3, &distance, 4);
	memcpy(text + 256, "\xff\x25\0\0\0\0", 6);
	destination = (uintptr_t)text + 64;
	memcpy(text + 256 + 6, &destination, 8);
	memcpy(text + 128, "\xb8\x07\0\0\0\xc3", 6); /* mov $7, %eax; ret */
	table[0] = table[PAGE / 8] = (uintptr_t)text + 128;
	if (mprotect(text, 2 * PAGE, PROT_READ | PROT_EXEC) ||
	    mprotect(page, 2 * PAGE, PROT_READ | PROT_WRITE | PROT_EXEC))
		err(2, "mprotect");
	jump(own, text);
	other[0] = 0x3e;
	jump(other + 1, text + 256);
	if (mprotect(page, 2 * PAGE, PROT_READ | PROT_EXEC))
		err(2, "mprotect");
	if (pthread_create(&thread, NULL, in_row_one, NULL))
		errx(2, "pthread_create");
	printf("%lu %lu %lu %lu %lu %d\n", (unsigned long)(uintptr_t)own,
	       (unsigned long)(uintptr_t)other, (unsigned long)(uintptr_t)untouched,
	       (unsigned long)(uintptr_t)(text + 128), (unsigned long)(uintptr_t)(text + 192),
	       answer() + prefixed());
	fflush(stdout);
	while (fgets(line, sizeof(line), stdin)) {
		unsigned long row, address;

		if (sscanf(line, "slot %lu %lu", &row, &address) != 2 || row > 1)
			errx(2, "slot ROW ADDRESS, not %s", line);
		__atomic_store_n(&table[row * PAGE / 8], address, __ATOMIC_RELEASE);
		printf("done\n");
		fflush(stdout);
	}
	return 0;
}
