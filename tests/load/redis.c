// SPDX-License-Identifier: GPL-3.0-or-later
/* Requests and answers of redis, RESP 2. */
#include "model.h"

#include <stdio.h>
#include <string.h>

#define RDB_VERSION 9

static void add_word(struct bytes *request, const void *word, size_t length)
{
	bytes_printf(request, "$%zu\r\n", length);
	bytes_add(request, word, length);
	bytes_add(request, "\r\n", 2);
}

static void add_text(struct bytes *request, const char *word)
{
	add_word(request, word, strlen(word));
}

static void begin(struct bytes *request, int words, const char *command)
{
	bytes_printf(request, "*%d\r\n", words);
	add_text(request, command);
}

static void add_key(struct bytes *request, const struct model *model, const char *kind,
		    unsigned int slot)
{
	char key[96];

	snprintf(key, sizeof(key), "%s:%s:%u", model->prefix, kind, slot);
	add_text(request, key);
}

static void expect_number(struct bytes *answer, uint64_t number)
{
	bytes_printf(answer, ":%llu\r\n", (unsigned long long)number);
}

static void expect_value(struct bytes *answer, const struct model *model, unsigned int slot)
{
	char value[MODEL_VALUE_MAX];

	if (!model->slots[slot].present) {
		bytes_printf(answer, "$-1\r\n");
		return;
	}
	model_value(model, slot, value);
	add_word(answer, value, model->slots[slot].length);
}

/* As redis' crc64.c: Jones' polynomial, reflected. */
static uint64_t crc64(const unsigned char *data, size_t length)
{
	static uint64_t table[256];
	uint64_t crc = 0;
	size_t i;

	if (!table[1]) {
		for (i = 0; i < 256; i++) {
			uint64_t entry = i;
			int bit;

			for (bit = 0; bit < 8; bit++)
				entry = entry >> 1 ^ (entry & 1 ? 0x95AC9329AC4BC9B5ULL : 0);
			table[i] = entry;
		}
	}
	for (i = 0; i < length; i++)
		crc = table[(crc ^ data[i]) & 0xff] ^ crc >> 8;
	return crc;
}

/* A string as DUMP gives it: type 0, 14-bit length, bytes, version, checksum. */
static void add_serialized(struct bytes *request, const struct model *model, unsigned int slot)
{
	unsigned char dump[MODEL_VALUE_MAX + 16];
	size_t length = model->slots[slot].length;
	uint64_t crc;

	dump[0] = 0;
	dump[1] = 0x40 | length >> 8;
	dump[2] = length & 0xff;
	model_value(model, slot, (char *)dump + 3);
	length += 3;
	dump[length++] = RDB_VERSION;
	dump[length++] = 0;
	crc = crc64(dump, length);
	memcpy(dump + length, &crc, 8); /* x86-64 is little endian, as the format */
	add_word(request, dump, length + 8);
}

static void next_request(struct model *model, struct bytes *request, struct bytes *answer)
{
	unsigned int slot = model_random(model, MODEL_SLOTS);
	unsigned int other = model_random(model, MODEL_SLOTS);
	struct slot *held = &model->slots[slot];
	char value[MODEL_VALUE_MAX];

	switch (model_random(model, 16)) {
	case 0: case 1: case 2:
		model_renew(model, slot);
		model_value(model, slot, value);
		begin(request, 3, "SET");
		add_key(request, model, "s", slot);
		add_word(request, value, held->length);
		bytes_printf(answer, "+OK\r\n");
		break;
	case 3:
		begin(request, 2, "DEL");
		add_key(request, model, "s", slot);
		expect_number(answer, held->present);
		held->present = false;
		break;
	case 4: case 5:
		begin(request, 2, "INCR");
		add_key(request, model, "c", slot);
		expect_number(answer, ++held->counter);
		break;
	case 6:
		/* One hash, a field for each slot. */
		snprintf(value, sizeof(value), "f%u", slot);
		begin(request, 4, "HINCRBY");
		add_key(request, model, "h", 0);
		add_text(request, value);
		add_text(request, "3");
		held->tally += 3;
		expect_number(answer, held->tally);
		break;
	case 7: case 8:
		model_renew(model, slot);
		begin(request, 5, "RESTORE");
		add_key(request, model, "s", slot);
		add_text(request, "0");
		add_serialized(request, model, slot);
		add_text(request, "REPLACE");
		bytes_printf(answer, "+OK\r\n");
		break;
	case 9:
		begin(request, 2, "STRLEN");
		add_key(request, model, "s", slot);
		expect_number(answer, held->present ? held->length : 0);
		break;
	case 10:
		begin(request, 3, "MGET");
		add_key(request, model, "s", slot);
		add_key(request, model, "s", other);
		bytes_printf(answer, "*2\r\n");
		expect_value(answer, model, slot);
		expect_value(answer, model, other);
		break;
	default:
		begin(request, 2, "GET");
		add_key(request, model, "s", slot);
		expect_value(answer, model, slot);
		break;
	}
}

const struct protocol redis_protocol = {
	.name = "redis",
	.port = 6379,
	.request = next_request,
};
