/* SPDX-License-Identifier: GPL-3.0-or-later */
/* A queue of bytes: written at the end, taken from the front. */
#ifndef LOAD_BYTES_H
#define LOAD_BYTES_H

#include <stddef.h>

struct bytes {
	char *data;
	size_t begin;
	size_t end;
	size_t room;
};

static inline size_t bytes_length(const struct bytes *bytes)
{
	return bytes->end - bytes->begin;
}

static inline const char *bytes_front(const struct bytes *bytes)
{
	return bytes->data + bytes->begin;
}

void bytes_add(struct bytes *bytes, const void *data, size_t length);
void bytes_printf(struct bytes *bytes, const char *format, ...)
	__attribute__((format(printf, 2, 3)));
void bytes_take(struct bytes *bytes, size_t length);
void bytes_clear(struct bytes *bytes);

#endif
