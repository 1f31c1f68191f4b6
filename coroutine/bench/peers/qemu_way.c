/*
 * Coroutines in the way of 2011: stacks by makecontext, switches by sigsetjmp and siglongjmp
 * without the signal mask, a pool of 64 coroutines for each thread. Written for the comparison.
 */
#define _GNU_SOURCE
#undef _FORTIFY_SOURCE
#include <setjmp.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <ucontext.h>

#define STACK_SIZE (1024 * 1024)
#define GUARD_SIZE 4096
#define POOL_SIZE 64

enum action { YIELD = 1, TERMINATE = 2, ENTER = 3 };

struct co {
    void (*entry)(void *);
    void *argument;
    struct co *caller;
    struct co *next; /* in the pool */
    void *stack;
    sigjmp_buf env;
};

static __thread struct co leader;
static __thread struct co *current;
static __thread struct co *pool;
static __thread int pool_size;

__attribute__((noinline)) static struct co *self(void)
{
    if (!current)
        current = &leader;
    return current;
}

__attribute__((noinline)) static enum action switch_to(struct co *from, struct co *to, enum action action)
{
    current = to;
    int result = sigsetjmp(from->env, 0);
    if (result == 0)
        siglongjmp(to->env, action);
    return result;
}

union pointer {
    void *p;
    int i[2];
};

static void trampoline(int low, int high)
{
    union pointer argument = { .i = { low, high } };
    struct co *co = argument.p;
    sigjmp_buf *back = co->argument;
    if (!sigsetjmp(co->env, 0))
        siglongjmp(*back, 1);
    for (;;) {
        co->entry(co->argument);
        switch_to(co, co->caller, TERMINATE);
    }
}

static struct co *co_new(void)
{
    ucontext_t context, old;
    sigjmp_buf back;
    union pointer argument;
    struct co *co = calloc(1, sizeof *co);
    if (!co)
        abort();
    co->stack = mmap(NULL, STACK_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (co->stack == MAP_FAILED || mprotect(co->stack, GUARD_SIZE, PROT_NONE))
        abort();
    getcontext(&context);
    context.uc_link = &old;
    context.uc_stack.ss_sp = co->stack;
    context.uc_stack.ss_size = STACK_SIZE;
    co->argument = &back;
    argument.p = co;
    makecontext(&context, (void (*)(void))trampoline, 2, argument.i[0], argument.i[1]);
    if (!sigsetjmp(back, 0))
        swapcontext(&old, &context);
    return co;
}

static void co_delete(struct co *co)
{
    if (pool_size < POOL_SIZE) {
        co->next = pool;
        pool = co;
        pool_size++;
        return;
    }
    munmap(co->stack, STACK_SIZE);
    free(co);
}

struct co *qemu_way_create(void (*entry)(void *), void *argument)
{
    struct co *co = pool;
    if (co) {
        pool = co->next;
        pool_size--;
    } else {
        co = co_new();
    }
    co->entry = entry;
    co->argument = argument;
    co->caller = NULL;
    return co;
}

void qemu_way_enter(struct co *co)
{
    struct co *from = self();
    if (co->caller)
        abort();
    co->caller = from;
    if (switch_to(from, co, ENTER) == TERMINATE) {
        co->caller = NULL;
        co_delete(co);
    }
}

void qemu_way_yield(void)
{
    struct co *from = self();
    struct co *to = from->caller;
    if (!to)
        abort();
    from->caller = NULL;
    switch_to(from, to, YIELD);
}
