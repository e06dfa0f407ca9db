// batchnorm: SIMD batch normalization kernels for CPUs.
//
// Made by cbindgen from crates/ffi/src; UPDATE_HEADER=1 cargo test -p batchnorm-capi --test header writes it anew.
//
// Conventions
// - Every call returns a status, BN_OK or a BN_ERROR_ code. Errors are found before anything is written: after one, all
//   outputs are as they were. bn_status_name names a status, bn_last_error_message says more about the last one.
// - Structs begin with struct_size, to be set to sizeof the struct. Zero the rest and set what is needed; what is absent
//   is {NULL, 0}. Fields named reserved must be 0.
// - Enums travel as int32_t; where a field says BN_SOMETHING_, the macros that begin so are its values.
// - Every array travels with its length, in elements. NULL is an error but for an array of length 0 and where it says
//   "or absent". A pointer that is not aligned for its type is an error.
// - An output may be exactly the input that the pass names as replaceable; any other overlap of an output with another
//   array is an error.
// - Arrays of values (x, y, dy, dx, residual, output, dresidual) have the element type of the plan and outer * channels *
//   inner elements; element (o, c, i) lives at (o * channels + c) * inner + i. NCHW is {N, C, H * W}; NHWC is
//   {N * H * W, C, 1}. Parameters (gamma, beta, their gradients, weights, the weight and bias of a layer) are double for
//   BN_ELEMENT_F64, else float. Per-channel arrays have `channels` elements, statistics and sums in double; weights have
//   one a position, outer * inner, at o * inner + i.
// - A plan can be used by several threads at once. Results have the same bits for any threads and any instruction set.
// - A plan has scratch memory for one call at a time, its own or the caller's, and such calls do not allocate, but for
//   bn_double_backward; BN_THREADS_POOL allocates a little where it wakes its threads. See bn_scratch_bytes for more
//   calls at once.


#ifndef BATCHNORM_H
#define BATCHNORM_H

#include <stddef.h>
#include <stdint.h>

// The major version of this header.
#define BN_VERSION_MAJOR 0

// The minor version of this header; before 1.0 a new one may break what was linked to an old one.
#define BN_VERSION_MINOR 1

// The patch version of this header.
#define BN_VERSION_PATCH 0

// The version of this header as one number, to compare with bn_version().
#define BN_VERSION (((BN_VERSION_MAJOR * 10000) + (BN_VERSION_MINOR * 100)) + BN_VERSION_PATCH)

// The call did what it is for.
#define BN_OK 0

// A pointer is NULL that must not be.
#define BN_ERROR_NULL 1

// A struct_size is not the size of its struct.
#define BN_ERROR_STRUCT_SIZE 2

// An integer is none of its enum's values, or a reserved field is not 0.
#define BN_ERROR_ENUM 3

// A pointer is not aligned for its type.
#define BN_ERROR_ALIGNMENT 4

// An output overlaps another array.
#define BN_ERROR_OVERLAP 5

// An array has the wrong length, scratch memory is too small, or one of them passes the end of the address space.
#define BN_ERROR_LENGTH 6

// A shape is too large to address.
#define BN_ERROR_SHAPE 7

// eps is negative or not finite.
#define BN_ERROR_EPS 8

// A slope is negative or not finite, or there is one without a leaky ReLU.
#define BN_ERROR_SLOPE 9

// A weight is negative or not finite.
#define BN_ERROR_WEIGHT 10

// A momentum lies outside [0, 1].
#define BN_ERROR_MOMENTUM 11

// A count of values is negative or not finite.
#define BN_ERROR_COUNT 12

// A variance is negative, or NaN in running statistics.
#define BN_ERROR_VARIANCE 13

// An unbiased variance was to be had from one value per channel.
#define BN_ERROR_TOO_FEW_VALUES 14

// The statistics are over no values, but the batch has some.
#define BN_ERROR_EMPTY_STATISTICS 15

// The pass does not go with the plan's activation: it needs one with an inverse, or none.
#define BN_ERROR_ACTIVATION 16

// A channel's gamma and beta are such that x cannot be had from y within the stated bound.
#define BN_ERROR_NOT_INVERTIBLE 17

// Not exactly one of statistics and running statistics was given.
#define BN_ERROR_SOURCE 18

// This CPU lacks the instruction set asked for.
#define BN_ERROR_UNSUPPORTED_ISA 19

// The number of threads or the parallel_for does not fit the kind of threads, or threads could not be started.
#define BN_ERROR_THREADS 20

// There is not enough memory for the plan.
#define BN_ERROR_OUT_OF_MEMORY 21

// A fault of the library itself; outputs may have been written.
#define BN_ERROR_INTERNAL 22

// float.
#define BN_ELEMENT_F32 0

// double.
#define BN_ELEMENT_F64 1

// bfloat16, the upper half of a float, as a uint16_t.
#define BN_ELEMENT_BF16 2

// IEEE 754 binary16, as a uint16_t.
#define BN_ELEMENT_F16 3

// z.
#define BN_ACTIVATION_IDENTITY 0

// max(z, 0).
#define BN_ACTIVATION_RELU 1

// z where z is positive, slope * z elsewhere.
#define BN_ACTIVATION_LEAKY_RELU 2

// z / (1 + exp(-z)), also known as swish.
#define BN_ACTIVATION_SILU 3

// The fastest instruction set of this CPU.
#define BN_ISA_BEST 0

// What the library was compiled for.
#define BN_ISA_PORTABLE 1

// 256-bit code for x86-64 with AVX2, FMA and F16C.
#define BN_ISA_AVX2 2

// 512-bit code for x86-64 with AVX-512F.
#define BN_ISA_AVX512 3

// The thread that calls.
#define BN_THREADS_SEQUENTIAL 0

// Threads that belong to the plan and end with it.
#define BN_THREADS_POOL 1

// Those of the caller, by a bn_parallel_for.
#define BN_THREADS_CALLER 2

// The most threads that a plan can own.
#define BN_MAX_POOL_THREADS 1024

// running = (1 - momentum) * running + momentum * batch: the momentum weighs the new value.
#define BN_AVERAGE_EXPONENTIAL 0

// The plain average over all batches so far; momentum is not used.
#define BN_AVERAGE_CUMULATIVE 1

// Running variances estimate the population's, over M - 1.
#define BN_VARIANCE_UNBIASED 0

// Running variances are those that batches are normalized with, over M.
#define BN_VARIANCE_BIASED 1

// A plan: a shape, how to normalize it and where to run. It does not change once it is made.
typedef struct bn_plan bn_plan;

// A part of a pass, to be called with an index and the arg that came with it.
typedef void (*bn_task)(void *arg, size_t index);

// The caller's own threads: calls task(arg, 0) to task(arg, n - 1), each once, on any threads and in any order, and
// returns when all of them have returned. ctx is that of the plan. It must not throw or leave by longjmp, and may be
// called by several threads at once where the plan is used so.
//
// Indices that it leaves out or repeats are made good for; a task that starts after it has returned is not.
typedef void (*bn_parallel_for)(void *ctx, size_t n, bn_task task, void *arg);

// What a plan is made from.
typedef struct bn_plan_desc {
    // sizeof(bn_plan_desc).
    size_t struct_size;
    // Blocks of channels: images, or pixels where channels come last.
    size_t outer;
    // Channels, each with statistics of its own.
    size_t channels;
    // Neighbouring elements of one channel: the size of a plane; 1 where channels come last.
    size_t inner;
    // Added to the variance before its root is taken, >= 0; 1e-5 is usual.
    double eps;
    // That of BN_ACTIVATION_LEAKY_RELU, >= 0; 0 for any other activation.
    double slope;
    // BN_ELEMENT_
    int32_t element;
    // BN_ISA_
    int32_t isa;
    // BN_THREADS_
    int32_t threads;
    // BN_ACTIVATION_, in the same sweep: passes take the gradient of what comes after it.
    int32_t activation;
    // 0 for BN_THREADS_SEQUENTIAL; up to BN_MAX_POOL_THREADS for BN_THREADS_POOL, the calling thread among them, or 0
    // for one a core; at least 1 for BN_THREADS_CALLER: how many parallel_for works on. With 1 nothing is split.
    size_t thread_count;
    // For BN_THREADS_CALLER only.
    bn_parallel_for parallel_for;
    // Passed on to parallel_for.
    void *parallel_for_ctx;
    // Memory that passes need for per-channel arrays, the plan's alone until it is destroyed; or NULL, and the plan
    // takes it from the heap. Any alignment.
    void *scratch;
    // At least what bn_scratch_bytes says, or 0. Where there is room for several calls, so many can use the plan at once
    // without a call that allocates.
    size_t scratch_bytes;
} bn_plan_desc;

// An array that is read. The top of this header says of what type.
typedef struct bn_slice {
    // The first element.
    const void *data;
    // Elements, not bytes.
    size_t len;
} bn_slice;

// An array of double, one a channel. It is only read where the struct that it is in is passed as const.
typedef struct bn_doubles {
    // The first element.
    double *data;
    // Elements, not bytes.
    size_t len;
} bn_doubles;

// Mean and biased variance of each channel over count values: what a pass learns about a batch, or a part of one.
typedef struct bn_statistics {
    // sizeof(bn_statistics).
    size_t struct_size;
    // Values per channel, or the sum of their weights.
    double count;
    // The mean of each channel.
    struct bn_doubles mean;
    // The mean squared deviation of each channel.
    struct bn_doubles var;
} bn_statistics;

// Arguments of bn_compute_statistics.
typedef struct bn_statistics_args {
    // sizeof(bn_statistics_args).
    size_t struct_size;
    // Input.
    struct bn_slice x;
    // A weight for each position, finite and >= 0, or absent for 1. Where it is 0 nothing exists: outputs are 0.
    struct bn_slice weights;
    // Output.
    struct bn_statistics *statistics;
} bn_statistics_args;

// An array that is written. The top of this header says of what type.
typedef struct bn_slice_mut {
    // The first element.
    void *data;
    // Elements, not bytes.
    size_t len;
} bn_slice_mut;

// Arguments of bn_forward_training.
typedef struct bn_forward_training_args {
    // sizeof(bn_forward_training_args).
    size_t struct_size;
    // Input.
    struct bn_slice x;
    // Per channel, or absent for 1.
    struct bn_slice gamma;
    // Per channel, or absent for 0.
    struct bn_slice beta;
    // Input: what is added before the activation, or absent.
    struct bn_slice residual;
    // A weight for each position, finite and >= 0, or absent for 1. Where it is 0 nothing exists: outputs are 0.
    struct bn_slice weights;
    // Output; may replace x.
    struct bn_slice_mut y;
    // Output: those of the batch.
    struct bn_statistics *statistics;
} bn_forward_training_args;

// Averages of mean and variance over the batches seen in training, for test time. They start with 0, 1 and no batches.
typedef struct bn_running_statistics {
    // sizeof(bn_running_statistics).
    size_t struct_size;
    // How many batches were averaged.
    uint64_t batches;
    // The running mean of each channel.
    struct bn_doubles mean;
    // The running variance of each channel.
    struct bn_doubles var;
    // BN_VARIANCE_
    int32_t variance;
    // 0.
    int32_t reserved;
} bn_running_statistics;

// Arguments of bn_normalize.
typedef struct bn_normalize_args {
    // sizeof(bn_normalize_args).
    size_t struct_size;
    // Input.
    struct bn_slice x;
    // Those of the batch that x is, or is a part of: this or running, the other NULL.
    const struct bn_statistics *statistics;
    // Averages from training.
    const struct bn_running_statistics *running;
    // Per channel, or absent for 1.
    struct bn_slice gamma;
    // Per channel, or absent for 0.
    struct bn_slice beta;
    // Input: what is added before the activation, or absent.
    struct bn_slice residual;
    // A weight for each position, finite and >= 0, or absent for 1. Where it is 0 nothing exists: outputs are 0.
    struct bn_slice weights;
    // Output; may replace x.
    struct bn_slice_mut y;
} bn_normalize_args;

// Sums over g = dy * act', the gradient before the activation, of a batch or a part of one: what the backward pass needs
// to know of the whole.
typedef struct bn_gradient_sums {
    // sizeof(bn_gradient_sums).
    size_t struct_size;
    // The sum of g of each channel.
    struct bn_doubles g;
    // The sum of g * (x - mean) of each channel.
    struct bn_doubles gx;
} bn_gradient_sums;

// Arguments of bn_compute_gradient_sums.
typedef struct bn_gradient_sums_args {
    // sizeof(bn_gradient_sums_args).
    size_t struct_size;
    // Input.
    struct bn_slice x;
    // Input: the gradient of y.
    struct bn_slice dy;
    // Those of the batch that x is, or is a part of: this or running, the other NULL.
    const struct bn_statistics *statistics;
    // Averages from training.
    const struct bn_running_statistics *running;
    // Per channel, where the activation's argument is computed again, or absent for 1.
    struct bn_slice gamma;
    // As gamma, or absent for 0.
    struct bn_slice beta;
    // That of the forward pass, or absent; read where the activation's argument is computed again.
    struct bn_slice residual;
    // y of the forward pass, or absent: ReLU and leaky ReLU take their derivative from its sign. Without it, and for SiLU,
    // the activation's argument is computed again, from x, gamma, beta and the residual.
    struct bn_slice output;
    // Those of the forward pass, or absent.
    struct bn_slice weights;
    // Output.
    struct bn_gradient_sums *sums;
} bn_gradient_sums_args;

// Arguments of bn_input_gradient.
typedef struct bn_input_gradient_args {
    // sizeof(bn_input_gradient_args).
    size_t struct_size;
    // Input.
    struct bn_slice x;
    // Input: the gradient of y.
    struct bn_slice dy;
    // Those of the whole batch.
    const struct bn_statistics *statistics;
    // Those of the whole batch.
    const struct bn_gradient_sums *sums;
    // Per channel, or absent for 1.
    struct bn_slice gamma;
    // Per channel, where the activation's argument is computed again, or absent for 0.
    struct bn_slice beta;
    // That of the forward pass, or absent; read where the activation's argument is computed again.
    struct bn_slice residual;
    // y of the forward pass, or absent: ReLU and leaky ReLU take their derivative from its sign. Without it, and for SiLU,
    // the activation's argument is computed again, from x, gamma, beta and the residual.
    struct bn_slice output;
    // Those of the forward pass, or absent.
    struct bn_slice weights;
    // Output: the gradient of x; may replace dy.
    struct bn_slice_mut dx;
    // Output: the gradient of the residual, or absent.
    struct bn_slice_mut dresidual;
} bn_input_gradient_args;

// Arguments of bn_parameter_gradients.
typedef struct bn_parameter_gradients_args {
    // sizeof(bn_parameter_gradients_args).
    size_t struct_size;
    // Those that the sums were computed with: this or running, the other NULL.
    const struct bn_statistics *statistics;
    // Averages from training.
    const struct bn_running_statistics *running;
    // Input.
    const struct bn_gradient_sums *sums;
    // Output per channel, or absent.
    struct bn_slice_mut dgamma;
    // Output per channel, or absent.
    struct bn_slice_mut dbeta;
} bn_parameter_gradients_args;

// Arguments of bn_backward.
typedef struct bn_backward_args {
    // sizeof(bn_backward_args).
    size_t struct_size;
    // Input.
    struct bn_slice x;
    // Input: the gradient of y.
    struct bn_slice dy;
    // Those of the batch, through which gradients flow: this or running, the other NULL.
    const struct bn_statistics *statistics;
    // Averages from training, which are constants.
    const struct bn_running_statistics *running;
    // Per channel, or absent for 1.
    struct bn_slice gamma;
    // Per channel, where the activation's argument is computed again, or absent for 0.
    struct bn_slice beta;
    // That of the forward pass, or absent; read where the activation's argument is computed again.
    struct bn_slice residual;
    // y of the forward pass, or absent: ReLU and leaky ReLU take their derivative from its sign. Without it, and for SiLU,
    // the activation's argument is computed again, from x, gamma, beta and the residual.
    struct bn_slice output;
    // Those of the forward pass, or absent.
    struct bn_slice weights;
    // Output: the gradient of x, or absent; may replace dy.
    struct bn_slice_mut dx;
    // Output: the gradient of the residual, or absent.
    struct bn_slice_mut dresidual;
    // Output per channel, or absent.
    struct bn_slice_mut dgamma;
    // Output per channel, or absent.
    struct bn_slice_mut dbeta;
} bn_backward_args;

// Arguments of bn_forward_training_invertible.
typedef struct bn_forward_training_invertible_args {
    // sizeof(bn_forward_training_invertible_args).
    size_t struct_size;
    // Input, and output: y takes the place of x.
    struct bn_slice_mut x;
    // Per channel, or absent for 1.
    struct bn_slice gamma;
    // Per channel, or absent for 0.
    struct bn_slice beta;
    // Output: those of the batch.
    struct bn_statistics *statistics;
} bn_forward_training_invertible_args;

// Arguments of bn_backward_from_output.
typedef struct bn_backward_from_output_args {
    // sizeof(bn_backward_from_output_args).
    size_t struct_size;
    // Input: what the forward pass left.
    struct bn_slice y;
    // Input: the gradient of y.
    struct bn_slice dy;
    // Those of the batch.
    const struct bn_statistics *statistics;
    // Per channel, or absent for 1: that of the forward pass.
    struct bn_slice gamma;
    // Per channel, or absent for 0: that of the forward pass.
    struct bn_slice beta;
    // Output: the gradient of x, or absent.
    struct bn_slice_mut dx;
    // Output per channel, or absent.
    struct bn_slice_mut dgamma;
    // Output per channel, or absent.
    struct bn_slice_mut dbeta;
} bn_backward_from_output_args;

// Arguments of bn_double_backward. A cotangent is the gradient of a scalar with respect to what bn_backward made.
typedef struct bn_double_backward_args {
    // sizeof(bn_double_backward_args).
    size_t struct_size;
    // Input.
    struct bn_slice x;
    // Input: the gradient of y.
    struct bn_slice dy;
    // Those of the batch.
    const struct bn_statistics *statistics;
    // Per channel, or absent for 1.
    struct bn_slice gamma;
    // Input: with respect to dx.
    struct bn_slice dx_cotangent;
    // With respect to dgamma, per channel, or absent for 0.
    struct bn_slice dgamma_cotangent;
    // With respect to dbeta, per channel, or absent for 0.
    struct bn_slice dbeta_cotangent;
    // Output: the gradient of the scalar with respect to x, or absent.
    struct bn_slice_mut x_gradient;
    // Output: that with respect to dy, or absent.
    struct bn_slice_mut dy_gradient;
    // Output per channel: that with respect to gamma, or absent.
    struct bn_slice_mut gamma_gradient;
} bn_double_backward_args;

// A normalization with constant statistics: y = scale * x + shift.
typedef struct bn_scale_shift {
    // sizeof(bn_scale_shift).
    size_t struct_size;
    // What x of each channel is multiplied by.
    struct bn_doubles scale;
    // What is added then.
    struct bn_doubles shift;
} bn_scale_shift;

// Arguments of bn_fold.
typedef struct bn_fold_args {
    // sizeof(bn_fold_args).
    size_t struct_size;
    // Those of a batch: this or running, the other NULL.
    const struct bn_statistics *statistics;
    // Averages from training.
    const struct bn_running_statistics *running;
    // Per channel, or absent for 1.
    struct bn_slice gamma;
    // Per channel, or absent for 0.
    struct bn_slice beta;
    // Output.
    struct bn_scale_shift *scale_shift;
} bn_fold_args;

// Arguments of bn_fold_preceding and bn_fold_following.
typedef struct bn_fold_layer_args {
    // sizeof(bn_fold_layer_args).
    size_t struct_size;
    // Input.
    const struct bn_scale_shift *scale_shift;
    // Input and output: those of a linear or convolution layer.
    struct bn_slice_mut weight;
    // Input and output: one value an output; zeros for a layer that had none.
    struct bn_slice_mut bias;
} bn_fold_layer_args;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

// The version of the library: BN_VERSION of the header that it was built with.
uint32_t bn_version(void);

// The name of a status, such as "BN_ERROR_NULL"; "unknown status" for an integer that is none.
const char *bn_status_name(int32_t status);

// What was wrong with this thread's last call, what was expected and what came; "" after BN_OK. The string is valid
// until the next call in this thread.
const char *bn_last_error_message(void);

// Makes a plan, and where desc is wrong leaves *plan as it is.
//
// desc and what it points to are not needed any more once this has returned, but for scratch, parallel_for and its ctx.
int32_t bn_plan_create(const struct bn_plan_desc *desc,
                       struct bn_plan **plan);

// The bytes of scratch memory with which so many calls at once, at least 1, can use a plan made from desc and never
// allocate. What desc says of scratch memory is not looked at.
//
// A call too many is right too, but takes memory from the heap, as it does where parallel_for runs tasks on more than
// thread_count threads.
int32_t bn_scratch_bytes(const struct bn_plan_desc *desc,
                         size_t calls,
                         size_t *bytes);

// Ends a plan and the threads that it owns. NULL is fine.
int32_t bn_plan_destroy(struct bn_plan *plan);

// The fastest instruction set of this CPU, one of BN_ISA_. It can run those with smaller numbers too.
int32_t bn_best_isa(int32_t *isa);

// Mean and variance of each channel of x: the first half of a forward pass in training.
int32_t bn_compute_statistics(const struct bn_plan *plan, const struct bn_statistics_args *args);

// y = act(gamma * (x - mean) / sqrt(var + eps) + beta + residual) with the batch's own statistics, which are returned
// too.
int32_t bn_forward_training(const struct bn_plan *plan,
                            const struct bn_forward_training_args *args);

// y = act(gamma * (x - mean) / sqrt(var + eps) + beta + residual) with given statistics: running ones for inference, the
// batch's for the second half of a forward pass in training.
int32_t bn_normalize(const struct bn_plan *plan,
                     const struct bn_normalize_args *args);

// The sums of g and of g * (x - mean) of each channel: the first half of the backward pass.
int32_t bn_compute_gradient_sums(const struct bn_plan *plan, const struct bn_gradient_sums_args *args);

// dx from the statistics and sums of the whole batch, of which x and dy may be a part: the second half of the backward
// pass.
int32_t bn_input_gradient(const struct bn_plan *plan,
                          const struct bn_input_gradient_args *args);

// The gradients of gamma and beta from the sums, those that are asked for.
int32_t bn_parameter_gradients(const struct bn_plan *plan, const struct bn_parameter_gradients_args *args);

// The gradients of x, the residual, gamma and beta, those that are asked for.
//
// With a batch's statistics they flow through mean and variance; with running ones these are constants.
int32_t bn_backward(const struct bn_plan *plan, const struct bn_backward_args *args);

// bn_forward_training of a layer that keeps y alone for its backward pass, which is bn_backward_from_output: one array
// less in memory.
//
// The activation must be the identity or a leaky ReLU with a positive slope, and |beta| at most 64 * |gamma| in each
// channel, with a gamma for which y stays in the normal range of its type, for f64 between 2^-500 and 2^500.
// (x - mean) / sqrt(var + eps), call it n, comes back from y with an error of at most 10 * u * (1 + |n| + |beta / gamma|),
// u being half an ulp of 1 in the element type.
int32_t bn_forward_training_invertible(const struct bn_plan *plan,
                                       const struct bn_forward_training_invertible_args *args);

// The gradients of x, gamma and beta, those that are asked for, from what bn_forward_training_invertible left.
int32_t bn_backward_from_output(const struct bn_plan *plan,
                                const struct bn_backward_from_output_args *args);

// The derivatives of bn_backward with a batch's statistics, for gradient penalties: the gradients of the sum of
// dx_cotangent * dx, dgamma_cotangent * dgamma and dbeta_cotangent * dbeta, those that are asked for. The plan must have
// no activation: compose it outside.
//
// A pass that few need: it sweeps more often than one made for it would, and allocates some arrays of the channels.
int32_t bn_double_backward(const struct bn_plan *plan,
                           const struct bn_double_backward_args *args);

// Makes into the statistics of its values and those of other together. A count of 0 is where merging starts.
int32_t bn_merge_statistics(const struct bn_plan *plan,
                            struct bn_statistics *into,
                            const struct bn_statistics *other);

// Adds other to into: sums of parts of a batch, about the same mean, become those of the whole.
int32_t bn_merge_gradient_sums(const struct bn_plan *plan,
                               struct bn_gradient_sums *into,
                               const struct bn_gradient_sums *other);

// Takes the statistics of a batch into the averages. average is one of BN_AVERAGE_. An empty batch changes nothing.
int32_t bn_update_running_statistics(const struct bn_plan *plan,
                                     struct bn_running_statistics *running,
                                     const struct bn_statistics *statistics,
                                     int32_t average,
                                     double momentum);

// scale = gamma / sqrt(var + eps), shift = beta - mean * scale: what bn_normalize with these statistics is, before an
// activation and a residual, which stay after the folded layer.
//
// bn_normalize has an error free of the data's offset. scale * x + shift has not: where |mean| is much larger than the
// standard deviation, two large numbers nearly cancel. A folded layer that sums K products in float is off by at most
// (K + 2) * 2^-24 * (sum of |w * x| + |b|), with a bias b of about |gamma * mean| / sqrt(var).
int32_t bn_fold(const struct bn_plan *plan,
                const struct bn_fold_args *args);

// Folds into the linear or convolution layer whose output is normalized: w = scale * w, b = scale * b + shift.
//
// weight is [channels, k], a row for each output of the layer with all that is summed for it; of a grouped convolution
// too. bias has one value a channel.
int32_t bn_fold_preceding(const struct bn_plan *plan,
                          const struct bn_fold_layer_args *args);

// Folds into the linear or convolution layer whose input is normalized: w = scale * w, b = b + sum of w * shift.
//
// weight is [outputs, channels, k], bias has one value an output. A convolution must not pad its input with zeros,
// unless shift is 0; it may pad channel c with -shift / scale. A grouped convolution is several layers, for each of
// which there must be a plan.
int32_t bn_fold_following(const struct bn_plan *plan,
                          const struct bn_fold_layer_args *args);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* BATCHNORM_H */
