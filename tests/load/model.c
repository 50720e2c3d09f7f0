// SPDX-License-Identifier: GPL-3.0-or-later
#include "model.h"

#include <stdio.h>
#include <string.h>

/* xorshift64*, Vigna 2016. */
static uint64_t step(uint64_t *state)
{
	*state ^= *state >> 12;
	*state ^= *state << 25;
	*state ^= *state >> 27;
	return *state * 0x2545F4914F6CDD1DULL;
}

void model_reset(struct model *model, const char *prefix, uint64_t seed)
{
	memset(model, 0, sizeof(*model));
	model->random = seed | 1;
	snprintf(model->prefix, sizeof(model->prefix), "%s", prefix);
}

uint64_t model_random(struct model *model, uint64_t below)
{
	return (step(&model->random) >> 11) % below;
}

void model_value(const struct model *model, unsigned int slot, char value[MODEL_VALUE_MAX])
{
	const struct slot *held = &model->slots[slot];
	uint64_t state = ((uint64_t)slot << 32 | held->version) * 0x9E3779B97F4A7C15ULL | 1;
	uint64_t word = 0;
	uint32_t i;

	for (i = 0; i < held->length; i++) {
		if (i % 8 == 0)
			word = step(&state);
		value[i] = 'a' + (word >> i % 8 * 8 & 0xff) % 26;
	}
}

void model_renew(struct model *model, unsigned int slot)
{
	model->slots[slot].present = true;
	model->slots[slot].version++;
	/* Mostly short values, some that need several reads. */
	model->slots[slot].length = 1 + model_random(model, model_random(model, 8) ? 60 : MODEL_VALUE_MAX - 1);
}
