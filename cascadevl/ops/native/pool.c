// Threads that help with loops, without lock-step: nobody waits for a helper that has not begun.
//
// The caller announces a loop of independent items and takes items itself; helpers that are awake take others. So a
// helper whose core is busy with something else costs nothing, unless it is interrupted in the middle of an item.
// Who waits too long for such an item works alone for a while. Whoever computes an item, its result is the same.

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <time.h>
#include <unistd.h>

typedef void Work(void *context, int item, int thread);

enum { MAX_THREADS = 64, SPINS = 20000, MOST_ALONE = 1024 };

static struct {
    _Atomic uint64_t next;  // number of the loop in the upper half, its next item in the lower one
    _Atomic int done, sleeping, num_helpers;
    Work *work;
    void *context;
    int num_items;
    pthread_mutex_t lock, in_use;
    pthread_cond_t wake;
    int wanted, alone, penalty;
    pid_t owner;
    double began_s, waited_s;
} pool = {.lock = PTHREAD_MUTEX_INITIALIZER, .in_use = PTHREAD_MUTEX_INITIALIZER, .wake = PTHREAD_COND_INITIALIZER};

static inline void rest(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#endif
}

static double now_s(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + 1e-9 * t.tv_nsec;
}

// Compute some items of the loop now announced, if any are left: neighbours, since each fetches what the next one
// reads, and fewer towards the end, so that all are done at the same time.
static int take(int thread) {
    uint64_t next = atomic_load_explicit(&pool.next, memory_order_acquire);
    for (;;) {
        int item = (int32_t)next, left = pool.num_items - item;
        if (left <= 0) return 0;
        int num = left / (2 * (atomic_load_explicit(&pool.num_helpers, memory_order_relaxed) + 1));
        if (num < 1) num = 1;
        // Succeeds only if this loop is still the one: what was read of it then belongs to it.
        if (atomic_compare_exchange_weak_explicit(&pool.next, &next, next + num, memory_order_acq_rel,
                                                  memory_order_acquire)) {
            for (int end = item + num; item < end; item++) pool.work(pool.context, item, thread);
            atomic_fetch_add_explicit(&pool.done, num, memory_order_release);
            return 1;
        }
    }
}

static void *help(void *number) {
    int thread = (int)(intptr_t)number, idle = 0;
    for (;;) {
        if (take(thread)) {
            idle = 0;
        } else if (++idle < SPINS) {
            rest();
        } else {
            pthread_mutex_lock(&pool.lock);
            atomic_store(&pool.sleeping, 1);
            pthread_cond_wait(&pool.wake, &pool.lock);
            pthread_mutex_unlock(&pool.lock);
            idle = 0;
        }
    }
    return NULL;
}

// Helpers fall asleep between calls, and while a long item of somebody else ends a loop.
static void wake(void) {
    if (!atomic_load_explicit(&pool.sleeping, memory_order_relaxed)) return;
    pthread_mutex_lock(&pool.lock);
    atomic_store(&pool.sleeping, 0);
    pthread_cond_broadcast(&pool.wake);
    pthread_mutex_unlock(&pool.lock);
}

// How many threads, the caller's among them, compute from now on.
void set_threads(int num) {
    pool.wanted = num < 1 ? 1 : num > MAX_THREADS ? MAX_THREADS : num;
    pool.penalty = pool.alone = 0;
}

// Before the loops of one call: is there help? Helpers do not survive a fork, and are made when first needed.
static int begin(void) {
    if (pool.wanted <= 1) return 0;
    if (pool.owner != getpid()) {
        pool.owner = getpid();
        pthread_mutex_init(&pool.in_use, NULL);
        pthread_mutex_init(&pool.lock, NULL);
        pthread_cond_init(&pool.wake, NULL);
        atomic_store(&pool.num_helpers, 0);
        atomic_store(&pool.sleeping, 0);
    }
    if (pthread_mutex_trylock(&pool.in_use)) return 0;  // helpers work for one caller at a time
    if (pool.alone > 0) {
        pool.alone--;
        pthread_mutex_unlock(&pool.in_use);
        return 0;
    }
    while (atomic_load(&pool.num_helpers) < pool.wanted - 1) {
        pthread_t thread;
        intptr_t number = atomic_load(&pool.num_helpers) + 1;
        if (pthread_create(&thread, NULL, help, (void *)number)) break;
        pthread_detach(thread);
        atomic_fetch_add(&pool.num_helpers, 1);
    }
    pool.began_s = now_s();
    pool.waited_s = 0;
    return 1;
}

// Do all items, in any order. With `helped`, items go to several threads.
static void each(int helped, int num_items, Work *work, void *context) {
    if (!helped || num_items == 1) {
        for (int item = 0; item < num_items; item++) work(context, item, 0);
        return;
    }
    uint64_t loop = (atomic_load_explicit(&pool.next, memory_order_relaxed) >> 32) + 1;
    // Closed while it is described: no item is left.
    atomic_store(&pool.next, loop << 32 | INT32_MAX);
    pool.work = work;
    pool.context = context;
    pool.num_items = num_items;
    atomic_store(&pool.done, 0);
    atomic_store(&pool.next, (loop + 1) << 32);
    wake();
    while (take(0)) {}
    if (atomic_load_explicit(&pool.done, memory_order_acquire) == num_items) return;
    double started = now_s();
    for (int spins = 1; atomic_load_explicit(&pool.done, memory_order_acquire) != num_items; spins++) {
        if (spins % 4096) rest();
        else sched_yield();
    }
    pool.waited_s += now_s() - started;
}

// After the loops of one call: was help worth waiting for?
static void end(int helped) {
    if (!helped) return;
    if (pool.waited_s > 0.3 * (now_s() - pool.began_s) && pool.waited_s > 2e-4) {
        pool.penalty = pool.penalty ? pool.penalty * 2 : 16;
        if (pool.penalty > MOST_ALONE) pool.penalty = MOST_ALONE;
        pool.alone = pool.penalty;
    } else if (pool.penalty) {
        pool.penalty--;
    }
    pthread_mutex_unlock(&pool.in_use);
}
