// SPDX-License-Identifier: GPL-2.0-only
/*
 * What the service has done and what it holds: read-only files below
 * /sys/class/misc/wfpatch/counters/. After the last session has ended, those marked "now" are 0:
 * the tests hold us to that.
 */
#include <linux/atomic.h>
#include <linux/device.h>
#include <linux/sysfs.h>

#include "wfpatch.h"

atomic64_t wf_counters[WF_COUNTERS];

struct wf_counter_attribute {
	struct device_attribute attribute;
	enum wf_counter counter;
};

static ssize_t wf_counter_show(struct device *device, struct device_attribute *attribute, char *to)
{
	const struct wf_counter_attribute *of =
		container_of(attribute, struct wf_counter_attribute, attribute);

	return sysfs_emit(to, "%lld\n", atomic64_read(&wf_counters[of->counter]));
}

#define WF_COUNTER(_name, _counter)						\
	static struct wf_counter_attribute wf_counter_##_name = {		\
		.attribute = __ATTR(_name, 0444, wf_counter_show, NULL),	\
		.counter = (_counter),						\
	}

WF_COUNTER(sessions_now, WF_COUNT_SESSIONS);
WF_COUNTER(breakpoints_now, WF_COUNT_PLANTED);
WF_COUNTER(breakpoints_met, WF_COUNT_TRAPS);
WF_COUNTER(breakpoints_met_late, WF_COUNT_STRAY);
WF_COUNTER(pokes, WF_COUNT_POKES);
WF_COUNTER(maps, WF_COUNT_MAPS);
WF_COUNTER(unmaps, WF_COUNT_UNMAPS);
WF_COUNTER(visits, WF_COUNT_VISITS);
WF_COUNTER(sleepers_examined, WF_COUNT_SLEEPERS);
WF_COUNTER(runners_examined, WF_COUNT_SAMPLES);
WF_COUNTER(migrations, WF_COUNT_MIGRATIONS);
WF_COUNTER(tasks_now, WF_COUNT_TASKS);
WF_COUNTER(pages_now, WF_COUNT_PAGES);

static struct attribute *wf_counter_attributes[] = {
	&wf_counter_sessions_now.attribute.attr,
	&wf_counter_breakpoints_now.attribute.attr,
	&wf_counter_breakpoints_met.attribute.attr,
	&wf_counter_breakpoints_met_late.attribute.attr,
	&wf_counter_pokes.attribute.attr,
	&wf_counter_maps.attribute.attr,
	&wf_counter_unmaps.attribute.attr,
	&wf_counter_visits.attribute.attr,
	&wf_counter_sleepers_examined.attribute.attr,
	&wf_counter_runners_examined.attribute.attr,
	&wf_counter_migrations.attribute.attr,
	&wf_counter_tasks_now.attribute.attr,
	&wf_counter_pages_now.attribute.attr,
	NULL
};

static const struct attribute_group wf_counter_group = {
	.name = "counters",
	.attrs = wf_counter_attributes,
};

const struct attribute_group *wf_attribute_groups[] = { &wf_counter_group, NULL };
