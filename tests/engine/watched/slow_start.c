/* SPDX-License-Identifier: GPL-3.0-or-later
 *
 * A program whose dynamic linker takes its time: it asks which implementation an indirect function
 * has, and that waits for a byte of input. Built with -z now, it is asked before main() runs.
 */
#include <stdio.h>
#include <unistd.h>

static int implementation(void)
{
	return 7;
}

static int (*choose(void))(void)
{
	long result, number = 0;
	char byte;

	/* read(2); no function of the C library can be called yet. */
	__asm__ volatile("syscall"
			 : "=a"(result)
			 : "a"(number), "D"(0L), "S"(&byte), "d"(1L)
			 : "rcx", "r11", "memory");
	return implementation;
}

int indirect(void) __attribute__((ifunc("choose")));

int main(void)
{
	printf("ready %d\n", indirect());
	fflush(stdout);
	pause();
	return 0;
}
