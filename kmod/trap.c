// SPDX-License-Identifier: GPL-2.0-only
/*
 * Threads that meet a breakpoint of poke.c are sent on, by a die notifier, to code that means the
 * same.
 *
 * A breakpoint that is gone may still be met late: by a processor that fetched it before (an
 * emulator may keep it for long). Its place is remembered until the session ends, and such a thread
 * executes what is there now. A breakpoint that *is* there then is somebody else's, a debugger's.
 */
#include <linux/hashtable.h>
#include <linux/kdebug.h>
#include <linux/kprobes.h>
#include <linux/notifier.h>
#include <linux/rculist.h>
#include <linux/slab.h>
#include <linux/spinlock.h>
#include <linux/uaccess.h>

#include "wfpatch.h"

#define WF_BREAKPOINT	0xcc

struct wf_plant {
	struct hlist_node node;
	struct mm_struct *mm;
	unsigned long address;
	unsigned long redirect;
	bool live;
	struct rcu_head rcu;
};

/* Changed under the lock, read under RCU: in the exception of a thread that met a breakpoint. */
static DEFINE_HASHTABLE(wf_plants, 10);
static DEFINE_SPINLOCK(wf_plants_lock);

static struct wf_plant *wf_find_plant(const struct mm_struct *mm, unsigned long address)
{
	struct wf_plant *plant;

	hash_for_each_possible_rcu(wf_plants, plant, node, address,
				   lockdep_is_held(&wf_plants_lock))
		if (plant->mm == mm && plant->address == address)
			return plant;
	return NULL;
}

/**
 * wf_plant - a breakpoint is about to be stored
 * @mm: in which address space
 * @address: where
 * @redirect: where threads go that meet it
 *
 * Return: for wf_pull_up(), or NULL (no memory).
 */
struct wf_plant *wf_plant(struct mm_struct *mm, unsigned long address, unsigned long redirect)
{
	struct wf_plant *fresh = kzalloc(sizeof(*fresh), GFP_KERNEL), *plant;

	if (!fresh)
		return NULL;
	spin_lock(&wf_plants_lock);
	plant = wf_find_plant(mm, address);
	if (plant) {
		/* Nobody can meet it before it is stored: order does not matter. */
		WRITE_ONCE(plant->redirect, redirect);
		WRITE_ONCE(plant->live, true);
	} else {
		fresh->mm = mm;
		fresh->address = address;
		fresh->redirect = redirect;
		fresh->live = true;
		hash_add_rcu(wf_plants, &fresh->node, address);
	}
	spin_unlock(&wf_plants_lock);
	wf_count(WF_COUNT_PLANTED);
	if (!plant)
		return fresh;
	kfree(fresh);
	return plant;
}

/**
 * wf_pull_up - the breakpoint was overwritten, and all processors were synchronised since
 * @plant: of wf_plant()
 *
 * Whoever had met it before then has been sent on: the exception runs with interrupts off up to the
 * notifier, so its processor answered only afterwards.
 */
void wf_pull_up(struct wf_plant *plant)
{
	WRITE_ONCE(plant->live, false);
	wf_uncount(WF_COUNT_PLANTED);
}

/**
 * wf_forget_plants - the session of an address space ends
 * @mm: the address space
 */
void wf_forget_plants(struct mm_struct *mm)
{
	struct wf_plant *plant;
	struct hlist_node *next;
	int bucket;

	spin_lock(&wf_plants_lock);
	hash_for_each_safe(wf_plants, bucket, next, plant, node) {
		if (plant->mm == mm) {
			hash_del_rcu(&plant->node);
			kfree_rcu(plant, rcu);
		}
	}
	spin_unlock(&wf_plants_lock);
}

static bool wf_is_breakpoint(unsigned long address)
{
	u8 byte = 0;

	return wf_read_stack(address, &byte, 1) == 1 && byte == WF_BREAKPOINT;
}

static int wf_meet(struct notifier_block *block, unsigned long value, void *data)
{
	struct pt_regs *registers = ((struct die_args *)data)->regs;
	unsigned long address = registers->ip - 1;
	int result = NOTIFY_DONE;
	struct wf_plant *plant;

	if (value != DIE_INT3 || !user_mode(registers) || !current->mm)
		return NOTIFY_DONE;
	rcu_read_lock();
	plant = wf_find_plant(current->mm, address);
	if (plant && READ_ONCE(plant->live)) {
		registers->ip = READ_ONCE(plant->redirect);
		wf_count(WF_COUNT_TRAPS);
		result = NOTIFY_STOP;
	} else if (plant && !wf_is_breakpoint(address)) {
		registers->ip = address;
		wf_count(WF_COUNT_STRAY);
		result = NOTIFY_STOP;
	}
	rcu_read_unlock();
	return result;
}

NOKPROBE_SYMBOL(wf_meet);

static struct notifier_block wf_meet_block = {
	.notifier_call = wf_meet,
	/* Before those that take any breakpoint for theirs. */
	.priority = 1,
};

int wf_trap_init(void)
{
	return register_die_notifier(&wf_meet_block);
}

void wf_trap_exit(void)
{
	unregister_die_notifier(&wf_meet_block);
}
