// SPDX-License-Identifier: GPL-3.0-or-later
#include "histogram.h"

static unsigned int bucket_of(uint64_t value)
{
	unsigned int shift;

	if (value >> HISTOGRAM_SUB_BITS == 0)
		return value;
	shift = 63 - __builtin_clzll(value) - HISTOGRAM_SUB_BITS;
	return ((shift + 1) << HISTOGRAM_SUB_BITS) + (value >> shift) - (1u << HISTOGRAM_SUB_BITS);
}

/* The largest value that falls into the bucket: a quantile is never reported too small. */
static uint64_t bucket_end(unsigned int bucket)
{
	unsigned int shift = bucket >> HISTOGRAM_SUB_BITS;
	uint64_t part = bucket & ((1u << HISTOGRAM_SUB_BITS) - 1);

	if (shift == 0)
		return part;
	return ((part + (1u << HISTOGRAM_SUB_BITS) + 1) << (shift - 1)) - 1;
}

void histogram_add(struct histogram *histogram, uint64_t value)
{
	histogram->count++;
	histogram->sum += value;
	if (value > histogram->max)
		histogram->max = value;
	histogram->buckets[bucket_of(value)]++;
}

uint64_t histogram_quantile(const struct histogram *histogram, double share)
{
	uint64_t rank = share * histogram->count;
	uint64_t seen = 0;
	unsigned int i;

	for (i = 0; i < HISTOGRAM_BUCKETS; i++) {
		seen += histogram->buckets[i];
		if (seen > rank)
			return bucket_end(i) < histogram->max ? bucket_end(i) : histogram->max;
	}
	return histogram->max;
}
