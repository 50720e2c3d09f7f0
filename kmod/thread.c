// SPDX-License-Identifier: GPL-2.0-only
/*
 * One thread: its registers and a copy of its stack, as they are at one moment; moved, if it is as
 * it was.
 */
#include <linux/jiffies.h>
#include <linux/mm.h>
#include <linux/pid.h>
#include <linux/sched/task.h>
#include <linux/uaccess.h>
#include <asm/segment.h>

#include "compat.h"
#include "wfpatch.h"

struct wf_thread_job {
	struct wf_job job;
	struct wfpatch_thread *arguments;
	struct task_struct *task;
	u8 *stack;	/* the copy; with EXPECT: what is expected, with WORDS by words */
	u8 *again;	/* with EXPECT: room for what is there */
	int result;
};

static void wf_describe_segments(struct wfpatch_registers *to, const struct wf_glance *glance)
{
	const struct thread_struct *thread = &glance->task->thread;
	unsigned int selector;

	to->ds = thread->ds;
	to->es = thread->es;
	to->fs = thread->fsindex;
	to->gs = thread->gsindex;
	if (!glance->running)
		return;
	savesegment(ds, selector);
	to->ds = selector;
	savesegment(es, selector);
	to->es = selector;
	savesegment(fs, selector);
	to->fs = selector;
	savesegment(gs, selector);
	to->gs = selector;
}

static void wf_describe_registers(struct wfpatch_registers *to, const struct wf_glance *glance)
{
	const struct pt_regs *from = glance->registers;

	*to = (struct wfpatch_registers) {
		.r15 = from->r15, .r14 = from->r14, .r13 = from->r13, .r12 = from->r12,
		.bp = from->bp, .bx = from->bx, .r11 = from->r11, .r10 = from->r10,
		.r9 = from->r9, .r8 = from->r8, .ax = from->ax, .cx = from->cx,
		.dx = from->dx, .si = from->si, .di = from->di, .orig_ax = from->orig_ax,
		.ip = from->ip, .cs = from->cs, .flags = from->flags, .sp = from->sp,
		.ss = from->ss, .fs_base = glance->fs_base, .gs_base = glance->gs_base,
	};
	wf_describe_segments(to, glance);
}

static bool wf_words_are_as_expected(const struct wf_thread_job *job,
				     const struct wf_glance *glance)
{
	const struct wfpatch_thread *expected = job->arguments;
	const struct wfpatch_word *words = (const struct wfpatch_word *)job->stack;
	size_t i, n = expected->stack_length / sizeof(*words);
	u64 found;

	if (expected->flags & WFPATCH_THREAD_FRAME &&
	    glance->registers->bp != expected->registers.bp)
		return false;
	for (i = 0; i < n; i++)
		if (wf_read_stack(words[i].address, &found, sizeof(found)) != sizeof(found) ||
		    found != words[i].value)
			return false;
	return n;
}

static bool wf_is_as_expected(const struct wf_thread_job *job, const struct wf_glance *glance)
{
	const struct wfpatch_thread *expected = job->arguments;
	const struct pt_regs *registers = glance->registers;
	size_t size = expected->stack_length;

	if (glance->gs_base != expected->registers.gs_base ||
	    registers->ip != expected->registers.ip || registers->sp != expected->registers.sp)
		return false;
	if (!glance->running && expected->seen & WFPATCH_SEEN_ASLEEP &&
	    glance->switches == expected->switches)
		return true;
	if (expected->flags & WFPATCH_THREAD_WORDS)
		return wf_words_are_as_expected(job, glance);
	return size && wf_read_stack(round_down(registers->sp, 8), job->again, size) == size &&
	       !memcmp(job->again, job->stack, size);
}

static int wf_thread_expect(struct wf_thread_job *job, struct wf_glance *glance)
{
	if (!wf_is_as_expected(job, glance))
		return -ESTALE;
	job->arguments->switches = glance->switches;
	job->arguments->seen = glance->running ? 0 : WFPATCH_SEEN_ASLEEP;
	if (!(job->arguments->flags & WFPATCH_THREAD_MOVE))
		return 0;
	if (wf_in_clone(glance))
		return -EAGAIN;
	wf_set_gs_base(glance, (u64)job->arguments->new_row * WFPATCH_ROW_SIZE);
	return 0;
}

static int wf_thread_capture(struct wf_thread_job *job, const struct wf_glance *glance)
{
	struct wfpatch_thread *to = job->arguments;
	u64 low = round_down(glance->registers->sp, 8);

	wf_describe_registers(&to->registers, glance);
	to->switches = glance->switches;
	to->seen = glance->running ? 0 : WFPATCH_SEEN_ASLEEP;
	if (glance->in_kernel)
		to->seen |= WFPATCH_SEEN_SYSCALL;
	if (wf_on_signal_stack(glance))
		to->seen |= WFPATCH_SEEN_ALTSTACK;
	if (wf_in_clone(glance))
		to->seen |= WFPATCH_SEEN_CLONE;
	to->stack_length = 0;
	if (job->stack && low < to->stack_high)
		to->stack_length = wf_read_stack(low, job->stack,
						 min_t(u64, to->stack_high - low, to->stack_room));
	return 0;
}

static bool wf_judge_thread(struct wf_visit *visit, struct wf_entry *entry,
			    struct wf_glance *glance)
{
	struct wf_thread_job *job = visit->context;

	if (wf_foreign_mode(glance))
		job->result = -EOPNOTSUPP;
	else if (job->arguments->flags & WFPATCH_THREAD_EXPECT)
		job->result = wf_thread_expect(job, glance);
	else
		job->result = wf_thread_capture(job, glance);
	if (job->result == -ESTALE && job->arguments->flags & WFPATCH_THREAD_WORDS)
		return false;
	/* The hand reads the job once it sees this. */
	smp_store_release(&entry->state, WFPATCH_STATE_CLEAR);
	return true;
}

static int wf_run_thread(struct wf_session *session, struct wf_job *of)
{
	struct wf_thread_job *job = container_of(of, struct wf_thread_job, job);
	unsigned long deadline = jiffies + msecs_to_jiffies(job->arguments->deadline_ms);
	struct wf_visit visit;
	int error = wf_visit_setup(&visit, session->mm, job->task, wf_judge_thread, job);

	if (error)
		return error;
	job->result = -ENOENT;
	error = wf_visit_threads(&visit, deadline, NULL, false);
	wf_visit_release(&visit);
	if (error == -ETIME)
		return job->result == -ESTALE ? -ESTALE : -EAGAIN;
	if (error == -ESRCH)
		return -ENOENT;
	return error ? error : job->result;
}

static bool wf_valid_thread(const struct wfpatch_thread *arguments)
{
	u32 flags = arguments->flags;

	if (flags & ~(WFPATCH_THREAD_MOVE | WFPATCH_THREAD_EXPECT | WFPATCH_THREAD_WORDS |
		      WFPATCH_THREAD_FRAME))
		return false;
	if (flags & WFPATCH_THREAD_WORDS && !(flags & WFPATCH_THREAD_EXPECT))
		return false;
	if (flags & WFPATCH_THREAD_FRAME && !(flags & WFPATCH_THREAD_WORDS))
		return false;
	if (flags & WFPATCH_THREAD_WORDS &&
	    (arguments->stack_length % sizeof(struct wfpatch_word) ||
	     arguments->stack_length > WFPATCH_MAX_WORDS * sizeof(struct wfpatch_word)))
		return false;
	/* Nobody is moved of whom nothing is known. */
	if (flags & WFPATCH_THREAD_MOVE && !(flags & WFPATCH_THREAD_EXPECT))
		return false;
	return arguments->tid > 0 && arguments->deadline_ms &&
	       arguments->deadline_ms <= WFPATCH_MAX_DEADLINE &&
	       arguments->new_row < WFPATCH_ROWS &&
	       arguments->stack_room <= WFPATCH_MAX_CAPTURE &&
	       arguments->stack_length <= arguments->stack_room;
}

static int wf_thread_buffers(struct wf_thread_job *job)
{
	const struct wfpatch_thread *arguments = job->arguments;
	const void __user *from = (const void __user *)arguments->stack;

	if (!arguments->stack || !arguments->stack_room)
		return arguments->stack_length ? -EINVAL : 0;
	job->stack = kvmalloc(arguments->stack_room, GFP_KERNEL);
	if (!job->stack)
		return -ENOMEM;
	if (!(arguments->flags & WFPATCH_THREAD_EXPECT))
		return 0;
	job->again = kvmalloc(arguments->stack_room, GFP_KERNEL);
	if (!job->again)
		return -ENOMEM;
	return copy_from_user(job->stack, from, arguments->stack_length) ? -EFAULT : 0;
}

static struct task_struct *wf_find_task(s32 number)
{
	struct pid *pid = find_get_pid(number);
	struct task_struct *task = get_pid_task(pid, PIDTYPE_PID);

	put_pid(pid);
	return task;
}

/**
 * wf_thread - look at one thread, or move it
 * @session: of its address space
 * @arguments: see the uapi; filled
 *
 * Return: 0 or a negative errno.
 */
int wf_thread(struct wf_session *session, struct wfpatch_thread *arguments)
{
	struct wf_thread_job job = { .job.run = wf_run_thread, .arguments = arguments };
	int error;

	if (!wf_valid_thread(arguments))
		return -EINVAL;
	error = wf_thread_buffers(&job);
	if (error)
		goto free;
	error = -ENOENT;
	job.task = wf_find_task(arguments->tid);
	if (!job.task)
		goto free;
	error = wf_do(session, &job.job);
	put_task_struct(job.task);
	if (!error && job.stack && !job.again &&
	    copy_to_user((void __user *)arguments->stack, job.stack, arguments->stack_length))
		error = -EFAULT;
free:
	kvfree(job.stack);
	kvfree(job.again);
	return error;
}
