// The passes on OpenMP threads.

#include "step.h"

static void parallel_for(void *ctx, size_t n, bn_task task, void *arg) {
    const long count = (long)n;
    (void)ctx;
#pragma omp parallel for schedule(dynamic) num_threads(4)
    for (long i = 0; i < count; i++) {
        task(arg, (size_t)i);
    }
}

int main(void) {
    check_threads(BN_THREADS_CALLER, 4, parallel_for, NULL, NULL);
    return report("threads_openmp");
}
