// SPDX-License-Identifier: GPL-2.0-only
/*
 * Threads that run: a timer on each processor interrupts whatever runs there, and judges it if a
 * visit asks for it.
 *
 * A thread is taken only if it was interrupted in its program. Inside the kernel it may be between
 * two stores to its own saved registers (signal delivery sets ip, then sp), and where it was would
 * not be seen.
 *
 * The samplers take no lock. What they reach stays: a visit is taken off their list first, then
 * every processor is made to answer an interrupt, which none does within another one.
 */
#include <linux/cpumask.h>
#include <linux/hrtimer.h>
#include <linux/moduleparam.h>
#include <linux/mutex.h>
#include <linux/percpu.h>
#include <linux/rculist.h>
#include <linux/sched/task_stack.h>
#include <linux/smp.h>
#include <asm/irq_regs.h>
#include <asm/segment.h>

#include "compat.h"
#include "wfpatch.h"

static unsigned int sample_microseconds = 500;
module_param(sample_microseconds, uint, 0444);
MODULE_PARM_DESC(sample_microseconds, "how often a visit looks at running threads (100 to 10000)");

static DEFINE_PER_CPU(struct hrtimer, wf_timers);
static LIST_HEAD(wf_published);
static DEFINE_MUTEX(wf_published_lock);

static ktime_t wf_period(void)
{
	return ns_to_ktime((u64)sample_microseconds * NSEC_PER_USEC);
}

static void wf_sample(struct wf_visit *visit)
{
	struct wf_entry *entry = wf_visit_entry(visit, current);
	struct wf_glance glance = {
		.task = current,
		.registers = task_pt_regs(current),
		.running = true,
	};
	unsigned int selector;

	if (!entry || READ_ONCE(entry->state) != WFPATCH_STATE_WAITING)
		return;
	savesegment(gs, selector);
	glance.gs_base = selector ? ~0ULL : wf_read_msr(MSR_KERNEL_GS_BASE);
	glance.fs_base = wf_read_msr(MSR_FS_BASE);
	glance.switches = current->nvcsw + current->nivcsw;
	wf_count(WF_COUNT_SAMPLES);
	visit->judge(visit, entry, &glance);
}

static enum hrtimer_restart wf_sampler_tick(struct hrtimer *timer)
{
	struct pt_regs *interrupted = get_irq_regs();
	const struct mm_struct *mm = current->mm;
	struct wf_visit *visit;

	if (list_empty(&wf_published))
		return HRTIMER_NORESTART;
	if (interrupted && user_mode(interrupted) && mm) {
		rcu_read_lock();
		list_for_each_entry_rcu(visit, &wf_published, published)
			if (visit->mm == mm)
				wf_sample(visit);
		rcu_read_unlock();
	}
	hrtimer_forward_now(timer, wf_period());
	return HRTIMER_RESTART;
}

/* On the processor itself, so never while its timer's function runs. */
static void wf_start_timer(void *unused)
{
	struct hrtimer *timer = this_cpu_ptr(&wf_timers);

	if (!hrtimer_active(timer))
		hrtimer_start(timer, wf_period(),
			      HRTIMER_MODE_REL_PINNED_HARD);
}

static void wf_answer(void *unused)
{
}

/**
 * wf_sampler_publish - let the samplers work for a visit
 * @visit: complete but for entries that are added later; may be published already, which starts the
 *	timers of processors that have come since
 */
void wf_sampler_publish(struct wf_visit *visit)
{
	mutex_lock(&wf_published_lock);
	if (!visit->sampled) {
		list_add_rcu(&visit->published, &wf_published);
		visit->sampled = true;
	}
	on_each_cpu(wf_start_timer, NULL, 1);
	mutex_unlock(&wf_published_lock);
}

/**
 * wf_sampler_withdraw - no sampler uses the visit any more
 * @visit: the visit
 */
void wf_sampler_withdraw(struct wf_visit *visit)
{
	if (!visit->sampled)
		return;
	mutex_lock(&wf_published_lock);
	list_del_rcu(&visit->published);
	visit->sampled = false;
	mutex_unlock(&wf_published_lock);
	on_each_cpu(wf_answer, NULL, 1);
}

void wf_sampler_init(void)
{
	int cpu;

	sample_microseconds = clamp(sample_microseconds, 100U, 10000U);
	for_each_possible_cpu(cpu)
		wf_hrtimer_setup(per_cpu_ptr(&wf_timers, cpu), wf_sampler_tick,
				 HRTIMER_MODE_REL_PINNED_HARD);
}

void wf_sampler_exit(void)
{
	int cpu;

	for_each_possible_cpu(cpu)
		hrtimer_cancel(per_cpu_ptr(&wf_timers, cpu));
}
