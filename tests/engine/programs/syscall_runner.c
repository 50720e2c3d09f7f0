// SPDX-License-Identifier: GPL-3.0-or-later
/*
 * Enters the system call runner as the tracer would: with an rt_sigframe at rsp. The frame is that of
 * a real signal; the handler keeps it and goes back by way of the runner.
 *
 * Input: u64 bytes of code, u64 records, the code, the records. Output: "restored" or what differs,
 * the records in hex, "end".
 */
#define _GNU_SOURCE
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

uint64_t header[2];
unsigned char *code;
unsigned char *records;

void take_signal(int number);

/*
 * The handler is entered with the address of the frame's start at rsp (the return address to the
 * restorer is the frame's first word), so "frame + 8" is where rt_sigreturn wants rsp.
 */
asm("	.text\n"
    "take_signal:\n"
    "	add $8, %rsp\n"
    "	mov records(%rip), %r12\n"
    "	mov header+8(%rip), %r13\n"
    "	mov $0x1234567812345678, %rbx\n"
    "	jmp *code(%rip)\n");

uint64_t in[6] = { 0x1111, 0x2222, 0x3333, 0x4444, 0x5555, 0x6666 };
uint64_t out[6];

void interrupted(void);

/* kill(getpid(), SIGUSR1) with patterns in registers, then what is in them afterwards. */
asm("	.text\n"
    "interrupted:\n"
    "	push %rbx\n push %r12\n push %r13\n push %r14\n push %r15\n"
    "	mov in(%rip), %rbx\n mov in+8(%rip), %r12\n mov in+16(%rip), %r13\n"
    "	mov in+24(%rip), %r14\n mov in+32(%rip), %r15\n movq in+40(%rip), %xmm15\n"
    "	mov $39, %eax\n syscall\n mov %eax, %edi\n mov $10, %esi\n"
    "	mov $62, %eax\n syscall\n"
    "	mov %rbx, out(%rip)\n mov %r12, out+8(%rip)\n mov %r13, out+16(%rip)\n"
    "	mov %r14, out+24(%rip)\n mov %r15, out+32(%rip)\n movq %xmm15, out+40(%rip)\n"
    "	pop %r15\n pop %r14\n pop %r13\n pop %r12\n pop %rbx\n"
    "	ret\n");

static void read_all(void *to, size_t size)
{
	unsigned char *at = to;

	while (size) {
		ssize_t got = read(0, at, size);

		if (got <= 0)
			exit(2);
		at += got;
		size -= (size_t)got;
	}
}

int main(void)
{
	struct sigaction action = { .sa_handler = take_signal };

	read_all(header, sizeof(header));
	code = mmap(NULL, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	records = calloc(header[1] + 1, 72);
	read_all(code, header[0]);
	read_all(records, header[1] * 72);
	sigaction(SIGUSR1, &action, NULL);
	interrupted();
	printf("%s\n", memcmp(in, out, sizeof(in)) ? "registers differ" : "restored");
	for (uint64_t index = 0; index < header[1] * 72; index++)
		printf("%02x", records[index]);
	printf("\nend\n");
	fflush(stdout);
	return 0;
}
