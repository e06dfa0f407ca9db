// The interface of all contestants.
#pragma once

#include <cstdint>

// A tensor's shape and buffers. All contestants share the buffers, so that they work on the same pages.
struct Case {
    int64_t n, c, h, w; // h = w = 1 for NC
    int32_t channels_last;
    int32_t threads;
    int32_t own_threads; // this crate through C: 1 for the plan's own pool, 0 for OpenMP's threads
    int32_t isa; // this crate: BN_ISA_
    double eps;
    const float *x, *dy;
    float *out; // y or dx
    const float *gamma, *beta;
    float *dgamma, *dbeta;
    const float *mean, *var; // running statistics, for inference
};

enum Pass : int32_t { FORWARD, INFERENCE, BACKWARD };

struct Contestant {
    virtual ~Contestant() = default;
    // BACKWARD uses the statistics of the last FORWARD.
    virtual void run(Pass pass) = 0;
    // The name of the implementation, if the contestant tells it.
    virtual const char *implementation(Pass) const { return ""; }
};
