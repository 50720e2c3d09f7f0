// SPDX-License-Identifier: GPL-3.0-or-later
// Tells what a dynamic linker did with it, for comparison with what is read from its memory.
// Build with -DSWITCHES to import makecontext, with -DLIBRARY to use linked_library.
#define _GNU_SOURCE
#include <ctype.h>
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

__thread char odd[13] = "thread";
#ifdef ALIGN
__thread _Alignas(ALIGN) char aligned[3];
#endif
static __thread long zero;

static char *thread_pointer(void)
{
	char *self;

	__asm__("mov %%fs:0, %0" : "=r"(self));
	return self;
}

#ifdef LIBRARY
extern long library_offset(void);
extern int library_function(int);
#endif

int exported(int x)
{
	return x + 1;
}

int main(void)
{
	char line[256];

	setvbuf(stdout, NULL, _IOLBF, 0);
	printf("ready\n");
	while (fgets(line, sizeof(line), stdin)) {
		char name[128], version[128];

		if (sscanf(line, "dlvsym %127s %127s", name, version) == 2)
			printf("%ju\n", (uintmax_t)(uintptr_t)dlvsym(RTLD_DEFAULT, name, version));
		else if (sscanf(line, "dlsym %127s", name) == 1)
			printf("%ju\n", (uintmax_t)(uintptr_t)dlsym(RTLD_DEFAULT, name));
		else if (sscanf(line, "dlopen %127s", name) == 1)
			printf("%d\n", dlopen(name, RTLD_NOW | RTLD_LOCAL) != NULL);
		else if (!strcmp(line, "main\n"))
			printf("%ju\n", (uintmax_t)(uintptr_t)main);
		else if (!strcmp(line, "odd\n"))
			printf("%jd\n", (intmax_t)(odd - thread_pointer()));
		else if (!strcmp(line, "zero\n"))
			printf("%jd\n", (intmax_t)((char *)&zero - thread_pointer()));
#ifdef ALIGN
		else if (!strcmp(line, "aligned\n"))
			printf("%jd\n", (intmax_t)(aligned - thread_pointer()));
#endif
		else if (!strcmp(line, "ispunct\n"))
			printf("%d\n", getenv("WFPATCH_NONE") != NULL);
#ifdef LIBRARY
		else if (!strcmp(line, "library\n"))
			printf("%jd\n", (intmax_t)library_offset());
		else if (!strcmp(line, "function\n"))
			printf("%d\n", library_function(1));
#endif
#ifdef SWITCHES
		else if (!strcmp(line, "switch\n")) {
			ucontext_t context;

			getcontext(&context);
			makecontext(&context, (void (*)(void))abort, 0);
			printf("0\n");
		}
#endif
		else
			printf("what?\n");
	}
	return 0;
}
