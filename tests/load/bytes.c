// SPDX-License-Identifier: GPL-3.0-or-later
#include "bytes.h"

#include <err.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void bytes_reserve(struct bytes *bytes, size_t length)
{
	if (bytes->begin && bytes->end + length > bytes->room) {
		memmove(bytes->data, bytes->data + bytes->begin, bytes_length(bytes));
		bytes->end -= bytes->begin;
		bytes->begin = 0;
	}
	if (bytes->end + length <= bytes->room)
		return;
	bytes->room = (bytes->end + length) * 2;
	bytes->data = realloc(bytes->data, bytes->room);
	if (!bytes->data)
		err(2, "out of memory");
}

void bytes_add(struct bytes *bytes, const void *data, size_t length)
{
	bytes_reserve(bytes, length);
	memcpy(bytes->data + bytes->end, data, length);
	bytes->end += length;
}

void bytes_printf(struct bytes *bytes, const char *format, ...)
{
	char text[512];
	va_list arguments;
	int length;

	va_start(arguments, format);
	length = vsnprintf(text, sizeof(text), format, arguments);
	va_end(arguments);
	if (length < 0 || (size_t)length >= sizeof(text))
		errx(2, "text too long: %s", format);
	bytes_add(bytes, text, length);
}

void bytes_take(struct bytes *bytes, size_t length)
{
	bytes->begin += length;
	if (bytes->begin == bytes->end)
		bytes_clear(bytes);
}

void bytes_clear(struct bytes *bytes)
{
	bytes->begin = 0;
	bytes->end = 0;
}
