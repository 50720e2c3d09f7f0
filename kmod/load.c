// SPDX-License-Identifier: GPL-2.0-only
/*
 * Mapping memory into a process: the hand borrows its address space and maps as the process would,
 * so limits, accounting and /proc are right by themselves, and no thread takes part.
 */
#include <linux/file.h>
#include <linux/fs.h>
#include <linux/mm.h>
#include <linux/mman.h>

#include "wfpatch.h"

struct wf_map_job {
	struct wf_job job;
	const struct wfpatch_map *arguments;
	struct file *file;
};

static int wf_run_load(struct wf_session *session, struct wf_job *job)
{
	struct wf_map_job *map = container_of(job, struct wf_map_job, job);
	const struct wfpatch_map *arguments = map->arguments;
	unsigned long flags = MAP_PRIVATE | MAP_FIXED_NOREPLACE;
	unsigned long protection = PROT_READ;
	unsigned long address;

	if (arguments->flags & WFPATCH_MAP_WRITE)
		protection |= PROT_WRITE;
	if (arguments->flags & WFPATCH_MAP_EXEC)
		protection |= PROT_EXEC;
	if (!map->file)
		flags |= MAP_ANONYMOUS;
	address = vm_mmap(map->file, arguments->address, arguments->length, protection, flags,
			  arguments->offset);
	if (IS_ERR_VALUE(address))
		return (int)address;
	wf_count(WF_COUNT_MAPS);
	return 0;
}

static int wf_run_unload(struct wf_session *session, struct wf_job *job)
{
	struct wf_map_job *map = container_of(job, struct wf_map_job, job);
	int error = vm_munmap(map->arguments->address, map->arguments->length);

	if (!error)
		wf_count(WF_COUNT_UNMAPS);
	return error;
}

static bool wf_is_span(const struct wfpatch_map *arguments)
{
	u64 address = arguments->address, length = arguments->length;

	return length && length <= WFPATCH_MAX_MAP && PAGE_ALIGNED(address | length) &&
	       address && address < TASK_SIZE_MAX && length <= TASK_SIZE_MAX - address &&
	       !arguments->reserved;
}

/**
 * wf_load - map something where nothing is mapped
 * @session: into whose address space
 * @arguments: see the uapi
 *
 * Return: 0 or a negative errno.
 */
int wf_load(struct wf_session *session, const struct wfpatch_map *arguments)
{
	struct wf_map_job map = { .job.run = wf_run_load, .arguments = arguments };
	int result;

	if (!wf_is_span(arguments) || arguments->fd < -1 || arguments->offset & ~PAGE_MASK ||
	    arguments->offset > LLONG_MAX - arguments->length ||
	    arguments->flags & ~(WFPATCH_MAP_WRITE | WFPATCH_MAP_EXEC) ||
	    arguments->flags == (WFPATCH_MAP_WRITE | WFPATCH_MAP_EXEC))
		return -EINVAL;
	if (arguments->fd >= 0) {
		map.file = fget(arguments->fd);
		if (!map.file)
			return -EBADF;
	}
	result = wf_do(session, &map.job);
	if (map.file)
		fput(map.file);
	return result;
}

/**
 * wf_unload - unmap something
 * @session: from whose address space
 * @arguments: see the uapi
 *
 * Return: 0 or a negative errno.
 */
int wf_unload(struct wf_session *session, const struct wfpatch_map *arguments)
{
	struct wf_map_job map = { .job.run = wf_run_unload, .arguments = arguments };

	if (!wf_is_span(arguments) || arguments->flags || arguments->offset ||
	    arguments->fd != -1)
		return -EINVAL;
	return wf_do(session, &map.job);
}
