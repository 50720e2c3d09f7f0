// SPDX-License-Identifier: GPL-2.0-only
/*
 * Judging a thread at one moment: where is it, and what lies on its stack?
 *
 * Everything here runs in atomic context, with interrupts off: under the pi_lock of a sleeper, or
 * in the timer interrupt of the processor that the thread runs on. So user memory is read without
 * faulting in what is not there: who called brings it in and tries again.
 */
#include <linux/kvm.h>
#include <linux/sched/signal.h>
#include <linux/uaccess.h>
#include <linux/uprobes.h>
#include <linux/unistd.h>

#include "compat.h"
#include "wfpatch.h"

/**
 * wf_in_clone - whether the thread is making another one
 * @glance: the thread
 *
 * Its child gets a copy of its GS base as it was at some moment, so it is not moved meanwhile.
 */
bool wf_in_clone(const struct wf_glance *glance)
{
	if (!glance->in_kernel)
		return false;
	switch ((int)glance->registers->orig_ax) {
	case __NR_clone:
	case __NR_clone3:
	case __NR_fork:
	case __NR_vfork:
		return true;
	default:
		return false;
	}
}

static bool wf_in_virtual_processor(const struct wf_glance *glance)
{
	/* KVM keeps the guest's value where ours would go. */
	return glance->in_kernel && glance->registers->orig_ax == __NR_ioctl &&
	       (u32)glance->registers->si == KVM_RUN;
}

static bool wf_in_uprobe(const struct task_struct *task)
{
#ifdef CONFIG_UPROBES
	/* It executes an instruction's copy elsewhere: where it is cannot be told by ip. */
	return task->utask && task->utask->active_uprobe;
#else
	return false;
#endif
}

/**
 * wf_foreign_mode - whether the registers are none of a 64-bit program's own code
 * @glance: the thread
 */
bool wf_foreign_mode(const struct wf_glance *glance)
{
	return glance->registers->cs != __USER_CS || wf_in_virtual_processor(glance) ||
	       wf_in_uprobe(glance->task);
}

/**
 * wf_on_signal_stack - whether its stack pointer is on its alternate signal stack
 * @glance: the thread
 */
bool wf_on_signal_stack(const struct wf_glance *glance)
{
	const struct task_struct *task = glance->task;

	return task->sas_ss_size && glance->registers->sp > task->sas_ss_sp &&
	       glance->registers->sp - task->sas_ss_sp <= task->sas_ss_size;
}

/**
 * wf_set_gs_base - change the thread's GS base
 * @glance: the thread
 * @base: the new one
 *
 * While the kernel runs, the program's base is in MSR_KERNEL_GS_BASE (SWAPGS); task_struct has that
 * of a thread that does not run. A base is what a selector of 0 leaves alone.
 */
void wf_set_gs_base(struct wf_glance *glance, u64 base)
{
	if (glance->running)
		wf_write_msr(MSR_KERNEL_GS_BASE, base);
	glance->task->thread.gsbase = base;
	glance->task->thread.gsindex = 0;
	wf_count(WF_COUNT_MIGRATIONS);
}

/**
 * wf_read_stack - a copy of user memory, as far as it is there
 * @address: from where
 * @to: where to
 * @size: how much
 *
 * Return: how many bytes were copied.
 */
size_t wf_read_stack(u64 address, void *to, size_t size)
{
	size_t left = size;

	/* Before access_ok(), which in an interrupt warns of its absence (DEBUG_ATOMIC_SLEEP). */
	pagefault_disable();
	if (access_ok((const void __user *)address, size))
		left = __copy_from_user_inatomic(to, (const void __user *)address, size);
	pagefault_enable();
	return size - left;
}

/**
 * wf_find_range - the range that a word lies in
 * @ranges: ascending
 * @count: how many
 * @word: the word
 *
 * Return: the range, or NULL.
 */
const struct wfpatch_range *wf_find_range(const struct wfpatch_range *ranges, unsigned int count,
					  u64 word)
{
	unsigned int low = 0, high = count;

	/* Most words are no addresses at all. */
	if (!count || word < ranges[0].low || word > ranges[count - 1].high)
		return NULL;
	while (low < high) {
		unsigned int middle = low + (high - low) / 2;

		if (word < ranges[middle].low)
			high = middle;
		else if (word > ranges[middle].high)
			low = middle + 1;
		else
			return &ranges[middle];
	}
	return NULL;
}

static const struct wfpatch_stack *wf_find_stack(const struct wf_request *request, u64 fs_base)
{
	unsigned int low = 0, high = request->arguments.n_stacks;

	while (low < high) {
		unsigned int middle = low + (high - low) / 2;

		if (fs_base < request->stacks[middle].fs_base)
			high = middle;
		else if (fs_base > request->stacks[middle].fs_base)
			low = middle + 1;
		else
			return &request->stacks[middle];
	}
	return NULL;
}

static bool wf_counts(const struct wf_request *request, u64 word, u32 kinds)
{
	const struct wfpatch_range *range =
		wf_find_range(request->ranges, request->arguments.n_ranges, word);

	return range && range->kind & kinds;
}

static u32 wf_accuse(struct wf_entry *entry, u64 at, u64 word)
{
	entry->hit_at = at;
	entry->hit_word = word;
	return WFPATCH_REASON_RANGE;
}

/* Looks at the words from the stack pointer up to the end of the thread's own stack. */
static u32 wf_scan(const struct wf_request *request, struct wf_entry *entry, u64 low, u64 high,
		   u32 kinds)
{
	u64 words[64];

	if (high - low > request->arguments.scan_limit)
		return WFPATCH_REASON_LIMIT;
	while (low < high) {
		size_t size = min_t(u64, high - low, sizeof(words)), i;

		/* Within a page, so that the one that is not there can be named. */
		size = min_t(size_t, size, PAGE_SIZE - offset_in_page(low));

		if (wf_read_stack(low, words, size) != size) {
			entry->hit_at = low;
			return WFPATCH_REASON_FAULT;
		}
		for (i = 0; i < size / sizeof(words[0]); i++)
			if (wf_counts(request, words[i], kinds))
				return wf_accuse(entry, low + i * sizeof(words[0]), words[i]);
		low += size;
	}
	return WFPATCH_REASON_NONE;
}

static u32 wf_reason(const struct wf_request *request, struct wf_entry *entry,
		     const struct wf_glance *glance)
{
	const struct wfpatch_stack *stack;
	u32 kinds = WFPATCH_KIND_OLD | WFPATCH_KIND_PENDING | WFPATCH_KIND_SIGNAL;

	if (wf_foreign_mode(glance))
		return WFPATCH_REASON_MODE;
	if (entry->row >= WFPATCH_ROWS)
		return WFPATCH_REASON_GS;
	if (request->arguments.left_rows & BIT_ULL(entry->row))
		kinds = WFPATCH_KIND_PENDING;
	if (wf_on_signal_stack(glance))
		return WFPATCH_REASON_SIGNAL;
	stack = wf_find_stack(request, glance->fs_base);
	if (!stack || entry->sp < stack->low || entry->sp >= stack->high)
		return WFPATCH_REASON_STACK;
	if (wf_counts(request, entry->ip, kinds))
		return wf_accuse(entry, 0, entry->ip);
	return wf_scan(request, entry, round_down(entry->sp, 8), stack->high, kinds);
}

/**
 * wf_judge_visit - of an asynchronous visit: is the thread clear, and to be moved?
 * @visit: the visit
 * @entry: what it knows of the thread
 * @glance: the thread
 *
 * Return: whether the visit is done with it.
 */
bool wf_judge_visit(struct wf_visit *visit, struct wf_entry *entry, struct wf_glance *glance)
{
	const struct wf_request *request = visit->context;
	u64 row = glance->gs_base / WFPATCH_ROW_SIZE;

	entry->gs_base = glance->gs_base;
	entry->fs_base = glance->fs_base;
	entry->ip = glance->registers->ip;
	entry->sp = glance->registers->sp;
	entry->switches = glance->switches;
	entry->hit_at = 0;
	entry->hit_word = 0;
	entry->row = row < WFPATCH_ROWS && row * WFPATCH_ROW_SIZE == glance->gs_base ? row : ~0U;
	entry->flags = glance->running ? 0 : WFPATCH_LISTED_ASLEEP;
	entry->reason = wf_reason(request, entry, glance);
	if (entry->reason == WFPATCH_REASON_NONE &&
	    request->arguments.flags & WFPATCH_VISIT_MIGRATE &&
	    request->arguments.from_rows & BIT_ULL(entry->row)) {
		if (wf_in_clone(glance)) {
			entry->reason = WFPATCH_REASON_CLONE;
		} else {
			wf_set_gs_base(glance, (u64)request->arguments.target * WFPATCH_ROW_SIZE);
			entry->row = request->arguments.target;
			entry->flags |= WFPATCH_LISTED_MIGRATED;
		}
	}
	WRITE_ONCE(entry->seen, true);
	if (entry->reason != WFPATCH_REASON_NONE)
		return false;
	/* Pairs with the acquire of who reads the entry once it is no longer WAITING. */
	smp_store_release(&entry->state, WFPATCH_STATE_CLEAR);
	return true;
}
