/* SPDX-License-Identifier: GPL-3.0-or-later */
/*
 * Latencies in nanoseconds: each power of two is divided into 256 equal parts, so that a quantile is
 * right to 0.4 %. The largest value is kept exactly. After the idea of HdrHistogram.
 */
#ifndef LOAD_HISTOGRAM_H
#define LOAD_HISTOGRAM_H

#include <stdint.h>

#define HISTOGRAM_SUB_BITS 8
#define HISTOGRAM_BUCKETS ((64 - HISTOGRAM_SUB_BITS + 1) << HISTOGRAM_SUB_BITS)

struct histogram {
	uint64_t count;
	uint64_t max;
	double sum;
	uint64_t buckets[HISTOGRAM_BUCKETS];
};

void histogram_add(struct histogram *histogram, uint64_t value);

/* The value below which `share` (0..1) of all values lie; 0 when there are none. */
uint64_t histogram_quantile(const struct histogram *histogram, double share);

#endif
