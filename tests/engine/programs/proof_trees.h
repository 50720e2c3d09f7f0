/* SPDX-License-Identifier: GPL-3.0-or-later
 *
 * Call trees that betray a mixture of versions by construction.
 *
 * Every version of a replaced function stamps its number into the thread's record when it is
 * entered and puts the former stamp back when it leaves. A stamp of another version that is found
 * there means that code of two versions is on this thread's call tree. Who is called by the set
 * also gets the caller's version as an argument, so that a tail jump, which leaves no frame, is
 * seen as well.
 *
 * What a tree does is a script, one character a step, so that one body makes every shape:
 *
 *   f g k r x y   call that function directly; F G K R X Y: through a pointer
 *   d             call d directly: its first instruction is a call, which goes on with the script
 *   e             call e directly: its last instruction is a call that never returns
 *   .             return
 *   t             leave by a tail jump (f to g, r to itself, x to y, y to x; others: ignored)
 *   h             call a function outside the set, which goes on with the script
 *   z             the same, with words of old code lying on the stack
 *   Z b           the same, with a frame that is never written: of 3 KiB / of 320 KiB
 *   p P           wait for a byte of the thread's pipe, in libc / by a system call in the body
 *   n i w         sleep for a moment: nanosleep in libc / in the body / a futex in libc
 *   j             wipe what calls left right below the frame
 *   c q           as n and p, in the body's cold part, then call g from there
 *   u             the same, through a function that no unwinder knows
 *   s a           raise a signal whose handler goes on with the script: on this stack / on the
 *                 thread's alternate stack
 *   1 2           fork / vfork; the child goes on with the script up to its end, then exits
 *   3 5           a clone with CLONE_VM / CLONE_VM|CLONE_THREAD, which comes back in the body on
 *                 a stack of its own without a TCB of its own and runs the child's script
 *   4             a thread that runs the child's script
 *   o             go on on a stack of the program's own, beneath the thread's TCB
 *
 * 1, 2, 4 and o also work outside of the set (in h); 3 5 P i j c q t only in it.
 */
#ifndef PROOF_TREES_H
#define PROOF_TREES_H

#define MAX_VERSION 15
#define SCRIPT 64
#define TRACE 256

struct tree {
	unsigned long stamp;	/* version of the innermost function of the set, 0: none */
	unsigned long last;	/* version of the last tree */
	unsigned long switches;
	int transition;		/* the one by which the last tree came to its version */
	unsigned long calls[MAX_VERSION + 1];
	unsigned long random;
	int wake[2];		/* the pipe of p, P and q */
	int blocked;		/* how often p, P or q was reached */
	int child;		/* this is a copy in a child: its row goes its own way */
	int tid;
	int clone_runs;		/* cleared by the kernel when the clone is gone */
	char *clone_stack;
	unsigned long clone_stamp;
	int traced;
	char child_script[SCRIPT];
	char trace[TRACE];
};

typedef long step(struct tree *t, const char **pc, unsigned long prev, unsigned long caller);

step f, g, k, r, x, y, d, e;
/* What d calls first, for its versions 1, 2, 3; d leaves the stack as it comes. */
step first_1 __attribute__((force_align_arg_pointer));
step first_2 __attribute__((force_align_arg_pointer));
step first_3 __attribute__((force_align_arg_pointer));
extern step *const pointers[6];

void rt_violation(struct tree *t, int id, unsigned long seen, unsigned long caller,
		  unsigned long version);
void rt_entered(struct tree *t, int id, unsigned long prev, unsigned long version);
void rt_enter(struct tree *t, int id, unsigned long prev, unsigned long caller,
	      unsigned long version);
void rt_outside(struct tree *t, const char **pc, int op);
void rt_leave(struct tree *t, const char **pc) __attribute__((noreturn));
void rt_rare(struct tree *t, int op) __attribute__((cold));
int rt_may_clone(struct tree *t);
void rt_clone_child(struct tree *t);

#define CLONE_STACK 65536
#define CLONE_VM_FLAGS 0x00200111UL	/* CLONE_VM | CLONE_CHILD_CLEARTID | SIGCHLD */
/* CLONE_VM | FS | FILES | SIGHAND | THREAD | SYSVSEM | CHILD_CLEARTID */
#define CLONE_THREAD_FLAGS 0x00250f00UL

static inline long rt_syscall(long number, long a, long b, long c)
{
	long result;

	__asm__ volatile("syscall"
			 : "=a"(result)
			 : "a"(number), "D"(a), "S"(b), "d"(c)
			 : "rcx", "r11", "memory");
	return result;
}

/* The child comes back right here, in the middle of the replaced function. */
static inline void rt_clone_here(struct tree *t, unsigned long flags)
{
	register int *child_tid __asm__("r10") = &t->clone_runs;
	register struct tree *kept __asm__("r12") = t;
	long result = 56;

	__asm__ volatile("syscall\n\t"
			 "test %%rax, %%rax\n\t"
			 "jnz 1f\n\t"
			 "mov %%r12, %%rdi\n\t"
			 "call rt_clone_child\n\t"
			 "ud2\n"
			 "1:"
			 : "+a"(result)
			 : "D"(flags), "S"(t->clone_stack + CLONE_STACK), "d"(0L),
			   "r"(child_tid), "r"(kept)
			 : "rcx", "r8", "r11", "memory");
}

/* Another name of r: a jump to the entry, where the compiler would make a loop of the own name. */
extern step r_again __asm__("r");

#define TAIL_TO(target) return target(t, pc, prev, VERSION)

/* ``tail`` is what t does; EXTRA lets a version differ in size and layout from the one before. */
#define STEP(name, id, tail)                                                             \
	__attribute__((noipa)) long name(struct tree *t, const char **pc,                \
					 unsigned long prev, unsigned long caller)       \
	{                                                                                \
		unsigned long seen = t->stamp;                                           \
		int op;                                                                  \
                                                                                         \
		if ((seen && seen != VERSION) || (caller && caller != VERSION))          \
			rt_violation(t, id, seen, caller, VERSION);                      \
		t->stamp = VERSION;                                                      \
		t->calls[VERSION]++;                                                     \
		if (!prev || t->traced)                                                  \
			rt_entered(t, id, prev, VERSION);                                \
		EXTRA;                                                                   \
		while ((op = **pc) != 0) {                                               \
			++*pc;                                                           \
			if (op == '.')                                                   \
				break;                                                   \
			if (op == 't') {                                                 \
				tail;                                                    \
			} else if (op == 'f') {                                          \
				f(t, pc, t->stamp, VERSION);                             \
			} else if (op == 'g') {                                          \
				g(t, pc, t->stamp, VERSION);                             \
			} else if (op == 'k') {                                          \
				k(t, pc, t->stamp, VERSION);                             \
			} else if (op == 'r') {                                          \
				r(t, pc, t->stamp, VERSION);                             \
			} else if (op == 'x') {                                          \
				x(t, pc, t->stamp, VERSION);                             \
			} else if (op == 'y') {                                          \
				y(t, pc, t->stamp, VERSION);                             \
			} else if (op == 'd') {                                          \
				d(t, pc, t->stamp, VERSION);                             \
			} else if (op == 'e') {                                          \
				e(t, pc, t->stamp, VERSION);                             \
			} else if (op == 'P') {                                          \
				char byte;                                               \
				t->blocked++;                                            \
				while (rt_syscall(0, t->wake[0], (long)&byte, 1) < 0)    \
					;                                                \
			} else if (op == 'j') {                                          \
				__asm__ volatile("movq $0, -8(%%rsp)" : : : "memory");   \
			} else if (op == 'i') {                                          \
				long moment[2] = { 0, 50000 };                           \
				rt_syscall(35, (long)moment, 0, 0);                      \
			} else if (op == 'c' || op == 'q') {                             \
				rt_rare(t, op);                                          \
				g(t, pc, t->stamp, VERSION);                             \
			} else if (op == '3' || op == '5') {                             \
				if (rt_may_clone(t))                                     \
					rt_clone_here(t, op == '3' ? CLONE_VM_FLAGS :    \
								     CLONE_THREAD_FLAGS);\
			} else {                                                         \
				rt_outside(t, pc, op);                                   \
			}                                                                \
		}                                                                        \
		t->stamp = prev;                                                         \
		return VERSION;                                                          \
	}

#define DEFINE_e                                                                         \
	__attribute__((noipa)) long NAMED(e)(struct tree *t, const char **pc,            \
					     unsigned long prev, unsigned long caller)   \
	{                                                                                \
		rt_enter(t, 'e', prev, caller, VERSION);                                 \
		rt_leave(t, pc);                                                         \
	}

/* Its frame is first_N's caller; nothing else of it is needed. */
#define D_OF(version) D_AS(version)
#define D_AS(version)                                                                    \
	__attribute__((naked)) long d(struct tree *t, const char **pc,                   \
				      unsigned long prev, unsigned long caller)          \
	{                                                                                \
		(void)t, (void)pc, (void)prev, (void)caller;                             \
		__asm__("call first_" #version "\n\tnop\n\tret");                        \
	}
#define DEFINE_d D_OF(VERSION)

/* What a version's functions are called; only the test of the detector itself renames them. */
#ifndef NAMED
#define NAMED(name) name
#endif

#define DEFINE_f STEP(NAMED(f), 'f', TAIL_TO(g))
#define DEFINE_g STEP(NAMED(g), 'g', )
#define DEFINE_k STEP(NAMED(k), 'k', )
#define DEFINE_r STEP(NAMED(r), 'r', TAIL_TO(r_again))
/* A version of k that leaves by a jump to g, which k as shipped does not. */
#define DEFINE_k_WITH_TAIL STEP(NAMED(k), 'k', TAIL_TO(g))
#define DEFINE_x STEP(NAMED(x), 'x', TAIL_TO(y))
#define DEFINE_y STEP(NAMED(y), 'y', TAIL_TO(x))

#endif
