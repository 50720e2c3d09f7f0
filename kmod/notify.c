// SPDX-License-Identifier: GPL-2.0-only
/*
 * Telling who waits that a visit has ended: poll(2) on the session, and an eventfd.
 */
#include <linux/poll.h>

#include "compat.h"
#include "wfpatch.h"

/**
 * wf_notify_ended - the session's visit has ended
 * @session: after @visiting was cleared
 * @eventfd: of that visit, or NULL; its reference is given back
 */
void wf_notify_ended(struct wf_session *session, struct eventfd_ctx *eventfd)
{
	/* Orders the clearing of @visiting before the look at who waits (as poll_wait does). */
	wake_up_all(&session->ended);
	if (eventfd) {
		wf_eventfd_signal(eventfd);
		eventfd_ctx_put(eventfd);
	}
}

/**
 * wf_notify_poll - whether a visit is under way
 * @session: whose
 * @file: as in poll
 * @table: as in poll
 *
 * Return: EPOLLIN when none is.
 */
__poll_t wf_notify_poll(struct wf_session *session, struct file *file,
			struct poll_table_struct *table)
{
	poll_wait(file, &session->ended, table);
	/* Pairs with the release in visit.c: LIST then shows all of the visit. */
	return smp_load_acquire(&session->visiting) ? 0 : EPOLLIN | EPOLLRDNORM;
}
