// Calls every function wrongly in every way that the header can express, and checks that it returns the right status
// and a message and writes nothing.

#include "test.h"

#include <float.h>

enum { OUTER = 2, CHANNELS = 3, INNER = 4, POSITIONS = OUTER * INNER, LEN = CHANNELS * POSITIONS };

// Everything that a call may read or write, so that comparing bytes shows what it wrote. Arrays have room for any
// element type, and for one more element.
typedef struct world {
    double x[LEN + 1], dy[LEN + 1], y[LEN + 1], dx[LEN + 1];
    double residual[LEN + 1], output[LEN + 1], weights[POSITIONS + 1], dresidual[LEN + 1];
    double gamma[CHANNELS + 1], beta[CHANNELS + 1], dgamma[CHANNELS + 1], dbeta[CHANNELS + 1];
    double mean[CHANNELS + 1], var[CHANNELS + 1], other_mean[CHANNELS + 1], other_var[CHANNELS + 1];
    double running_mean[CHANNELS + 1], running_var[CHANNELS + 1];
    float float_mean[CHANNELS + 1], float_var[CHANNELS + 1];
    double g[CHANNELS + 1], gx[CHANNELS + 1], other_g[CHANNELS + 1], other_gx[CHANNELS + 1];
    double scale[CHANNELS + 1], shift[CHANNELS + 1], weight[2 * CHANNELS + 1], bias[CHANNELS + 1];
    bn_statistics statistics, other;
    bn_running_statistics running;
    bn_gradient_sums sums, other_sums;
    bn_statistics_args only;
    bn_forward_training_args training;
    bn_normalize_args normalize;
    bn_gradient_sums_args first;
    bn_input_gradient_args second;
    bn_parameter_gradients_args parameters;
    bn_backward_args backward;
    bn_forward_training_invertible_args invertible;
    bn_backward_from_output_args from_output;
    bn_double_backward_args twice;
    bn_scale_shift scale_shift;
    bn_fold_args fold;
    bn_fold_layer_args layer;
    bn_fold_transposed_args transposed;
    bn_statistics *into, *from;
    bn_gradient_sums *into_sums, *from_sums;
    bn_running_statistics *averages;
    int32_t average;
    double momentum;
    bn_plan_desc desc;
    bn_plan *made;
    bn_pool *made_pool;
    int32_t isa[2];
    size_t bytes[2];
} world;

static world w, before;
static bn_plan *plan;
static bn_pool *pool;
// Enough scratch memory for a plan, and too little for any.
static char scratch[1 << 16], little[8];
static int32_t element;
static long misuses;

static void parallel_for(void *ctx, size_t n, bn_task task, void *arg) {
    (void)ctx;
    for (size_t i = 0; i < n; i++) {
        task(arg, i);
    }
}

// Sets up a world in which every call is correct.
static void put_right(void) {
    memset(&w, 0, sizeof w);
    for (size_t i = 0; i < LEN; i++) {
        set(element, w.x, i, (double)(i * i % 7));
        set(element, w.dy, i, (double)(i * i % 5));
    }
    for (size_t c = 0; c < CHANNELS; c++) {
        w.mean[c] = w.other_mean[c] = w.running_mean[c] = w.g[c] = w.gx[c] = w.other_g[c] = w.other_gx[c] = 1;
        w.var[c] = w.other_var[c] = w.running_var[c] = 2;
        w.float_mean[c] = 1, w.float_var[c] = 2;
        set(parameter(element), w.gamma, c, 3);
    }
    for (size_t i = 0; i < 2 * CHANNELS; i++) {
        set(parameter(element), w.weight, i, (double)i);
    }
    for (size_t i = 0; i < POSITIONS; i++) {
        set(parameter(element), w.weights, i, 1);
    }
    INIT(w.statistics), INIT(w.other), INIT(w.running), INIT(w.sums), INIT(w.other_sums), INIT(w.scale_shift);
    w.statistics.count = w.other.count = POSITIONS;
    w.statistics.mean = doubles(w.mean, CHANNELS), w.statistics.var = doubles(w.var, CHANNELS);
    w.other.mean = doubles(w.other_mean, CHANNELS), w.other.var = doubles(w.other_var, CHANNELS);
    w.running.mean = doubles(w.running_mean, CHANNELS), w.running.var = doubles(w.running_var, CHANNELS);
    w.sums.g = doubles(w.g, CHANNELS), w.sums.gx = doubles(w.gx, CHANNELS);
    w.scale_shift.scale = doubles(w.scale, CHANNELS), w.scale_shift.shift = doubles(w.shift, CHANNELS);
    w.other_sums.g = doubles(w.other_g, CHANNELS), w.other_sums.gx = doubles(w.other_gx, CHANNELS);

    const bn_slice x = in(w.x, LEN), dy = in(w.dy, LEN), gamma = in(w.gamma, CHANNELS), beta = in(w.beta, CHANNELS);
    const bn_slice residual = in(w.residual, LEN), output = in(w.output, LEN), weights = in(w.weights, POSITIONS);
    const bn_slice_mut y = out(w.y, LEN), dx = out(w.dx, LEN), dresidual = out(w.dresidual, LEN);
    const bn_slice_mut dgamma = out(w.dgamma, CHANNELS), dbeta = out(w.dbeta, CHANNELS);
    INIT(w.only), INIT(w.training), INIT(w.normalize), INIT(w.first), INIT(w.second), INIT(w.parameters);
    INIT(w.backward), INIT(w.invertible), INIT(w.from_output), INIT(w.twice);
    w.only.x = x, w.only.weights = weights, w.only.statistics = &w.statistics;
    w.training.x = x, w.training.gamma = gamma, w.training.beta = beta, w.training.y = y;
    w.training.residual = residual, w.training.weights = weights, w.training.statistics = &w.statistics;
    w.normalize.x = x, w.normalize.gamma = gamma, w.normalize.beta = beta, w.normalize.y = y;
    w.normalize.residual = residual, w.normalize.weights = weights, w.normalize.statistics = &w.statistics;
    w.first.x = x, w.first.dy = dy, w.first.statistics = &w.statistics, w.first.sums = &w.sums;
    w.first.gamma = gamma, w.first.beta = beta;
    w.first.residual = residual, w.first.output = output, w.first.weights = weights;
    w.second.x = x, w.second.dy = dy, w.second.statistics = &w.statistics, w.second.sums = &w.sums;
    w.second.gamma = gamma, w.second.beta = beta, w.second.dx = dx, w.second.dresidual = dresidual;
    w.second.residual = residual, w.second.output = output, w.second.weights = weights;
    w.parameters.statistics = &w.statistics, w.parameters.sums = &w.sums;
    w.parameters.dgamma = dgamma, w.parameters.dbeta = dbeta;
    w.backward.x = x, w.backward.dy = dy, w.backward.statistics = &w.statistics, w.backward.gamma = gamma;
    w.backward.beta = beta, w.backward.residual = residual, w.backward.output = output, w.backward.weights = weights;
    w.backward.dx = dx, w.backward.dresidual = dresidual, w.backward.dgamma = dgamma, w.backward.dbeta = dbeta;
    w.invertible.x = out(w.x, LEN), w.invertible.gamma = gamma, w.invertible.beta = beta;
    w.invertible.statistics = &w.statistics;
    w.from_output.y = x, w.from_output.dy = dy, w.from_output.statistics = &w.statistics;
    w.from_output.gamma = gamma, w.from_output.beta = beta;
    w.from_output.dx = dx, w.from_output.dgamma = dgamma, w.from_output.dbeta = dbeta;
    w.twice.x = x, w.twice.dy = dy, w.twice.statistics = &w.statistics, w.twice.gamma = gamma;
    w.twice.dx_cotangent = residual, w.twice.dgamma_cotangent = beta, w.twice.dbeta_cotangent = beta;
    w.twice.x_gradient = dx, w.twice.dy_gradient = dresidual, w.twice.gamma_gradient = dgamma;
    INIT(w.fold), INIT(w.layer), INIT(w.transposed);
    w.fold.statistics = &w.statistics, w.fold.gamma = gamma, w.fold.beta = beta, w.fold.scale_shift = &w.scale_shift;
    w.layer.scale_shift = &w.scale_shift, w.layer.weight = out(w.weight, 2 * CHANNELS);
    w.layer.bias = out(w.bias, CHANNELS);
    w.transposed.scale_shift = &w.scale_shift, w.transposed.weight = out(w.weight, 2 * CHANNELS);
    w.transposed.bias = out(w.bias, CHANNELS), w.transposed.inputs = 2, w.transposed.groups = 1;
    w.into = &w.statistics, w.from = &w.other, w.into_sums = &w.sums, w.from_sums = &w.other_sums;
    w.averages = &w.running, w.average = BN_AVERAGE_EXPONENTIAL, w.momentum = 0.1;
    w.desc = describe(element, OUTER, CHANNELS, INNER, 1e-5);
}

static void check_misuse(int32_t status, int32_t expected, const char *what, int line) {
    misuses++;
    // Messages speak of what the header has, not of what is behind it.
    static const char *const rust[] = {"isize", "usize", "::", "Some(", "Avx", "Relu", "Identity", "Silu", "slice"};
    const char *const message = bn_last_error_message();
    int right = status == expected && message[0] != 0;
    for (size_t i = 0; i < sizeof rust / sizeof *rust; i++) {
        right &= strstr(message, rust[i]) == NULL;
    }
    const int untouched = memcmp(&w, &before, sizeof w) == 0;
    if (!right || !untouched) {
        fprintf(stderr, "%s instead of %s%s\n", bn_status_name(status), bn_status_name(expected),
                untouched ? "" : ", and something was written");
    }
    check(right && untouched, what, __FILE__, line);
}

// One misuse: the expected status, the change to a correct world, and the call.
#define WRONG(expected, change, call)                                                                                  \
    do {                                                                                                               \
        put_right();                                                                                                   \
        change;                                                                                                        \
        memcpy(&before, &w, sizeof w);                                                                                 \
        check_misuse(call, expected, #call " after " #change, __LINE__);                                               \
    } while (0)

#define MISALIGNED(type, pointer) ((type *)(void *)((char *)(pointer) + 1))
// Aligned for every element type, and too close to the end of the address space for any array of these tests.
#define LAST_ADDRESS ((void *)(UINTPTR_MAX - 7))
#define AFTER(array) ((void *)((char *)(array) + sizeof(double)))

// A required array of more than one element.
#define WRONG_ARRAY(array, call)                                                                                       \
    WRONG(BN_ERROR_NULL, array.data = NULL, call);                                                                     \
    WRONG(BN_ERROR_NULL, memset(&array, 0, sizeof array), call);                                                       \
    WRONG_IF_THERE(array, call)

// An array that is present, required or not.
#define WRONG_IF_THERE(array, call)                                                                                    \
    WRONG(BN_ERROR_LENGTH, array.len -= 1, call);                                                                      \
    WRONG(BN_ERROR_LENGTH, array.len += 1, call);                                                                      \
    WRONG(BN_ERROR_LENGTH, array.len = 0, call);                                                                       \
    WRONG(BN_ERROR_LENGTH, array.len = SIZE_MAX, call);                                                                \
    WRONG(BN_ERROR_ALIGNMENT, put_pointer(&array, (char *)array.data + 1), call);                                      \
    WRONG(BN_ERROR_LENGTH, put_pointer(&array, LAST_ADDRESS), call)

// Sets the data of an array. It is the first field of bn_slice, bn_slice_mut and bn_doubles, with different types.
static void put_pointer(void *array, const void *pointer) { memcpy(array, &pointer, sizeof pointer); }

#define WRONG_OPTIONAL(array, call)                                                                                    \
    WRONG(BN_ERROR_NULL, array.data = NULL, call);                                                                     \
    WRONG_IF_THERE(array, call)

#define WRONG_WEIGHTS(args, call)                                                                                      \
    WRONG_OPTIONAL(args.weights, call);                                                                                \
    WRONG(BN_ERROR_WEIGHT, set(parameter(element), w.weights, POSITIONS - 1, -1), call);                               \
    WRONG(BN_ERROR_WEIGHT, set(parameter(element), w.weights, 0, NAN), call);                                          \
    WRONG(BN_ERROR_WEIGHT, set(parameter(element), w.weights, 0, INFINITY), call)

// The arrays that backward passes take from the forward pass.
#define WRONG_EXTRAS(args, call)                                                                                       \
    WRONG_OPTIONAL(args.gamma, call);                                                                                  \
    WRONG_OPTIONAL(args.beta, call);                                                                                   \
    WRONG_OPTIONAL(args.residual, call);                                                                               \
    WRONG_OPTIONAL(args.output, call);                                                                                 \
    WRONG_WEIGHTS(args, call)

// Statistics over no values, which are valid only with weights.
#define WRONG_EMPTY(args, call)                                                                                        \
    WRONG(BN_ERROR_EMPTY_STATISTICS, (w.statistics.count = 0, memset(&args.weights, 0, sizeof args.weights)), call)

// An output that is at the address of another array, or one element behind it.
#define OVERLAP(output, other, call)                                                                                   \
    WRONG(BN_ERROR_OVERLAP, put_pointer(&output, other), call);                                                        \
    PARTIAL_OVERLAP(output, other, call)

#define PARTIAL_OVERLAP(output, other, call) WRONG(BN_ERROR_OVERLAP, put_pointer(&output, AFTER(other)), call)

// A struct that is passed by pointer.
#define WRONG_STRUCT(type, pointer, object, call)                                                                      \
    WRONG(BN_ERROR_ALIGNMENT, pointer = MISALIGNED(type, &object), call);                                              \
    WRONG(BN_ERROR_STRUCT_SIZE, object.struct_size = 0, call);                                                         \
    WRONG(BN_ERROR_STRUCT_SIZE, object.struct_size -= 8, call);                                                        \
    WRONG(BN_ERROR_STRUCT_SIZE, object.struct_size += 8, call);                                                        \
    WRONG(BN_ERROR_STRUCT_SIZE, object.struct_size = SIZE_MAX, call)

// The plan and the arguments of a pass.
#define WRONG_CALL(function, type, args)                                                                               \
    WRONG(BN_ERROR_NULL, (void)0, function(NULL, &args));                                                              \
    WRONG(BN_ERROR_ALIGNMENT, (void)0, function(MISALIGNED(bn_plan, plan), &args));                                    \
    WRONG(BN_ERROR_NULL, (void)0, function(plan, NULL));                                                               \
    WRONG(BN_ERROR_ALIGNMENT, (void)0, function(plan, MISALIGNED(type, &args)));                                       \
    WRONG(BN_ERROR_STRUCT_SIZE, args.struct_size = 0, function(plan, &args));                                          \
    WRONG(BN_ERROR_STRUCT_SIZE, args.struct_size -= 1, function(plan, &args));                                         \
    WRONG(BN_ERROR_STRUCT_SIZE, args.struct_size += 8, function(plan, &args));                                         \
    WRONG(BN_ERROR_STRUCT_SIZE, args.struct_size = SIZE_MAX, function(plan, &args))

#define WRONG_STATISTICS(pointer, object, call)                                                                        \
    WRONG_STRUCT(bn_statistics, pointer, object, call);                                                                \
    WRONG_ARRAY(object.mean, call);                                                                                    \
    WRONG_ARRAY(object.var, call)

// Statistics as an input.
#define WRONG_PARTS(object, variances, call)                                                                           \
    WRONG(BN_ERROR_COUNT, object.count = -1, call);                                                                    \
    WRONG(BN_ERROR_COUNT, object.count = NAN, call);                                                                   \
    WRONG(BN_ERROR_COUNT, object.count = INFINITY, call);                                                              \
    WRONG(BN_ERROR_VARIANCE, variances[CHANNELS - 1] = -1e-300, call)

#define WRONG_SUMS(pointer, object, call)                                                                              \
    WRONG(BN_ERROR_NULL, pointer = NULL, call);                                                                        \
    WRONG_STRUCT(bn_gradient_sums, pointer, object, call);                                                             \
    WRONG_ARRAY(object.g, call);                                                                                       \
    WRONG_ARRAY(object.gx, call)

// Replaces the arrays of running statistics by those of float.
static void use_floats(void) {
    memset(&w.running.mean, 0, sizeof w.running.mean), memset(&w.running.var, 0, sizeof w.running.var);
    w.running.float_mean = floats(w.float_mean, CHANNELS), w.running.float_var = floats(w.float_var, CHANNELS);
}

// An array of running statistics in float. One that is absent leaves the other alone, which is an error too.
#define WRONG_FLOATS(array, call)                                                                                      \
    WRONG(BN_ERROR_NULL, (use_floats(), array.data = NULL), call);                                                     \
    WRONG(BN_ERROR_NULL, (use_floats(), memset(&array, 0, sizeof array)), call);                                       \
    WRONG(BN_ERROR_LENGTH, (use_floats(), array.len -= 1), call);                                                      \
    WRONG(BN_ERROR_LENGTH, (use_floats(), array.len += 1), call);                                                      \
    WRONG(BN_ERROR_LENGTH, (use_floats(), array.len = 0), call);                                                       \
    WRONG(BN_ERROR_LENGTH, (use_floats(), array.len = SIZE_MAX), call);                                                \
    WRONG(BN_ERROR_ALIGNMENT, (use_floats(), put_pointer(&array, (char *)array.data + 2)), call);                      \
    WRONG(BN_ERROR_LENGTH, (use_floats(), put_pointer(&array, LAST_ADDRESS)), call)

// The arrays of running statistics: of either type, and not of both.
#define WRONG_AVERAGES(call)                                                                                           \
    WRONG_ARRAY(w.running.mean, call);                                                                                 \
    WRONG_ARRAY(w.running.var, call);                                                                                  \
    WRONG_FLOATS(w.running.float_mean, call);                                                                          \
    WRONG_FLOATS(w.running.float_var, call);                                                                           \
    WRONG(BN_ERROR_SOURCE, w.running.float_mean = floats(w.float_mean, CHANNELS), call);                               \
    WRONG(BN_ERROR_SOURCE, w.running.float_var = floats(w.float_var, CHANNELS), call);                                 \
    WRONG(BN_ERROR_SOURCE, w.running.float_var.len = CHANNELS, call);                                                  \
    WRONG(BN_ERROR_SOURCE, (use_floats(), w.running.mean = doubles(w.running_mean, CHANNELS)), call);                  \
    WRONG(BN_ERROR_SOURCE, (use_floats(), w.running.var.len = CHANNELS), call)

#define WRONG_RUNNING(pointer, call)                                                                                   \
    WRONG_STRUCT(bn_running_statistics, pointer, w.running, call);                                                     \
    WRONG_AVERAGES(call);                                                                                              \
    WRONG(BN_ERROR_ENUM, w.running.variance = -1, call);                                                               \
    WRONG(BN_ERROR_ENUM, w.running.variance = 2, call);                                                                \
    WRONG(BN_ERROR_ENUM, w.running.reserved = 1, call)

// Makes a call with running statistics instead of statistics.
static int32_t with_running(int32_t (*call)(void)) {
    const bn_statistics *const none = NULL;
    w.normalize.statistics = w.first.statistics = w.parameters.statistics = w.backward.statistics = none;
    w.fold.statistics = w.twice.statistics = none;
    w.twice.running = w.normalize.running = w.first.running = w.parameters.running = w.backward.running = w.fold.running = &w.running;
    memcpy(&before, &w, sizeof w);
    return call();
}

static int32_t normalize(void) { return bn_normalize(plan, &w.normalize); }
static int32_t first(void) { return bn_compute_gradient_sums(plan, &w.first); }
static int32_t parameters(void) { return bn_parameter_gradients(plan, &w.parameters); }
static int32_t backward(void) { return bn_backward(plan, &w.backward); }
static int32_t fold(void) { return bn_fold(plan, &w.fold); }
static int32_t twice(void) { return bn_double_backward(plan, &w.twice); }

// Statistics or running statistics: not exactly one of them, or an invalid one.
#define WRONG_SOURCE(args, function)                                                                                   \
    WRONG(BN_ERROR_SOURCE, args.statistics = NULL, function());                                                        \
    WRONG(BN_ERROR_SOURCE, args.running = &w.running, function());                                                     \
    WRONG_STATISTICS(args.statistics, w.statistics, function());                                                       \
    WRONG_PARTS(w.statistics, w.var, function());                                                                      \
    WRONG_AVERAGES(with_running(function));                                                                            \
    WRONG(BN_ERROR_ENUM, w.running.variance = 2, with_running(function));                                              \
    WRONG(BN_ERROR_ENUM, w.running.reserved = 1, with_running(function));                                              \
    WRONG(BN_ERROR_STRUCT_SIZE, w.running.struct_size = 0, with_running(function));                                    \
    WRONG(BN_ERROR_STRUCT_SIZE, w.running.struct_size += 8, with_running(function));                                   \
    WRONG(BN_ERROR_VARIANCE, w.running_var[1] = -1, with_running(function));                                           \
    WRONG(BN_ERROR_VARIANCE, w.running_var[1] = NAN, with_running(function));                                          \
    WRONG(BN_ERROR_VARIANCE, (use_floats(), w.float_var[1] = -1), with_running(function));                             \
    WRONG(BN_ERROR_VARIANCE, (use_floats(), w.float_var[1] = NAN), with_running(function))

static void plans(void) {
#define CREATE bn_plan_create(&w.desc, &w.made)
    WRONG(BN_ERROR_NULL, (void)0, bn_plan_create(NULL, &w.made));
    WRONG(BN_ERROR_NULL, (void)0, bn_plan_create(&w.desc, NULL));
    WRONG(BN_ERROR_ALIGNMENT, (void)0, bn_plan_create(MISALIGNED(bn_plan_desc, &w.desc), &w.made));
    WRONG(BN_ERROR_ALIGNMENT, (void)0, bn_plan_create(&w.desc, MISALIGNED(bn_plan *, &w.made)));
    WRONG(BN_ERROR_STRUCT_SIZE, w.desc.struct_size = 0, CREATE);
    WRONG(BN_ERROR_STRUCT_SIZE, w.desc.struct_size -= 8, CREATE);
    WRONG(BN_ERROR_STRUCT_SIZE, w.desc.struct_size += 8, CREATE);
    WRONG(BN_ERROR_STRUCT_SIZE, w.desc.struct_size = SIZE_MAX, CREATE);
    WRONG(BN_ERROR_ENUM, w.desc.element = -1, CREATE);
    WRONG(BN_ERROR_ENUM, w.desc.element = BN_ELEMENT_F16 + 1, CREATE);
    WRONG(BN_ERROR_ENUM, w.desc.element = INT32_MIN, CREATE);
    WRONG(BN_ERROR_ENUM, w.desc.element = INT32_MAX, CREATE);
    WRONG(BN_ERROR_ENUM, w.desc.isa = -1, CREATE);
    WRONG(BN_ERROR_ENUM, w.desc.isa = BN_ISA_AVX512 + 1, CREATE);
    WRONG(BN_ERROR_ENUM, w.desc.threads = -1, CREATE);
    WRONG(BN_ERROR_ENUM, w.desc.threads = BN_THREADS_CALLER + 1, CREATE);
    WRONG(BN_ERROR_ENUM, w.desc.activation = -1, CREATE);
    WRONG(BN_ERROR_ENUM, w.desc.activation = BN_ACTIVATION_SILU + 1, CREATE);
    WRONG(BN_ERROR_SLOPE, w.desc.slope = 0.01, CREATE);
    WRONG(BN_ERROR_SLOPE, w.desc.slope = NAN, CREATE);
    WRONG(BN_ERROR_SLOPE, (w.desc.activation = BN_ACTIVATION_SILU, w.desc.slope = 0.01), CREATE);
    WRONG(BN_ERROR_SLOPE, (w.desc.activation = BN_ACTIVATION_LEAKY_RELU, w.desc.slope = -0.01), CREATE);
    WRONG(BN_ERROR_SLOPE, (w.desc.activation = BN_ACTIVATION_LEAKY_RELU, w.desc.slope = NAN), CREATE);
    WRONG(BN_ERROR_SLOPE, (w.desc.activation = BN_ACTIVATION_LEAKY_RELU, w.desc.slope = INFINITY), CREATE);
    WRONG(BN_ERROR_EPS, w.desc.eps = -1e-5, CREATE);
    WRONG(BN_ERROR_EPS, w.desc.eps = NAN, CREATE);
    WRONG(BN_ERROR_EPS, w.desc.eps = INFINITY, CREATE);
    WRONG(BN_ERROR_SHAPE, w.desc.outer = SIZE_MAX, CREATE);
    WRONG(BN_ERROR_SHAPE, w.desc.channels = SIZE_MAX, CREATE);
    WRONG(BN_ERROR_SHAPE, w.desc.inner = SIZE_MAX, CREATE);
    WRONG(BN_ERROR_SHAPE, (w.desc.outer = SIZE_MAX / 2, w.desc.channels = 0), CREATE);
    WRONG(BN_ERROR_SHAPE, (w.desc.outer = SIZE_MAX / 16 + 1, w.desc.channels = w.desc.inner = 1), CREATE);
    WRONG(BN_ERROR_OUT_OF_MEMORY, (w.desc.outer = 0, w.desc.channels = SIZE_MAX), CREATE);
    WRONG(BN_ERROR_OUT_OF_MEMORY, (w.desc.outer = w.desc.inner = 1, w.desc.channels = SIZE_MAX / 64), CREATE);
    WRONG(BN_ERROR_THREADS, w.desc.thread_count = 1, CREATE);
    WRONG(BN_ERROR_THREADS, w.desc.parallel_for = parallel_for, CREATE);
    WRONG(BN_ERROR_THREADS, (w.desc.threads = BN_THREADS_POOL, w.desc.parallel_for = parallel_for), CREATE);
    WRONG(BN_ERROR_THREADS, (w.desc.threads = BN_THREADS_POOL, w.desc.thread_count = BN_MAX_POOL_THREADS + 1), CREATE);
    WRONG(BN_ERROR_THREADS, (w.desc.threads = BN_THREADS_POOL, w.desc.thread_count = SIZE_MAX), CREATE);
    WRONG(BN_ERROR_THREADS, (w.desc.threads = BN_THREADS_CALLER, w.desc.parallel_for = parallel_for), CREATE);
    WRONG(BN_ERROR_NULL, (w.desc.threads = BN_THREADS_CALLER, w.desc.thread_count = 2), CREATE);
#define SET_POOL w.desc.threads = BN_THREADS_POOL, w.desc.pool = pool
    WRONG(BN_ERROR_THREADS, w.desc.pool = pool, CREATE);
    WRONG(BN_ERROR_THREADS, (SET_POOL, w.desc.thread_count = 1), CREATE);
    WRONG(BN_ERROR_THREADS, (SET_POOL, w.desc.thread_count = SIZE_MAX), CREATE);
    WRONG(BN_ERROR_THREADS, (SET_POOL, w.desc.parallel_for = parallel_for), CREATE);
    WRONG(BN_ERROR_THREADS, (SET_POOL, w.desc.threads = BN_THREADS_CALLER, w.desc.thread_count = 2,
                             w.desc.parallel_for = parallel_for), CREATE);
    WRONG(BN_ERROR_ALIGNMENT, (SET_POOL, w.desc.pool = MISALIGNED(bn_pool, pool)), CREATE);
    int32_t best = BN_ISA_BEST;
    CHECK_OK(bn_best_isa(&best));
    // A CPU with AVX-512 has AVX2 too.
    if (best != BN_ISA_AVX512) {
        WRONG(BN_ERROR_UNSUPPORTED_ISA, w.desc.isa = BN_ISA_AVX512, CREATE);
        if (best != BN_ISA_AVX2) {
            WRONG(BN_ERROR_UNSUPPORTED_ISA, w.desc.isa = BN_ISA_AVX2, CREATE);
        }
    }
    WRONG(BN_ERROR_NULL, w.desc.scratch_bytes = sizeof scratch, CREATE);
    WRONG(BN_ERROR_LENGTH, w.desc.scratch = little, CREATE);
    WRONG(BN_ERROR_LENGTH, (w.desc.scratch = little, w.desc.scratch_bytes = sizeof little), CREATE);
    WRONG(BN_ERROR_LENGTH, (w.desc.scratch = little, w.desc.scratch_bytes = SIZE_MAX), CREATE);
    WRONG(BN_ERROR_LENGTH, (w.desc.scratch = LAST_ADDRESS, w.desc.scratch_bytes = sizeof scratch), CREATE);

#define BYTES bn_scratch_bytes(&w.desc, 1, w.bytes)
    WRONG(BN_ERROR_NULL, (void)0, bn_scratch_bytes(NULL, 1, w.bytes));
    WRONG(BN_ERROR_NULL, (void)0, bn_scratch_bytes(&w.desc, 1, NULL));
    WRONG(BN_ERROR_ALIGNMENT, (void)0, bn_scratch_bytes(MISALIGNED(bn_plan_desc, &w.desc), 1, w.bytes));
    WRONG(BN_ERROR_ALIGNMENT, (void)0, bn_scratch_bytes(&w.desc, 1, MISALIGNED(size_t, w.bytes)));
    WRONG(BN_ERROR_STRUCT_SIZE, w.desc.struct_size = 0, BYTES);
    WRONG(BN_ERROR_STRUCT_SIZE, w.desc.struct_size += 8, BYTES);
    WRONG(BN_ERROR_ENUM, w.desc.element = BN_ELEMENT_F16 + 1, BYTES);
    WRONG(BN_ERROR_ENUM, w.desc.activation = BN_ACTIVATION_SILU + 1, BYTES);
    WRONG(BN_ERROR_SLOPE, w.desc.slope = 0.01, BYTES);
    WRONG(BN_ERROR_SHAPE, w.desc.outer = SIZE_MAX, BYTES);
    WRONG(BN_ERROR_THREADS, w.desc.thread_count = 1, BYTES);
    WRONG(BN_ERROR_THREADS, w.desc.pool = pool, BYTES);
    WRONG(BN_ERROR_ALIGNMENT, (SET_POOL, w.desc.pool = MISALIGNED(bn_pool, pool)), BYTES);

    WRONG(BN_ERROR_NULL, (void)0, bn_pool_create(2, NULL));
    WRONG(BN_ERROR_ALIGNMENT, (void)0, bn_pool_create(2, MISALIGNED(bn_pool *, &w.made_pool)));
    WRONG(BN_ERROR_THREADS, (void)0, bn_pool_create(BN_MAX_POOL_THREADS + 1, &w.made_pool));
    WRONG(BN_ERROR_THREADS, (void)0, bn_pool_create(SIZE_MAX, &w.made_pool));
    WRONG(BN_ERROR_ALIGNMENT, (void)0, bn_pool_destroy(MISALIGNED(bn_pool, pool)));

    WRONG(BN_ERROR_ALIGNMENT, (void)0, bn_plan_destroy(MISALIGNED(bn_plan, plan)));
    WRONG(BN_ERROR_NULL, (void)0, bn_best_isa(NULL));
    WRONG(BN_ERROR_ALIGNMENT, (void)0, bn_best_isa(MISALIGNED(int32_t, w.isa)));
}

static void compute_statistics(void) {
#define ONLY bn_compute_statistics(plan, &w.only)
    WRONG_CALL(bn_compute_statistics, bn_statistics_args, w.only);
    WRONG_ARRAY(w.only.x, ONLY);
    WRONG_WEIGHTS(w.only, ONLY);
    OVERLAP(w.statistics.var, w.weights, ONLY);
    WRONG(BN_ERROR_NULL, w.only.statistics = NULL, ONLY);
    WRONG_STATISTICS(w.only.statistics, w.statistics, ONLY);
    OVERLAP(w.statistics.mean, w.var, ONLY);
    OVERLAP(w.statistics.var, w.mean, ONLY);
    OVERLAP(w.statistics.mean, w.x, ONLY);
    OVERLAP(w.statistics.var, w.x, ONLY);
    OVERLAP(w.statistics.mean, &w.statistics, ONLY);
    OVERLAP(w.statistics.var, &w.statistics, ONLY);
    WRONG(BN_ERROR_OVERLAP, w.only.x = in(&w.statistics, LEN), ONLY);
}

static void forward_training(void) {
#define TRAINING bn_forward_training(plan, &w.training)
    WRONG_CALL(bn_forward_training, bn_forward_training_args, w.training);
    WRONG_ARRAY(w.training.x, TRAINING);
    WRONG_ARRAY(w.training.y, TRAINING);
    WRONG_OPTIONAL(w.training.gamma, TRAINING);
    WRONG_OPTIONAL(w.training.beta, TRAINING);
    WRONG_OPTIONAL(w.training.residual, TRAINING);
    WRONG_WEIGHTS(w.training, TRAINING);
    OVERLAP(w.training.y, w.residual, TRAINING);
    OVERLAP(w.training.y, w.weights, TRAINING);
    OVERLAP(w.statistics.mean, w.residual, TRAINING);
    OVERLAP(w.statistics.var, w.weights, TRAINING);
    WRONG(BN_ERROR_NULL, w.training.statistics = NULL, TRAINING);
    WRONG_STATISTICS(w.training.statistics, w.statistics, TRAINING);
    PARTIAL_OVERLAP(w.training.y, w.x, TRAINING);
    PARTIAL_OVERLAP(w.training.x, w.y, TRAINING);
    OVERLAP(w.training.y, w.gamma, TRAINING);
    OVERLAP(w.training.y, w.beta, TRAINING);
    OVERLAP(w.training.y, w.mean, TRAINING);
    OVERLAP(w.training.y, w.var, TRAINING);
    OVERLAP(w.training.y, &w.statistics, TRAINING);
    OVERLAP(w.statistics.mean, w.gamma, TRAINING);
    OVERLAP(w.statistics.var, w.beta, TRAINING);
    OVERLAP(w.statistics.mean, w.x, TRAINING);
    OVERLAP(w.statistics.var, w.y, TRAINING);
    OVERLAP(w.statistics.var, w.mean, TRAINING);
}

static void normalizing(void) {
    WRONG_CALL(bn_normalize, bn_normalize_args, w.normalize);
    WRONG_ARRAY(w.normalize.x, normalize());
    WRONG_ARRAY(w.normalize.y, normalize());
    WRONG_OPTIONAL(w.normalize.gamma, normalize());
    WRONG_OPTIONAL(w.normalize.beta, normalize());
    WRONG_OPTIONAL(w.normalize.residual, normalize());
    WRONG_WEIGHTS(w.normalize, normalize());
    OVERLAP(w.normalize.y, w.residual, normalize());
    OVERLAP(w.normalize.y, w.weights, normalize());
    WRONG_SOURCE(w.normalize, normalize);
    WRONG_EMPTY(w.normalize, normalize());
    PARTIAL_OVERLAP(w.normalize.y, w.x, normalize());
    OVERLAP(w.normalize.y, w.gamma, normalize());
    OVERLAP(w.normalize.y, w.beta, normalize());
    OVERLAP(w.normalize.y, w.mean, normalize());
    OVERLAP(w.normalize.y, w.var, normalize());
    OVERLAP(w.normalize.y, w.running_mean, with_running(normalize));
    OVERLAP(w.normalize.y, w.running_var, with_running(normalize));
    WRONG(BN_ERROR_OVERLAP, (use_floats(), put_pointer(&w.normalize.y, w.float_mean)), with_running(normalize));
    WRONG(BN_ERROR_OVERLAP, (use_floats(), put_pointer(&w.normalize.y, w.float_var)), with_running(normalize));
}

static void gradient_sums(void) {
    WRONG_CALL(bn_compute_gradient_sums, bn_gradient_sums_args, w.first);
    WRONG_ARRAY(w.first.x, first());
    WRONG_ARRAY(w.first.dy, first());
    WRONG_EXTRAS(w.first, first());
    OVERLAP(w.sums.g, w.gamma, first());
    OVERLAP(w.sums.gx, w.beta, first());
    OVERLAP(w.sums.g, w.residual, first());
    OVERLAP(w.sums.gx, w.output, first());
    OVERLAP(w.sums.g, w.weights, first());
    WRONG_SOURCE(w.first, first);
    WRONG_EMPTY(w.first, first());
    WRONG_SUMS(w.first.sums, w.sums, first());
    OVERLAP(w.sums.g, w.x, first());
    OVERLAP(w.sums.gx, w.dy, first());
    OVERLAP(w.sums.g, w.mean, first());
    OVERLAP(w.sums.gx, w.var, first());
    OVERLAP(w.sums.g, w.gx, first());
    OVERLAP(w.sums.gx, w.g, first());
}

static void input_gradient(void) {
#define SECOND bn_input_gradient(plan, &w.second)
    WRONG_CALL(bn_input_gradient, bn_input_gradient_args, w.second);
    WRONG_ARRAY(w.second.x, SECOND);
    WRONG_ARRAY(w.second.dy, SECOND);
    WRONG_ARRAY(w.second.dx, SECOND);
    WRONG_EXTRAS(w.second, SECOND);
    WRONG_OPTIONAL(w.second.dresidual, SECOND);
    OVERLAP(w.second.dx, w.beta, SECOND);
    OVERLAP(w.second.dx, w.residual, SECOND);
    OVERLAP(w.second.dx, w.output, SECOND);
    OVERLAP(w.second.dx, w.weights, SECOND);
    OVERLAP(w.second.dresidual, w.dx, SECOND);
    OVERLAP(w.second.dresidual, w.dy, SECOND);
    OVERLAP(w.second.dresidual, w.gx, SECOND);
    WRONG(BN_ERROR_NULL, w.second.statistics = NULL, SECOND);
    WRONG_STATISTICS(w.second.statistics, w.statistics, SECOND);
    WRONG_PARTS(w.statistics, w.var, SECOND);
    WRONG_EMPTY(w.second, SECOND);
    WRONG_SUMS(w.second.sums, w.sums, SECOND);
    PARTIAL_OVERLAP(w.second.dx, w.dy, SECOND);
    OVERLAP(w.second.dx, w.x, SECOND);
    OVERLAP(w.second.dx, w.gamma, SECOND);
    OVERLAP(w.second.dx, w.mean, SECOND);
    OVERLAP(w.second.dx, w.var, SECOND);
    OVERLAP(w.second.dx, w.g, SECOND);
    OVERLAP(w.second.dx, w.gx, SECOND);
}

static void parameter_gradients(void) {
    WRONG_CALL(bn_parameter_gradients, bn_parameter_gradients_args, w.parameters);
    WRONG_SOURCE(w.parameters, parameters);
    WRONG_SUMS(w.parameters.sums, w.sums, parameters());
    WRONG_OPTIONAL(w.parameters.dgamma, parameters());
    WRONG_OPTIONAL(w.parameters.dbeta, parameters());
    OVERLAP(w.parameters.dgamma, w.dbeta, parameters());
    OVERLAP(w.parameters.dgamma, w.mean, parameters());
    OVERLAP(w.parameters.dgamma, w.gx, parameters());
    OVERLAP(w.parameters.dbeta, w.var, parameters());
    OVERLAP(w.parameters.dbeta, w.g, parameters());
}

static void backward_pass(void) {
    WRONG_CALL(bn_backward, bn_backward_args, w.backward);
    WRONG_ARRAY(w.backward.x, backward());
    WRONG_ARRAY(w.backward.dy, backward());
    WRONG_EXTRAS(w.backward, backward());
    WRONG_OPTIONAL(w.backward.dresidual, backward());
    OVERLAP(w.backward.dx, w.beta, backward());
    OVERLAP(w.backward.dx, w.residual, backward());
    OVERLAP(w.backward.dx, w.output, backward());
    OVERLAP(w.backward.dx, w.weights, backward());
    OVERLAP(w.backward.dresidual, w.dx, backward());
    OVERLAP(w.backward.dresidual, w.x, backward());
    OVERLAP(w.backward.dresidual, w.dy, backward());
    OVERLAP(w.backward.dresidual, w.residual, backward());
    OVERLAP(w.backward.dgamma, w.weights, backward());
    OVERLAP(w.backward.dbeta, w.dresidual, backward());
    WRONG_OPTIONAL(w.backward.dx, backward());
    WRONG_OPTIONAL(w.backward.dgamma, backward());
    WRONG_OPTIONAL(w.backward.dbeta, backward());
    WRONG_SOURCE(w.backward, backward);
    WRONG_EMPTY(w.backward, backward());
    PARTIAL_OVERLAP(w.backward.dx, w.dy, backward());
    OVERLAP(w.backward.dx, w.x, backward());
    OVERLAP(w.backward.dx, w.gamma, backward());
    OVERLAP(w.backward.dx, w.dgamma, backward());
    OVERLAP(w.backward.dx, w.dbeta, backward());
    OVERLAP(w.backward.dx, w.mean, backward());
    OVERLAP(w.backward.dx, w.var, backward());
    OVERLAP(w.backward.dx, w.running_mean, with_running(backward));
    OVERLAP(w.backward.dgamma, w.gamma, backward());
    OVERLAP(w.backward.dgamma, w.x, backward());
    OVERLAP(w.backward.dgamma, w.dbeta, backward());
    OVERLAP(w.backward.dbeta, w.dy, backward());
    OVERLAP(w.backward.dbeta, w.var, backward());
    OVERLAP(w.backward.dbeta, w.running_var, with_running(backward));
    WRONG(BN_ERROR_OVERLAP, (use_floats(), put_pointer(&w.backward.dgamma, w.float_mean)), with_running(backward));
}

static void keeping_y(void) {
#define INVERTIBLE bn_forward_training_invertible(plan, &w.invertible)
    WRONG_CALL(bn_forward_training_invertible, bn_forward_training_invertible_args, w.invertible);
    WRONG_ARRAY(w.invertible.x, INVERTIBLE);
    WRONG_OPTIONAL(w.invertible.gamma, INVERTIBLE);
    WRONG_OPTIONAL(w.invertible.beta, INVERTIBLE);
    WRONG(BN_ERROR_NULL, w.invertible.statistics = NULL, INVERTIBLE);
    WRONG_STATISTICS(w.invertible.statistics, w.statistics, INVERTIBLE);
    WRONG(BN_ERROR_NOT_INVERTIBLE, set(parameter(element), w.gamma, 1, 0), INVERTIBLE);
    WRONG(BN_ERROR_NOT_INVERTIBLE, set(parameter(element), w.gamma, 2, NAN), INVERTIBLE);
    WRONG(BN_ERROR_NOT_INVERTIBLE, set(parameter(element), w.beta, 0, -1000), INVERTIBLE);
    OVERLAP(w.invertible.x, w.gamma, INVERTIBLE);
    OVERLAP(w.invertible.x, w.beta, INVERTIBLE);
    OVERLAP(w.invertible.x, w.mean, INVERTIBLE);
    OVERLAP(w.invertible.x, &w.statistics, INVERTIBLE);
    OVERLAP(w.statistics.var, w.mean, INVERTIBLE);

#define FROM_OUTPUT bn_backward_from_output(plan, &w.from_output)
    WRONG_CALL(bn_backward_from_output, bn_backward_from_output_args, w.from_output);
    WRONG_ARRAY(w.from_output.y, FROM_OUTPUT);
    WRONG_ARRAY(w.from_output.dy, FROM_OUTPUT);
    WRONG_OPTIONAL(w.from_output.gamma, FROM_OUTPUT);
    WRONG_OPTIONAL(w.from_output.beta, FROM_OUTPUT);
    WRONG_OPTIONAL(w.from_output.dx, FROM_OUTPUT);
    WRONG_OPTIONAL(w.from_output.dgamma, FROM_OUTPUT);
    WRONG_OPTIONAL(w.from_output.dbeta, FROM_OUTPUT);
    WRONG(BN_ERROR_NULL, w.from_output.statistics = NULL, FROM_OUTPUT);
    WRONG_STATISTICS(w.from_output.statistics, w.statistics, FROM_OUTPUT);
    WRONG_PARTS(w.statistics, w.var, FROM_OUTPUT);
    WRONG(BN_ERROR_EMPTY_STATISTICS, w.statistics.count = 0, FROM_OUTPUT);
    WRONG(BN_ERROR_NOT_INVERTIBLE, set(parameter(element), w.gamma, 1, 0), FROM_OUTPUT);
    OVERLAP(w.from_output.dx, w.x, FROM_OUTPUT);
    OVERLAP(w.from_output.dx, w.dy, FROM_OUTPUT);
    OVERLAP(w.from_output.dx, w.gamma, FROM_OUTPUT);
    OVERLAP(w.from_output.dgamma, w.beta, FROM_OUTPUT);
    OVERLAP(w.from_output.dbeta, w.var, FROM_OUTPUT);
}

static void second_derivatives(void) {
#define TWICE bn_double_backward(plan, &w.twice)
    WRONG_CALL(bn_double_backward, bn_double_backward_args, w.twice);
    WRONG_ARRAY(w.twice.x, TWICE);
    WRONG_ARRAY(w.twice.dy, TWICE);
    WRONG_ARRAY(w.twice.dx_cotangent, TWICE);
    WRONG_OPTIONAL(w.twice.gamma, TWICE);
    WRONG_OPTIONAL(w.twice.dgamma_cotangent, TWICE);
    WRONG_OPTIONAL(w.twice.dbeta_cotangent, TWICE);
    WRONG_OPTIONAL(w.twice.x_gradient, TWICE);
    WRONG_OPTIONAL(w.twice.dy_gradient, TWICE);
    WRONG_OPTIONAL(w.twice.gamma_gradient, TWICE);
    WRONG_SOURCE(w.twice, twice);
    WRONG(BN_ERROR_EMPTY_STATISTICS, w.statistics.count = 0, TWICE);
    OVERLAP(w.twice.x_gradient, w.x, TWICE);
    OVERLAP(w.twice.x_gradient, w.dresidual, TWICE);
    OVERLAP(w.twice.x_gradient, w.residual, TWICE);
    OVERLAP(w.twice.dy_gradient, w.dy, TWICE);
    OVERLAP(w.twice.dy_gradient, w.beta, TWICE);
    OVERLAP(w.twice.gamma_gradient, w.gamma, TWICE);
    OVERLAP(w.twice.gamma_gradient, w.mean, TWICE);
    OVERLAP(w.twice.gamma_gradient, w.running_var, with_running(twice));
}

// Passes that need an activation with an inverse, or no activation.
static void activations(void) {
    bn_plan *const other = plan;
    // This includes a leaky ReLU of slope 0.
    for (int32_t activation = BN_ACTIVATION_RELU; activation <= BN_ACTIVATION_SILU; activation++) {
        bn_plan_desc desc = describe(element, OUTER, CHANNELS, INNER, 1e-5);
        desc.activation = activation;
        plan = make(&desc);
        WRONG(BN_ERROR_ACTIVATION, (void)0, INVERTIBLE);
        WRONG(BN_ERROR_ACTIVATION, (void)0, FROM_OUTPUT);
        WRONG(BN_ERROR_ACTIVATION, (void)0, TWICE);
        CHECK_OK(bn_plan_destroy(plan));
    }
    plan = other;
}

// The length of the first array of a call without a plan is the number of channels, so that the others have the wrong
// one.
#define WRONG_CHANNELS(array, call)                                                                                    \
    WRONG(BN_ERROR_NULL, array.data = NULL, call);                                                                     \
    WRONG(BN_ERROR_LENGTH, memset(&array, 0, sizeof array), call);                                                     \
    WRONG_IF_THERE(array, call)

static void merging(void) {
#define MERGE bn_merge_statistics(w.into, w.from)
    WRONG(BN_ERROR_NULL, w.into = NULL, MERGE);
    WRONG(BN_ERROR_NULL, w.from = NULL, MERGE);
    WRONG_STRUCT(bn_statistics, w.into, w.statistics, MERGE);
    WRONG_CHANNELS(w.statistics.mean, MERGE);
    WRONG_ARRAY(w.statistics.var, MERGE);
    WRONG_STATISTICS(w.from, w.other, MERGE);
    WRONG_PARTS(w.statistics, w.var, MERGE);
    WRONG_PARTS(w.other, w.other_var, MERGE);
    WRONG(BN_ERROR_COUNT, w.statistics.count = w.other.count = DBL_MAX, MERGE);
    WRONG(BN_ERROR_OVERLAP, w.from = w.into, MERGE);
    OVERLAP(w.statistics.mean, w.var, MERGE);
    OVERLAP(w.statistics.mean, w.other_mean, MERGE);
    OVERLAP(w.statistics.var, w.other_var, MERGE);
    OVERLAP(w.statistics.var, &w.statistics, MERGE);

#define MERGE_SUMS bn_merge_gradient_sums(w.into_sums, w.from_sums)
    WRONG(BN_ERROR_NULL, w.into_sums = NULL, MERGE_SUMS);
    WRONG_STRUCT(bn_gradient_sums, w.into_sums, w.sums, MERGE_SUMS);
    WRONG_CHANNELS(w.sums.g, MERGE_SUMS);
    WRONG_ARRAY(w.sums.gx, MERGE_SUMS);
    WRONG_SUMS(w.from_sums, w.other_sums, MERGE_SUMS);
    WRONG(BN_ERROR_OVERLAP, w.from_sums = w.into_sums, MERGE_SUMS);
    OVERLAP(w.sums.g, w.gx, MERGE_SUMS);
    OVERLAP(w.sums.g, w.other_g, MERGE_SUMS);
    OVERLAP(w.sums.gx, w.other_gx, MERGE_SUMS);
}

static void updating(void) {
#define UPDATE bn_update_running_statistics(w.averages, w.from, w.average, w.momentum)
    WRONG(BN_ERROR_NULL, w.averages = NULL, UPDATE);
    WRONG(BN_ERROR_NULL, w.from = NULL, UPDATE);
    WRONG_RUNNING(w.averages, UPDATE);
    WRONG_STRUCT(bn_statistics, w.from, w.other, UPDATE);
    WRONG_CHANNELS(w.other.mean, UPDATE);
    WRONG_ARRAY(w.other.var, UPDATE);
    WRONG_PARTS(w.other, w.other_var, UPDATE);
    WRONG(BN_ERROR_ENUM, w.average = -1, UPDATE);
    WRONG(BN_ERROR_ENUM, w.average = 2, UPDATE);
    WRONG(BN_ERROR_MOMENTUM, w.momentum = -0.1, UPDATE);
    WRONG(BN_ERROR_MOMENTUM, w.momentum = 1.1, UPDATE);
    WRONG(BN_ERROR_MOMENTUM, w.momentum = NAN, UPDATE);
    WRONG(BN_ERROR_MOMENTUM, (use_floats(), w.momentum = NAN), UPDATE);
    WRONG(BN_ERROR_TOO_FEW_VALUES, w.other.count = 1, UPDATE);
    WRONG(BN_ERROR_TOO_FEW_VALUES, (use_floats(), w.other.count = 1), UPDATE);
    OVERLAP(w.running.mean, w.running_var, UPDATE);
    OVERLAP(w.running.mean, w.other_mean, UPDATE);
    OVERLAP(w.running.var, w.other_var, UPDATE);
    OVERLAP(w.running.var, &w.running, UPDATE);
    WRONG(BN_ERROR_OVERLAP, (use_floats(), put_pointer(&w.running.float_mean, w.float_var)), UPDATE);
    WRONG(BN_ERROR_OVERLAP, (use_floats(), put_pointer(&w.running.float_mean, w.float_var + 1)), UPDATE);
    WRONG(BN_ERROR_OVERLAP, (use_floats(), put_pointer(&w.running.float_mean, w.other_mean)), UPDATE);
    WRONG(BN_ERROR_OVERLAP, (use_floats(), put_pointer(&w.running.float_var, w.other_var + 1)), UPDATE);
    WRONG(BN_ERROR_OVERLAP, (use_floats(), put_pointer(&w.running.float_var, &w.running)), UPDATE);
}

static void folding(void) {
    WRONG_CALL(bn_fold, bn_fold_args, w.fold);
    WRONG_OPTIONAL(w.fold.gamma, fold());
    WRONG_OPTIONAL(w.fold.beta, fold());
    WRONG_SOURCE(w.fold, fold);
    WRONG(BN_ERROR_EMPTY_STATISTICS, w.statistics.count = 0, fold());
    WRONG(BN_ERROR_NULL, w.fold.scale_shift = NULL, fold());
    WRONG_STRUCT(bn_scale_shift, w.fold.scale_shift, w.scale_shift, fold());
    WRONG_ARRAY(w.scale_shift.scale, fold());
    WRONG_ARRAY(w.scale_shift.shift, fold());
    OVERLAP(w.scale_shift.scale, w.shift, fold());
    OVERLAP(w.scale_shift.scale, w.gamma, fold());
    OVERLAP(w.scale_shift.shift, w.beta, fold());
    OVERLAP(w.scale_shift.scale, w.mean, fold());
    OVERLAP(w.scale_shift.shift, w.var, fold());
    OVERLAP(w.scale_shift.shift, w.running_var, with_running(fold));

#define PRECEDING bn_fold_preceding(plan, &w.layer)
    WRONG_CALL(bn_fold_preceding, bn_fold_layer_args, w.layer);
    WRONG(BN_ERROR_NULL, w.layer.weight.data = NULL, PRECEDING);
    WRONG(BN_ERROR_LENGTH, memset(&w.layer.weight, 0, sizeof w.layer.weight), PRECEDING);
    WRONG_IF_THERE(w.layer.weight, PRECEDING);
    WRONG_ARRAY(w.layer.bias, PRECEDING);
    WRONG(BN_ERROR_NULL, w.layer.scale_shift = NULL, PRECEDING);
    WRONG_STRUCT(bn_scale_shift, w.layer.scale_shift, w.scale_shift, PRECEDING);
    WRONG_ARRAY(w.scale_shift.scale, PRECEDING);
    WRONG_ARRAY(w.scale_shift.shift, PRECEDING);
    OVERLAP(w.layer.weight, w.bias, PRECEDING);
    OVERLAP(w.layer.weight, w.scale, PRECEDING);
    OVERLAP(w.layer.bias, w.weight, PRECEDING);
    OVERLAP(w.layer.bias, w.shift, PRECEDING);
}

static void folding_into_a_transposed_layer(void) {
#define TRANSPOSED bn_fold_preceding_transposed(plan, &w.transposed)
    WRONG_CALL(bn_fold_preceding_transposed, bn_fold_transposed_args, w.transposed);
    WRONG(BN_ERROR_NULL, w.transposed.weight.data = NULL, TRANSPOSED);
    WRONG(BN_ERROR_LENGTH, memset(&w.transposed.weight, 0, sizeof w.transposed.weight), TRANSPOSED);
    WRONG_IF_THERE(w.transposed.weight, TRANSPOSED);
    WRONG_ARRAY(w.transposed.bias, TRANSPOSED);
    WRONG(BN_ERROR_NULL, w.transposed.scale_shift = NULL, TRANSPOSED);
    WRONG_STRUCT(bn_scale_shift, w.transposed.scale_shift, w.scale_shift, TRANSPOSED);
    WRONG_ARRAY(w.scale_shift.scale, TRANSPOSED);
    WRONG_ARRAY(w.scale_shift.shift, TRANSPOSED);
    OVERLAP(w.transposed.weight, w.bias, TRANSPOSED);
    OVERLAP(w.transposed.bias, w.shift, TRANSPOSED);
    WRONG(BN_ERROR_LENGTH, w.transposed.inputs = 0, TRANSPOSED);
    WRONG(BN_ERROR_LENGTH, w.transposed.inputs = 4, TRANSPOSED);
    WRONG(BN_ERROR_LENGTH, w.transposed.inputs = SIZE_MAX, TRANSPOSED);
    WRONG(BN_ERROR_GROUPS, w.transposed.groups = 0, TRANSPOSED);
    WRONG(BN_ERROR_GROUPS, w.transposed.groups = 2, TRANSPOSED);
    WRONG(BN_ERROR_GROUPS, w.transposed.groups = CHANNELS, TRANSPOSED);
    WRONG(BN_ERROR_GROUPS, w.transposed.groups = SIZE_MAX, TRANSPOSED);
}

static void folding_into_the_following_layer(void) {
    // Two outputs and three inputs: the bias is not a per-channel array.
#define FOLLOWING bn_fold_following(plan, &w.layer)
#define TWO w.layer.bias.len = 2
    WRONG_CALL(bn_fold_following, bn_fold_layer_args, w.layer);
    WRONG(BN_ERROR_NULL, (TWO, w.layer.weight.data = NULL), FOLLOWING);
    WRONG(BN_ERROR_NULL, (TWO, w.layer.bias.data = NULL), FOLLOWING);
    WRONG(BN_ERROR_LENGTH, (TWO, w.layer.weight.len -= 1), FOLLOWING);
    WRONG(BN_ERROR_LENGTH, (TWO, w.layer.weight.len = CHANNELS), FOLLOWING);
    WRONG(BN_ERROR_LENGTH, (TWO, w.layer.weight.len = 0), FOLLOWING);
    WRONG(BN_ERROR_LENGTH, (TWO, w.layer.weight.len = SIZE_MAX), FOLLOWING);
    WRONG(BN_ERROR_LENGTH, w.layer.bias.len = CHANNELS, FOLLOWING);
    WRONG(BN_ERROR_LENGTH, w.layer.bias.len = 0, FOLLOWING);
    WRONG(BN_ERROR_LENGTH, w.layer.bias.len = SIZE_MAX, FOLLOWING);
    WRONG(BN_ERROR_ALIGNMENT, (TWO, put_pointer(&w.layer.weight, (char *)w.weight + 1)), FOLLOWING);
    WRONG(BN_ERROR_ALIGNMENT, (TWO, put_pointer(&w.layer.bias, (char *)w.bias + 1)), FOLLOWING);
    WRONG(BN_ERROR_NULL, (TWO, w.layer.scale_shift = NULL), FOLLOWING);
    WRONG(BN_ERROR_STRUCT_SIZE, (TWO, w.scale_shift.struct_size += 8), FOLLOWING);
    WRONG(BN_ERROR_LENGTH, (TWO, w.scale_shift.shift.len += 1), FOLLOWING);
    WRONG(BN_ERROR_OVERLAP, (TWO, put_pointer(&w.layer.weight, w.scale)), FOLLOWING);
    WRONG(BN_ERROR_OVERLAP, (TWO, put_pointer(&w.layer.bias, w.weight)), FOLLOWING);
    WRONG(BN_ERROR_OVERLAP, (TWO, put_pointer(&w.layer.bias, w.shift)), FOLLOWING);

#define FOLLOWING_TRANSPOSED bn_fold_following_transposed(plan, &w.layer)
    WRONG_CALL(bn_fold_following_transposed, bn_fold_layer_args, w.layer);
    WRONG(BN_ERROR_NULL, (TWO, w.layer.weight.data = NULL), FOLLOWING_TRANSPOSED);
    WRONG(BN_ERROR_NULL, (TWO, w.layer.bias.data = NULL), FOLLOWING_TRANSPOSED);
    WRONG(BN_ERROR_LENGTH, (TWO, w.layer.weight.len -= 1), FOLLOWING_TRANSPOSED);
    WRONG(BN_ERROR_LENGTH, (TWO, w.layer.weight.len = 0), FOLLOWING_TRANSPOSED);
    WRONG(BN_ERROR_LENGTH, w.layer.bias.len = 1, FOLLOWING_TRANSPOSED);
    WRONG(BN_ERROR_LENGTH, w.layer.bias.len = SIZE_MAX, FOLLOWING_TRANSPOSED);
    WRONG(BN_ERROR_ALIGNMENT, (TWO, put_pointer(&w.layer.weight, (char *)w.weight + 1)), FOLLOWING_TRANSPOSED);
    WRONG(BN_ERROR_STRUCT_SIZE, (TWO, w.scale_shift.struct_size += 8), FOLLOWING_TRANSPOSED);
    WRONG(BN_ERROR_OVERLAP, (TWO, put_pointer(&w.layer.bias, w.weight)), FOLLOWING_TRANSPOSED);
}

// No array of a call may overlap the scratch memory given to its plan.
static void scratch_memory(void) {
    bn_plan *const other = plan;
    bn_plan_desc desc = describe(element, OUTER, CHANNELS, INNER, 1e-5);
    desc.scratch = scratch, desc.scratch_bytes = sizeof scratch;
    plan = make(&desc);
    put_right();
    CHECK_OK(backward());
    double *const inside = (double *)(void *)(((uintptr_t)scratch + 63) / 64 * 64);
    WRONG(BN_ERROR_OVERLAP, put_pointer(&w.normalize.x, inside), normalize());
    WRONG(BN_ERROR_OVERLAP, put_pointer(&w.normalize.y, inside), normalize());
    WRONG(BN_ERROR_OVERLAP, put_pointer(&w.normalize.gamma, inside), normalize());
    WRONG(BN_ERROR_OVERLAP, put_pointer(&w.statistics.mean, inside), normalize());
    WRONG(BN_ERROR_OVERLAP, put_pointer(&w.sums.gx, inside), parameters());
    WRONG(BN_ERROR_OVERLAP, put_pointer(&w.running.var, inside), with_running(backward));
    WRONG(BN_ERROR_OVERLAP, (use_floats(), put_pointer(&w.running.float_var, inside)), with_running(backward));
    WRONG(BN_ERROR_OVERLAP, put_pointer(&w.layer.weight, inside), bn_fold_preceding(plan, &w.layer));
    CHECK_OK(bn_plan_destroy(plan));
    plan = other;
}

// The same calls used correctly: so the errors above came from the changes.
static void right(void) {
#define RIGHT(call)                                                                                                    \
    put_right();                                                                                                       \
    CHECK_OK(call);                                                                                                    \
    CHECK(bn_last_error_message()[0] == 0)
    RIGHT(CREATE);
    CHECK_OK(bn_plan_destroy(w.made));
    RIGHT(bn_best_isa(w.isa));
    RIGHT(ONLY);
    RIGHT(TRAINING);
    RIGHT(normalize());
    RIGHT(with_running(normalize));
    RIGHT(first());
    RIGHT(with_running(first));
    RIGHT(SECOND);
    RIGHT(parameters());
    RIGHT(with_running(parameters));
    RIGHT(backward());
    RIGHT(with_running(backward));
    RIGHT(INVERTIBLE);
    RIGHT(FROM_OUTPUT);
    RIGHT(TWICE);
    RIGHT(with_running(twice));
    RIGHT((use_floats(), with_running(twice)));
    RIGHT(MERGE);
    RIGHT(MERGE_SUMS);
    RIGHT(UPDATE);
    RIGHT((use_floats(), UPDATE));
    RIGHT((use_floats(), with_running(normalize)));
    RIGHT((use_floats(), with_running(first)));
    RIGHT((use_floats(), with_running(parameters)));
    RIGHT((use_floats(), with_running(backward)));
    RIGHT((use_floats(), with_running(fold)));
    RIGHT(fold());
    RIGHT(with_running(fold));
    RIGHT(PRECEDING);
    RIGHT(TRANSPOSED);
    RIGHT((TWO, FOLLOWING));
    RIGHT((TWO, FOLLOWING_TRANSPOSED));
    RIGHT(BYTES);
    RIGHT((w.desc.scratch = scratch, w.desc.scratch_bytes = sizeof scratch, CREATE));
    CHECK_OK(bn_plan_destroy(w.made));
}

int main(void) {
    CHECK_OK(bn_pool_create(2, &pool));
    for (element = BN_ELEMENT_F32; element <= BN_ELEMENT_F16; element++) {
        const bn_plan_desc desc = describe(element, OUTER, CHANNELS, INNER, 1e-5);
        plan = make(&desc);
        misuses = 0;
        plans();
        compute_statistics();
        forward_training();
        normalizing();
        gradient_sums();
        input_gradient();
        parameter_gradients();
        backward_pass();
        keeping_y();
        second_derivatives();
        activations();
        merging();
        updating();
        folding();
        folding_into_a_transposed_layer();
        folding_into_the_following_layer();
        scratch_memory();
        right();
        CHECK(misuses >= 100);
        CHECK_OK(bn_plan_destroy(plan));
    }
    CHECK_OK(bn_pool_destroy(pool));
    CHECK_OK(bn_pool_destroy(NULL));
    printf("misuse: %ld misuses for each element type\n", misuses);
    return report("misuse");
}
