// SPDX-License-Identifier: GPL-3.0-or-later
/*
 * One thread in each blocking system call that a stop might interrupt, counting EINTR.
 *
 * Commands on stdin: "list" prints the names with their thread ids ("name:tid ..."), "report" prints
 * "name=EINTRs/returns ..."; "signal" sends SIGUSR1 (handled, no SA_RESTART) to every thread, which
 * makes each call return EINTR once: so the counters are known to count; "version" prints what
 * version() returns, which a patch may replace.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <linux/futex.h>
#include <linux/io_uring.h>
#include <mqueue.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/inotify.h>
#include <sys/ipc.h>
#include <sys/msg.h>
#include <sys/prctl.h>
#include <sys/select.h>
#include <sys/sem.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

struct blocker {
	const char *name;
	long (*block)(void);
	pthread_t thread;
	pid_t tid;
	atomic_long eintr, returns;
	atomic_int absent;
};

static const struct timespec long_time = {.tv_sec = 1000};
static __thread char buffer[8192];

static int with_timeout(int fd, int option)
{
	struct timeval limit = {.tv_sec = 1000};

	setsockopt(fd, SOL_SOCKET, option, &limit, sizeof(limit));
	return fd;
}

static int pair(void)
{
	int ends[2];

	if (socketpair(AF_UNIX, SOCK_STREAM, 0, ends) != 0)
		abort();
	return ends[0];
}

static int full_pair(void)
{
	int fd = pair();

	while (send(fd, buffer, sizeof(buffer), MSG_DONTWAIT) > 0)
		;
	return fd;
}

static int listener(void)
{
	struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	int fd = socket(AF_INET, SOCK_STREAM, 0);

	if (bind(fd, (struct sockaddr *)&address, sizeof(address)) != 0 || listen(fd, 1) != 0)
		abort();
	return fd;
}

static int semaphores(void)
{
	static atomic_int id = -1;

	if (id < 0) {
		id = semget(IPC_PRIVATE, 1, 0600);
	}
	return id;
}

static long epoll_wait_inf(void)
{
	struct epoll_event event;
	static __thread int fd;

	if (!fd)
		fd = epoll_create1(0);
	return syscall(SYS_epoll_wait, fd, &event, 1, -1);
}

static long epoll_wait_timed(void)
{
	struct epoll_event event;
	static __thread int fd;

	if (!fd)
		fd = epoll_create1(0);
	return syscall(SYS_epoll_wait, fd, &event, 1, 1000000);
}

static long epoll_pwait_mask(void)
{
	struct epoll_event event;
	uint64_t mask = 1ull << (SIGUSR2 - 1);
	static __thread int fd;

	if (!fd)
		fd = epoll_create1(0);
	return syscall(SYS_epoll_pwait, fd, &event, 1, -1, &mask, 8);
}

static long epoll_pwait2_timed(void)
{
	struct epoll_event event;
	static __thread int fd;

	if (!fd)
		fd = epoll_create1(0);
	return syscall(441, fd, &event, 1, &long_time, NULL, 8);
}

#define WITH_FD(function, make, expression)                                                        \
	static long function(void)                                                                 \
	{                                                                                          \
		static __thread int fd;                                                            \
		if (!fd)                                                                           \
			fd = make;                                                                 \
		return expression;                                                                 \
	}

static long receive_message(int fd)
{
	struct iovec part = {buffer, 16};
	struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};

	return syscall(SYS_recvmsg, fd, &message, 0);
}

static long receive_messages(int fd)
{
	struct iovec part = {buffer, 16};
	struct mmsghdr message = {.msg_hdr = {.msg_iov = &part, .msg_iovlen = 1}};

	return syscall(SYS_recvmmsg, fd, &message, 1, 0, NULL);
}

WITH_FD(recv_plain, pair(), syscall(SYS_recvfrom, fd, buffer, 16, 0, NULL, NULL))
WITH_FD(recv_timeo, with_timeout(pair(), SO_RCVTIMEO), syscall(SYS_recvfrom, fd, buffer, 16, 0, NULL, NULL))
WITH_FD(recvmsg_timeo, with_timeout(pair(), SO_RCVTIMEO), receive_message(fd))
WITH_FD(recvmmsg_timeo, with_timeout(pair(), SO_RCVTIMEO), receive_messages(fd))
WITH_FD(read_timeo, with_timeout(pair(), SO_RCVTIMEO), syscall(SYS_read, fd, buffer, 16))
WITH_FD(send_timeo, with_timeout(full_pair(), SO_SNDTIMEO), syscall(SYS_sendto, fd, buffer, 4096, 0, NULL, 0))
WITH_FD(write_timeo, with_timeout(full_pair(), SO_SNDTIMEO), syscall(SYS_write, fd, buffer, 4096))
WITH_FD(accept_plain, listener(), syscall(SYS_accept, fd, NULL, NULL))
WITH_FD(accept_timeo, with_timeout(listener(), SO_RCVTIMEO), syscall(SYS_accept, fd, NULL, NULL))
WITH_FD(accept4_timeo, with_timeout(listener(), SO_RCVTIMEO), syscall(SYS_accept4, fd, NULL, NULL, 0))
WITH_FD(read_eventfd, eventfd(0, 0), syscall(SYS_read, fd, buffer, 8))
WITH_FD(read_timerfd, timerfd_create(CLOCK_MONOTONIC, 0), syscall(SYS_read, fd, buffer, 8))
WITH_FD(read_inotify, inotify_init1(0), syscall(SYS_read, fd, buffer, 4096))

static int empty_pipe(void)
{
	int ends[2];

	if (pipe(ends) != 0)
		abort();
	return ends[0];
}

WITH_FD(read_pipe, empty_pipe(), syscall(SYS_read, fd, buffer, 16))

static long poll_inf(void)
{
	return syscall(SYS_poll, NULL, 0, -1);
}

static long poll_timed(void)
{
	return syscall(SYS_poll, NULL, 0, 1000000);
}

static long ppoll_mask(void)
{
	uint64_t mask = 1ull << (SIGUSR2 - 1);

	return syscall(SYS_ppoll, NULL, 0, NULL, &mask, 8);
}

static long ppoll_timed(void)
{
	struct timespec left = long_time;

	return syscall(SYS_ppoll, NULL, 0, &left, NULL, 8);
}

static long select_timed(void)
{
	struct timeval left = {.tv_sec = 1000};

	return syscall(SYS_select, 0, NULL, NULL, NULL, &left);
}

static long pselect_mask(void)
{
	uint64_t mask = 1ull << (SIGUSR2 - 1);
	struct { uint64_t *mask; size_t size; } argument = {&mask, 8};

	return syscall(SYS_pselect6, 0, NULL, NULL, NULL, NULL, &argument);
}

static long sleep_relative(void)
{
	return syscall(SYS_nanosleep, &long_time, NULL);
}

static long sleep_absolute(void)
{
	struct timespec end;

	clock_gettime(CLOCK_MONOTONIC, &end);
	end.tv_sec += 1000;
	return syscall(SYS_clock_nanosleep, CLOCK_MONOTONIC, TIMER_ABSTIME, &end, NULL);
}

static long sleep_clock(void)
{
	return syscall(SYS_clock_nanosleep, CLOCK_REALTIME, 0, &long_time, NULL);
}

static long futex_inf(void)
{
	uint32_t word = 0;

	return syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, 0, NULL, NULL, 0);
}

static long futex_timed(void)
{
	uint32_t word = 0;

	return syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, 0, &long_time, NULL, 0);
}

static long semop_wait(void)
{
	struct sembuf down = {.sem_num = 0, .sem_op = -1};

	return syscall(SYS_semop, semaphores(), &down, 1);
}

static long semtimedop_wait(void)
{
	struct sembuf down = {.sem_num = 0, .sem_op = -1};

	return syscall(SYS_semtimedop, semaphores(), &down, 1, &long_time);
}

static long msgrcv_wait(void)
{
	static __thread int id = -1;

	if (id < 0) {
		id = msgget(IPC_PRIVATE, 0600);
	}
	return syscall(SYS_msgrcv, id, buffer, 16, 0, 0);
}

static long mq_wait(void)
{
	static __thread mqd_t queue = -1;
	struct timespec end;

	if (queue < 0) {
		char name[64];

		snprintf(name, sizeof(name), "/wfpatch-test-%d", getpid());
		queue = mq_open(name, O_RDWR | O_CREAT | O_EXCL, 0600, NULL);
		mq_unlink(name);
		if (queue < 0)
			return -ENOSYS;
	}
	clock_gettime(CLOCK_REALTIME, &end);
	end.tv_sec += 1000;
	return syscall(SYS_mq_timedreceive, queue, buffer, 8192, NULL, &end);
}

static long sigtimedwait_inf(void)
{
	uint64_t wanted = 1ull << (SIGUSR2 - 1);

	return syscall(SYS_rt_sigtimedwait, &wanted, NULL, NULL, 8);
}

static long sigtimedwait_timed(void)
{
	uint64_t wanted = 1ull << (SIGUSR2 - 1);

	return syscall(SYS_rt_sigtimedwait, &wanted, NULL, &long_time, 8);
}

static long sigsuspend_wait(void)
{
	uint64_t mask = 1ull << (SIGUSR2 - 1);

	return syscall(SYS_rt_sigsuspend, &mask, 8);
}

static long pause_wait(void)
{
	return syscall(SYS_pause);
}

static pid_t child;

static long wait_child(void)
{
	return syscall(SYS_wait4, child, NULL, 0, NULL);
}

static long waitid_child(void)
{
	return syscall(SYS_waitid, P_PID, child, NULL, WEXITED | WNOWAIT, NULL);
}

static int lock_file(void)
{
	static atomic_int holder = -1;
	char path[] = "/tmp/wfpatch-lock-XXXXXX";
	char reopened[64];
	int fd;

	if (holder < 0) {
		holder = mkstemp(path);
		unlink(path);
		flock(holder, LOCK_EX);
	}
	snprintf(reopened, sizeof(reopened), "/proc/self/fd/%d", holder);
	fd = open(reopened, O_RDWR);
	return fd;
}

WITH_FD(flock_wait, lock_file(), syscall(SYS_flock, fd, LOCK_EX))

static long fifo_open(void)
{
	char path[64];

	snprintf(path, sizeof(path), "/tmp/wfpatch-fifo-%d", getpid());
	mkfifo(path, 0600);
	return syscall(SYS_open, path, O_RDONLY);
}

static long aio_wait(void)
{
	static __thread aio_context_t context;
	struct io_event event;

	if (!context && syscall(SYS_io_setup, 1, &context) != 0)
		return -ENOSYS;
	return syscall(SYS_io_getevents, context, 1, 1, &event, NULL);
}

static long aio_wait_timed(void)
{
	static __thread aio_context_t context;
	struct timespec limit = long_time;
	struct io_event event;

	if (!context && syscall(SYS_io_setup, 1, &context) != 0)
		return -ENOSYS;
	return syscall(SYS_io_getevents, context, 1, 1, &event, &limit);
}

static long aio_pwait(void)
{
	static __thread aio_context_t context;
	struct io_event event;

	if (!context && syscall(SYS_io_setup, 1, &context) != 0)
		return -ENOSYS;
	return syscall(SYS_io_pgetevents, context, 1, 1, &event, NULL, NULL);
}

static long uring_wait(void)
{
	static __thread int fd;

	if (!fd) {
		struct io_uring_params parameters = {0};

		fd = syscall(SYS_io_uring_setup, 4, &parameters);
		if (fd < 0) {
			fd = 0;
			return -ENOSYS;
		}
	}
	return syscall(SYS_io_uring_enter, fd, 0, 1, IORING_ENTER_GETEVENTS, NULL, 0);
}

#define BLOCKER(function) {.name = #function, .block = function}
static struct blocker blockers[] = {
	BLOCKER(epoll_wait_inf), BLOCKER(epoll_wait_timed), BLOCKER(epoll_pwait_mask),
	BLOCKER(epoll_pwait2_timed), BLOCKER(recv_plain), BLOCKER(recv_timeo), BLOCKER(recvmsg_timeo),
	BLOCKER(recvmmsg_timeo), BLOCKER(read_timeo), BLOCKER(send_timeo), BLOCKER(write_timeo),
	BLOCKER(accept_plain), BLOCKER(accept_timeo), BLOCKER(accept4_timeo), BLOCKER(read_eventfd),
	BLOCKER(read_timerfd), BLOCKER(read_inotify), BLOCKER(read_pipe), BLOCKER(poll_inf),
	BLOCKER(poll_timed), BLOCKER(ppoll_mask), BLOCKER(ppoll_timed), BLOCKER(select_timed),
	BLOCKER(pselect_mask), BLOCKER(sleep_relative), BLOCKER(sleep_absolute), BLOCKER(sleep_clock),
	BLOCKER(futex_inf), BLOCKER(futex_timed), BLOCKER(semop_wait), BLOCKER(semtimedop_wait),
	BLOCKER(msgrcv_wait), BLOCKER(mq_wait), BLOCKER(sigtimedwait_inf), BLOCKER(sigtimedwait_timed),
	BLOCKER(sigsuspend_wait), BLOCKER(pause_wait), BLOCKER(wait_child), BLOCKER(waitid_child),
	BLOCKER(flock_wait), BLOCKER(fifo_open), BLOCKER(aio_wait), BLOCKER(aio_wait_timed),
	BLOCKER(aio_pwait), BLOCKER(uring_wait),
};

static atomic_int started;

static void *run(void *argument)
{
	struct blocker *self = argument;

	self->tid = syscall(SYS_gettid);
	started++;
	for (;;) {
		long result;

		errno = 0;
		result = self->block();
		if (result == -ENOSYS || (result < 0 && (errno == ENOSYS || errno == EPERM))) {
			self->absent = 1;
			for (;;)
				pause();
		}
		self->returns++;
		if (result < 0 && errno == EINTR)
			self->eintr++;
		else
			usleep(1000); /* a wait that ended otherwise must not become a busy loop */
	}
	return NULL;
}

static void handled(int number)
{
	(void)number;
}

/* A first instruction of five bytes, so that each way of arming fits it. */
__attribute__((noipa)) int version(void)
{
	return 41000;
}

int main(void)
{
	struct sigaction action = {.sa_handler = handled};
	const size_t count = sizeof(blockers) / sizeof(blockers[0]);
	pthread_attr_t attributes;
	sigset_t blocked;
	char line[64];

	sigaction(SIGUSR1, &action, NULL);
	sigemptyset(&blocked);
	sigaddset(&blocked, SIGUSR2);
	pthread_sigmask(SIG_BLOCK, &blocked, NULL);
	child = fork();
	if (child == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		for (;;)
			pause();
	}
	pthread_attr_init(&attributes);
	pthread_attr_setstacksize(&attributes, 256 * 1024);
	for (size_t i = 0; i < count; i++)
		pthread_create(&blockers[i].thread, &attributes, run, &blockers[i]);
	while (started < (int)count)
		usleep(1000);
	usleep(200000);
	printf("ready\n");
	fflush(stdout);
	while (fgets(line, sizeof(line), stdin)) {
		if (line[0] == 'v')
			printf("%d", version());
		if (line[0] == 's')
			for (size_t i = 0; i < count; i++)
				pthread_kill(blockers[i].thread, SIGUSR1);
		for (size_t i = 0; i < count; i++) {
			if (blockers[i].absent)
				continue;
			if (line[0] == 'l')
				printf("%s:%d ", blockers[i].name, blockers[i].tid);
			else if (line[0] == 'r')
				printf("%s=%ld/%ld ", blockers[i].name, blockers[i].eintr, blockers[i].returns);
		}
		printf("\n");
		fflush(stdout);
	}
	kill(child, SIGKILL);
	return 0;
}
