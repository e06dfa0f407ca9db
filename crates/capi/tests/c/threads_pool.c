// One pool for many plans, and plans on pools in forked children, which do not have the threads.

// For fork and alarm, which strict C11 does not declare.
#define _POSIX_C_SOURCE 200809L

#include "step.h"

#include <pthread.h>
#include <sys/wait.h>
#include <unistd.h>

// A plan, a step that it ran, and room for the same step again.
typedef struct ran {
    bn_plan *plan;
    step first, again;
} ran;

// The forward pass, which says nothing: a child that checked it could wait for a lock of stderr.
static int32_t forward(const bn_plan *plan, step s) {
    bn_statistics statistics;
    bn_forward_training_args args;
    INIT(statistics), INIT(args);
    statistics.mean = doubles(s.mean, s.channels);
    statistics.var = doubles(s.var, s.channels);
    args.x = in(s.x, s.len);
    args.gamma = in(s.gamma, s.channels);
    args.y = out(s.y, s.len);
    args.statistics = &statistics;
    return bn_forward_training(plan, &args);
}

// The shapes are large enough for a pass to wake a pool.
static ran run_first(size_t outer, int32_t threads, const bn_pool *pool) {
    bn_plan_desc desc = describe(BN_ELEMENT_F32, outer, 64, 1024, 1e-5);
    desc.threads = threads;
    desc.pool = pool;
    ran r;
    r.plan = make(&desc);
    r.first = new_step(&desc), r.again = new_step(&desc);
    CHECK_OK(forward(r.plan, r.first));
    return r;
}

static int runs_again(ran r) {
    memset(r.again.y, 0xff, r.again.len * sizeof(float));
    return forward(r.plan, r.again) == BN_OK && memcmp(r.first.y, r.again.y, r.first.len * sizeof(float)) == 0;
}

static void end(ran r) {
    CHECK_OK(bn_plan_destroy(r.plan));
    free_step(r.first), free_step(r.again);
}

static void share_a_pool(size_t threads) {
    bn_pool *pool = NULL;
    CHECK_OK(bn_pool_create(threads, &pool));
    check_threads(BN_THREADS_POOL, 0, NULL, NULL, pool);
    const ran a = run_first(9, BN_THREADS_POOL, pool), b = run_first(10, BN_THREADS_POOL, pool);
    CHECK(runs_again(a) && runs_again(b));
    end(a);
    CHECK_OK(bn_pool_destroy(pool));
    // The plan still has the pool.
    CHECK(runs_again(b));
    end(b);
}

// What a child does with the parent's plans, and with a pool of its own. Returns 0 if all of it is right.
static int child(const ran *plans, size_t n, bn_pool *pool) {
    alarm(60);
    for (size_t k = 0; k < n; k++) {
        if (!runs_again(plans[k])) {
            return 1;
        }
    }
    bn_pool *own = NULL;
    if (bn_pool_create(3, &own) != BN_OK) {
        return 2;
    }
    ran r = plans[0];
    bn_plan_desc desc = describe(BN_ELEMENT_F32, 9, 64, 1024, 1e-5);
    desc.threads = BN_THREADS_POOL;
    desc.pool = own;
    if (bn_plan_create(&desc, &r.plan) != BN_OK || !runs_again(r)) {
        return 3;
    }
    if (bn_plan_destroy(r.plan) != BN_OK || bn_pool_destroy(own) != BN_OK) {
        return 4;
    }
    for (size_t k = 0; k < n; k++) {
        if (bn_plan_destroy(plans[k].plan) != BN_OK) {
            return 5;
        }
    }
    return bn_pool_destroy(pool) == BN_OK ? 0 : 6;
}

// Plans that a thread uses while another one forks.
typedef struct background {
    ran plans[3];
    step steps[3];
    int done, right;
} background;

static void *run_in_background(void *arg) {
    background *b = (background *)arg;
    while (!__atomic_load_n(&b->done, __ATOMIC_RELAXED)) {
        for (size_t k = 0; k < 3; k++) {
            b->right &= forward(b->plans[k].plan, b->steps[k]) == BN_OK;
        }
    }
    return NULL;
}

static void fork_children(int rounds) {
    bn_pool *pool = NULL;
    CHECK_OK(bn_pool_create(3, &pool));
    background b;
    b.plans[0] = run_first(9, BN_THREADS_POOL, pool);
    b.plans[1] = run_first(9, BN_THREADS_POOL, NULL);
    b.plans[2] = run_first(9, BN_THREADS_SEQUENTIAL, NULL);
    const bn_plan_desc desc = describe(BN_ELEMENT_F32, 9, 64, 1024, 1e-5);
    for (size_t k = 0; k < 3; k++) {
        b.steps[k] = new_step(&desc);
    }
    b.done = 0, b.right = 1;
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, run_in_background, &b) == 0);
    int wrong = 0, last = 0;
    for (int round = 0; round < rounds; round++) {
        const pid_t pid = fork();
        if (pid == 0) {
            _exit(child(b.plans, 3, pool));
        }
        int status = -1;
        if (pid < 0 || waitpid(pid, &status, 0) != pid || status != 0) {
            wrong++;
            last = status;
        }
    }
    if (wrong > 0) {
        fprintf(stderr, "%d of %d children failed, the last with status %d\n", wrong, rounds, last);
    }
    CHECK(wrong == 0);
    __atomic_store_n(&b.done, 1, __ATOMIC_RELAXED);
    CHECK(pthread_join(thread, NULL) == 0);
    CHECK(b.right);
    for (size_t k = 0; k < 3; k++) {
        CHECK(runs_again(b.plans[k]));
        end(b.plans[k]);
        free_step(b.steps[k]);
    }
    CHECK_OK(bn_pool_destroy(pool));
}

int main(int argc, char **argv) {
    share_a_pool(0);
    share_a_pool(3);
    // Under sanitizers and valgrind none: see .ci/capi.
    fork_children(argc > 1 ? atoi(argv[1]) : 300);
    return report("threads_pool");
}
