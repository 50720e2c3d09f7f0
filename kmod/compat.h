/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What differs between the kernels this module is built for; nothing else asks for their versions.
 */
#ifndef WFPATCH_COMPAT_H
#define WFPATCH_COMPAT_H

#include <linux/eventfd.h>
#include <linux/hrtimer.h>
#include <linux/mm.h>
#include <linux/sched.h>
#include <linux/user_namespace.h>
#include <linux/version.h>
#include <asm/msr.h>

#if LINUX_VERSION_CODE < KERNEL_VERSION(5, 10, 0)
#error "wfpatch needs Linux 5.10 or newer"
#endif
#ifndef CONFIG_X86_64
#error "wfpatch is for x86-64 only"
#endif

/* 5.14 renamed task_struct.state. */
static inline unsigned int wf_task_state(const struct task_struct *task)
{
#if LINUX_VERSION_CODE >= KERNEL_VERSION(5, 14, 0)
	return READ_ONCE(task->__state);
#else
	return READ_ONCE(task->state);
#endif
}

/*
 * 6.12 leaves a fair task on its queue when it falls asleep, until its lag is paid off. It is not
 * run in that time: whoever picks it takes it off instead (pick_next_entity()), and a wake-up that
 * makes it runnable again needs its pi_lock as any other.
 */
static inline bool wf_task_queued(const struct task_struct *task)
{
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 12, 0)
	return READ_ONCE(task->on_rq) && !READ_ONCE(task->se.sched_delayed);
#else
	return READ_ONCE(task->on_rq);
#endif
}

/* Threads that share a program's memory and never run its code: 6.4 brought more of them. */
#ifdef PF_USER_WORKER
#define WF_PF_WORKERS	(PF_KTHREAD | PF_IO_WORKER | PF_USER_WORKER)
#else
#define WF_PF_WORKERS	(PF_KTHREAD | PF_IO_WORKER)
#endif

/*
 * The user namespace that a program was executed in, whose CAP_SYS_PTRACE ptrace asks for; newer
 * kernels keep it beside the address space (see Kbuild). Under RCU. Return: a reference.
 */
#ifdef WF_HAS_EXEC_STATE
#include <linux/sched/exec_state.h>
static inline struct user_namespace *wf_user_ns(const struct task_struct *task,
						const struct mm_struct *mm)
{
	return get_user_ns(rcu_dereference(task->exec_state)->user_ns);
}
#else
static inline struct user_namespace *wf_user_ns(const struct task_struct *task,
						const struct mm_struct *mm)
{
	return get_user_ns(mm->user_ns);
}
#endif

/* 6.8 dropped the count. */
static inline void wf_eventfd_signal(struct eventfd_ctx *context)
{
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 8, 0)
	eventfd_signal(context);
#else
	eventfd_signal(context, 1);
#endif
}

/* 6.13 replaced hrtimer_init(). */
static inline void wf_hrtimer_setup(struct hrtimer *timer,
				    enum hrtimer_restart (*function)(struct hrtimer *),
				    enum hrtimer_mode mode)
{
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 13, 0)
	hrtimer_setup(timer, function, CLOCK_MONOTONIC, mode);
#else
	hrtimer_init(timer, CLOCK_MONOTONIC, mode);
	timer->function = function;
#endif
}

/* 6.15 renamed rdmsrl() and wrmsrl(). */
static inline u64 wf_read_msr(u32 msr)
{
	u64 value;

#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 15, 0)
	rdmsrq(msr, value);
#else
	rdmsrl(msr, value);
#endif
	return value;
}

static inline void wf_write_msr(u32 msr, u64 value)
{
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 15, 0)
	wrmsrq(msr, value);
#else
	wrmsrl(msr, value);
#endif
}

/* 6.5 dropped the areas. */
static inline long wf_get_page(struct mm_struct *mm, unsigned long address, unsigned int flags,
			       struct page **page)
{
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 5, 0)
	return get_user_pages_remote(mm, address, 1, flags, page, NULL);
#else
	return get_user_pages_remote(mm, address, 1, flags, page, NULL, NULL);
#endif
}

#endif /* WFPATCH_COMPAT_H */
