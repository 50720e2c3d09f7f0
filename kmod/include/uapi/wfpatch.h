/* SPDX-License-Identifier: GPL-2.0-only WITH Linux-syscall-note */
/*
 * The interface of the wfpatch kernel service, /dev/wfpatch.
 *
 * One opens the device, attaches to a process and gets a session: a file descriptor bound to that
 * process's *address space* (not to its number: after an exec every request fails with ESRCH).
 * Everything is asked for by ioctl(2) on the session. No thread of the process is stopped,
 * signalled or traced by any of it.
 *
 * Every structure begins with its own size, as the caller knows it. A larger one from a newer
 * caller is taken if what this kernel does not know of it is zero (else E2BIG); of a smaller one
 * the rest counts as zero. Reserved members and unknown flags must be zero (else EINVAL).
 *
 * Errors common to all: EPERM (CAP_SYS_ADMIN, and CAP_SYS_PTRACE over the user namespace of the
 * process), ESRCH (the address space has ended), EBUSY (a visit is under way, or another session
 * has the process), EFAULT, EINVAL, E2BIG, ENOMEM. 32-bit callers get ENOTTY, whatever they ask.
 */
#ifndef _UAPI_WFPATCH_H
#define _UAPI_WFPATCH_H

#include <linux/const.h>
#include <linux/ioctl.h>
#include <linux/types.h>

#define WFPATCH_UAPI_VERSION	1
#define WFPATCH_DEVICE		"/dev/wfpatch"

/* Limits; more is EINVAL. */
#define WFPATCH_MAX_MAP		0x40000000ULL	/* bytes of one LOAD or UNLOAD */
#define WFPATCH_MAX_WRITE	0x100000U	/* bytes of one WRITE */
#define WFPATCH_MAX_POKES	16384		/* of one ARM */
#define WFPATCH_MAX_POKE_LENGTH	16		/* bytes of one poke */
#define WFPATCH_MAX_MOVES	256		/* of one ARM */
#define WFPATCH_MAX_RANGES	65536		/* of one VISIT */
#define WFPATCH_MAX_STACKS	65536		/* of one VISIT */
#define WFPATCH_MAX_CAPTURE	0x100000U	/* bytes of stack of one THREAD */
#define WFPATCH_MAX_DEADLINE	60000		/* milliseconds */
#define WFPATCH_ROWS		64		/* rows that a mask can name */
#define WFPATCH_ROW_SIZE	4096		/* a thread in row r has GS base r * 4096 */

/**
 * struct wfpatch_info - what answers
 * @size: of this structure
 * @uapi_version: WFPATCH_UAPI_VERSION of the module
 * @features: WFPATCH_FEATURE_* of this machine
 * @version: the module's version, zero-terminated
 */
struct wfpatch_info {
	__u32 size;
	__u32 uapi_version;
	__u64 features;
	char version[32];
};

#define WFPATCH_FEATURE_FSGSBASE	_BITULL(0)	/* programs may write their GS base */
#define WFPATCH_FEATURE_PTI		_BITULL(1)	/* page table isolation is in use */

/**
 * struct wfpatch_attach - begin work on a process
 * @size: of this structure
 * @flags: 0
 * @pid: the process, as the caller's pid namespace numbers it
 * @reserved: 0
 *
 * ATTACH returns the session's file descriptor (close-on-exec). ESRCH: no such process, or it has
 * no user memory; EOPNOTSUPP: it is no 64-bit process; EBUSY: another session has it.
 */
struct wfpatch_attach {
	__u32 size;
	__u32 flags;
	__s32 pid;
	__u32 reserved;
};

/**
 * struct wfpatch_map - LOAD or UNLOAD a part of the address space
 * @size: of this structure
 * @flags: WFPATCH_MAP_WRITE or WFPATCH_MAP_EXEC, never both; 0 for UNLOAD
 * @fd: what is mapped privately, or -1 for zeroes
 * @reserved: 0
 * @address: page-aligned and free (LOAD: else EEXIST)
 * @length: in bytes, whole pages
 * @offset: into @fd, page-aligned
 *
 * A LOAD maps readable memory, and readable only, but for the flag.
 */
struct wfpatch_map {
	__u32 size;
	__u32 flags;
	__s32 fd;
	__u32 reserved;
	__u64 address;
	__u64 length;
	__u64 offset;
};

#define WFPATCH_MAP_WRITE	_BITUL(0)
#define WFPATCH_MAP_EXEC	_BITUL(1)

/**
 * struct wfpatch_write - WRITE to memory, whatever its protection
 * @size: of this structure
 * @flags: 0
 * @address: of the first byte; all of them are mapped, and privately (else EFAULT, and nothing was
 *	written; where a page of them cannot be had, what lies before it may have been)
 * @data: address of the bytes
 * @length: 1 to WFPATCH_MAX_WRITE
 *
 * Aligned words of eight bytes are stored in one piece. For what no thread executes: code that
 * threads may be in is changed by ARM.
 */
struct wfpatch_write {
	__u32 size;
	__u32 flags;
	__u64 address;
	__u64 data;
	__u64 length;
};

/**
 * struct wfpatch_poke - bytes of code to change while threads run
 * @address: of the first byte
 * @redirect: where a thread goes that meets the breakpoint: code that means the same as the old
 *	code at @address
 * @length: bytes to change, 1 to WFPATCH_MAX_POKE_LENGTH
 * @result: 0, or a negative errno: EILSEQ (memory holds neither @before nor @after), EFAULT (not
 *	mapped, or not privately)
 * @before: what memory must hold
 * @after: what it shall hold
 */
struct wfpatch_poke {
	__u64 address;
	__u64 redirect;
	__u32 length;
	__s32 result;
	__u8 before[WFPATCH_MAX_POKE_LENGTH];
	__u8 after[WFPATCH_MAX_POKE_LENGTH];
};

/**
 * struct wfpatch_move - an instruction boundary in the inside of a poke
 * @from: the address of an old instruction behind the first one
 * @to: where a thread about to execute it goes instead
 */
struct wfpatch_move {
	__u64 from;
	__u64 to;
};

/**
 * struct wfpatch_arm - change code
 * @size: of this structure
 * @flags: 0
 * @pokes: address of struct wfpatch_poke, @n_pokes of them, none overlapping another; results are
 *	written back
 * @moves: address of struct wfpatch_move, @n_moves of them, ascending
 * @n_pokes: 1 to WFPATCH_MAX_POKES
 * @n_moves: 0 where no poke has an instruction boundary in its inside
 * @deadline_ms: how long threads may take to leave the inside of pokes that have boundaries there;
 *	no fork, mmap or munmap of the process proceeds meanwhile, so tens of milliseconds
 * @straggler: out, with EAGAIN: a thread that did not leave
 * @straggler_word: out: its instruction pointer or the word of its stack that lies inside, or 0
 *	when it was not seen, or its stack could not be read
 *
 * All or nothing. One byte is stored; of more, first a breakpoint, then the tail, then the first
 * byte, all processors synchronised after each step. Nobody forks while a breakpoint is there.
 * EILSEQ, EFAULT: see the results, nothing was written. EAGAIN: a thread did not leave the inside
 * in time; everything is as before.
 */
struct wfpatch_arm {
	__u32 size;
	__u32 flags;
	__u64 pokes;
	__u64 moves;
	__u32 n_pokes;
	__u32 n_moves;
	__u32 deadline_ms;
	__s32 straggler;
	__u64 straggler_word;
};

/**
 * struct wfpatch_range - words that count
 * @low: the first
 * @high: the last
 * @kind: one bit of WFPATCH_KIND_*
 * @reserved: 0
 */
struct wfpatch_range {
	__u64 low;
	__u64 high;
	__u32 kind;
	__u32 reserved;
};

#define WFPATCH_KIND_OLD	_BITUL(0)	/* code that is to be left */
#define WFPATCH_KIND_PENDING	_BITUL(1)	/* code on the way into a replaced function */
#define WFPATCH_KIND_SIGNAL	_BITUL(2)	/* signal handlers return there */

/**
 * struct wfpatch_stack - a thread's own stack
 * @fs_base: names the thread
 * @low: the lowest address
 * @high: the first address behind it
 */
struct wfpatch_stack {
	__u64 fs_base;
	__u64 low;
	__u64 high;
};

/**
 * struct wfpatch_visit - look at all threads, each at a moment when it does not run user code
 * @size: of this structure
 * @flags: WFPATCH_VISIT_*
 * @eventfd: is signalled at the end, or -1
 * @deadline_ms: 1 to WFPATCH_MAX_DEADLINE
 * @ranges: address of struct wfpatch_range, @n_ranges of them, ascending, none overlapping
 * @stacks: address of struct wfpatch_stack, @n_stacks of them, ascending by @fs_base
 * @n_ranges: how many
 * @n_stacks: how many
 * @left_rows: mask of rows whose threads are past the old code: of them only KIND_PENDING counts
 * @from_rows: mask of rows out of which a clear thread is moved (WFPATCH_VISIT_MIGRATE)
 * @target: the row to move to
 * @scan_limit: bytes of stack that are looked at, at most
 *
 * A thread is *clear* once, at one moment, its instruction pointer and no word of the used part of
 * its own stack lay in a range that counts for it. One that is born during the visit, in one of
 * @left_rows, is clear as it is: LIST says its row and nothing else of it. Asynchronous: poll(2)
 * says POLLIN when all threads are clear or the deadline has passed; LIST says what was seen. A
 * session has one visit at a time, and other requests fail with EBUSY meanwhile; CANCEL ends it.
 */
struct wfpatch_visit {
	__u32 size;
	__u32 flags;
	__s32 eventfd;
	__u32 deadline_ms;
	__u64 ranges;
	__u64 stacks;
	__u32 n_ranges;
	__u32 n_stacks;
	__u64 left_rows;
	__u64 from_rows;
	__u32 target;
	__u32 scan_limit;
};

#define WFPATCH_VISIT_MIGRATE	_BITUL(0)
#define WFPATCH_VISIT_ONCE	_BITUL(1)	/* each thread is judged at its first moment only */

/**
 * struct wfpatch_listed - what the last visit saw of a thread (those that ended are not listed)
 * @tid: its number in the caller's pid namespace
 * @tgid: of its process (a vfork child's is another one)
 * @state: WFPATCH_STATE_*
 * @reason: WFPATCH_REASON_* while it is not clear
 * @flags: WFPATCH_LISTED_*
 * @row: the row it is in after the visit, or ~0 when it was not seen or is in none
 * @gs_base: as seen, before a migration
 * @fs_base: as seen
 * @ip: as seen
 * @sp: as seen
 * @hit_at: where the word lies that accuses it, 0 for @ip itself
 * @hit_word: that word
 * @start_time: nanoseconds since boot
 * @switches: how often it had been switched out by then
 * @comm: its name, zero-terminated
 */
struct wfpatch_listed {
	__s32 tid;
	__s32 tgid;
	__u32 state;
	__u32 reason;
	__u32 flags;
	__u32 row;
	__u64 gs_base;
	__u64 fs_base;
	__u64 ip;
	__u64 sp;
	__u64 hit_at;
	__u64 hit_word;
	__u64 start_time;
	__u64 switches;
	char comm[16];
};

#define WFPATCH_STATE_WAITING	0
#define WFPATCH_STATE_CLEAR	1

#define WFPATCH_REASON_NONE	0
#define WFPATCH_REASON_UNSEEN	1	/* has not run since: waits for a processor */
#define WFPATCH_REASON_RANGE	2	/* @hit_word lies in a range */
#define WFPATCH_REASON_STACK	3	/* @sp is not on the stack of @fs_base, if one is */
#define WFPATCH_REASON_SIGNAL	4	/* is on its alternate signal stack */
#define WFPATCH_REASON_FAULT	5	/* a page of its stack is not there */
#define WFPATCH_REASON_LIMIT	6	/* its stack is larger than @scan_limit */
#define WFPATCH_REASON_GS	7	/* its GS base is no row: the program uses GS */
#define WFPATCH_REASON_CLONE	8	/* would have been moved, but is inside clone or fork */
#define WFPATCH_REASON_MODE	9	/* runs 32-bit code, or is a virtual processor */

#define WFPATCH_LISTED_MIGRATED	_BITUL(0)	/* this visit moved it */
#define WFPATCH_LISTED_ASLEEP	_BITUL(1)	/* was asleep when seen */

/**
 * struct wfpatch_list - what the last visit saw
 * @size: of this structure
 * @state: WFPATCH_VISIT_NONE, _RUNNING, _CLEAR or _DEADLINE
 * @threads: address of struct wfpatch_listed, room for @n_threads
 * @n_threads: in: room; out: how many there are (ENOSPC when it was too small)
 * @entry_size: sizeof(struct wfpatch_listed)
 *
 * Before the first visit it lists the threads, all unseen.
 */
struct wfpatch_list {
	__u32 size;
	__u32 state;
	__u64 threads;
	__u32 n_threads;
	__u32 entry_size;
};

#define WFPATCH_VISIT_NONE	0
#define WFPATCH_VISIT_RUNNING	1
#define WFPATCH_VISIT_CLEAR	2	/* all threads are clear */
#define WFPATCH_VISIT_DEADLINE	3	/* some were not in time, or it was cancelled */

/**
 * struct wfpatch_registers - in the order of ptrace's user_regs_struct
 */
struct wfpatch_registers {
	__u64 r15, r14, r13, r12, bp, bx, r11, r10, r9, r8, ax, cx, dx, si, di;
	__u64 orig_ax, ip, cs, flags, sp, ss, fs_base, gs_base, ds, es, fs, gs;
};

/**
 * struct wfpatch_word - what lies at an address
 * @address: a multiple of 8
 * @value: what lies there
 */
struct wfpatch_word {
	__u64 address;
	__u64 value;
};

/**
 * struct wfpatch_thread - one thread, at one moment when it does not run user code
 * @size: of this structure
 * @flags: WFPATCH_THREAD_*
 * @tid: the thread
 * @deadline_ms: 1 to WFPATCH_MAX_DEADLINE; EAGAIN when no moment was found
 * @stack: address of a buffer for a copy of the stack from @sp (rounded down to 8) on, or 0; with
 *	WORDS: of struct wfpatch_word
 * @stack_high: copy up to here at most
 * @stack_room: bytes of the buffer
 * @stack_length: out: bytes copied (fewer where a page is not there); in, with EXPECT: bytes given
 * @seen: out: WFPATCH_SEEN_* (after EXPECT: _ASLEEP alone); in, with EXPECT: as it was
 * @new_row: the row to move to (WFPATCH_THREAD_MOVE)
 * @switches: out: how often it had been switched out; in, with EXPECT: as it was
 * @registers: out; in, with EXPECT: @ip, @sp and @gs_base (with FRAME: and @bp) as they were
 *
 * With EXPECT, nothing is done (ESTALE) unless the thread is as it was: either it has been asleep
 * ever since (@switches is what it was, WFPATCH_SEEN_ASLEEP was given), or its instruction
 * pointer, stack pointer and the @stack_length bytes of its stack in the buffer are the same again.
 * With WORDS it is not the whole stack that has to be the same, but those words of it by which the
 * caller has unwound it (at most WFPATCH_MAX_WORDS), and the thread is looked at again until
 * @deadline_ms is over (ESTALE): one that goes round in a loop comes by the same place again.
 *
 * ENOENT: the thread is gone, or of another address space; EOPNOTSUPP: a 32-bit or vCPU thread.
 */
struct wfpatch_thread {
	__u32 size;
	__u32 flags;
	__s32 tid;
	__u32 deadline_ms;
	__u64 stack;
	__u64 stack_high;
	__u32 stack_room;
	__u32 stack_length;
	__u32 seen;
	__u32 new_row;
	__u64 switches;
	struct wfpatch_registers registers;
};

#define WFPATCH_THREAD_MOVE	_BITUL(0)
#define WFPATCH_THREAD_EXPECT	_BITUL(1)
#define WFPATCH_THREAD_WORDS	_BITUL(2)	/* with EXPECT: single words */
#define WFPATCH_THREAD_FRAME	_BITUL(3)	/* with WORDS: the frame pointer counts, too */

#define WFPATCH_MAX_WORDS	1024

#define WFPATCH_SEEN_ASLEEP	_BITUL(0)
#define WFPATCH_SEEN_ALTSTACK	_BITUL(1)	/* is on its alternate signal stack */
#define WFPATCH_SEEN_CLONE	_BITUL(2)	/* is inside clone or fork: not moved (EAGAIN) */
#define WFPATCH_SEEN_SYSCALL	_BITUL(3)	/* is inside a system call */

#define WFPATCH_IOC_MAGIC	0xb7
/* On the device: */
#define WFPATCH_IOC_INFO	_IOWR(WFPATCH_IOC_MAGIC, 0, struct wfpatch_info)
#define WFPATCH_IOC_ATTACH	_IOW(WFPATCH_IOC_MAGIC, 1, struct wfpatch_attach)
/* On a session: */
#define WFPATCH_IOC_LOAD	_IOW(WFPATCH_IOC_MAGIC, 16, struct wfpatch_map)
#define WFPATCH_IOC_UNLOAD	_IOW(WFPATCH_IOC_MAGIC, 17, struct wfpatch_map)
#define WFPATCH_IOC_ARM		_IOWR(WFPATCH_IOC_MAGIC, 18, struct wfpatch_arm)
#define WFPATCH_IOC_VISIT	_IOW(WFPATCH_IOC_MAGIC, 19, struct wfpatch_visit)
#define WFPATCH_IOC_CANCEL	_IO(WFPATCH_IOC_MAGIC, 20)
#define WFPATCH_IOC_LIST	_IOWR(WFPATCH_IOC_MAGIC, 21, struct wfpatch_list)
#define WFPATCH_IOC_THREAD	_IOWR(WFPATCH_IOC_MAGIC, 22, struct wfpatch_thread)
#define WFPATCH_IOC_WRITE	_IOW(WFPATCH_IOC_MAGIC, 23, struct wfpatch_write)

#endif /* _UAPI_WFPATCH_H */
