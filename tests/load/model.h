/* SPDX-License-Identifier: GPL-3.0-or-later */
/*
 * What a server must hold for one connection, and requests whose answers follow from it byte by byte.
 *
 * No two connections share a key, and a server answers one connection in order: so the model can
 * move on when a request is made, and the expected answers form one known stream of bytes.
 */
#ifndef LOAD_MODEL_H
#define LOAD_MODEL_H

#include <stdbool.h>
#include <stdint.h>

#include "bytes.h"

#define MODEL_SLOTS 64
#define MODEL_VALUE_MAX 900

struct slot {
	bool present;
	uint32_t version;
	uint32_t length;
	bool counter_present;
	uint64_t counter;
	uint64_t tally;
};

struct model {
	uint64_t random;
	/* Part of every key; a new one makes all that was stored before of no account. */
	char prefix[64];
	struct slot slots[MODEL_SLOTS];
};

struct protocol {
	const char *name;
	int port;
	/* Appends one request and the answer that the server must give to it. */
	void (*request)(struct model *model, struct bytes *request, struct bytes *answer);
};

extern const struct protocol redis_protocol;
extern const struct protocol memcached_protocol;

/* A model of a server that knows no key with this prefix. */
void model_reset(struct model *model, const char *prefix, uint64_t seed);

uint64_t model_random(struct model *model, uint64_t below);

/* The value that the slot holds: a function of slot, version and length. */
void model_value(const struct model *model, unsigned int slot, char value[MODEL_VALUE_MAX]);

/* Gives the slot a new value. */
void model_renew(struct model *model, unsigned int slot);

#endif
