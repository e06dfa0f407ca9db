// What every contestant gets and does.
#pragma once

#include <cstdint>

// A tensor's shape and buffers. All contestants share the buffers, so they meet the same pages.
struct Case {
    int64_t n, c, h, w; // h = w = 1 for NC
    int32_t channels_last;
    int32_t threads;
    int32_t own_threads; // ours: 1 for a pool of the plan's, 0 for OpenMP's threads
    double eps;
    const float *x, *dy;
    float *out; // y or dx
    const float *gamma, *beta;
    float *dgamma, *dbeta;
    const float *mean, *var; // running ones, for inference
};

enum Pass : int32_t { FORWARD, INFERENCE, BACKWARD };

struct Contestant {
    virtual ~Contestant() = default;
    // BACKWARD uses the statistics that the last FORWARD left.
    virtual void run(Pass pass) = 0;
    // How it does it, where it can be known.
    virtual const char *implementation(Pass) const { return ""; }
};
