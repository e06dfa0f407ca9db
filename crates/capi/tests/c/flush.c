// Calls on a thread that flushes subnormals to zero: ordinary data keep their bits, no finite result becomes NaN, and
// the mode is left as it is. (valgrind does not flush, so there this test sees no difference.)

#include "step.h"

#if defined(__x86_64__)
#include <xmmintrin.h>
// FTZ and DAZ, and what else is not a flag of what has happened.
enum { FLUSH = 0x8040, CONTROL = 0xffc0 };
static unsigned int mode(void) { return _mm_getcsr() & CONTROL; }
static void set_flush(int flush) { _mm_setcsr((_mm_getcsr() & ~(unsigned int)FLUSH) | (flush ? FLUSH : 0)); }
#else
static unsigned int mode(void) { return 0; }
static void set_flush(int flush) { (void)flush; }
#endif

enum { OUTER = 6, CHANNELS = 5 };

typedef struct outputs {
    // Of the batch, with the residual and weights: y, dx, dresidual; then with running statistics.
    void *y, *dx, *dresidual, *frozen_y, *frozen_dx;
    void *dgamma, *dbeta;
    double doubles[8][CHANNELS];
    float floats[2][CHANNELS];
} outputs;

static outputs new_outputs(int32_t element, size_t len) {
    outputs o;
    memset(&o, 0, sizeof o);
    void **large[] = {&o.y, &o.dx, &o.dresidual, &o.frozen_y, &o.frozen_dx};
    for (size_t i = 0; i < sizeof large / sizeof *large; i++) {
        *large[i] = allocate(len, element_size(element));
    }
    o.dgamma = allocate(CHANNELS, sizeof(double)), o.dbeta = allocate(CHANNELS, sizeof(double));
    return o;
}

static void free_outputs(outputs o) {
    void *arrays[] = {o.y, o.dx, o.dresidual, o.frozen_y, o.frozen_dx, o.dgamma, o.dbeta};
    for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++) {
        free(arrays[i]);
    }
}

// All passes of a step, and what follows from its statistics. The mode is changed around each call, not in between.
static outputs run(const bn_plan_desc *desc, step s, const void *weights, int flush) {
    const size_t len = s.len;
    outputs o = new_outputs(desc->element, len);
    bn_plan *plan = make(desc);
    bn_statistics statistics;
    bn_running_statistics running, narrow;
    bn_forward_training_args forward;
    bn_normalize_args normalize;
    bn_backward_args back;
    bn_scale_shift scale_shift;
    bn_fold_args fold;
    INIT(statistics), INIT(running), INIT(narrow), INIT(forward), INIT(normalize), INIT(back), INIT(scale_shift);
    INIT(fold);
    statistics.mean = doubles(o.doubles[0], CHANNELS), statistics.var = doubles(o.doubles[1], CHANNELS);
    running.mean = doubles(o.doubles[2], CHANNELS), running.var = doubles(o.doubles[3], CHANNELS);
    narrow.float_mean = floats(o.floats[0], CHANNELS), narrow.float_var = floats(o.floats[1], CHANNELS);
    scale_shift.scale = doubles(o.doubles[4], CHANNELS), scale_shift.shift = doubles(o.doubles[5], CHANNELS);
    forward.x = in(s.x, len), forward.gamma = in(s.gamma, CHANNELS), forward.beta = in(s.beta, CHANNELS);
    forward.residual = in(s.dy, len), forward.weights = in(weights, desc->outer * desc->inner);
    forward.y = out(o.y, len), forward.statistics = &statistics;
    normalize.x = forward.x, normalize.gamma = forward.gamma, normalize.beta = forward.beta;
    normalize.running = &running, normalize.y = out(o.frozen_y, len);
    back.x = forward.x, back.dy = in(s.dy, len), back.gamma = forward.gamma, back.beta = forward.beta;
    back.residual = forward.residual, back.weights = forward.weights, back.statistics = &statistics;
    back.dx = out(o.dx, len), back.dresidual = out(o.dresidual, len);
    back.dgamma = out(o.dgamma, CHANNELS), back.dbeta = out(o.dbeta, CHANNELS);
    fold.running = &running, fold.gamma = forward.gamma, fold.beta = forward.beta, fold.scale_shift = &scale_shift;

#define CALL(call)                                                                                                     \
    do {                                                                                                               \
        set_flush(flush);                                                                                              \
        const unsigned int then = mode();                                                                              \
        const int32_t status = (call);                                                                                 \
        const unsigned int now = mode();                                                                               \
        set_flush(0);                                                                                                  \
        CHECK_OK(status);                                                                                              \
        CHECK(now == then);                                                                                            \
    } while (0)

    CALL(bn_forward_training(plan, &forward));
    CALL(bn_backward(plan, &back));
    CALL(bn_update_running_statistics(&running, &statistics, BN_AVERAGE_EXPONENTIAL, 0.5));
    CALL(bn_update_running_statistics(&narrow, &statistics, BN_AVERAGE_EXPONENTIAL, 0.5));
    CALL(bn_normalize(plan, &normalize));
    back.statistics = NULL, back.running = &running, back.dx = out(o.frozen_dx, len), back.dresidual = out(NULL, 0);
    back.dgamma = back.dbeta = out(NULL, 0);
    CALL(bn_backward(plan, &back));
    CALL(bn_fold(plan, &fold));
    CHECK_OK(bn_plan_destroy(plan));
    return o;
}

static int same_bits(int32_t element, size_t len, outputs a, outputs b) {
    const size_t bytes = len * element_size(element);
    return memcmp(a.y, b.y, bytes) == 0 && memcmp(a.dx, b.dx, bytes) == 0 &&
           memcmp(a.dresidual, b.dresidual, bytes) == 0 && memcmp(a.frozen_y, b.frozen_y, bytes) == 0 &&
           memcmp(a.frozen_dx, b.frozen_dx, bytes) == 0 && memcmp(a.dgamma, b.dgamma, CHANNELS * sizeof(double)) == 0 &&
           memcmp(a.dbeta, b.dbeta, CHANNELS * sizeof(double)) == 0 &&
           memcmp(a.doubles, b.doubles, sizeof a.doubles) == 0 && memcmp(a.floats, b.floats, sizeof a.floats) == 0;
}

// The number of values that are finite in a, and NaN in b.
static size_t lost(int32_t element, size_t n, const void *a, const void *b) {
    size_t lost = 0;
    for (size_t i = 0; i < n; i++) {
        lost += isfinite(get(element, a, i)) && isnan(get(element, b, i));
    }
    return lost;
}

static size_t all_lost(int32_t element, size_t len, outputs a, outputs b) {
    const int32_t p = parameter(element);
    return lost(element, len, a.y, b.y) + lost(element, len, a.dx, b.dx) +
           lost(element, len, a.dresidual, b.dresidual) + lost(element, len, a.frozen_y, b.frozen_y) +
           lost(element, len, a.frozen_dx, b.frozen_dx) +
           lost(p, CHANNELS, a.dgamma, b.dgamma) + lost(p, CHANNELS, a.dbeta, b.dbeta) +
           lost(BN_ELEMENT_F64, 8 * CHANNELS, a.doubles, b.doubles) +
           lost(BN_ELEMENT_F32, 2 * CHANNELS, a.floats, b.floats);
}

static uint32_t state = 1;
static double uniform(void) {
    state = state * 1664525u + 1013904223u;
    return (double)(state >> 8) / 16777216.0;
}

// A power of ten in the range of the type, and so of any size between subnormal and nearly infinite.
static double any_size(int32_t element) {
    const double least = element == BN_ELEMENT_F64 ? -320 : element == BN_ELEMENT_F16 ? -8 : -45;
    const double most = element == BN_ELEMENT_F64 ? 140 : element == BN_ELEMENT_F16 ? 4 : 37;
    return pow(10, least + (most - least) * uniform());
}

static void fill(int32_t element, void *array, size_t n, double size) {
    for (size_t i = 0; i < n; i++) {
        set(element, array, i, size * (2 * uniform() - 1));
    }
}

static void check_element(int32_t element, size_t inner, int32_t isa, int32_t activation, double eps) {
    const int32_t p = parameter(element);
    bn_plan_desc desc = describe(element, OUTER, CHANNELS, inner, eps);
    desc.isa = isa, desc.activation = activation;
    step s = new_step(&desc);
    void *weights = allocate(OUTER * inner, element_size(p));
    for (size_t k = 0; k < OUTER * inner; k++) {
        set(p, weights, k, (double)(k % 3));
    }
    outputs a = run(&desc, s, weights, 0), b = run(&desc, s, weights, 1);
    CHECK(same_bits(element, s.len, a, b));
    free_outputs(a), free_outputs(b);
    size_t lost_values = 0;
    for (int round = 0; round < 50; round++) {
        fill(element, s.x, s.len, any_size(element)), fill(element, s.dy, s.len, any_size(element));
        fill(p, s.gamma, CHANNELS, any_size(p)), fill(p, s.beta, CHANNELS, any_size(p));
        a = run(&desc, s, weights, 0), b = run(&desc, s, weights, 1);
        lost_values += all_lost(element, s.len, a, b);
        free_outputs(a), free_outputs(b);
    }
    CHECK(lost_values == 0);
    free_step(s), free(weights);
}

int main(void) {
    int32_t best = BN_ISA_PORTABLE;
    CHECK_OK(bn_best_isa(&best));
    for (int32_t element = BN_ELEMENT_F32; element <= BN_ELEMENT_F16; element++) {
        for (int32_t activation = BN_ACTIVATION_IDENTITY; activation <= BN_ACTIVATION_SILU; activation++) {
            for (size_t inner = 1; inner <= 33; inner += 32) {
                check_element(element, inner, BN_ISA_PORTABLE, activation, 1e-5);
                check_element(element, inner, best, activation, 0);
            }
        }
    }
    // Ordinary data on several threads, which flush as the one that starts them.
    set_flush(1);
    check_threads(BN_THREADS_POOL, 3, NULL, NULL, NULL);
    set_flush(0);
    return report("flush");
}
