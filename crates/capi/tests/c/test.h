// Shared by the C tests: checks, and arrays of any element type.
#ifndef BATCHNORM_TEST_H
#define BATCHNORM_TEST_H

#include "batchnorm.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static long checks, failures;

static void check(int ok, const char *what, const char *file, int line) {
    checks++;
    if (!ok) {
        failures++;
        fprintf(stderr, "%s:%d: failed: %s (last message: \"%s\")\n", file, line, what, bn_last_error_message());
    }
}

#define CHECK(condition) check((condition) ? 1 : 0, #condition, __FILE__, __LINE__)
#define CHECK_OK(call) CHECK((call) == BN_OK)

static int report(const char *program) {
    printf("%s: %ld checks, %ld failures\n", program, checks, failures);
    return failures == 0 ? 0 : 1;
}

// The number of fraction bits and the exponent bias of bf16 and f16.
static int fraction_bits(int32_t element) { return element == BN_ELEMENT_BF16 ? 7 : 10; }
static int exponent_bias(int32_t element) { return element == BN_ELEMENT_BF16 ? 127 : 15; }

// Rounds to nearest even. The tests have no values that overflow, and no NaN, to convert.
static uint16_t to_half(int32_t element, double value) {
    const int bits = fraction_bits(element), bias = exponent_bias(element), negative = signbit(value) != 0;
    int exponent;
    frexp(value, &exponent);
    // The exponent of 1.f * 2^exponent, or that of subnormals.
    exponent = value == 0 || exponent < 2 - bias ? 1 - bias : exponent - 1;
    const int scaled = (int)rint(ldexp(fabs(value), bits - exponent));
    return (uint16_t)(negative << 15 | (((exponent + bias - 1) << bits) + scaled));
}

static void set(int32_t element, void *array, size_t i, double value) {
    switch (element) {
    case BN_ELEMENT_F32: ((float *)array)[i] = (float)value; break;
    case BN_ELEMENT_F64: ((double *)array)[i] = value; break;
    default: ((uint16_t *)array)[i] = to_half(element, value);
    }
}

// The type of gamma, beta and weights for this element type.
static int32_t parameter(int32_t element) { return element == BN_ELEMENT_F64 ? BN_ELEMENT_F64 : BN_ELEMENT_F32; }

static bn_slice in(const void *data, size_t len) {
    bn_slice slice;
    slice.data = data;
    slice.len = len;
    return slice;
}

static bn_slice_mut out(void *data, size_t len) {
    bn_slice_mut slice;
    slice.data = data;
    slice.len = len;
    return slice;
}

static bn_doubles doubles(double *data, size_t len) {
    bn_doubles array;
    array.data = data;
    array.len = len;
    return array;
}

// Inline, as not every test uses it.
static inline bn_floats floats(float *data, size_t len) {
    bn_floats array;
    array.data = data;
    array.len = len;
    return array;
}

// A struct of zeros with its size set.
#define INIT(object) (memset(&(object), 0, sizeof(object)), (object).struct_size = sizeof(object), (void)0)

static bn_plan_desc describe(int32_t element, size_t outer, size_t channels, size_t inner, double eps) {
    bn_plan_desc desc;
    INIT(desc);
    desc.outer = outer;
    desc.channels = channels;
    desc.inner = inner;
    desc.eps = eps;
    desc.element = element;
    return desc;
}

static bn_plan *make(const bn_plan_desc *desc) {
    bn_plan *plan = NULL;
    if (bn_plan_create(desc, &plan) != BN_OK) {
        fprintf(stderr, "no plan: %s\n", bn_last_error_message());
        abort();
    }
    return plan;
}

#endif
