// SPDX-License-Identifier: GPL-2.0-only
/*
 * Threads that are asleep: they are judged where they sleep, and none of them wakes for it.
 */
#include <linux/sched.h>
#include <linux/sched/task_stack.h>

#include "compat.h"
#include "wfpatch.h"

/*
 * Whether a task is asleep, and cannot be woken as long as its pi_lock is held: try_to_wake_up()
 * takes that lock for any task but the caller itself. A wake-up that was handed to another
 * processor (ttwu_queue_wakelist()) is finished there without the lock: such a task is TASK_WAKING.
 * One that is on its way to sleep still has on_cpu set until its registers are saved
 * (finish_task()).
 */
static bool wf_is_asleep(const struct task_struct *task)
{
	unsigned int state = wf_task_state(task);

	lockdep_assert_held(&task->pi_lock);
	if (!(state & (TASK_NORMAL | __TASK_STOPPED | __TASK_TRACED)))
		return false;
	if (state & (TASK_WAKING | TASK_DEAD | TASK_NEW))
		return false;
	if (wf_task_queued(task))
		return false;
	/* As try_to_wake_up() does: what the task wrote before it left its processor is seen. */
	return !smp_load_acquire(&task->on_cpu);
}

/**
 * wf_sleeps_on - whether a thread has not run since it was looked at asleep
 * @entry: what a visit knows of it
 *
 * What it was judged by then is as it was, but for a page that was not there. Who is woken is
 * looked at when he sleeps again, or while he runs.
 */
bool wf_sleeps_on(const struct wf_entry *entry)
{
	const struct task_struct *task = entry->task;

	return entry->was_asleep && READ_ONCE(entry->reason) != WFPATCH_REASON_FAULT &&
	       entry->asleep_since == READ_ONCE(task->nvcsw) + READ_ONCE(task->nivcsw);
}

/**
 * wf_visit_sleeper - have a visit judge a thread, if it is asleep
 * @visit: the visit
 * @entry: the thread
 *
 * Return: whether the visit is done with it.
 */
bool wf_visit_sleeper(struct wf_visit *visit, struct wf_entry *entry)
{
	struct task_struct *task = entry->task;
	unsigned long flags;
	bool done = false;

	raw_spin_lock_irqsave(&task->pi_lock, flags);
	/* Its registers are gone once it exits, and another program's once it has executed one. */
	if (wf_is_asleep(task) && task->mm == visit->mm && !(task->flags & PF_EXITING)) {
		struct pt_regs *registers = task_pt_regs(task);
		struct wf_glance glance = {
			.task = task,
			.registers = registers,
			.in_kernel = (long)registers->orig_ax >= 0,
			.fs_base = task->thread.fsbase,
			.gs_base = task->thread.gsindex ? ~0ULL : task->thread.gsbase,
			.switches = task->nvcsw + task->nivcsw,
		};

		wf_count(WF_COUNT_SLEEPERS);
		done = visit->judge(visit, entry, &glance);
		entry->was_asleep = true;
		entry->asleep_since = glance.switches;
	}
	raw_spin_unlock_irqrestore(&task->pi_lock, flags);
	return done;
}
