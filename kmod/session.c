// SPDX-License-Identifier: GPL-2.0-only
/*
 * Sessions: who may work on which address space, and the kernel thread that does it.
 */
#include <linux/anon_inodes.h>
#include <linux/capability.h>
#include <linux/cred.h>
#include <linux/file.h>
#include <linux/fs.h>
#include <linux/kthread.h>
#include <linux/module.h>
#include <linux/pid.h>
#include <linux/poll.h>
#include <linux/sched/mm.h>
#include <linux/sched/signal.h>
#include <linux/sched/task.h>
#include <linux/slab.h>
#include <linux/uaccess.h>

#include "compat.h"
#include "wfpatch.h"

static DEFINE_MUTEX(wf_sessions_lock);
static LIST_HEAD(wf_sessions);

/**
 * wf_copy_arguments - a structure of the uapi that begins with its size
 * @to: the structure
 * @size: of it, as this kernel knows it
 * @from: the caller's
 *
 * Return: 0, -EFAULT, -EINVAL (smaller than the size itself), -E2BIG (holds what is not known
 * here).
 */
int wf_copy_arguments(void *to, size_t size, const void __user *from)
{
	u32 given;

	if (get_user(given, (const u32 __user *)from))
		return -EFAULT;
	if (given < sizeof(given))
		return -EINVAL;
	if (given > PAGE_SIZE)
		return -E2BIG;
	return copy_struct_from_user(to, size, from, given);
}

/* Whoever is killed while he waits for the hand leaves it at work: what was begun is finished. */
static int wf_hand(void *of)
{
	struct wf_session *session = of;

	/* Breakpoints and withheld forks are not left waiting for programs that compute. */
	sched_set_fifo_low(current);
	for (;;) {
		struct wf_job *job;

		wait_event_interruptible(session->wake,
					 READ_ONCE(session->job) || kthread_should_stop());
		job = READ_ONCE(session->job);
		if (!job) {
			if (kthread_should_stop())
				return 0;
			continue;
		}
		if (mmget_not_zero(session->mm)) {
			kthread_use_mm(session->mm);
			job->result = job->run(session, job);
			kthread_unuse_mm(session->mm);
			mmput(session->mm);
		} else {
			job->result = -ESRCH;
		}
		WRITE_ONCE(session->job, NULL);
		/* After this a job that is waited for is gone, and the next one may come. */
		if (job == &session->visit_job)
			wf_visit_ended(session);
		else
			complete(&job->done);
	}
}

/**
 * wf_start - give the hand a job
 * @session: whose hand
 * @job: with its run member set; the hand has none (the session's lock is held)
 */
void wf_start(struct wf_session *session, struct wf_job *job)
{
	init_completion(&job->done);
	job->result = 0;
	/* The hand must see a whole job: pairs with the barrier of its wait for @wake. */
	smp_store_release(&session->job, job);
	wake_up(&session->wake);
}

/**
 * wf_do - have the hand do a job, and wait for it, come what may
 * @session: whose hand
 * @job: with its run member set
 *
 * Return: the job's result.
 */
int wf_do(struct wf_session *session, struct wf_job *job)
{
	wf_start(session, job);
	wait_for_completion(&job->done);
	return job->result;
}

static long wf_session_map(struct wf_session *session, unsigned int number,
			   const void __user *where)
{
	struct wfpatch_map arguments;
	int error = wf_copy_arguments(&arguments, sizeof(arguments), where);

	if (error)
		return error;
	return number == _IOC_NR(WFPATCH_IOC_LOAD) ? wf_load(session, &arguments) :
						     wf_unload(session, &arguments);
}

static long wf_session_write(struct wf_session *session, const void __user *where)
{
	struct wfpatch_write arguments;
	int error = wf_copy_arguments(&arguments, sizeof(arguments), where);

	return error ? error : wf_write(session, &arguments);
}

static long wf_session_arm(struct wf_session *session, void __user *where)
{
	struct wfpatch_arm arguments;
	u32 size;
	int error = wf_copy_arguments(&arguments, sizeof(arguments), where);

	if (error)
		return error;
	size = min_t(u32, arguments.size, sizeof(arguments));
	error = wf_arm(session, &arguments);
	return copy_to_user(where, &arguments, size) ? -EFAULT : error;
}

static long wf_session_visit(struct wf_session *session, const void __user *where)
{
	struct wfpatch_visit arguments;
	int error = wf_copy_arguments(&arguments, sizeof(arguments), where);

	return error ? error : wf_visit_begin(session, &arguments);
}

static long wf_session_thread(struct wf_session *session, void __user *where)
{
	struct wfpatch_thread arguments;
	u32 size;
	int error = wf_copy_arguments(&arguments, sizeof(arguments), where);

	if (error)
		return error;
	size = min_t(u32, arguments.size, sizeof(arguments));
	error = wf_thread(session, &arguments);
	if (copy_to_user(where, &arguments, size))
		return -EFAULT;
	return error;
}

static long wf_session_request(struct wf_session *session, unsigned int number,
			       void __user *where)
{
	/* Pairs with the release in visit.c: what the visit wrote is seen once it has ended. */
	bool visiting = smp_load_acquire(&session->visiting);

	switch (number) {
	case _IOC_NR(WFPATCH_IOC_LIST):
		return wf_visit_list(session, where);
	case _IOC_NR(WFPATCH_IOC_CANCEL):
		wf_visit_cancel(session);
		return 0;
	case _IOC_NR(WFPATCH_IOC_LOAD):
	case _IOC_NR(WFPATCH_IOC_UNLOAD):
		return visiting ? -EBUSY : wf_session_map(session, number, where);
	case _IOC_NR(WFPATCH_IOC_WRITE):
		return visiting ? -EBUSY : wf_session_write(session, where);
	case _IOC_NR(WFPATCH_IOC_ARM):
		return visiting ? -EBUSY : wf_session_arm(session, where);
	case _IOC_NR(WFPATCH_IOC_VISIT):
		return visiting ? -EBUSY : wf_session_visit(session, where);
	case _IOC_NR(WFPATCH_IOC_THREAD):
		return visiting ? -EBUSY : wf_session_thread(session, where);
	default:
		return -ENOTTY;
	}
}

static long wf_session_ioctl(struct file *file, unsigned int command, unsigned long argument)
{
	struct wf_session *session = file->private_data;
	long result;

	/* A session that was handed to somebody else gives him nothing. */
	if (!capable(CAP_SYS_ADMIN) || !ns_capable(session->user_ns, CAP_SYS_PTRACE))
		return -EPERM;
	if (_IOC_TYPE(command) != WFPATCH_IOC_MAGIC)
		return -ENOTTY;
	if (mutex_lock_interruptible(&session->lock))
		return -EINTR;
	result = wf_session_request(session, _IOC_NR(command), (void __user *)argument);
	mutex_unlock(&session->lock);
	return result;
}

static __poll_t wf_session_poll(struct file *file, struct poll_table_struct *table)
{
	return wf_notify_poll(file->private_data, file, table);
}

static void wf_session_free(struct wf_session *session)
{
	mutex_lock(&wf_sessions_lock);
	list_del(&session->link);
	mutex_unlock(&wf_sessions_lock);
	wf_forget_plants(session->mm);
	mmdrop(session->mm);
	put_user_ns(session->user_ns);
	kfree(session);
	wf_uncount(WF_COUNT_SESSIONS);
}

/* Nobody else has the file any more: only the hand may still be at work. */
static int wf_session_release(struct inode *inode, struct file *file)
{
	struct wf_session *session = file->private_data;

	wf_visit_cancel(session);
	kthread_stop(session->hand);
	wf_visit_free(session->visit);
	wf_session_free(session);
	return 0;
}

static const struct file_operations wf_session_operations = {
	.owner = THIS_MODULE,
	.release = wf_session_release,
	.unlocked_ioctl = wf_session_ioctl,
	.poll = wf_session_poll,
	.llseek = noop_llseek,
};

/*
 * The address space of a process, with a user counted, and the user namespace that it belongs to,
 * with a reference. A leader that called pthread_exit() has none any more while its threads go on,
 * so all of them are asked.
 */
static struct mm_struct *wf_mm_of(s32 number, struct user_namespace **user_ns, bool *is_64bit)
{
	struct task_struct *leader, *task;
	struct mm_struct *mm = NULL;
	struct pid *pid = find_get_pid(number);

	leader = get_pid_task(pid, PIDTYPE_TGID);
	put_pid(pid);
	if (!leader)
		return NULL;
	rcu_read_lock();
	for_each_thread(leader, task) {
		if (task->flags & (WF_PF_WORKERS | PF_EXITING))
			continue;
		mm = get_task_mm(task);
		if (mm) {
			*user_ns = wf_user_ns(task, mm);
			/* Of a program for the 32-bit or the x32 ABI. */
			*is_64bit = !test_tsk_thread_flag(task, TIF_ADDR32);
			break;
		}
	}
	rcu_read_unlock();
	put_task_struct(leader);
	return mm;
}

static bool wf_has_session(const struct mm_struct *mm)
{
	const struct wf_session *session;

	lockdep_assert_held(&wf_sessions_lock);
	list_for_each_entry(session, &wf_sessions, link)
		if (session->mm == mm)
			return true;
	return false;
}

static struct wf_session *wf_session_create(struct mm_struct *mm,
					    struct user_namespace *user_ns)
{
	struct wf_session *session = kzalloc(sizeof(*session), GFP_KERNEL);

	if (!session)
		return ERR_PTR(-ENOMEM);
	mutex_init(&session->lock);
	init_waitqueue_head(&session->wake);
	init_waitqueue_head(&session->ended);
	session->mm = mm;
	mutex_lock(&wf_sessions_lock);
	if (wf_has_session(mm)) {
		mutex_unlock(&wf_sessions_lock);
		kfree(session);
		return ERR_PTR(-EBUSY);
	}
	mmgrab(mm);
	session->user_ns = get_user_ns(user_ns);
	list_add(&session->link, &wf_sessions);
	mutex_unlock(&wf_sessions_lock);
	wf_count(WF_COUNT_SESSIONS);
	session->hand = kthread_run(wf_hand, session, "wfpatch");
	if (IS_ERR(session->hand)) {
		int error = PTR_ERR(session->hand);

		wf_session_free(session);
		return ERR_PTR(error);
	}
	return session;
}

/**
 * wf_attach - a session for a process
 * @arguments: see the uapi
 *
 * Return: its file descriptor, or a negative errno.
 */
int wf_attach(const struct wfpatch_attach *arguments)
{
	struct user_namespace *user_ns;
	struct wf_session *session;
	struct mm_struct *mm;
	bool is_64bit = false;
	int result;

	if (arguments->flags || arguments->reserved || arguments->pid <= 0)
		return -EINVAL;
	mm = wf_mm_of(arguments->pid, &user_ns, &is_64bit);
	if (!mm)
		return -ESRCH;
	result = -EPERM;
	if (!ns_capable(user_ns, CAP_SYS_PTRACE))
		goto put;
	result = -EOPNOTSUPP;
	if (!is_64bit)
		goto put;
	session = wf_session_create(mm, user_ns);
	if (IS_ERR(session)) {
		result = PTR_ERR(session);
		goto put;
	}
	result = anon_inode_getfd("[wfpatch]", &wf_session_operations, session,
				  O_RDWR | O_CLOEXEC);
	if (result < 0) {
		kthread_stop(session->hand);
		wf_session_free(session);
	}
put:
	put_user_ns(user_ns);
	mmput(mm);
	return result;
}
