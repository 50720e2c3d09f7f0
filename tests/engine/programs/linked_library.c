// SPDX-License-Identifier: GPL-3.0-or-later
// A library with an initial-exec thread-local variable and a function that the program calls lazily.
#include <stdlib.h>

__thread char before[40] __attribute__((tls_model("initial-exec")));
__thread long library_variable __attribute__((tls_model("initial-exec"))) = 7;

long library_offset(void)
{
	char *self;

	__asm__("mov %%fs:0, %0" : "=r"(self));
	before[0]++;
	return (char *)&library_variable - self;
}

int library_function(int x)
{
	return abs(x) + (int)library_variable;
}
