// SPDX-License-Identifier: GPL-2.0-only
/*
 * Visits: each thread of an address space is judged once it can be, until all are done or time is
 * up.
 */
#include <linux/delay.h>
#include <linux/eventfd.h>
#include <linux/hash.h>
#include <linux/jiffies.h>
#include <linux/overflow.h>
#include <linux/rculist.h>
#include <linux/sched/mm.h>
#include <linux/sched/signal.h>
#include <linux/sched/task.h>
#include <linux/slab.h>
#include <linux/uaccess.h>

#include "compat.h"
#include "wfpatch.h"

/* How many looks at sleepers lie between two looks for processors that have come. */
#define WF_PASSES	256
/* Of more threads than these, those that run are sampled while those that sleep are looked at. */
#define WF_MANY		64
/*
 * The hand is of a real-time class: before it has kept its processor for longer than this from the
 * threads that it visits, it rests as long as it worked. In nanoseconds.
 */
#define WF_WORK		(100 * NSEC_PER_USEC)
/* The list of tasks is read for so small a part of the time. */
#define WF_READING	8

/**
 * wf_visit_setup - make a visit
 * @visit: to be filled
 * @mm: whose threads
 * @only: one thread, or NULL for all
 * @judge: who judges
 * @context: for the judge
 *
 * Return: 0 or -ENOMEM.
 */
int wf_visit_setup(struct wf_visit *visit, struct mm_struct *mm, struct task_struct *only,
		   wf_judge judge, void *context)
{
	memset(visit, 0, sizeof(*visit));
	visit->mm = mm;
	visit->only = only;
	visit->judge = judge;
	visit->context = context;
	INIT_LIST_HEAD(&visit->entries);
	visit->buckets = kvcalloc(WF_BUCKETS, sizeof(*visit->buckets), GFP_KERNEL);
	return visit->buckets ? 0 : -ENOMEM;
}

/**
 * wf_visit_release - give back what a visit holds
 * @visit: one that the samplers do not know (any more)
 */
void wf_visit_release(struct wf_visit *visit)
{
	struct wf_entry *entry, *next;

	list_for_each_entry_safe(entry, next, &visit->entries, link) {
		put_task_struct(entry->task);
		wf_uncount(WF_COUNT_TASKS);
		kfree(entry);
	}
	kvfree(visit->buckets);
}

/**
 * wf_visit_entry - what a visit knows of a task
 * @visit: the visit
 * @task: the task
 *
 * For the hand, and for samplers (RCU). Return: the entry, or NULL.
 */
struct wf_entry *wf_visit_entry(const struct wf_visit *visit, const struct task_struct *task)
{
	struct hlist_head *bucket = &visit->buckets[hash_ptr((void *)task, ilog2(WF_BUCKETS))];
	struct wf_entry *entry;

	/* The hand is the only one that changes it. */
	hlist_for_each_entry_rcu(entry, bucket, node, true)
		if (entry->task == task)
			return entry;
	return NULL;
}

/*
 * A thread that was born during the visit is a copy of its parent, which was judged or is waited
 * for. Of one that was born in a settled row nothing but words of its own could accuse it, and it
 * had none then. Without this, a visit of a program that makes threads all the time ends only when
 * it happens to see none that is new.
 *
 * The GS base in task_struct is never newer than the thread's own, and threads leave no settled
 * row. A child that is a process of its own (vfork) runs on its parent's stack.
 */
static void wf_settle_newborn(const struct wf_visit *visit, struct wf_entry *entry)
{
	struct task_struct *task = entry->task;
	u64 gs_base = READ_ONCE(task->thread.gsbase), row = gs_base / WFPATCH_ROW_SIZE;

	if (entry->initial || thread_group_leader(task) || READ_ONCE(task->thread.gsindex))
		return;
	if (row >= WFPATCH_ROWS || row * WFPATCH_ROW_SIZE != gs_base ||
	    !(visit->settled_rows & BIT_ULL(row)))
		return;
	entry->gs_base = gs_base;
	entry->row = row;
	entry->reason = WFPATCH_REASON_NONE;
	entry->seen = true;
	entry->state = WFPATCH_STATE_CLEAR;
}

/* Return: 1 for a thread to be judged, 0 for one that need not be, or -ENOMEM. */
static int wf_visit_add(struct wf_visit *visit, struct task_struct *task)
{
	struct wf_entry *entry = kzalloc(sizeof(*entry), GFP_KERNEL);

	if (!entry)
		return -ENOMEM;
	entry->task = task;
	entry->row = ~0U;
	entry->reason = WFPATCH_REASON_UNSEEN;
	entry->pass = visit->pass;
	entry->initial = !visit->enumerated;
	wf_settle_newborn(visit, entry);
	list_add_tail(&entry->link, &visit->entries);
	hlist_add_head_rcu(&entry->node,
			   &visit->buckets[hash_ptr(task, ilog2(WF_BUCKETS))]);
	visit->n_entries++;
	wf_count(WF_COUNT_TASKS);
	return entry->state == WFPATCH_STATE_WAITING;
}

static void wf_visit_remove(struct wf_visit *visit, struct wf_entry *entry)
{
	list_del(&entry->link);
	hlist_del_rcu(&entry->node);
	visit->n_entries--;
	put_task_struct(entry->task);
	wf_uncount(WF_COUNT_TASKS);
	/* A sampler may be looking at it. */
	kfree_rcu(entry, rcu);
}

static bool wf_visit_wants(const struct wf_visit *visit, const struct task_struct *task)
{
	return READ_ONCE(task->mm) == visit->mm &&
	       !(READ_ONCE(task->flags) & (WF_PF_WORKERS | PF_EXITING));
}

/*
 * One round over all tasks of the system: those that share the memory need not be of one process.
 * Those in the visit already are marked; of the others up to @room are put into @found. Return: how
 * many others there are.
 */
static unsigned int wf_visit_gather(struct wf_visit *visit, struct task_struct **found,
				    unsigned int room)
{
	struct task_struct *process, *task;
	unsigned int count = 0;

	visit->pass++;
	rcu_read_lock();
	for_each_process(process) {
		for_each_thread(process, task) {
			struct wf_entry *entry;

			if (!wf_visit_wants(visit, task))
				continue;
			entry = wf_visit_entry(visit, task);
			if (entry) {
				entry->pass = visit->pass;
				continue;
			}
			if (count < room)
				found[count] = get_task_struct(task);
			count++;
		}
	}
	rcu_read_unlock();
	return count;
}

/* The one task of a visit that wants no other. */
static int wf_visit_enumerate_one(struct wf_visit *visit)
{
	bool wanted = wf_visit_wants(visit, visit->only);
	struct wf_entry *entry = wf_visit_entry(visit, visit->only);
	int added;

	if (entry && !wanted)
		wf_visit_remove(visit, entry);
	if (entry || !wanted)
		return 0;
	added = wf_visit_add(visit, get_task_struct(visit->only));
	if (added < 0)
		put_task_struct(visit->only);
	else
		visit->enumerated = true;
	return added;
}

/*
 * Adds the tasks that are not in the visit yet, and drops those that have left. Return: how many of
 * those added are to be judged, or a negative errno.
 */
static int wf_visit_enumerate(struct wf_visit *visit)
{
	struct wf_entry *entry, *next;
	unsigned int room = visit->n_entries ? 64 : 1024, count, i, all = 0;
	struct task_struct **found;
	int added = 0;

	if (visit->only)
		return wf_visit_enumerate_one(visit);
	found = kvmalloc_array(room, sizeof(*found), GFP_KERNEL);
	if (!found)
		return -ENOMEM;
	do {
		count = wf_visit_gather(visit, found, room);
		for (i = 0; i < min(count, room); i++) {
			if (added >= 0)
				added = wf_visit_add(visit, found[i]);
			if (added < 0)
				put_task_struct(found[i]);
			else
				all += added;
		}
	} while (added >= 0 && count > room);
	kvfree(found);
	if (added < 0)
		return added;
	list_for_each_entry_safe(entry, next, &visit->entries, link)
		if (entry->pass != visit->pass)
			wf_visit_remove(visit, entry);
	visit->enumerated = true;
	return all;
}

/**
 * wf_fault_in - bring a page of a stack that was not there, as its thread would
 * @address: in the page
 *
 * For the hand, which borrows the address space, without mmap_lock. What cannot be brought is no
 * error of anybody's.
 */
void wf_fault_in(u64 address)
{
	u8 byte;

	if (copy_from_user(&byte, (const u8 __user *)address, sizeof(byte)))
		return;
}

static void wf_rest(u64 *since)
{
	u64 worked = ktime_get_ns() - *since;

	if (worked < WF_WORK)
		return;
	worked = div_u64(worked, NSEC_PER_USEC);
	usleep_range(worked, 2 * worked);
	*since = ktime_get_ns();
}

/*
 * One look at each thread that is not done, but for sleepers of whom it is known what it would
 * show. Return: how many still are not.
 */
static unsigned int wf_visit_pass(struct wf_visit *visit, bool once)
{
	struct wf_entry *entry;
	unsigned int waiting = 0;
	u64 since = ktime_get_ns();

	list_for_each_entry(entry, &visit->entries, link) {
		/* Pairs with the releases of the judges. */
		if (smp_load_acquire(&entry->state) != WFPATCH_STATE_WAITING)
			continue;
		waiting++;
		if (wf_sleeps_on(entry) || (once && READ_ONCE(entry->seen)))
			continue;
		if (wf_visit_sleeper(visit, entry))
			waiting--;
		else if (READ_ONCE(entry->reason) == WFPATCH_REASON_FAULT)
			wf_fault_in(READ_ONCE(entry->hit_at));
		wf_rest(&since);
	}
	return waiting;
}

static bool wf_all_seen(const struct wf_visit *visit)
{
	const struct wf_entry *entry;

	list_for_each_entry(entry, &visit->entries, link)
		if (entry->initial && !READ_ONCE(entry->seen))
			return false;
	return true;
}

/**
 * wf_visit_threads - judge all threads of a visit; the hand's work
 * @visit: the visit
 * @deadline: in jiffies
 * @cancel: when to give up, or NULL
 * @once: each thread there is at first is judged once, whatever comes of it
 *
 * A thread born meanwhile is a copy of one that may not have been done: the list of tasks is read
 * again once all are, and the visit ends when it has no new one that is to be judged.
 *
 * Return: 0 when the visit is done with all threads, -ETIME, -ESRCH when there are none, -ENOMEM.
 * The samplers do not know the visit any more.
 */
int wf_visit_threads(struct wf_visit *visit, unsigned long deadline, const bool *cancel, bool once)
{
	u64 begun, next = 0;
	unsigned int passes = 0;
	int news;

	news = wf_visit_enumerate(visit);
	if (visit->n_entries > WF_MANY)
		wf_sampler_publish(visit);
	while (news >= 0) {
		bool finished;

		if (!visit->n_entries) {
			news = -ESRCH;
			break;
		}
		finished = !wf_visit_pass(visit, once);
		if (once && (finished || wf_all_seen(visit)))
			break;
		if (finished) {
			news = wf_visit_enumerate(visit);
			if (news <= 0)
				break;
		}
		if ((cancel && READ_ONCE(*cancel)) || time_after(jiffies, deadline)) {
			news = -ETIME;
			break;
		}
		if (finished)
			continue;
		if (passes++ % WF_PASSES == 0)
			wf_sampler_publish(visit);
		/* Nothing tells when a thread falls asleep; samplers need no wake-up. */
		usleep_range(passes < 8 ? 100 : 500, passes < 8 ? 200 : 1000);
		begun = ktime_get_ns();
		if (passes % 4 == 0 && begun >= next) {
			news = wf_visit_enumerate(visit);
			next = ktime_get_ns() + WF_READING * (ktime_get_ns() - begun);
		}
	}
	wf_sampler_withdraw(visit);
	return news < 0 ? news : 0;
}

/* Asynchronous visits */

static int wf_run_visit(struct wf_session *session, struct wf_job *job)
{
	struct wf_request *request = session->visit;
	unsigned long deadline = jiffies + msecs_to_jiffies(request->arguments.deadline_ms);

	return wf_visit_threads(&request->visit, deadline, &session->cancel,
				request->arguments.flags & WFPATCH_VISIT_ONCE);
}

/**
 * wf_visit_ended - the hand is through with the session's visit
 * @session: whose
 */
void wf_visit_ended(struct wf_session *session)
{
	struct wf_request *request = session->visit;
	struct eventfd_ctx *eventfd = request->eventfd;

	request->state = session->visit_job.result ? WFPATCH_VISIT_DEADLINE : WFPATCH_VISIT_CLEAR;
	request->eventfd = NULL;
	wf_count(WF_COUNT_VISITS);
	/* From here on it may be replaced. Pairs with the acquires in session.c and notify.c. */
	smp_store_release(&session->visiting, false);
	wf_notify_ended(session, eventfd);
}

/**
 * wf_visit_free - forget a visit
 * @request: one that has ended, or NULL
 */
void wf_visit_free(struct wf_request *request)
{
	if (!request)
		return;
	wf_visit_release(&request->visit);
	if (request->eventfd)
		eventfd_ctx_put(request->eventfd);
	kvfree(request->ranges);
	kvfree(request->stacks);
	kfree(request);
}

static bool wf_valid_ranges(const struct wfpatch_range *ranges, unsigned int count)
{
	unsigned int i;

	for (i = 0; i < count; i++) {
		u32 kind = ranges[i].kind;

		if (ranges[i].low > ranges[i].high || ranges[i].reserved ||
		    (kind != WFPATCH_KIND_OLD && kind != WFPATCH_KIND_PENDING &&
		     kind != WFPATCH_KIND_SIGNAL) ||
		    (i && ranges[i].low <= ranges[i - 1].high))
			return false;
	}
	return true;
}

static bool wf_valid_stacks(const struct wfpatch_stack *stacks, unsigned int count)
{
	unsigned int i;

	for (i = 0; i < count; i++)
		if (stacks[i].low >= stacks[i].high || stacks[i].high > TASK_SIZE_MAX ||
		    stacks[i].high % 8 || (i && stacks[i].fs_base <= stacks[i - 1].fs_base))
			return false;
	return true;
}

static bool wf_valid_visit(const struct wfpatch_visit *arguments)
{
	return !(arguments->flags & ~(WFPATCH_VISIT_MIGRATE | WFPATCH_VISIT_ONCE)) &&
	       arguments->eventfd >= -1 && arguments->deadline_ms &&
	       arguments->deadline_ms <= WFPATCH_MAX_DEADLINE &&
	       arguments->n_ranges <= WFPATCH_MAX_RANGES &&
	       arguments->n_stacks <= WFPATCH_MAX_STACKS && arguments->target < WFPATCH_ROWS;
}

static struct wf_request *wf_request_create(struct mm_struct *mm)
{
	struct wf_request *request = kzalloc(sizeof(*request), GFP_KERNEL);

	if (!request)
		return ERR_PTR(-ENOMEM);
	if (wf_visit_setup(&request->visit, mm, NULL, wf_judge_visit, request)) {
		kfree(request);
		return ERR_PTR(-ENOMEM);
	}
	return request;
}

static int wf_request_fill(struct wf_request *request, const struct wfpatch_visit *arguments)
{
	request->arguments = *arguments;
	request->visit.settled_rows = arguments->left_rows;
	request->ranges = vmemdup_user((const void __user *)arguments->ranges,
				       array_size(arguments->n_ranges, sizeof(*request->ranges)));
	if (IS_ERR(request->ranges)) {
		int error = PTR_ERR(request->ranges);

		request->ranges = NULL;
		return error;
	}
	request->stacks = vmemdup_user((const void __user *)arguments->stacks,
				       array_size(arguments->n_stacks, sizeof(*request->stacks)));
	if (IS_ERR(request->stacks)) {
		int error = PTR_ERR(request->stacks);

		request->stacks = NULL;
		return error;
	}
	if (!wf_valid_ranges(request->ranges, arguments->n_ranges) ||
	    !wf_valid_stacks(request->stacks, arguments->n_stacks))
		return -EINVAL;
	if (arguments->eventfd >= 0) {
		struct eventfd_ctx *eventfd = eventfd_ctx_fdget(arguments->eventfd);

		if (IS_ERR(eventfd))
			return PTR_ERR(eventfd);
		request->eventfd = eventfd;
	}
	return 0;
}

/**
 * wf_visit_begin - start a visit
 * @session: of which none is under way
 * @arguments: see the uapi
 *
 * Return: 0 or a negative errno.
 */
int wf_visit_begin(struct wf_session *session, const struct wfpatch_visit *arguments)
{
	struct wf_request *request;
	int error;

	if (!wf_valid_visit(arguments))
		return -EINVAL;
	request = wf_request_create(session->mm);
	if (IS_ERR(request))
		return PTR_ERR(request);
	error = wf_request_fill(request, arguments);
	if (error) {
		wf_visit_free(request);
		return error;
	}
	wf_visit_free(session->visit);
	request->state = WFPATCH_VISIT_RUNNING;
	session->visit = request;
	WRITE_ONCE(session->cancel, false);
	session->visiting = true;
	session->visit_job.run = wf_run_visit;
	wf_start(session, &session->visit_job);
	return 0;
}

/**
 * wf_visit_cancel - ask a visit to end, if one is under way
 * @session: whose
 */
void wf_visit_cancel(struct wf_session *session)
{
	WRITE_ONCE(session->cancel, true);
}

static int wf_run_enumerate(struct wf_session *session, struct wf_job *job)
{
	int count = wf_visit_enumerate(&session->visit->visit);

	return count < 0 ? count : 0;
}

/* Before the first visit there is a list all the same. */
static int wf_visit_ensure(struct wf_session *session)
{
	struct wf_job job = { .run = wf_run_enumerate };

	if (session->visit)
		return 0;
	session->visit = wf_request_create(session->mm);
	if (IS_ERR(session->visit)) {
		int error = PTR_ERR(session->visit);

		session->visit = NULL;
		return error;
	}
	return wf_do(session, &job);
}

static void wf_visit_describe(struct wfpatch_listed *listed, const struct wf_entry *entry)
{
	struct task_struct *task = entry->task;

	memset(listed, 0, sizeof(*listed));
	listed->tid = task_pid_vnr(task);
	listed->tgid = task_tgid_vnr(task);
	listed->state = entry->state;
	listed->reason = entry->reason;
	listed->flags = entry->flags;
	listed->row = entry->row;
	listed->gs_base = entry->gs_base;
	listed->fs_base = entry->fs_base;
	listed->ip = entry->ip;
	listed->sp = entry->sp;
	listed->hit_at = entry->hit_at;
	listed->hit_word = entry->hit_word;
	listed->start_time = task->start_boottime;
	listed->switches = entry->switches;
	get_task_comm(listed->comm, task);
}

static int wf_visit_write(const struct wf_request *request, u64 where, unsigned int room)
{
	struct wfpatch_listed __user *to = (struct wfpatch_listed __user *)where;
	const struct wf_entry *entry;
	struct wfpatch_listed listed;

	if (request->visit.n_entries > room)
		return -ENOSPC;
	list_for_each_entry(entry, &request->visit.entries, link) {
		wf_visit_describe(&listed, entry);
		if (copy_to_user(to++, &listed, sizeof(listed)))
			return -EFAULT;
	}
	return 0;
}

/**
 * wf_visit_list - what the last visit saw
 * @session: whose
 * @where: the caller's struct wfpatch_list
 *
 * Return: 0 or a negative errno.
 */
int wf_visit_list(struct wf_session *session, void __user *where)
{
	struct wfpatch_list list;
	int error = wf_copy_arguments(&list, sizeof(list), where);
	u32 size;

	if (error)
		return error;
	size = min_t(u32, list.size, sizeof(list));
	if (list.entry_size != sizeof(struct wfpatch_listed))
		return -EINVAL;
	/* Pairs with the release in wf_visit_ended(): the list is complete then. */
	if (smp_load_acquire(&session->visiting)) {
		/* The hand adds to the list meanwhile. */
		list.state = WFPATCH_VISIT_RUNNING;
		list.n_threads = 0;
	} else {
		error = wf_visit_ensure(session);
		if (error)
			return error;
		error = wf_visit_write(session->visit, list.threads, list.n_threads);
		list.state = session->visit->state;
		list.n_threads = session->visit->visit.n_entries;
	}
	if (error && error != -ENOSPC)
		return error;
	return copy_to_user(where, &list, size) ? -EFAULT : error;
}
