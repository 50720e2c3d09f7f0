// SPDX-License-Identifier: GPL-3.0-or-later
/* Requests and answers of memcached's text and meta protocols. */
#include "model.h"

#include <stdio.h>

static void store(const char *command, struct model *model, unsigned int slot,
		  struct bytes *request)
{
	char value[MODEL_VALUE_MAX];

	model_value(model, slot, value);
	bytes_printf(request, "%s %s:s:%u %u 0 %u\r\n", command, model->prefix, slot, slot,
		     model->slots[slot].length);
	bytes_add(request, value, model->slots[slot].length);
	bytes_add(request, "\r\n", 2);
}

static void expect_value(struct bytes *answer, const struct model *model, unsigned int slot)
{
	char value[MODEL_VALUE_MAX];

	if (!model->slots[slot].present)
		return;
	model_value(model, slot, value);
	bytes_printf(answer, "VALUE %s:s:%u %u %u\r\n", model->prefix, slot, slot,
		     model->slots[slot].length);
	bytes_add(answer, value, model->slots[slot].length);
	bytes_add(answer, "\r\n", 2);
}

static void next_request(struct model *model, struct bytes *request, struct bytes *answer)
{
	unsigned int slot = model_random(model, MODEL_SLOTS);
	unsigned int other = (slot + 1 + model_random(model, MODEL_SLOTS - 1)) % MODEL_SLOTS;
	struct slot *held = &model->slots[slot];
	char value[MODEL_VALUE_MAX];
	int length;

	switch (model_random(model, 16)) {
	case 0: case 1: case 2:
		model_renew(model, slot);
		store("set", model, slot, request);
		bytes_printf(answer, "STORED\r\n");
		break;
	case 3:
		bytes_printf(request, "delete %s:s:%u\r\n", model->prefix, slot);
		bytes_printf(answer, held->present ? "DELETED\r\n" : "NOT_FOUND\r\n");
		held->present = false;
		break;
	case 4: case 5: case 6:
		if (held->counter_present) {
			bytes_printf(request, "incr %s:c:%u 3\r\n", model->prefix, slot);
			held->counter += 3;
			bytes_printf(answer, "%llu\r\n", (unsigned long long)held->counter);
			break;
		}
		/* Below 2^63: a stock 1.6.18 fails above it now and then, by what lies behind the item. */
		held->counter = slot;
		held->counter_present = true;
		length = snprintf(value, sizeof(value), "%llu", (unsigned long long)held->counter);
		bytes_printf(request, "set %s:c:%u 0 0 %d\r\n%s\r\n", model->prefix, slot, length,
			     value);
		bytes_printf(answer, "STORED\r\n");
		break;
	case 7:
		bytes_printf(request, "touch %s:s:%u 0\r\n", model->prefix, slot);
		bytes_printf(answer, held->present ? "TOUCHED\r\n" : "NOT_FOUND\r\n");
		break;
	case 8:
		/* add does nothing to a key that is there. */
		if (!held->present) {
			model_renew(model, slot);
			store("add", model, slot, request);
			bytes_printf(answer, "STORED\r\n");
		} else {
			store("add", model, slot, request);
			bytes_printf(answer, "NOT_STORED\r\n");
		}
		break;
	case 9: case 10:
		bytes_printf(request, "mg %s:s:%u v\r\n", model->prefix, slot);
		if (held->present) {
			model_value(model, slot, value);
			bytes_printf(answer, "VA %u\r\n", held->length);
			bytes_add(answer, value, held->length);
			bytes_add(answer, "\r\n", 2);
		} else {
			bytes_printf(answer, "EN\r\n");
		}
		break;
	case 11:
		bytes_printf(request, "get %s:s:%u %s:s:%u\r\n", model->prefix, slot,
			     model->prefix, other);
		expect_value(answer, model, slot);
		expect_value(answer, model, other);
		bytes_printf(answer, "END\r\n");
		break;
	default:
		bytes_printf(request, "get %s:s:%u\r\n", model->prefix, slot);
		expect_value(answer, model, slot);
		bytes_printf(answer, "END\r\n");
		break;
	}
}

const struct protocol memcached_protocol = {
	.name = "memcached",
	.port = 11211,
	.request = next_request,
};
