// SPDX-License-Identifier: GPL-2.0-only
/*
 * Writing to memory of the program's own, whatever its protection: what /proc/PID/mem does for a
 * tracer, and on kernels with PROC_MEM_FORCE_PTRACE for nobody else.
 */
#include <linux/mm.h>
#include <linux/slab.h>
#include <linux/string.h>
#include <linux/uaccess.h>

#include "compat.h"
#include "wfpatch.h"

struct wf_write_job {
	struct wf_job job;
	const struct wfpatch_write *arguments;
	const u8 *data;
};

/* Aligned words are stored in one piece: a thread that reads one sees the old or the new value. */
static void wf_store(u8 *to, const u8 *from, size_t length)
{
	while (length) {
		if (IS_ALIGNED((unsigned long)to, sizeof(u64)) && length >= sizeof(u64)) {
			u64 word;

			memcpy(&word, from, sizeof(word));
			WRITE_ONCE(*(u64 *)to, word);
			to += sizeof(word);
			from += sizeof(word);
			length -= sizeof(word);
		} else {
			WRITE_ONCE(*to, *from);
			to++;
			from++;
			length--;
		}
	}
}

/* Whether all of it is mapped, and privately: a shared page would be other programs' too. */
static bool wf_is_private(struct mm_struct *mm, unsigned long address, unsigned long end)
{
	while (address < end) {
		const struct vm_area_struct *area = find_vma(mm, address);

		if (!area || area->vm_start > address || area->vm_flags & VM_SHARED)
			return false;
		address = area->vm_end;
	}
	return true;
}

static int wf_run_write(struct wf_session *session, struct wf_job *job)
{
	struct wf_write_job *write = container_of(job, struct wf_write_job, job);
	unsigned long address = write->arguments->address, done = 0, length;
	int error = 0;

	length = write->arguments->length;
	mmap_read_lock(session->mm);
	if (!wf_is_private(session->mm, address, address + length))
		error = -EFAULT;
	while (!error && done < length) {
		unsigned long at = address + done;
		size_t size = min(length - done, PAGE_SIZE - offset_in_page(at));
		struct page *page;

		if (wf_get_page(session->mm, at, FOLL_WRITE | FOLL_FORCE, &page) != 1) {
			error = -EFAULT;
			break;
		}
		wf_store((u8 *)page_address(page) + offset_in_page(at), write->data + done, size);
		set_page_dirty_lock(page);
		put_page(page);
		done += size;
	}
	mmap_read_unlock(session->mm);
	return error;
}

/**
 * wf_write - write to memory of the program's own
 * @session: whose address space
 * @arguments: see the uapi
 *
 * Return: 0 or a negative errno.
 */
int wf_write(struct wf_session *session, const struct wfpatch_write *arguments)
{
	struct wf_write_job write = { .job.run = wf_run_write, .arguments = arguments };
	u64 length = arguments->length;
	int result;

	if (arguments->flags || !length || length > WFPATCH_MAX_WRITE ||
	    arguments->address >= TASK_SIZE_MAX || length > TASK_SIZE_MAX - arguments->address)
		return -EINVAL;
	write.data = vmemdup_user((const void __user *)arguments->data, length);
	if (IS_ERR(write.data))
		return PTR_ERR(write.data);
	result = wf_do(session, &write.job);
	kvfree(write.data);
	return result;
}
