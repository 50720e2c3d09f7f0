// SPDX-License-Identifier: GPL-3.0-or-later
/*
 * A steady load on a server that checks every byte of every answer, and the verdict as JSON.
 *
 * Open loop: requests are sent when they are due, whatever became of those before. "latency" runs
 * from when a request was due, "service" from when it was sent: the former is what a client of the
 * service feels, the latter leaves out the times this program itself had to wait for a processor.
 *
 * Exit codes: 0 every answer was right and every connection lasted; 1 not so, or nothing was
 * answered; 2 the load could not be run.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "bytes.h"
#include "histogram.h"
#include "model.h"

#define CONNECTIONS_MAX 512
#define PHASES_MAX 32
#define FAULTS_KEPT 8
#define SECONDS_MAX 7200
#define RATE_MAX 200000
/* After so many faults nothing is learnt from more. */
#define FAULTS_MAX 1000
#define NANOSECONDS 1000000000ULL
/* What an interrupted system call looks like in a server's answer. */
#define INTERRUPTED "Interrupted system call"

struct pending {
	uint64_t due;
	uint64_t sent;
	/* Where in the stream of expected bytes its answer ends. */
	uint64_t end;
	unsigned int phase;
};

struct connection {
	int fd;
	unsigned int number;
	unsigned int life;
	bool writable;
	struct model model;
	struct bytes out;
	struct bytes expected;
	uint64_t promised;
	uint64_t matched;
	struct pending *queue;
	size_t queue_begin;
	size_t queue_length;
	size_t queue_room;
};

struct phase {
	char name[32];
	uint64_t requests;
	uint64_t answered;
	uint64_t longest_silence;
	struct histogram latency;
	struct histogram service;
};

static struct {
	const struct protocol *protocol;
	struct sockaddr_in address;
	const char *host;
	const char *control;
	const char *prefix;
	unsigned int connections;
	double rate;
	double seconds;
	double timeout;
	uint64_t seed;
} options = {
	.host = "127.0.0.1",
	.prefix = "load",
	.connections = 8,
	.rate = 1000,
	.seconds = 10,
	.timeout = 10,
	.seed = 1,
};

static struct connection connections[CONNECTIONS_MAX];
static struct phase *phases[PHASES_MAX];
static unsigned int phase_count;
static unsigned int phase_now;
static uint64_t began;
static uint64_t last_answer;
static int poller;

static struct {
	uint64_t requests;
	uint64_t answered;
	uint64_t wrong;
	uint64_t lost;
	uint64_t timeouts;
	uint64_t interrupted;
} counted;

static struct bytes faults;
static unsigned int faults_kept;

static uint64_t now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec * NANOSECONDS + time.tv_nsec;
}

static void add_escaped(struct bytes *json, const char *text, size_t length)
{
	size_t i;

	for (i = 0; i < length; i++) {
		unsigned char byte = text[i];

		if (byte == '"' || byte == '\\')
			bytes_printf(json, "\\%c", byte);
		else if (byte < 0x20 || byte > 0x7e)
			bytes_printf(json, "\\u%04x", byte);
		else
			bytes_add(json, text + i, 1);
	}
}

static void keep_fault(const char *kind, const struct connection *connection, const char *expected,
		       size_t expected_length, const char *seen, size_t seen_length)
{
	if (faults_kept == FAULTS_KEPT)
		return;
	bytes_printf(&faults, "%s{\"kind\":\"%s\",\"connection\":%u,\"second\":%.3f,\"expected\":\"",
		     faults_kept++ ? "," : "", kind, connection->number,
		     (double)(now() - began) / NANOSECONDS);
	add_escaped(&faults, expected, expected_length < 80 ? expected_length : 80);
	bytes_printf(&faults, "\",\"seen\":\"");
	add_escaped(&faults, seen, seen_length < 80 ? seen_length : 80);
	bytes_printf(&faults, "\"}");
}

static void watch(struct connection *connection, bool writable)
{
	struct epoll_event event = {
		.events = EPOLLIN | (writable ? EPOLLOUT : 0),
		.data.u64 = connection->number,
	};

	if (connection->writable == writable)
		return;
	connection->writable = writable;
	if (epoll_ctl(poller, EPOLL_CTL_MOD, connection->fd, &event))
		err(2, "epoll_ctl");
}

/* Opens a connection that knows nothing of its former life. False when the server refuses it. */
static bool open_connection(struct connection *connection)
{
	struct epoll_event event = { .events = EPOLLIN, .data.u64 = connection->number };
	char prefix[64];
	int one = 1;

	snprintf(prefix, sizeof(prefix), "%.32s:%u:%u", options.prefix, connection->number,
		 connection->life++);
	model_reset(&connection->model, prefix,
		    (options.seed << 20) + (connection->number << 10) + connection->life);
	bytes_clear(&connection->out);
	bytes_clear(&connection->expected);
	connection->promised = 0;
	connection->matched = 0;
	connection->queue_begin = 0;
	connection->queue_length = 0;
	connection->writable = false;
	connection->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (connection->fd < 0)
		err(2, "socket");
	if (connect(connection->fd, (struct sockaddr *)&options.address, sizeof(options.address))) {
		close(connection->fd);
		connection->fd = -1;
		return false;
	}
	setsockopt(connection->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	fcntl(connection->fd, F_SETFL, O_NONBLOCK);
	if (epoll_ctl(poller, EPOLL_CTL_ADD, connection->fd, &event))
		err(2, "epoll_ctl");
	return true;
}

static void reopen(struct connection *connection)
{
	close(connection->fd);
	connection->fd = -1;
	open_connection(connection);
}

static void lose(struct connection *connection, const char *why)
{
	counted.lost++;
	keep_fault("lost", connection, bytes_front(&connection->expected),
		   bytes_length(&connection->expected), why, strlen(why));
	reopen(connection);
}

/* Writes what is queued. False when the connection turned out to be lost. */
static bool flush_out(struct connection *connection)
{
	while (bytes_length(&connection->out)) {
		ssize_t written = send(connection->fd, bytes_front(&connection->out),
				       bytes_length(&connection->out), MSG_NOSIGNAL);

		if (written < 0 && errno == EINTR) {
			counted.interrupted++;
			continue;
		}
		if (written < 0 && errno == EAGAIN)
			break;
		if (written < 0) {
			lose(connection, strerror(errno));
			return false;
		}
		bytes_take(&connection->out, written);
	}
	watch(connection, bytes_length(&connection->out) > 0);
	return true;
}

static void enqueue(struct connection *connection, const struct pending *pending)
{
	if (connection->queue_length == connection->queue_room) {
		size_t room = connection->queue_room ? connection->queue_room * 2 : 64;
		struct pending *queue = calloc(room, sizeof(*queue));
		size_t i;

		if (!queue)
			err(2, "out of memory");
		for (i = 0; i < connection->queue_length; i++)
			queue[i] = connection->queue[(connection->queue_begin + i) %
						     connection->queue_room];
		free(connection->queue);
		connection->queue = queue;
		connection->queue_room = room;
		connection->queue_begin = 0;
	}
	connection->queue[(connection->queue_begin + connection->queue_length++) %
			  connection->queue_room] = *pending;
}

static void send_request(struct connection *connection, uint64_t due)
{
	size_t before = bytes_length(&connection->expected);
	struct pending pending = { .due = due, .phase = phase_now };

	if (connection->fd < 0 && !open_connection(connection)) {
		counted.lost++;
		return;
	}
	before = bytes_length(&connection->expected);
	options.protocol->request(&connection->model, &connection->out, &connection->expected);
	connection->promised += bytes_length(&connection->expected) - before;
	pending.end = connection->promised;
	pending.sent = now();
	enqueue(connection, &pending);
	counted.requests++;
	phases[phase_now]->requests++;
	flush_out(connection);
}

static void complete(struct connection *connection)
{
	uint64_t time = now();

	while (connection->queue_length) {
		struct pending *first = &connection->queue[connection->queue_begin];
		struct phase *phase = phases[first->phase];

		if (first->end > connection->matched)
			return;
		counted.answered++;
		phase->answered++;
		histogram_add(&phase->latency, time - first->due);
		histogram_add(&phase->service, time - first->sent);
		/* A silence belongs to the phase in which it ends. */
		if (time - last_answer > phases[phase_now]->longest_silence)
			phases[phase_now]->longest_silence = time - last_answer;
		last_answer = time;
		connection->queue_begin = (connection->queue_begin + 1) % connection->queue_room;
		connection->queue_length--;
	}
}

static void receive(struct connection *connection)
{
	char data[65536];
	ssize_t length;
	size_t i;

	length = recv(connection->fd, data, sizeof(data), 0);
	if (length < 0 && errno == EAGAIN)
		return;
	if (length < 0 && errno == EINTR) {
		counted.interrupted++;
		return;
	}
	if (length <= 0) {
		lose(connection, length ? strerror(errno) : "closed by the server");
		return;
	}
	for (i = 0; i < (size_t)length; i++)
		if (i >= bytes_length(&connection->expected) ||
		    data[i] != bytes_front(&connection->expected)[i])
			break;
	if (i == (size_t)length) {
		connection->matched += length;
		bytes_take(&connection->expected, length);
		complete(connection);
		return;
	}
	/* What follows a wrong answer cannot be told apart: begin anew. */
	counted.wrong++;
	if (memmem(data, length, INTERRUPTED, strlen(INTERRUPTED)))
		counted.interrupted++;
	keep_fault("wrong", connection, bytes_front(&connection->expected),
		   bytes_length(&connection->expected), data, length);
	reopen(connection);
}

static void check_timeouts(uint64_t limit)
{
	uint64_t time = now();
	unsigned int i;

	for (i = 0; i < options.connections; i++) {
		struct connection *connection = &connections[i];

		if (connection->fd < 0 || !connection->queue_length ||
		    time - connection->queue[connection->queue_begin].sent < limit)
			continue;
		counted.timeouts += connection->queue_length;
		keep_fault("timeout", connection, bytes_front(&connection->expected),
			   bytes_length(&connection->expected), "", 0);
		reopen(connection);
	}
}

static void enter_phase(const char *name)
{
	unsigned int i;

	for (i = 0; i < phase_count; i++)
		if (!strcmp(phases[i]->name, name))
			break;
	if (i == PHASES_MAX) {
		warnx("too many phases, %s goes to the last", name);
		i--;
	} else if (i == phase_count) {
		phases[i] = calloc(1, sizeof(*phases[i]));
		if (!phases[i])
			err(2, "out of memory");
		snprintf(phases[i]->name, sizeof(phases[i]->name), "%s", name);
		phase_count++;
	}
	phase_now = i;
}

static void add_quantiles(struct bytes *json, const char *name, const struct histogram *histogram)
{
	bytes_printf(json,
		     "\"%s_us\":{\"mean\":%.1f,\"p50\":%.1f,\"p99\":%.1f,\"p999\":%.1f,\"max\":%.1f}",
		     name, histogram->count ? histogram->sum / histogram->count / 1e3 : 0,
		     histogram_quantile(histogram, 0.50) / 1e3, histogram_quantile(histogram, 0.99) / 1e3,
		     histogram_quantile(histogram, 0.999) / 1e3, histogram->max / 1e3);
}

static bool passed(void)
{
	return counted.answered && !counted.wrong && !counted.lost && !counted.timeouts &&
	       !counted.interrupted;
}

static void verdict(struct bytes *json)
{
	double seconds = (double)(now() - began) / NANOSECONDS;
	unsigned int i;

	bytes_printf(json, "{\"verdict\":\"%s\",\"protocol\":\"%s\",\"host\":\"%s\",\"port\":%d,",
		     passed() ? "pass" : "fail", options.protocol->name, options.host,
		     ntohs(options.address.sin_port));
	bytes_printf(json, "\"connections\":%u,\"seconds\":%.3f,\"rate_wanted\":%.0f,\"rate\":%.1f,",
		     options.connections, seconds, options.rate,
		     seconds > 0 ? counted.answered / seconds : 0);
	bytes_printf(json,
		     "\"requests\":%" PRIu64 ",\"answered\":%" PRIu64 ",\"wrong\":%" PRIu64
		     ",\"lost\":%" PRIu64 ",\"timeouts\":%" PRIu64 ",\"interrupted\":%" PRIu64
		     ",\"phases\":{",
		     counted.requests, counted.answered, counted.wrong, counted.lost,
		     counted.timeouts, counted.interrupted);
	for (i = 0; i < phase_count; i++) {
		const struct phase *phase = phases[i];

		bytes_printf(json, "%s\"", i ? "," : "");
		add_escaped(json, phase->name, strlen(phase->name));
		bytes_printf(json,
			     "\":{\"requests\":%" PRIu64 ",\"answered\":%" PRIu64
			     ",\"longest_silence_us\":%.1f,",
			     phase->requests, phase->answered, phase->longest_silence / 1e3);
		add_quantiles(json, "latency", &phase->latency);
		bytes_printf(json, ",");
		add_quantiles(json, "service", &phase->service);
		bytes_printf(json, "}");
	}
	bytes_printf(json, "},\"faults\":[");
	bytes_add(json, bytes_front(&faults), bytes_length(&faults));
	bytes_printf(json, "]}\n");
}

/* "phase NAME", "stop" or "verdict"; each is answered, the last with the verdict so far. */
static bool obey(int control)
{
	struct sockaddr_un sender;
	socklen_t sender_length = sizeof(sender);
	struct bytes answer = { 0 };
	char text[128];
	bool stop = false;
	ssize_t length = recvfrom(control, text, sizeof(text) - 1, 0, (struct sockaddr *)&sender,
				  &sender_length);

	if (length < 0)
		return false;
	text[length] = 0;
	text[strcspn(text, "\n")] = 0;
	if (!strncmp(text, "phase ", 6) && text[6]) {
		enter_phase(text + 6);
		bytes_printf(&answer, "ok\n");
	} else if (!strcmp(text, "stop")) {
		stop = true;
		bytes_printf(&answer, "ok\n");
	} else if (!strcmp(text, "verdict")) {
		verdict(&answer);
	} else {
		bytes_printf(&answer, "unknown\n");
	}
	if (sender_length > sizeof(sa_family_t))
		sendto(control, bytes_front(&answer), bytes_length(&answer), MSG_DONTWAIT,
		       (struct sockaddr *)&sender, sender_length);
	free(answer.data);
	return stop;
}

static int open_control(void)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	int control = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	if (control < 0)
		err(2, "socket");
	if (strlen(options.control) >= sizeof(address.sun_path))
		errx(2, "%s: too long for a socket", options.control);
	strcpy(address.sun_path, options.control);
	unlink(options.control);
	if (bind(control, (struct sockaddr *)&address, sizeof(address)))
		err(2, "%s", options.control);
	return control;
}

static void watch_other(int fd, uint64_t mark)
{
	struct epoll_event event = { .events = EPOLLIN, .data.u64 = mark };

	if (epoll_ctl(poller, EPOLL_CTL_ADD, fd, &event))
		err(2, "epoll_ctl");
}

static void arm(int timer, uint64_t when)
{
	struct itimerspec setting = {
		.it_value = { .tv_sec = when / NANOSECONDS, .tv_nsec = when % NANOSECONDS },
	};

	if (timerfd_settime(timer, TFD_TIMER_ABSTIME, &setting, NULL))
		err(2, "timerfd_settime");
}

enum { MARK_TIMER = CONNECTIONS_MAX, MARK_CONTROL, MARK_SIGNAL };

/* Sends what is due, takes what comes, until the time is over, then waits for the last answers. */
static void run(int timer, int control, int signals)
{
	uint64_t interval = NANOSECONDS / options.rate;
	uint64_t end = began + options.seconds * NANOSECONDS;
	uint64_t limit = options.timeout * NANOSECONDS;
	uint64_t due = began;
	uint64_t checked = began;
	uint64_t drain_until = 0;
	unsigned int turn = 0;

	for (;;) {
		struct epoll_event events[64];
		uint64_t time = now();
		int count, i;

		if (!drain_until && time >= end)
			drain_until = time + limit;
		while (!drain_until && due <= time) {
			send_request(&connections[turn++ % options.connections], due);
			due += interval;
		}
		if (time - checked > NANOSECONDS / 4) {
			check_timeouts(limit);
			checked = time;
		}
		if (counted.wrong + counted.lost + counted.timeouts > FAULTS_MAX)
			return;
		if (drain_until) {
			size_t outstanding = 0;
			unsigned int c;

			for (c = 0; c < options.connections; c++)
				outstanding += connections[c].queue_length;
			if (!outstanding)
				return;
			if (time > drain_until) {
				check_timeouts(0);
				return;
			}
		}
		arm(timer, drain_until ? time + NANOSECONDS / 100 : due);
		count = epoll_wait(poller, events, 64, 1000);
		if (count < 0) {
			/* All signals are blocked: nothing may interrupt us. */
			if (errno != EINTR)
				err(2, "epoll_wait");
			counted.interrupted++;
			continue;
		}
		for (i = 0; i < count; i++) {
			uint64_t mark = events[i].data.u64;
			uint64_t expirations;

			if (mark == MARK_TIMER) {
				if (read(timer, &expirations, sizeof(expirations)) < 0 && errno != EAGAIN)
					err(2, "timerfd");
			} else if (mark == MARK_CONTROL) {
				if (obey(control))
					end = now();
			} else if (mark == MARK_SIGNAL) {
				struct signalfd_siginfo information;

				if (read(signals, &information, sizeof(information)) > 0)
					end = now();
			} else if (connections[mark].fd >= 0) {
				if (events[i].events & EPOLLOUT && !flush_out(&connections[mark]))
					continue;
				if (events[i].events & ~EPOLLOUT)
					receive(&connections[mark]);
			}
		}
	}
}

static double positive(const char *text, double most, const char *what)
{
	char *end;
	double number = strtod(text, &end);

	if (*end || !(number > 0) || number > most)
		errx(2, "%s: want a number above 0, at most %g, not %s", what, most, text);
	return number;
}

static void usage(FILE *to)
{
	fprintf(to,
		"usage: load [options] redis|memcached\n"
		"  --host ADDRESS      IPv4, default 127.0.0.1\n"
		"  --port N            default: the protocol's own\n"
		"  --connections N     default 8, at most %d\n"
		"  --rate N            requests a second over all connections, default 1000\n"
		"  --seconds N         default 10, at most %d\n"
		"  --timeout N         seconds to wait for an answer, default 10\n"
		"  --phase NAME        of the first phase, default quiet\n"
		"  --control PATH      a datagram socket that takes: phase NAME | verdict | stop\n"
		"  --prefix TEXT       of every key, default load\n"
		"  --seed N            of the choice of requests, default 1\n"
		"SIGTERM and SIGINT end the load as \"stop\" does.\n",
		CONNECTIONS_MAX, SECONDS_MAX);
}

int main(int argc, char **argv)
{
	static const struct option known[] = {
		{ "host", required_argument, NULL, 'h' },
		{ "port", required_argument, NULL, 'p' },
		{ "connections", required_argument, NULL, 'c' },
		{ "rate", required_argument, NULL, 'r' },
		{ "seconds", required_argument, NULL, 's' },
		{ "timeout", required_argument, NULL, 't' },
		{ "phase", required_argument, NULL, 'n' },
		{ "control", required_argument, NULL, 'C' },
		{ "prefix", required_argument, NULL, 'x' },
		{ "seed", required_argument, NULL, 'S' },
		{ "help", no_argument, NULL, '?' },
		{ 0 },
	};
	const char *first_phase = "quiet";
	struct bytes json = { 0 };
	sigset_t mask;
	int port = 0, timer, signals, control = -1, choice;
	unsigned int i;

	while ((choice = getopt_long(argc, argv, "", known, NULL)) != -1) {
		switch (choice) {
		case 'h': options.host = optarg; break;
		case 'p': port = positive(optarg, 65535, "--port"); break;
		case 'c': options.connections = positive(optarg, CONNECTIONS_MAX, "--connections"); break;
		case 'r': options.rate = positive(optarg, RATE_MAX, "--rate"); break;
		case 's': options.seconds = positive(optarg, SECONDS_MAX, "--seconds"); break;
		case 't': options.timeout = positive(optarg, SECONDS_MAX, "--timeout"); break;
		case 'n': first_phase = optarg; break;
		case 'C': options.control = optarg; break;
		case 'x': options.prefix = optarg; break;
		case 'S': options.seed = positive(optarg, 1e9, "--seed"); break;
		default:
			usage(choice == '?' && optopt == 0 ? stdout : stderr);
			return choice == '?' && optopt == 0 ? 0 : 2;
		}
	}
	if (optind + 1 == argc && !strcmp(argv[optind], redis_protocol.name))
		options.protocol = &redis_protocol;
	else if (optind + 1 == argc && !strcmp(argv[optind], memcached_protocol.name))
		options.protocol = &memcached_protocol;
	else
		return usage(stderr), 2;
	if (options.connections < 1)
		errx(2, "--connections: want at least 1");
	options.address.sin_family = AF_INET;
	options.address.sin_port = htons(port ? port : options.protocol->port);
	if (inet_pton(AF_INET, options.host, &options.address.sin_addr) != 1)
		errx(2, "%s: want an IPv4 address", options.host);

	sigfillset(&mask);
	sigdelset(&mask, SIGABRT);
	sigprocmask(SIG_BLOCK, &mask, NULL);
	sigemptyset(&mask);
	sigaddset(&mask, SIGTERM);
	sigaddset(&mask, SIGINT);
	poller = epoll_create1(EPOLL_CLOEXEC);
	timer = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
	signals = signalfd(-1, &mask, SFD_CLOEXEC | SFD_NONBLOCK);
	if (poller < 0 || timer < 0 || signals < 0)
		err(2, "epoll_create1, timerfd_create or signalfd");
	watch_other(timer, MARK_TIMER);
	watch_other(signals, MARK_SIGNAL);
	if (options.control) {
		control = open_control();
		watch_other(control, MARK_CONTROL);
	}
	enter_phase(first_phase);
	for (i = 0; i < options.connections; i++) {
		connections[i].number = i;
		if (!open_connection(&connections[i]))
			err(2, "%s:%d", options.host, ntohs(options.address.sin_port));
	}
	began = last_answer = now();
	run(timer, control, signals);
	if (options.control)
		unlink(options.control);
	verdict(&json);
	fwrite(bytes_front(&json), 1, bytes_length(&json), stdout);
	if (fflush(stdout))
		err(2, "standard output");
	return passed() ? 0 : 1;
}
