/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The parts of the kernel service and what they know of each other.
 *
 * A *session* (session.c) binds a file descriptor to an address space, and owns a kernel thread,
 * the *hand*, which borrows that address space to do what is asked: load.c maps, poke.c changes
 * code, visit.c looks at threads. A *visit* judges each thread by examine.c, at a moment when the
 * thread runs no user code: sleepers.c finds those asleep, sampler.c interrupts those that run.
 * trap.c sends threads on that meet a breakpoint of poke.c; notify.c tells who waits that a visit
 * has ended.
 *
 * Locks, outermost first:
 *   wf_sessions_lock (mutex, session.c)     which address spaces have a session
 *   wf_session.lock (mutex)                 one request of a session at a time
 *   mmap_lock of the address space          poke.c, load.c: held while a breakpoint is planted
 *   task->pi_lock (raw)                     sleepers.c: a sleeper cannot be woken meanwhile
 * The samplers run in hard interrupts and take none: see sampler.c for what keeps things alive.
 */
#ifndef WFPATCH_H
#define WFPATCH_H

#include <linux/completion.h>
#include <linux/list.h>
#include <linux/mm_types.h>
#include <linux/mutex.h>
#include <linux/ptrace.h>
#include <linux/sched.h>
#include <linux/types.h>
#include <linux/wait.h>
#include <uapi/wfpatch.h>

#define WF_VERSION	"0.1.0"

struct device;
struct eventfd_ctx;
struct file;
struct user_namespace;

/* Counters, for /sys/class/misc/wfpatch/counters/ (counters.c). */
enum wf_counter {
	WF_COUNT_SESSIONS,	/* open now */
	WF_COUNT_PLANTED,	/* breakpoints in place now */
	WF_COUNT_TRAPS,		/* breakpoints met */
	WF_COUNT_STRAY,		/* met after they had been taken away */
	WF_COUNT_POKES,		/* done */
	WF_COUNT_MAPS,		/* done */
	WF_COUNT_UNMAPS,	/* done */
	WF_COUNT_VISITS,	/* ended */
	WF_COUNT_SLEEPERS,	/* examinations of sleepers */
	WF_COUNT_SAMPLES,	/* examinations of running threads */
	WF_COUNT_MIGRATIONS,	/* done */
	WF_COUNT_TASKS,		/* references to tasks held now */
	WF_COUNT_PAGES,		/* references to pages held now */
	WF_COUNTERS
};

extern atomic64_t wf_counters[WF_COUNTERS];
extern const struct attribute_group *wf_attribute_groups[];

static inline void wf_count(enum wf_counter counter)
{
	atomic64_inc(&wf_counters[counter]);
}

static inline void wf_uncount(enum wf_counter counter)
{
	atomic64_dec(&wf_counters[counter]);
}

/**
 * struct wf_glance - a thread at one moment when it runs no user code
 * @task: the thread
 * @registers: its user registers, on its own kernel stack
 * @running: whether it is the current one of this processor (sampler.c); else it is asleep and its
 *	pi_lock is held (sleepers.c)
 * @in_kernel: whether it is inside a system call or an exception (sleepers only)
 * @fs_base: its FS base
 * @gs_base: its GS base
 * @switches: how often it had been switched out
 */
struct wf_glance {
	struct task_struct *task;
	struct pt_regs *registers;
	bool running;
	bool in_kernel;
	u64 fs_base;
	u64 gs_base;
	u64 switches;
};

/**
 * struct wf_entry - what a visit knows of a thread
 * @node: in wf_visit.buckets; entries are added by the hand only, read by samplers under RCU rules
 * @link: in wf_visit.entries, the hand's only
 * @task: a reference
 * @state: WFPATCH_STATE_*; everything else is complete once it is not WAITING (release/acquire)
 * @pass: of the enumeration that found it last
 * @initial: whether the first one did
 * @was_asleep: whether it was examined asleep
 * @asleep_since: how often it had been switched out then
 * @seen: whether it was examined at all
 * @rcu: for its end
 *
 * Written by whoever examines the thread: the hand while it is asleep, the sampler of the processor
 * it runs on. A thread is never both, and the scheduler orders the two.
 */
struct wf_entry {
	struct hlist_node node;
	struct list_head link;
	struct task_struct *task;
	unsigned int pass;
	bool initial;
	u32 state;
	u32 reason;
	u32 flags;
	u32 row;
	u64 gs_base;
	u64 fs_base;
	u64 ip;
	u64 sp;
	u64 hit_at;
	u64 hit_word;
	u64 switches;
	u64 asleep_since;
	bool was_asleep;
	bool seen;
	struct rcu_head rcu;
};

#define WF_BUCKETS	1024

struct wf_visit;

/* Judges a glance; returns true when the visit is done with the thread. Atomic context. */
typedef bool (*wf_judge)(struct wf_visit *visit, struct wf_entry *entry, struct wf_glance *glance);

/**
 * struct wf_visit - a look at threads
 * @published: in the samplers' list
 * @mm: whose threads
 * @only: the one thread to look at, or NULL for all
 * @judge: decides when a thread is done
 * @context: of the judge
 * @sampled: whether the samplers know of it
 * @buckets: entries by task
 * @entries: the same as a list
 * @n_entries: how many
 * @pass: the number of the last reading of the list of tasks
 * @enumerated: whether all threads there were at first are in it
 * @settled_rows: mask of rows in which a thread that is born during the visit need not be judged
 */
struct wf_visit {
	struct list_head published;
	struct mm_struct *mm;
	struct task_struct *only;
	wf_judge judge;
	void *context;
	bool sampled;
	struct hlist_head *buckets;
	struct list_head entries;
	unsigned int n_entries;
	unsigned int pass;
	bool enumerated;
	u64 settled_rows;
};

/**
 * struct wf_request - the arguments of an asynchronous visit (visit.c)
 */
struct wf_request {
	struct wf_visit visit;
	struct wfpatch_visit arguments;
	struct wfpatch_range *ranges;
	struct wfpatch_stack *stacks;
	struct eventfd_ctx *eventfd;
	unsigned int state;
};

struct wf_session;

/**
 * struct wf_job - something for the hand to do
 * @run: does it, with the session's address space borrowed and a user of it counted
 * @done: is completed afterwards
 * @result: of @run, or -ESRCH where the address space has ended
 */
struct wf_job {
	int (*run)(struct wf_session *session, struct wf_job *job);
	struct completion done;
	int result;
};

/**
 * struct wf_session - work on one address space
 * @link: in the list of sessions
 * @lock: one request at a time
 * @user_ns: whose CAP_SYS_PTRACE is needed
 * @mm: counted by mmgrab(): the structure stays, its contents may end at any time
 * @hand: the kernel thread that does the work
 * @job: for the hand, or NULL; set under @lock, taken by the hand
 * @wake: wakes the hand
 * @visit: the asynchronous visit that is under way or was the last one; replaced under @lock
 * @visit_job: of that visit
 * @visiting: whether it is under way; cleared by the hand (release) after all else
 * @cancel: asks it to end
 * @ended: who waits for it by poll(2)
 */
struct wf_session {
	struct list_head link;
	struct mutex lock; /* one request at a time */
	struct user_namespace *user_ns;
	struct mm_struct *mm;
	struct task_struct *hand;
	struct wf_job *job;
	wait_queue_head_t wake;
	struct wf_request *visit;
	struct wf_job visit_job;
	bool visiting;
	bool cancel;
	wait_queue_head_t ended;
};

/* session.c */
int wf_attach(const struct wfpatch_attach *arguments);
int wf_do(struct wf_session *session, struct wf_job *job);
void wf_start(struct wf_session *session, struct wf_job *job);
int wf_copy_arguments(void *to, size_t size, const void __user *from);

/* load.c */
int wf_load(struct wf_session *session, const struct wfpatch_map *arguments);
int wf_unload(struct wf_session *session, const struct wfpatch_map *arguments);

/* write.c */
int wf_write(struct wf_session *session, const struct wfpatch_write *arguments);

/* poke.c */
int wf_arm(struct wf_session *session, struct wfpatch_arm *arguments);
void wf_synchronize_cores(void);

/* trap.c */
struct wf_plant;
struct wf_plant *wf_plant(struct mm_struct *mm, unsigned long address, unsigned long redirect);
void wf_pull_up(struct wf_plant *plant);
void wf_forget_plants(struct mm_struct *mm);
int wf_trap_init(void);
void wf_trap_exit(void);

/* visit.c */
int wf_visit_begin(struct wf_session *session, const struct wfpatch_visit *arguments);
void wf_visit_cancel(struct wf_session *session);
void wf_visit_ended(struct wf_session *session);
int wf_visit_list(struct wf_session *session, void __user *where);
void wf_visit_free(struct wf_request *request);
int wf_visit_threads(struct wf_visit *visit, unsigned long deadline, const bool *cancel, bool once);
int wf_visit_setup(struct wf_visit *visit, struct mm_struct *mm, struct task_struct *only,
		   wf_judge judge, void *context);
void wf_fault_in(u64 address);
void wf_visit_release(struct wf_visit *visit);
struct wf_entry *wf_visit_entry(const struct wf_visit *visit, const struct task_struct *task);

/* thread.c */
int wf_thread(struct wf_session *session, struct wfpatch_thread *arguments);

/* examine.c */
bool wf_in_clone(const struct wf_glance *glance);
bool wf_foreign_mode(const struct wf_glance *glance);
bool wf_on_signal_stack(const struct wf_glance *glance);
void wf_set_gs_base(struct wf_glance *glance, u64 base);
size_t wf_read_stack(u64 address, void *to, size_t size);
const struct wfpatch_range *wf_find_range(const struct wfpatch_range *ranges, unsigned int count,
					  u64 word);
bool wf_judge_visit(struct wf_visit *visit, struct wf_entry *entry, struct wf_glance *glance);

/* sleepers.c */
bool wf_sleeps_on(const struct wf_entry *entry);
bool wf_visit_sleeper(struct wf_visit *visit, struct wf_entry *entry);

/* sampler.c */
void wf_sampler_publish(struct wf_visit *visit);
void wf_sampler_withdraw(struct wf_visit *visit);
void wf_sampler_init(void);
void wf_sampler_exit(void);

/* notify.c */
void wf_notify_ended(struct wf_session *session, struct eventfd_ctx *eventfd);
__poll_t wf_notify_poll(struct wf_session *session, struct file *file,
			struct poll_table_struct *table);

#endif /* WFPATCH_H */
