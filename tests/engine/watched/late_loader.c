/* SPDX-License-Identifier: GPL-3.0-or-later
 *
 * A program that loads a library only when it is told to: "load" as input, then it answers by the
 * library's answer() at each line, as service.c does.
 */
#include <dlfcn.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	int (*answer)(int) = NULL;
	char line[64];

	setvbuf(stdout, NULL, _IOLBF, 0);
	printf("ready %d\n", (int)getpid());
	while (argc > 1 && fgets(line, sizeof(line), stdin)) {
		if (!strcmp(line, "load\n")) {
			void *library = dlopen(argv[1], RTLD_NOW);

			if (library)
				*(void **)&answer = dlsym(library, "answer");
		}
		printf("%d %d\n", (int)getpid(), answer ? answer(0) : 0);
	}
	return 0;
}
