// SPDX-License-Identifier: GPL-2.0-only
/*
 * Changing code that threads are running.
 *
 * One byte is stored. Of more, the first becomes a breakpoint, then the others change, then the
 * first does, and after each step every processor executes a serialising instruction (Intel SDM
 * volume 3, 9.1.3, cross-modifying code; as text_poke_bp_batch() does for the kernel's own code).
 * Who meets the breakpoint is sent on by trap.c. A thread can be between two instructions inside
 * the bytes only where there is such a boundary: then all threads are visited while the breakpoints
 * are there, and those found inside are moved.
 *
 * The address space's mmap_lock is held for reading all the time: nobody forks (a child would
 * inherit a breakpoint that nobody takes away), and the pages stay the program's.
 */
#include <linux/jiffies.h>
#include <linux/limits.h>
#include <linux/mm.h>
#include <linux/sched/mm.h>
#include <linux/sched/task.h>
#include <linux/slab.h>
#include <linux/smp.h>
#include <linux/sort.h>
#include <linux/uaccess.h>
#include <asm/sync_core.h>

#include "compat.h"
#include "wfpatch.h"

#define WF_BREAKPOINT	0xcc
/* Bytes of a stack that are scanned for addresses inside. */
#define WF_SCAN_LIMIT	0x100000UL

/* A poke, the pages it lies in, its breakpoint; @done says that memory is as it shall be. */
struct wf_site {
	struct wfpatch_poke *poke;
	struct page *pages[2];
	struct wf_plant *plant;
	bool done;
};

/* An area that may hold a stack; its end does not move while mmap_lock is held. */
struct wf_area {
	unsigned long end;
};

struct wf_arm_job {
	struct wf_job job;
	struct wfpatch_arm *arguments;
	struct wfpatch_poke *pokes;
	struct wfpatch_move *moves;
	struct wf_site *sites;
	struct wfpatch_range *insides;	/* of pokes that have boundaries there */
	unsigned int n_insides;
	struct wf_area *areas;
	unsigned int n_areas;
	struct task_struct *straggler;	/* a reference */
	u64 absent;			/* a page of a stack that was not there */
};

static void wf_synchronize_core(void *unused)
{
	sync_core();
}

/**
 * wf_synchronize_cores - after this, no processor executes what it fetched before
 */
void wf_synchronize_cores(void)
{
	on_each_cpu(wf_synchronize_core, NULL, 1);
}

static u8 *wf_site_byte(const struct wf_site *site, unsigned int index)
{
	unsigned long address = site->poke->address + index;
	bool second = (address ^ site->poke->address) & PAGE_MASK;

	return (u8 *)page_address(site->pages[second]) + offset_in_page(address);
}

static void wf_site_store(const struct wf_site *site, unsigned int index, u8 byte)
{
	WRITE_ONCE(*wf_site_byte(site, index), byte);
}

static bool wf_site_holds(const struct wf_site *site, const u8 *bytes)
{
	unsigned int i;

	for (i = 0; i < site->poke->length; i++)
		if (READ_ONCE(*wf_site_byte(site, i)) != bytes[i])
			return false;
	return true;
}

static int wf_pin(struct mm_struct *mm, unsigned long address, unsigned int flags,
		  struct page **page)
{
	const struct vm_area_struct *area = find_vma(mm, address);

	/* A shared page would be the file's own, and other programs'. */
	if (!area || area->vm_start > address || area->vm_flags & VM_SHARED ||
	    !(area->vm_flags & VM_EXEC))
		return -EFAULT;
	if (wf_get_page(mm, address, flags | FOLL_FORCE, page) != 1) {
		*page = NULL;
		return -EFAULT;
	}
	wf_count(WF_COUNT_PAGES);
	return 0;
}

static int wf_site_pin(struct wf_site *site, struct mm_struct *mm, unsigned int flags)
{
	unsigned long first = site->poke->address, last = first + site->poke->length - 1;
	int error = wf_pin(mm, first, flags, &site->pages[0]);

	if (!error && (first ^ last) & PAGE_MASK)
		error = wf_pin(mm, last & PAGE_MASK, flags, &site->pages[1]);
	return error;
}

static void wf_site_unpin(struct wf_site *site)
{
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(site->pages); i++) {
		if (site->pages[i]) {
			set_page_dirty_lock(site->pages[i]);
			put_page(site->pages[i]);
			site->pages[i] = NULL;
			wf_uncount(WF_COUNT_PAGES);
		}
	}
}

/*
 * Makes the pages copies of this program alone, and keeps none: before 5.19 a page that is held
 * would be copied once more by the next who wants to write to it, so that stores by way of the
 * first would be lost.
 */
static int wf_site_own(struct wf_site *site, struct mm_struct *mm)
{
	int error = wf_site_pin(site, mm, FOLL_WRITE);

	wf_site_unpin(site);
	return error;
}

static int wf_site_open(struct wf_site *site, struct mm_struct *mm)
{
	int error = wf_site_pin(site, mm, 0);
	unsigned int i;

	if (error)
		return error;
	for (i = 0; i < ARRAY_SIZE(site->pages); i++)
		if (site->pages[i] && !PageAnon(site->pages[i]))
			return -EFAULT;
	site->done = wf_site_holds(site, site->poke->after);
	return site->done || wf_site_holds(site, site->poke->before) ? 0 : -EILSEQ;
}

/* Visiting threads: nobody may be inside, nor return there */

static const struct wfpatch_move *wf_find_move(const struct wf_arm_job *arm, u64 from)
{
	unsigned int low = 0, high = arm->arguments->n_moves;

	while (low < high) {
		unsigned int middle = low + (high - low) / 2;

		if (from < arm->moves[middle].from)
			high = middle;
		else if (from > arm->moves[middle].from)
			low = middle + 1;
		else
			return &arm->moves[middle];
	}
	return NULL;
}

static u64 wf_area_end(const struct wf_arm_job *arm, u64 address)
{
	unsigned int low = 0, high = arm->n_areas;

	while (low < high) {
		unsigned int middle = low + (high - low) / 2;

		if (address < arm->areas[middle].end)
			high = middle;
		else
			low = middle + 1;
	}
	return low < arm->n_areas ? arm->areas[low].end : 0;
}

static bool wf_returns_inside(struct wf_arm_job *arm, struct wf_entry *entry,
			      const struct wf_glance *glance)
{
	u64 low = round_down(glance->registers->sp, 8), high = wf_area_end(arm, low);
	u64 words[64];

	/* A thread's descriptor ends its stack; what is mapped behind may be anything. */
	if (low < glance->fs_base && glance->fs_base < high)
		high = glance->fs_base & ~7ULL;
	if (high <= low || high - low > WF_SCAN_LIMIT)
		return true;
	while (low < high) {
		size_t size = min_t(u64, high - low, sizeof(words)), i;

		/* Within a page, so that the one that is not there can be named. */
		size = min_t(size_t, size, PAGE_SIZE - offset_in_page(low));

		if (wf_read_stack(low, words, size) != size) {
			/* Not brought in here: that would take the lock that is held. */
			WRITE_ONCE(arm->absent, low);
			return true;
		}
		for (i = 0; i < size / sizeof(words[0]); i++)
			if (wf_find_range(arm->insides, arm->n_insides, words[i])) {
				entry->hit_word = words[i];
				return true;
			}
		low += size;
	}
	return false;
}

static bool wf_judge_inside(struct wf_visit *visit, struct wf_entry *entry,
			    struct wf_glance *glance)
{
	struct wf_arm_job *arm = visit->context;
	struct pt_regs *registers = glance->registers;
	const struct wfpatch_move *move = NULL;

	entry->hit_word = 0;
	if (wf_find_range(arm->insides, arm->n_insides, registers->ip)) {
		entry->hit_word = registers->ip;
		move = wf_find_move(arm, registers->ip);
		if (!move)
			return false;
	}
	if (wf_returns_inside(arm, entry, glance))
		return false;
	if (move)
		registers->ip = move->to;
	/* Pairs with the acquire in visit.c. */
	smp_store_release(&entry->state, WFPATCH_STATE_CLEAR);
	return true;
}

static void wf_name_straggler(struct wf_arm_job *arm, const struct wf_visit *visit)
{
	const struct wf_entry *entry;

	list_for_each_entry(entry, &visit->entries, link) {
		if (entry->state != WFPATCH_STATE_CLEAR) {
			arm->arguments->straggler_word = entry->hit_word;
			arm->straggler = get_task_struct(entry->task);
			return;
		}
	}
}

static int wf_visit_insides(struct wf_session *session, struct wf_arm_job *arm)
{
	unsigned long deadline = jiffies + msecs_to_jiffies(arm->arguments->deadline_ms);
	struct wf_visit visit;
	int error = wf_visit_setup(&visit, session->mm, NULL, wf_judge_inside, arm);

	if (error)
		return error;
	error = wf_visit_threads(&visit, deadline, NULL, false);
	if (error == -ETIME) {
		wf_name_straggler(arm, &visit);
		error = -EAGAIN;
	}
	wf_visit_release(&visit);
	return error;
}

static int wf_list_areas(struct wf_session *session, struct wf_arm_job *arm)
{
	const struct vm_area_struct *area;
	unsigned int room = 0;

	if (!arm->n_insides)
		return 0;
	for (area = find_vma(session->mm, 0); area; area = find_vma(session->mm, area->vm_end))
		room++;
	arm->areas = kvmalloc_array(room, sizeof(*arm->areas), GFP_KERNEL);
	if (!arm->areas)
		return -ENOMEM;
	for (area = find_vma(session->mm, 0); area && arm->n_areas < room;
	     area = find_vma(session->mm, area->vm_end))
		arm->areas[arm->n_areas++].end = area->vm_end;
	return 0;
}

/* The steps */

static int wf_open_sites(struct wf_session *session, struct wf_arm_job *arm)
{
	unsigned int i;
	int error = 0;

	for (i = 0; i < arm->arguments->n_pokes; i++)
		arm->sites[i].poke->result = wf_site_own(&arm->sites[i], session->mm);
	/* All are looked at: the caller learns of each that cannot be. */
	for (i = 0; i < arm->arguments->n_pokes; i++) {
		struct wf_site *site = &arm->sites[i];

		if (!site->poke->result)
			site->poke->result = wf_site_open(site, session->mm);
		if (!error)
			error = site->poke->result;
	}
	return error;
}

static int wf_plant_sites(struct wf_session *session, struct wf_arm_job *arm)
{
	unsigned int i;

	for (i = 0; i < arm->arguments->n_pokes; i++) {
		struct wf_site *site = &arm->sites[i];

		if (site->done || site->poke->length == 1)
			continue;
		site->plant = wf_plant(session->mm, site->poke->address, site->poke->redirect);
		if (!site->plant)
			return -ENOMEM;
	}
	return 0;
}

static void wf_pull_up_sites(struct wf_arm_job *arm)
{
	unsigned int i;

	for (i = 0; i < arm->arguments->n_pokes; i++)
		if (arm->sites[i].plant)
			wf_pull_up(arm->sites[i].plant);
}

/* Stores a breakpoint, or the byte it replaced, at each site that gets one. */
static void wf_store_breakpoints(struct wf_arm_job *arm, bool undo)
{
	unsigned int i;

	for (i = 0; i < arm->arguments->n_pokes; i++) {
		const struct wf_site *site = &arm->sites[i];

		if (site->plant)
			wf_site_store(site, 0, undo ? site->poke->before[0] : WF_BREAKPOINT);
	}
	wf_synchronize_cores();
}

static void wf_store_tails(struct wf_arm_job *arm)
{
	unsigned int i, j;

	for (i = 0; i < arm->arguments->n_pokes; i++) {
		const struct wf_site *site = &arm->sites[i];

		if (!site->done)
			for (j = 1; j < site->poke->length; j++)
				wf_site_store(site, j, site->poke->after[j]);
	}
	wf_synchronize_cores();
}

static void wf_store_heads(struct wf_arm_job *arm)
{
	unsigned int i;

	for (i = 0; i < arm->arguments->n_pokes; i++)
		if (!arm->sites[i].done)
			wf_site_store(&arm->sites[i], 0, arm->sites[i].poke->after[0]);
	wf_synchronize_cores();
}

static void wf_store_again(void *context)
{
	const struct wf_arm_job *arm = context;
	unsigned int i;

	for (i = 0; i < arm->arguments->n_pokes; i++) {
		u8 *head = wf_site_byte(&arm->sites[i], 0), byte = READ_ONCE(*head);

		/* Stores what is there: nothing can be lost in between. */
		cmpxchg(head, byte, byte);
	}
	sync_core();
}

/*
 * Multi-threaded TCG may translate a page anew between a store and its own notice of it, and keep
 * the old byte; and the processor that stored may then take the page for one without code, so that
 * it notices none of its own stores for as long as its TLB holds the page. Every processor stores
 * once more what stays, after all have answered: one that does notice is enough. Else a child that
 * is forked afterwards could meet a breakpoint from which nobody sends it on.
 */
static void wf_settle_sites(struct wf_arm_job *arm)
{
	if (boot_cpu_has(X86_FEATURE_HYPERVISOR))
		on_each_cpu(wf_store_again, arm, 1);
}

static int wf_poke_sites(struct wf_session *session, struct wf_arm_job *arm)
{
	int error;

	wf_store_breakpoints(arm, false);
	if (arm->n_insides) {
		error = wf_visit_insides(session, arm);
		if (error) {
			/* Who was moved runs what means the same: nothing else was changed. */
			wf_store_breakpoints(arm, true);
			wf_settle_sites(arm);
			return error;
		}
	}
	wf_store_tails(arm);
	wf_store_heads(arm);
	wf_settle_sites(arm);
	atomic64_add(arm->arguments->n_pokes, &wf_counters[WF_COUNT_POKES]);
	return 0;
}

static int wf_run_arm(struct wf_session *session, struct wf_job *job)
{
	struct wf_arm_job *arm = container_of(job, struct wf_arm_job, job);
	unsigned int i;
	int error;

	mmap_read_lock(session->mm);
	error = wf_open_sites(session, arm);
	if (!error)
		error = wf_list_areas(session, arm);
	if (!error)
		error = wf_plant_sites(session, arm);
	if (!error)
		error = wf_poke_sites(session, arm);
	wf_pull_up_sites(arm);
	for (i = 0; i < arm->arguments->n_pokes; i++)
		wf_site_unpin(&arm->sites[i]);
	mmap_read_unlock(session->mm);
	/* So that the next attempt finds it. */
	if (arm->absent)
		wf_fault_in(arm->absent);
	return error;
}

/* The arguments */

static int wf_compare_ranges(const void *one, const void *other)
{
	const struct wfpatch_range *a = one, *b = other;

	return a->low < b->low ? -1 : a->low > b->low;
}

static bool wf_valid_poke(const struct wfpatch_poke *poke)
{
	return poke->length && poke->length <= WFPATCH_MAX_POKE_LENGTH &&
	       poke->address < TASK_SIZE_MAX - WFPATCH_MAX_POKE_LENGTH &&
	       poke->redirect < TASK_SIZE_MAX && !(poke->length > 1 && !poke->redirect);
}

static bool wf_valid_moves(const struct wf_arm_job *arm)
{
	unsigned int i;

	for (i = 0; i < arm->arguments->n_moves; i++)
		if (arm->moves[i].from >= TASK_SIZE_MAX || arm->moves[i].to >= TASK_SIZE_MAX ||
		    (i && arm->moves[i].from <= arm->moves[i - 1].from))
			return false;
	return true;
}

static bool wf_has_boundary(const struct wf_arm_job *arm, const struct wfpatch_range *inside)
{
	unsigned int i;

	for (i = 0; i < arm->arguments->n_moves; i++)
		if (arm->moves[i].from >= inside->low && arm->moves[i].from <= inside->high)
			return true;
	return false;
}

/*
 * The bytes of all pokes as ranges, to see that none overlap; then only the insides of those with a
 * boundary there.
 */
static int wf_list_insides(struct wf_arm_job *arm)
{
	unsigned int count = arm->arguments->n_pokes, i;

	arm->insides = kvcalloc(count, sizeof(*arm->insides), GFP_KERNEL);
	if (!arm->insides)
		return -ENOMEM;
	for (i = 0; i < count; i++) {
		if (!wf_valid_poke(&arm->pokes[i]))
			return -EINVAL;
		arm->insides[i].low = arm->pokes[i].address;
		arm->insides[i].high = arm->pokes[i].address + arm->pokes[i].length - 1;
	}
	sort(arm->insides, count, sizeof(*arm->insides), wf_compare_ranges, NULL);
	for (i = 1; i < count; i++)
		if (arm->insides[i].low <= arm->insides[i - 1].high)
			return -EINVAL;
	for (i = 0; i < count; i++) {
		struct wfpatch_range inside = arm->insides[i];

		inside.low++;
		if (inside.low <= inside.high && wf_has_boundary(arm, &inside))
			arm->insides[arm->n_insides++] = inside;
	}
	return arm->arguments->n_moves && !arm->n_insides ? -EINVAL : 0;
}

static int wf_arm_fill(struct wf_arm_job *arm)
{
	const struct wfpatch_arm *arguments = arm->arguments;
	unsigned int i;

	arm->pokes = vmemdup_user((const void __user *)arguments->pokes,
				  array_size(arguments->n_pokes, sizeof(*arm->pokes)));
	if (IS_ERR(arm->pokes)) {
		int error = PTR_ERR(arm->pokes);

		arm->pokes = NULL;
		return error;
	}
	arm->moves = vmemdup_user((const void __user *)arguments->moves,
				  array_size(arguments->n_moves, sizeof(*arm->moves)));
	if (IS_ERR(arm->moves)) {
		int error = PTR_ERR(arm->moves);

		arm->moves = NULL;
		return error;
	}
	arm->sites = kvcalloc(arguments->n_pokes, sizeof(*arm->sites), GFP_KERNEL);
	if (!arm->sites)
		return -ENOMEM;
	for (i = 0; i < arguments->n_pokes; i++)
		arm->sites[i].poke = &arm->pokes[i];
	return wf_valid_moves(arm) ? wf_list_insides(arm) : -EINVAL;
}

/**
 * wf_arm - change code
 * @session: of whose address space
 * @arguments: see the uapi; @straggler and @straggler_word are filled
 *
 * Return: 0 or a negative errno.
 */
int wf_arm(struct wf_session *session, struct wfpatch_arm *arguments)
{
	struct wf_arm_job arm = { .job.run = wf_run_arm, .arguments = arguments };
	int error;

	if (arguments->flags || !arguments->n_pokes ||
	    arguments->n_pokes > WFPATCH_MAX_POKES || arguments->n_moves > WFPATCH_MAX_MOVES ||
	    arguments->deadline_ms > WFPATCH_MAX_DEADLINE)
		return -EINVAL;
	error = wf_arm_fill(&arm);
	if (!error) {
		error = wf_do(session, &arm.job);
		if (copy_to_user((void __user *)arguments->pokes, arm.pokes,
				 array_size(arguments->n_pokes, sizeof(*arm.pokes))))
			error = -EFAULT;
	}
	arguments->straggler = 0;
	if (arm.straggler) {
		/* Here, since it is the caller's pid namespace that counts. */
		arguments->straggler = task_pid_vnr(arm.straggler);
		put_task_struct(arm.straggler);
	}
	kvfree(arm.areas);
	kvfree(arm.insides);
	kvfree(arm.sites);
	kvfree(arm.moves);
	kvfree(arm.pokes);
	return error;
}
