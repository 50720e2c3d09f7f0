# SPDX-License-Identifier: GPL-3.0-or-later
"""A program of several source files for tests of matching: twins, tables, statics of one name,
switch tables, cold parts, thread-local data, functions too short to be told apart."""

from __future__ import annotations

HEADER = """
#ifndef COMMON_H
#define COMMON_H
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#define KEEP __attribute__((noinline, noclone))
struct record { int kind; int count; long total; char name[32]; };
extern struct record shared;
extern __thread int depth;
int store(struct record *r, const char *name);
int load(struct record *r);
int drop(struct record *r);
int visit(int kind, int x);
int work(int x);
KEEP static int clamp(int x) { return x < 0 ? 0 : x; }
#endif
"""

STORE = """
#include "common.h"
struct record shared = {.kind = 3, .name = "shared"};
__thread int depth;
static int calls;
long weights[16];
static int state;
KEEP static void note(void) { calls++; }
KEEP static int first_twin(struct record *r) { return r->count; }
KEEP static int second_twin(struct record *r) { return r->count; }
KEEP static int check(struct record *r)
{
    if (r->kind > 900) { fprintf(stderr, "store: bad kind %d\\n", r->kind); abort(); }
    return r->kind;
}
int store(struct record *r, const char *name)
{
    note();
    strncpy(r->name, name, sizeof r->name - 1);
    r->total += weights[clamp(r->count) & 15] + check(r);
    state = first_twin(r) * 3;
    return second_twin(r) + state;
}
KEEP static int empty(struct record *r) { return r->total == 0; }
int drop(struct record *r)
{
    memset(r, 0, sizeof *r);
    note();
    depth--;
    shared.count--;
    return empty(r) + printf("dropped %s\\n", r->name);
}
"""

LOAD = """
#include "common.h"
static int calls;
static int state = 7;
static const char *const names[] = {"zero", "one", "two", "three"};
KEEP static void note(void) { calls++; }
KEEP static int zero(void) { return 0; }
KEEP static int one(int x) { return x + 1; }
KEEP static int two(int x) { return x + 2; }
KEEP static int three(int x) { return x * 3 + state; }
static int (*const table[])(int) = {one, two, three};
KEEP static int check(struct record *r)
{
    if (r->total < 0) { fprintf(stderr, "load: negative total of %s\\n", r->name); abort(); }
    return (int)strlen(names[r->kind & 3]);
}
int load(struct record *r)
{
    note();
    state += r->kind;
    depth++;
    shared.total += check(r);
    return table[r->kind % 3](r->count) + zero();
}
int visit(int kind, int x)
{
    switch (kind) {
    case 0: return puts("visit zero") + x;
    case 1: return rand() - x;
    case 2: return puts("visit two") * x;
    case 3: return clamp(x) ^ 0x55;
    case 4: return getchar();
    case 5: return x * 77 + state;
    }
    return -1;
}
"""

WORK = """
#include "common.h"
static long total;
static long spare[4];
KEEP static double scale(double x) { return x * 2.5 + 0.125; }
KEEP static long sum(const long *v, int n)
{
    long s = 0;
    for (int i = 0; i < n; i++) s += v[i] ^ i;
    return s;
}
KEEP static int compare(const void *a, const void *b)
{
    return *(const int *)a - *(const int *)b;
}
KEEP static int reverse(const void *a, const void *b)
{
    return *(const int *)b - *(const int *)a;
}
int work(int x)
{
    int v[8] = {x, 3, 5, 9};
    qsort(v, 8, sizeof v[0], x > 3 ? compare : reverse);
    total += sum(spare, 4) + (long)scale(x);
    spare[x & 3] = total;
    return v[0] + clamp(x);
}
int main(int argc, char **argv)
{
    struct record r = {.kind = argc};
    int n = store(&r, argv[0]) + load(&r) + visit(argc, 3) + work(argc);
    return n + drop(&r) == 12345;
}
"""

FILES = {"common.h": HEADER, "store.c": STORE, "load.c": LOAD, "work.c": WORK}
SOURCES = ("store.c", "load.c", "work.c")
