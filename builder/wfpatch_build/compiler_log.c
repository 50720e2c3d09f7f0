// SPDX-License-Identifier: GPL-3.0-or-later
/*
 * Stands in for a compiler driver: appends its working directory and
 * arguments to LOG, then becomes the real driver HOME/real/<its own name>.
 * In a chroot that is the driver's file itself, moved away: argv[0] stays as
 * it is, so the driver finds its parts by it as ever. On a machine of others
 * it is a link to the installed driver, which goes by its own path.
 *
 * A record is "<strings> <bytes>\n" and then that many NUL-terminated strings:
 * the working directory, the driver's file name, and argv. It is written with
 * one write() to an O_APPEND file, so parallel makes do not mix records.
 */
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#ifndef HOME
#define HOME "/usr/lib/wfpatch-build"
#endif
#define LOG HOME "/log/compile.log"

static size_t append(char *record, size_t used, const char *string)
{
	size_t length = strlen(string) + 1;

	memcpy(record + used, string, length);
	return used + length;
}

static void log_call(const char *driver, int argc, char **argv)
{
	char cwd[PATH_MAX];
	char head[64];
	size_t total = PATH_MAX + sizeof(head);
	size_t used, head_length;
	char *record;
	int fd, i;

	if (!getcwd(cwd, sizeof(cwd)))
		return;
	for (i = 0; i < argc; i++)
		total += strlen(argv[i]) + 1;
	record = malloc(total + strlen(driver) + 1);
	fd = open(LOG, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0666);
	if (!record || fd < 0)
		return;
	used = append(record, sizeof(head), cwd);
	used = append(record, used, driver);
	for (i = 0; i < argc; i++)
		used = append(record, used, argv[i]);
	head_length = (size_t)snprintf(head, sizeof(head), "%d %zu\n", argc + 2,
				       used - sizeof(head));
	memcpy(record + sizeof(head) - head_length, head, head_length);
	if (write(fd, record + sizeof(head) - head_length,
		  used - sizeof(head) + head_length) < 0)
		perror(LOG);
	close(fd);
	free(record);
}

int main(int argc, char **argv)
{
	char self[PATH_MAX], real[PATH_MAX], installed[PATH_MAX];
	ssize_t length = readlink("/proc/self/exe", self, sizeof(self) - 1);
	const char *name;

	if (length < 0) {
		perror("/proc/self/exe");
		return 127;
	}
	self[length] = '\0';
	name = strrchr(self, '/') + 1;
	if (snprintf(real, sizeof(real), HOME "/real/%s", name) >= (int)sizeof(real))
		return 127;
	log_call(name, argc, argv);
	length = readlink(real, installed, sizeof(installed) - 1);
	if (length > 0) {
		installed[length] = '\0';
		argv[0] = installed;
	}
	execv(real, argv);
	perror(real);
	return 127;
}
