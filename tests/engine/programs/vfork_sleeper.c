// SPDX-License-Identifier: GPL-3.0-or-later
// A parent that waits in vfork: its child runs on its stack until standard input ends.
#define _GNU_SOURCE
#include <stdio.h>
#include <unistd.h>

int main(void)
{
	setvbuf(stdout, NULL, _IOLBF, 0);
	if (vfork() == 0) {
		char byte;

		printf("ready %d\n", getpid());
		while (read(0, &byte, 1) > 0)
			;
		_exit(0);
	}
	return 0;
}
