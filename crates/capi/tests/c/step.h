// A training step on made-up data, compared with the textbook and with steps on other threads.
#ifndef BATCHNORM_STEP_H
#define BATCHNORM_STEP_H

#include "test.h"

static size_t element_size(int32_t element) {
    return element == BN_ELEMENT_F64 ? sizeof(double) : element == BN_ELEMENT_F32 ? sizeof(float) : sizeof(uint16_t);
}

static double from_half(int32_t element, uint16_t half) {
    const int bits = fraction_bits(element), bias = exponent_bias(element);
    const int exponent = (half & 0x7fff) >> bits, fraction = half & ((1 << bits) - 1);
    const int scaled = exponent == 0 ? fraction : fraction | 1 << bits;
    return ldexp(half >> 15 ? -scaled : scaled, (exponent == 0 ? 1 : exponent) - bias - bits);
}

static double get(int32_t element, const void *array, size_t i) {
    switch (element) {
    case BN_ELEMENT_F32: return (double)((const float *)array)[i];
    case BN_ELEMENT_F64: return ((const double *)array)[i];
    default: return from_half(element, ((const uint16_t *)array)[i]);
    }
}

// Heap memory of exactly this size, so that valgrind and AddressSanitizer see accesses beyond its ends.
static void *allocate(size_t n, size_t size) {
    void *memory = calloc(n > 0 ? n : 1, size);
    if (memory == NULL) {
        abort();
    }
    return memory;
}

// The arrays of a training step: inputs and outputs.
typedef struct step {
    size_t len, channels;
    void *x, *dy, *gamma, *beta;
    void *y, *dx, *dgamma, *dbeta;
    double *mean, *var;
} step;

static step new_step(const bn_plan_desc *desc) {
    const int32_t p = parameter(desc->element);
    const size_t size = element_size(desc->element), p_size = element_size(p), channels = desc->channels;
    const size_t len = desc->outer * channels * desc->inner;
    uint32_t random = 1;
    step s;
    s.len = len;
    s.channels = channels;
    s.x = allocate(len, size), s.dy = allocate(len, size), s.y = allocate(len, size), s.dx = allocate(len, size);
    s.gamma = allocate(channels, p_size), s.beta = allocate(channels, p_size);
    s.dgamma = allocate(channels, p_size), s.dbeta = allocate(channels, p_size);
    s.mean = (double *)allocate(channels, sizeof(double)), s.var = (double *)allocate(channels, sizeof(double));
    for (size_t i = 0; i < len; i++) {
        random = random * 1664525u + 1013904223u;
        set(desc->element, s.x, i, 3.0 + (double)(random >> 8) / 8388608.0);
        random = random * 1664525u + 1013904223u;
        set(desc->element, s.dy, i, -1.0 + (double)(random >> 8) / 8388608.0);
    }
    for (size_t c = 0; c < channels; c++) {
        set(p, s.gamma, c, 0.5 + (double)c / 8.0);
        set(p, s.beta, c, 1.0 - (double)c / 8.0);
    }
    return s;
}

static void free_step(step s) {
    void *arrays[] = {s.x, s.dy, s.gamma, s.beta, s.y, s.dx, s.dgamma, s.dbeta, s.mean, s.var};
    for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++) {
        free(arrays[i]);
    }
}

// The fused passes of a training step.
static void run_step(const bn_plan *plan, step s) {
    bn_statistics statistics;
    bn_forward_training_args forward;
    bn_backward_args backward;
    INIT(statistics), INIT(forward), INIT(backward);
    statistics.mean = doubles(s.mean, s.channels);
    statistics.var = doubles(s.var, s.channels);
    forward.x = in(s.x, s.len);
    forward.gamma = in(s.gamma, s.channels);
    forward.beta = in(s.beta, s.channels);
    forward.y = out(s.y, s.len);
    forward.statistics = &statistics;
    CHECK_OK(bn_forward_training(plan, &forward));
    backward.x = forward.x;
    backward.dy = in(s.dy, s.len);
    backward.statistics = &statistics;
    backward.gamma = forward.gamma;
    backward.dx = out(s.dx, s.len);
    backward.dgamma = out(s.dgamma, s.channels);
    backward.dbeta = out(s.dbeta, s.channels);
    CHECK_OK(bn_backward(plan, &backward));
}

// The index of value k of channel c.
static size_t place(const bn_plan_desc *d, size_t c, size_t k) {
    return ((k / d->inner) * d->channels + c) * d->inner + k % d->inner;
}

// Compares a training step with the textbook formulas, in two passes and long double. The tolerance is relative to the
// sizes of the terms that are added up: for f32 8u (forward, sums) and 16u (dx) with u = 2^-24, for bf16 and f16 the
// same and one rounding, for f64 1e-13 times kappa = sqrt(1 + mean^2 / var). For dx the terms include those of the
// sums, since sums that cancel still carry the roundings of their terms.
static void check_textbook(const bn_plan_desc *d, step s) {
    const size_t m = d->outer * d->inner;
    const int32_t e = d->element, p = parameter(e);
    const long double rounding = e == BN_ELEMENT_BF16 ? ldexpl(1, -8) : e == BN_ELEMENT_F16 ? ldexpl(1, -11) : 0;
    int y_ok = 1, dx_ok = 1, dgamma_ok = 1, dbeta_ok = 1;
    for (size_t c = 0; c < d->channels; c++) {
        long double mean = 0, var = 0, sum = 0, dot = 0, sum_abs = 0, dot_abs = 0;
        for (size_t k = 0; k < m; k++) {
            mean += (long double)get(e, s.x, place(d, c, k)) / (long double)m;
        }
        for (size_t k = 0; k < m; k++) {
            const long double deviation = (long double)get(e, s.x, place(d, c, k)) - mean;
            var += deviation * deviation / (long double)m;
        }
        const long double inv_std = 1 / sqrtl(var + (long double)d->eps), gamma = (long double)get(p, s.gamma, c);
        const long double beta = (long double)get(p, s.beta, c);
        const long double unit = p == BN_ELEMENT_F32 ? 8 * ldexpl(1, -24) : 1e-13L * sqrtl(1 + mean * mean / var);
        for (size_t k = 0; k < m; k++) {
            const long double g = (long double)get(e, s.dy, place(d, c, k));
            const long double normal = ((long double)get(e, s.x, place(d, c, k)) - mean) * inv_std;
            sum += g, sum_abs += fabsl(g);
            dot += g * normal, dot_abs += fabsl(g * normal);
            const long double y = gamma * normal + beta;
            const long double bound = unit * (fabsl(gamma) * (1 + fabsl(normal)) + fabsl(beta));
            y_ok &= fabsl((long double)get(e, s.y, place(d, c, k)) - y) <= bound + rounding * (fabsl(y) + bound);
        }
        for (size_t k = 0; k < m; k++) {
            const long double g = (long double)get(e, s.dy, place(d, c, k));
            const long double normal = ((long double)get(e, s.x, place(d, c, k)) - mean) * inv_std;
            const long double mean_g = sum / (long double)m, slope = normal * dot / (long double)m;
            const long double dx = gamma * inv_std * (g - mean_g - slope);
            const long double terms = fabsl(g) + (sum_abs + fabsl(normal) * dot_abs) / (long double)m;
            const long double bound = 2 * unit * fabsl(gamma) * inv_std * terms;
            dx_ok &= fabsl((long double)get(e, s.dx, place(d, c, k)) - dx) <= bound + rounding * (fabsl(dx) + bound);
        }
        dgamma_ok &= fabsl((long double)get(p, s.dgamma, c) - dot) <= unit * dot_abs;
        dbeta_ok &= fabsl((long double)get(p, s.dbeta, c) - sum) <= unit * sum_abs;
    }
    CHECK(y_ok);
    CHECK(dx_ok);
    CHECK(dgamma_ok);
    CHECK(dbeta_ok);
}

// Checks that a step on other threads has the same bits as a sequential one, which agrees with the textbook, for shapes
// that are large enough to be split, in both layouts and all element types.
static void check_threads(int32_t threads, size_t thread_count, bn_parallel_for parallel_for, void *ctx,
                          const bn_pool *pool) {
    const size_t shapes[][3] = {{4, 64, 1024}, {4096, 64, 1}};
    for (int32_t element = BN_ELEMENT_F32; element <= BN_ELEMENT_F16; element++) {
        for (size_t k = 0; k < 2; k++) {
            bn_plan_desc desc = describe(element, shapes[k][0], shapes[k][1], shapes[k][2], 1e-5);
            const size_t size = element_size(element), p_size = element_size(parameter(element));
            bn_plan *sequential = make(&desc);
            desc.threads = threads;
            desc.thread_count = thread_count;
            desc.parallel_for = parallel_for;
            desc.parallel_for_ctx = ctx;
            desc.pool = pool;
            bn_plan *parallel = make(&desc);
            step a = new_step(&desc), b = new_step(&desc);
            run_step(sequential, a);
            run_step(parallel, b);
            check_textbook(&desc, a);
            CHECK(memcmp(a.y, b.y, a.len * size) == 0);
            CHECK(memcmp(a.dx, b.dx, a.len * size) == 0);
            CHECK(memcmp(a.dgamma, b.dgamma, a.channels * p_size) == 0);
            CHECK(memcmp(a.dbeta, b.dbeta, a.channels * p_size) == 0);
            CHECK(memcmp(a.mean, b.mean, a.channels * sizeof(double)) == 0);
            CHECK(memcmp(a.var, b.var, a.channels * sizeof(double)) == 0);
            free_step(a), free_step(b);
            CHECK_OK(bn_plan_destroy(sequential));
            CHECK_OK(bn_plan_destroy(parallel));
        }
    }
}

#endif
