// Compares every pass with golden values that can be checked by hand. They are exact in every element type, so there is
// no tolerance.

#include "step.h"

enum { CHANNELS = 2, VALUES = 4, LEN = CHANNELS * VALUES };

// One row per channel. eps is 0; the standard deviations are 1 and 2, the running ones 2 and 2.
static const double X[CHANNELS][VALUES] = {{1, 3, 1, 3}, {10, 14, 14, 10}};
static const double MEAN[CHANNELS] = {2, 12}, VAR[CHANNELS] = {1, 4};
static const double RUNNING_MEAN[CHANNELS] = {1, 12}, RUNNING_VAR[CHANNELS] = {4, 4};
static const double GAMMA[CHANNELS] = {2, 0.5}, BETA[CHANNELS] = {0.5, -1};
static const double Y[CHANNELS][VALUES] = {{-1.5, 2.5, -1.5, 2.5}, {-1.5, -0.5, -0.5, -1.5}};
static const double PLAIN_Y[CHANNELS][VALUES] = {{-1, 1, -1, 1}, {-1, 1, 1, -1}};
static const double RUNNING_Y[CHANNELS][VALUES] = {{0.5, 2.5, 0.5, 2.5}, {-1.5, -0.5, -0.5, -1.5}};
static const double DY[CHANNELS][VALUES] = {{1, 2, 3, 6}, {4, 0, 4, 8}};
static const double SUM[CHANNELS] = {12, 16}, SUM_X[CHANNELS] = {4, -16};
static const double DGAMMA[CHANNELS] = {4, -8};
static const double DX[CHANNELS][VALUES] = {{-2, -4, 2, 4}, {-0.5, -0.5, 0.5, 0.5}};
static const double PLAIN_DX[CHANNELS][VALUES] = {{-1, -2, 1, 2}, {-1, -1, 1, 1}};
static const double FROZEN_DGAMMA[CHANNELS] = {8, -8};
static const double FROZEN_DX[CHANNELS][VALUES] = {{1, 2, 3, 6}, {1, 0, 1, 2}};

typedef struct fixture {
    bn_plan_desc desc;
    bn_plan *plan;
    void *x, *dy, *y, *dx, *gamma, *beta, *dgamma, *dbeta;
    double *mean, *var, *running_mean, *running_var, *g, *gx;
    bn_statistics statistics;
    bn_running_statistics running;
    bn_gradient_sums sums;
} fixture;

static void *values(const bn_plan_desc *d, const double v[CHANNELS][VALUES]) {
    void *array = allocate(LEN, element_size(d->element));
    for (size_t c = 0; c < CHANNELS; c++) {
        for (size_t k = 0; k < VALUES; k++) {
            set(d->element, array, place(d, c, k), v[c][k]);
        }
    }
    return array;
}

static void *parameters(const bn_plan_desc *d, const double v[CHANNELS]) {
    const int32_t p = parameter(d->element);
    void *array = allocate(CHANNELS, element_size(p));
    for (size_t c = 0; c < CHANNELS; c++) {
        set(p, array, c, v[c]);
    }
    return array;
}

static double *per_channel(const double v[CHANNELS]) {
    double *array = (double *)allocate(CHANNELS, sizeof(double));
    memcpy(array, v, CHANNELS * sizeof(double));
    return array;
}

static int are(const bn_plan_desc *d, const void *array, const double v[CHANNELS][VALUES]) {
    int equal = 1;
    for (size_t c = 0; c < CHANNELS; c++) {
        for (size_t k = 0; k < VALUES; k++) {
            equal &= get(d->element, array, place(d, c, k)) == v[c][k];
        }
    }
    return equal;
}

static int are_parameters(const bn_plan_desc *d, const void *array, const double v[CHANNELS]) {
    return get(parameter(d->element), array, 0) == v[0] && get(parameter(d->element), array, 1) == v[1];
}

static int are_doubles(const double *array, const double v[CHANNELS]) { return array[0] == v[0] && array[1] == v[1]; }

static fixture set_up_with(int32_t element, int rows, int32_t activation, double slope) {
    static const double nothing[CHANNELS] = {-99, -99};
    static const double nowhere[CHANNELS][VALUES] = {{-99, -99, -99, -99}, {-99, -99, -99, -99}};
    fixture f;
    f.desc = describe(element, rows ? 4 : 2, CHANNELS, rows ? 1 : 2, 0.0);
    f.desc.activation = activation, f.desc.slope = slope;
    f.plan = make(&f.desc);
    f.x = values(&f.desc, X), f.dy = values(&f.desc, DY);
    f.y = values(&f.desc, nowhere), f.dx = values(&f.desc, nowhere);
    f.gamma = parameters(&f.desc, GAMMA), f.beta = parameters(&f.desc, BETA);
    f.dgamma = parameters(&f.desc, nothing), f.dbeta = parameters(&f.desc, nothing);
    f.mean = per_channel(MEAN), f.var = per_channel(VAR);
    f.running_mean = per_channel(RUNNING_MEAN), f.running_var = per_channel(RUNNING_VAR);
    f.g = per_channel(SUM), f.gx = per_channel(SUM_X);
    INIT(f.statistics), INIT(f.running), INIT(f.sums);
    f.statistics.count = VALUES;
    f.statistics.mean = doubles(f.mean, CHANNELS), f.statistics.var = doubles(f.var, CHANNELS);
    f.running.mean = doubles(f.running_mean, CHANNELS), f.running.var = doubles(f.running_var, CHANNELS);
    f.sums.g = doubles(f.g, CHANNELS), f.sums.gx = doubles(f.gx, CHANNELS);
    return f;
}

static fixture set_up(int32_t element, int rows) { return set_up_with(element, rows, BN_ACTIVATION_IDENTITY, 0); }

static void tear_down(fixture f) {
    void *arrays[] = {f.x,    f.dy,  f.y,            f.dx,          f.gamma, f.beta, f.dgamma, f.dbeta,
                      f.mean, f.var, f.running_mean, f.running_var, f.g,     f.gx};
    for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++) {
        free(arrays[i]);
    }
    CHECK_OK(bn_plan_destroy(f.plan));
}

static void forget_statistics(fixture *f) {
    f->statistics.count = -1;
    f->mean[0] = f->mean[1] = f->var[0] = f->var[1] = -99;
}

static int has_statistics(const fixture *f) {
    return f->statistics.count == VALUES && are_doubles(f->mean, MEAN) && are_doubles(f->var, VAR);
}

static void forward(int32_t element, int rows) {
    fixture f = set_up(element, rows);
    bn_statistics_args only;
    bn_forward_training_args training;
    bn_normalize_args normalize;
    INIT(only), INIT(training), INIT(normalize);

    only.x = in(f.x, LEN), only.statistics = &f.statistics;
    forget_statistics(&f);
    CHECK_OK(bn_compute_statistics(f.plan, &only));
    CHECK(has_statistics(&f));

    training.x = in(f.x, LEN), training.y = out(f.y, LEN), training.statistics = &f.statistics;
    forget_statistics(&f);
    CHECK_OK(bn_forward_training(f.plan, &training));
    CHECK(are(&f.desc, f.y, PLAIN_Y) && has_statistics(&f));
    training.gamma = in(f.gamma, CHANNELS), training.beta = in(f.beta, CHANNELS);
    forget_statistics(&f);
    CHECK_OK(bn_forward_training(f.plan, &training));
    CHECK(are(&f.desc, f.y, Y) && has_statistics(&f) && are(&f.desc, f.x, X));

    normalize.x = in(f.x, LEN), normalize.y = out(f.y, LEN), normalize.statistics = &f.statistics;
    CHECK_OK(bn_normalize(f.plan, &normalize));
    CHECK(are(&f.desc, f.y, PLAIN_Y));
    normalize.gamma = in(f.gamma, CHANNELS), normalize.beta = in(f.beta, CHANNELS);
    CHECK_OK(bn_normalize(f.plan, &normalize));
    CHECK(are(&f.desc, f.y, Y));
    normalize.statistics = NULL, normalize.running = &f.running;
    CHECK_OK(bn_normalize(f.plan, &normalize));
    CHECK(are(&f.desc, f.y, RUNNING_Y));

    // In place.
    normalize.y = out(f.x, LEN);
    CHECK_OK(bn_normalize(f.plan, &normalize));
    CHECK(are(&f.desc, f.x, RUNNING_Y));
    free(f.x);
    f.x = values(&f.desc, X);
    training.x = in(f.x, LEN), training.y = out(f.x, LEN);
    forget_statistics(&f);
    CHECK_OK(bn_forward_training(f.plan, &training));
    CHECK(are(&f.desc, f.x, Y) && has_statistics(&f));
    tear_down(f);
}

static void backward(int32_t element, int rows) {
    fixture f = set_up(element, rows);
    bn_backward_args fused;
    bn_gradient_sums_args first;
    bn_input_gradient_args second;
    bn_parameter_gradients_args parameters_only;
    INIT(fused), INIT(first), INIT(second), INIT(parameters_only);

    fused.x = in(f.x, LEN), fused.dy = in(f.dy, LEN), fused.statistics = &f.statistics;
    fused.dx = out(f.dx, LEN), fused.dgamma = out(f.dgamma, CHANNELS), fused.dbeta = out(f.dbeta, CHANNELS);
    CHECK_OK(bn_backward(f.plan, &fused));
    CHECK(are(&f.desc, f.dx, PLAIN_DX));
    fused.gamma = in(f.gamma, CHANNELS);
    CHECK_OK(bn_backward(f.plan, &fused));
    CHECK(are(&f.desc, f.dx, DX) && are_parameters(&f.desc, f.dgamma, DGAMMA) && are_parameters(&f.desc, f.dbeta, SUM));
    fused.statistics = NULL, fused.running = &f.running;
    CHECK_OK(bn_backward(f.plan, &fused));
    CHECK(are(&f.desc, f.dx, FROZEN_DX) && are_parameters(&f.desc, f.dgamma, FROZEN_DGAMMA));
    CHECK(are_parameters(&f.desc, f.dbeta, SUM));

    first.x = fused.x, first.dy = fused.dy, first.statistics = &f.statistics, first.sums = &f.sums;
    f.g[0] = f.g[1] = f.gx[0] = f.gx[1] = -99;
    CHECK_OK(bn_compute_gradient_sums(f.plan, &first));
    CHECK(are_doubles(f.g, SUM) && are_doubles(f.gx, SUM_X));

    second.x = fused.x, second.dy = fused.dy, second.statistics = &f.statistics, second.sums = &f.sums;
    second.dx = fused.dx;
    CHECK_OK(bn_input_gradient(f.plan, &second));
    CHECK(are(&f.desc, f.dx, PLAIN_DX));
    second.gamma = in(f.gamma, CHANNELS);
    CHECK_OK(bn_input_gradient(f.plan, &second));
    CHECK(are(&f.desc, f.dx, DX));

    parameters_only.statistics = &f.statistics, parameters_only.sums = &f.sums;
    parameters_only.dgamma = out(f.dgamma, CHANNELS);
    CHECK_OK(bn_parameter_gradients(f.plan, &parameters_only));
    CHECK(are_parameters(&f.desc, f.dgamma, DGAMMA));
    parameters_only.dgamma = out(NULL, 0), parameters_only.dbeta = out(f.dbeta, CHANNELS);
    set(parameter(element), f.dbeta, 0, -99);
    CHECK_OK(bn_parameter_gradients(f.plan, &parameters_only));
    CHECK(are_parameters(&f.desc, f.dbeta, SUM));
    CHECK(are(&f.desc, f.x, X) && are(&f.desc, f.dy, DY) && has_statistics(&f));

    // No gradient requested, one requested, in place.
    fused.statistics = &f.statistics, fused.running = NULL;
    fused.dx = out(NULL, 0), fused.dgamma = out(NULL, 0), fused.dbeta = out(NULL, 0);
    CHECK_OK(bn_backward(f.plan, &fused));
    fused.dgamma = out(f.dgamma, CHANNELS);
    set(parameter(element), f.dgamma, 0, -99);
    CHECK_OK(bn_backward(f.plan, &fused));
    CHECK(are_parameters(&f.desc, f.dgamma, DGAMMA));
    fused.dx = out(f.dy, LEN), fused.dbeta = out(f.dbeta, CHANNELS);
    CHECK_OK(bn_backward(f.plan, &fused));
    CHECK(are(&f.desc, f.dy, DX) && are_parameters(&f.desc, f.dgamma, DGAMMA));
    free(f.dy);
    f.dy = values(&f.desc, DY);
    second.dy = in(f.dy, LEN), second.dx = out(f.dy, LEN);
    CHECK_OK(bn_input_gradient(f.plan, &second));
    CHECK(are(&f.desc, f.dy, DX));

    // Two inputs may be the same array.
    fused.x = fused.dy = in(f.x, LEN), fused.dx = out(f.dx, LEN);
    CHECK_OK(bn_backward(f.plan, &fused));
    tear_down(f);
}

// A residual with which the activation's argument is {0.5, 2.5, -0.5, -0.5} and {-0.5, 0.5, 0.5, 1.5}.
static const double RESIDUAL[CHANNELS][VALUES] = {{2, 0, 1, -3}, {1, 1, 1, 3}};
static const double RELU_Y[CHANNELS][VALUES] = {{0.5, 2.5, 0, 0}, {0, 0.5, 0.5, 1.5}};
static const double RELU_G[CHANNELS][VALUES] = {{1, 2, 0, 0}, {0, 0, 4, 8}};
static const double RELU_DX[CHANNELS][VALUES] = {{1, 2, -1, -2}, {-1, -0.5, 0.5, 1}};
static const double RELU_DGAMMA[CHANNELS] = {1, -4}, RELU_DBETA[CHANNELS] = {3, 12}, RELU_SUM_X[CHANNELS] = {1, -8};

// relu(gamma * (x - mean) / std + beta + residual), and its backward pass with y and without it, fused and split.
static void relu(int32_t element, int rows) {
    fixture f = set_up_with(element, rows, BN_ACTIVATION_RELU, 0);
    void *residual = values(&f.desc, RESIDUAL), *dresidual = values(&f.desc, X);
    bn_forward_training_args training;
    bn_normalize_args normalize;
    bn_backward_args fused;
    bn_gradient_sums_args first;
    bn_input_gradient_args second;
    INIT(training), INIT(normalize), INIT(fused), INIT(first), INIT(second);
    training.x = in(f.x, LEN), training.gamma = in(f.gamma, CHANNELS), training.beta = in(f.beta, CHANNELS);
    training.residual = in(residual, LEN), training.y = out(f.y, LEN), training.statistics = &f.statistics;
    forget_statistics(&f);
    CHECK_OK(bn_forward_training(f.plan, &training));
    CHECK(are(&f.desc, f.y, RELU_Y) && has_statistics(&f));
    normalize.x = training.x, normalize.gamma = training.gamma, normalize.beta = training.beta;
    normalize.residual = training.residual, normalize.statistics = &f.statistics, normalize.y = out(f.dx, LEN);
    CHECK_OK(bn_normalize(f.plan, &normalize));
    CHECK(are(&f.desc, f.dx, RELU_Y));

    for (int by_output = 0; by_output <= 1; by_output++) {
        const bn_slice absent = in(NULL, 0);
        fused.x = in(f.x, LEN), fused.dy = in(f.dy, LEN), fused.statistics = &f.statistics;
        fused.gamma = training.gamma, fused.beta = by_output ? absent : training.beta;
        fused.output = by_output ? in(f.y, LEN) : absent, fused.residual = by_output ? absent : in(residual, LEN);
        fused.dx = out(f.dx, LEN), fused.dresidual = out(dresidual, LEN);
        fused.dgamma = out(f.dgamma, CHANNELS), fused.dbeta = out(f.dbeta, CHANNELS);
        CHECK_OK(bn_backward(f.plan, &fused));
        CHECK(are(&f.desc, f.dx, RELU_DX) && are(&f.desc, dresidual, RELU_G));
        CHECK(are_parameters(&f.desc, f.dgamma, RELU_DGAMMA) && are_parameters(&f.desc, f.dbeta, RELU_DBETA));

        first.x = fused.x, first.dy = fused.dy, first.statistics = &f.statistics, first.gamma = fused.gamma;
        first.beta = fused.beta, first.output = fused.output, first.residual = fused.residual, first.sums = &f.sums;
        CHECK_OK(bn_compute_gradient_sums(f.plan, &first));
        CHECK(are_doubles(f.g, RELU_DBETA) && are_doubles(f.gx, RELU_SUM_X));
        second.x = fused.x, second.dy = fused.dy, second.statistics = &f.statistics, second.sums = &f.sums;
        second.gamma = fused.gamma, second.beta = fused.beta, second.output = fused.output;
        second.residual = fused.residual, second.dresidual = fused.dresidual, second.dx = fused.dx;
        memset(f.dx, 0, LEN * element_size(element)), memset(dresidual, 0, LEN * element_size(element));
        CHECK_OK(bn_input_gradient(f.plan, &second));
        CHECK(are(&f.desc, f.dx, RELU_DX) && are(&f.desc, dresidual, RELU_G));
        second.dx = out(f.dy, LEN);
        memset(dresidual, 0, LEN * element_size(element));
        CHECK_OK(bn_input_gradient(f.plan, &second));
        CHECK(are(&f.desc, f.dy, RELU_DX) && are(&f.desc, dresidual, RELU_G));
        free(f.dy);
        f.dy = values(&f.desc, DY);
    }
    free(residual), free(dresidual);
    tear_down(f);
}

// SiLU at 0, where it is 0 and its derivative 0.5: the residual cancels the normalized values.
static void silu(int32_t element, int rows) {
    static const double residual[CHANNELS][VALUES] = {{1, -1, 1, -1}, {1, -1, -1, 1}};
    static const double zeros[CHANNELS][VALUES] = {{0, 0, 0, 0}, {0, 0, 0, 0}};
    static const double g[CHANNELS][VALUES] = {{0.5, 1, 1.5, 3}, {2, 0, 2, 4}};
    static const double dx[CHANNELS][VALUES] = {{-0.5, -1, 0.5, 1}, {-0.5, -0.5, 0.5, 0.5}};
    fixture f = set_up_with(element, rows, BN_ACTIVATION_SILU, 0);
    void *r = values(&f.desc, residual), *dr = values(&f.desc, X);
    bn_forward_training_args training;
    bn_backward_args fused;
    INIT(training), INIT(fused);
    training.x = in(f.x, LEN), training.residual = in(r, LEN), training.y = out(f.y, LEN);
    training.statistics = &f.statistics;
    CHECK_OK(bn_forward_training(f.plan, &training));
    CHECK(are(&f.desc, f.y, zeros));
    fused.x = training.x, fused.dy = in(f.dy, LEN), fused.residual = training.residual;
    fused.statistics = &f.statistics, fused.dx = out(f.dx, LEN), fused.dresidual = out(dr, LEN);
    CHECK_OK(bn_backward(f.plan, &fused));
    CHECK(are(&f.desc, f.dx, dx) && are(&f.desc, dr, g));
    free(r), free(dr);
    tear_down(f);
}

// Weights that leave mean and variance unchanged, and a mask over NaN.
static void weighted(int32_t element, int rows) {
    static const double weights[VALUES] = {3, 3, 1, 1}, mask[VALUES] = {1, 1, 0, 0};
    static const double masked_y[CHANNELS][VALUES] = {{-1.5, 2.5, 0, 0}, {-1.5, -0.5, 0, 0}};
    static const double dx[CHANNELS][VALUES] = {{-4, -8, 4, 8}, {-1.25, -0.75, 0.75, 1.25}};
    const int32_t p = parameter(element);
    fixture f = set_up(element, rows);
    void *w = allocate(VALUES, element_size(p));
    bn_statistics_args only;
    bn_forward_training_args training;
    bn_backward_args fused;
    INIT(only), INIT(training), INIT(fused);
    for (size_t k = 0; k < VALUES; k++) {
        set(p, w, k, weights[k]);
    }
    training.x = in(f.x, LEN), training.gamma = in(f.gamma, CHANNELS), training.beta = in(f.beta, CHANNELS);
    training.weights = in(w, VALUES), training.y = out(f.y, LEN), training.statistics = &f.statistics;
    forget_statistics(&f);
    CHECK_OK(bn_forward_training(f.plan, &training));
    CHECK(f.statistics.count == 8 && are_doubles(f.mean, MEAN) && are_doubles(f.var, VAR) && are(&f.desc, f.y, Y));
    fused.x = training.x, fused.dy = in(f.dy, LEN), fused.gamma = training.gamma, fused.weights = training.weights;
    fused.statistics = &f.statistics, fused.dx = out(f.dx, LEN), fused.dgamma = out(f.dgamma, CHANNELS);
    CHECK_OK(bn_backward(f.plan, &fused));
    CHECK(are(&f.desc, f.dx, dx) && are_parameters(&f.desc, f.dgamma, DGAMMA));

    for (size_t k = 0; k < VALUES; k++) {
        set(p, w, k, mask[k]);
    }
    memset((char *)f.x + place(&f.desc, 1, 3) * element_size(element), 0xff, element_size(element));
    forget_statistics(&f);
    CHECK_OK(bn_forward_training(f.plan, &training));
    CHECK(f.statistics.count == 2 && are_doubles(f.mean, MEAN) && are_doubles(f.var, VAR));
    CHECK(are(&f.desc, f.y, masked_y));
    only.x = training.x, only.weights = training.weights, only.statistics = &f.statistics;
    forget_statistics(&f);
    CHECK_OK(bn_compute_statistics(f.plan, &only));
    CHECK(f.statistics.count == 2 && are_doubles(f.mean, MEAN) && are_doubles(f.var, VAR));
    free(w);
    tear_down(f);
}

// Leaky ReLU of slope 0.5, with y written over x, and the backward pass from y.
static void invertible(int32_t element, int rows) {
    static const double y[CHANNELS][VALUES] = {{-0.75, 2.5, -0.75, 2.5}, {-0.75, -0.25, -0.25, -0.75}};
    static const double dx[CHANNELS][VALUES] = {{-1, -4, 1, 4}, {-0.25, -0.25, 0.25, 0.25}};
    static const double dgamma[CHANNELS] = {6, -4}, dbeta[CHANNELS] = {10, 8};
    fixture f = set_up_with(element, rows, BN_ACTIVATION_LEAKY_RELU, 0.5);
    bn_forward_training_invertible_args training;
    bn_backward_from_output_args back;
    INIT(training), INIT(back);
    training.x = out(f.x, LEN), training.gamma = in(f.gamma, CHANNELS), training.beta = in(f.beta, CHANNELS);
    training.statistics = &f.statistics;
    forget_statistics(&f);
    CHECK_OK(bn_forward_training_invertible(f.plan, &training));
    CHECK(are(&f.desc, f.x, y) && has_statistics(&f));
    back.y = in(f.x, LEN), back.dy = in(f.dy, LEN), back.statistics = &f.statistics, back.gamma = training.gamma;
    back.beta = training.beta, back.dx = out(f.dx, LEN), back.dgamma = out(f.dgamma, CHANNELS);
    back.dbeta = out(f.dbeta, CHANNELS);
    CHECK_OK(bn_backward_from_output(f.plan, &back));
    CHECK(are(&f.desc, f.dx, dx) && are(&f.desc, f.x, y) && are(&f.desc, f.dy, DY));
    CHECK(are_parameters(&f.desc, f.dgamma, dgamma) && are_parameters(&f.desc, f.dbeta, dbeta));
    tear_down(f);
}

// The gradients of the sum of dy * dx + dgamma + 2 * dbeta in the first channel, of dy * dx + 2 * dgamma - dbeta in the
// second.
static void second_derivatives(int32_t element, int rows) {
    static const double u[CHANNELS] = {1, 2}, v[CHANNELS] = {2, -1}, of_gamma[CHANNELS] = {10, 8};
    static const double of_x[CHANNELS][VALUES] = {{8, 1, 2, -11}, {-2.5, -3.5, 2.5, 3.5}};
    static const double of_dy[CHANNELS][VALUES] = {{-1, -1, 3, 7}, {-3.5, 0.5, 1.5, -2.5}};
    fixture f = set_up(element, rows);
    void *dgamma = parameters(&f.desc, u), *dbeta = parameters(&f.desc, v);
    bn_double_backward_args second;
    INIT(second);
    second.x = in(f.x, LEN), second.dy = second.dx_cotangent = in(f.dy, LEN), second.statistics = &f.statistics;
    second.gamma = in(f.gamma, CHANNELS);
    second.dgamma_cotangent = in(dgamma, CHANNELS), second.dbeta_cotangent = in(dbeta, CHANNELS);
    second.x_gradient = out(f.dx, LEN), second.dy_gradient = out(f.y, LEN);
    second.gamma_gradient = out(f.dgamma, CHANNELS);
    CHECK_OK(bn_double_backward(f.plan, &second));
    CHECK(are(&f.desc, f.dx, of_x) && are(&f.desc, f.y, of_dy) && are_parameters(&f.desc, f.dgamma, of_gamma));
    second.dgamma_cotangent = second.dbeta_cotangent = in(NULL, 0), second.x_gradient = out(NULL, 0);
    second.gamma_gradient = out(NULL, 0);
    CHECK_OK(bn_double_backward(f.plan, &second));
    CHECK(are(&f.desc, f.y, DX));

    // With running statistics.
    static const double frozen_of_x[CHANNELS][VALUES] = {{0.5, 1, 1.5, 3}, {4, 0, 4, 8}};
    static const double frozen_of_dy[CHANNELS][VALUES] = {{3, 5, 5, 9}, {-2, 1, 2, -1}};
    static const double frozen_of_gamma[CHANNELS] = {25, 48};
    second.statistics = NULL, second.running = &f.running;
    second.dgamma_cotangent = in(dgamma, CHANNELS), second.dbeta_cotangent = in(dbeta, CHANNELS);
    second.x_gradient = out(f.dx, LEN), second.gamma_gradient = out(f.dgamma, CHANNELS);
    CHECK_OK(bn_double_backward(f.plan, &second));
    CHECK(are(&f.desc, f.dx, frozen_of_x) && are(&f.desc, f.y, frozen_of_dy));
    CHECK(are_parameters(&f.desc, f.dgamma, frozen_of_gamma));
    free(dgamma), free(dbeta);
    tear_down(f);
}

static void averages(int32_t element) {
    fixture f = set_up(element, 0);
    static const double half_mean[CHANNELS] = {1.5, 12}, half_biased[CHANNELS] = {2.5, 4};
    static const double half_unbiased[CHANNELS] = {3, 5}, other_mean[CHANNELS] = {4, 12}, merged_mean[CHANNELS] = {3, 12};
    static const double merged_var[CHANNELS] = {2, 4}, twice_g[CHANNELS] = {24, 32}, twice_gx[CHANNELS] = {8, -32};

    f.running.variance = BN_VARIANCE_BIASED;
    CHECK_OK(bn_update_running_statistics(&f.running, &f.statistics, BN_AVERAGE_EXPONENTIAL, 0.5));
    CHECK(are_doubles(f.running_mean, half_mean) && are_doubles(f.running_var, half_biased) && f.running.batches == 1);

    // Unbiased, over 2 values: the variances 1 and 4 become 2 and 8; 3 = (4 + 2) / 2 and 5 = (2 + 8) / 2.
    f.statistics.count = 2, f.running.variance = BN_VARIANCE_UNBIASED;
    f.running_var[0] = 4, f.running_var[1] = 2;
    CHECK_OK(bn_update_running_statistics(&f.running, &f.statistics, BN_AVERAGE_EXPONENTIAL, 0.5));
    CHECK(are_doubles(f.running_var, half_unbiased) && f.running.batches == 2);

    // The first batch replaces the initial values, whatever they are; the second has half the weight. momentum is
    // ignored.
    f.running.batches = 0, f.running.variance = BN_VARIANCE_BIASED, f.running_mean[0] = NAN;
    CHECK_OK(bn_update_running_statistics(&f.running, &f.statistics, BN_AVERAGE_CUMULATIVE, NAN));
    CHECK(are_doubles(f.running_mean, MEAN) && are_doubles(f.running_var, VAR) && f.running.batches == 1);
    f.running_mean[0] = 1, f.running_var[0] = 4;
    CHECK_OK(bn_update_running_statistics(&f.running, &f.statistics, BN_AVERAGE_CUMULATIVE, 0));
    CHECK(are_doubles(f.running_mean, half_mean) && are_doubles(f.running_var, half_biased) && f.running.batches == 2);

    // An empty batch changes nothing.
    f.statistics.count = 0;
    CHECK_OK(bn_update_running_statistics(&f.running, &f.statistics, BN_AVERAGE_CUMULATIVE, 0));
    CHECK(are_doubles(f.running_mean, half_mean) && f.running.batches == 2);

    bn_statistics other = f.statistics;
    double *mean = per_channel(other_mean), *var = per_channel(VAR);
    other.mean = doubles(mean, CHANNELS), other.var = doubles(var, CHANNELS);
    other.count = 4;
    f.statistics.count = 4;
    CHECK_OK(bn_merge_statistics(&f.statistics, &other));
    CHECK(f.statistics.count == 8 && are_doubles(f.mean, merged_mean) && are_doubles(f.var, merged_var));
    f.statistics.count = 0;
    CHECK_OK(bn_merge_statistics(&f.statistics, &other));
    CHECK(f.statistics.count == 4 && are_doubles(f.mean, other_mean) && are_doubles(f.var, VAR));

    bn_gradient_sums other_sums = f.sums;
    double *g = per_channel(SUM), *gx = per_channel(SUM_X);
    other_sums.g = doubles(g, CHANNELS), other_sums.gx = doubles(gx, CHANNELS);
    CHECK_OK(bn_merge_gradient_sums(&f.sums, &other_sums));
    CHECK(are_doubles(f.g, twice_g) && are_doubles(f.gx, twice_gx) && are_doubles(g, SUM) && are_doubles(gx, SUM_X));
    free(mean), free(var), free(g), free(gx);
    tear_down(f);
}

static int are_floats(const float *array, const double v[CHANNELS]) {
    return (double)array[0] == v[0] && (double)array[1] == v[1];
}

// Running statistics in float do in every call as those in double, and an update rounds them once.
static void averages_in_float(int32_t element, int rows) {
    static const double scale[CHANNELS] = {1, 0.25}, shift[CHANNELS] = {-0.5, -4}, half_mean[CHANNELS] = {1.5, 12};
    static const double half_var[CHANNELS] = {2.5, 4};
    fixture f = set_up(element, rows);
    float mean[CHANNELS] = {1, 12}, var[CHANNELS] = {4, 4};
    double scales[CHANNELS], shifts[CHANNELS];
    bn_running_statistics running;
    bn_scale_shift scale_shift;
    bn_normalize_args normalize;
    bn_backward_args back;
    bn_gradient_sums_args first;
    bn_parameter_gradients_args parameters_only;
    bn_fold_args fold;
    INIT(running), INIT(scale_shift), INIT(normalize), INIT(back), INIT(first), INIT(parameters_only), INIT(fold);
    running.float_mean = floats(mean, CHANNELS), running.float_var = floats(var, CHANNELS);
    scale_shift.scale = doubles(scales, CHANNELS), scale_shift.shift = doubles(shifts, CHANNELS);

    normalize.x = in(f.x, LEN), normalize.gamma = in(f.gamma, CHANNELS), normalize.beta = in(f.beta, CHANNELS);
    normalize.running = &running, normalize.y = out(f.y, LEN);
    CHECK_OK(bn_normalize(f.plan, &normalize));
    CHECK(are(&f.desc, f.y, RUNNING_Y));
    back.x = normalize.x, back.dy = in(f.dy, LEN), back.gamma = normalize.gamma, back.running = &running;
    back.dx = out(f.dx, LEN), back.dgamma = out(f.dgamma, CHANNELS);
    CHECK_OK(bn_backward(f.plan, &back));
    CHECK(are(&f.desc, f.dx, FROZEN_DX) && are_parameters(&f.desc, f.dgamma, FROZEN_DGAMMA));
    first.x = normalize.x, first.dy = back.dy, first.running = &running, first.sums = &f.sums;
    CHECK_OK(bn_compute_gradient_sums(f.plan, &first));
    set(parameter(element), f.dgamma, 0, -99);
    parameters_only.running = &running, parameters_only.sums = &f.sums, parameters_only.dgamma = back.dgamma;
    CHECK_OK(bn_parameter_gradients(f.plan, &parameters_only));
    CHECK(are_parameters(&f.desc, f.dgamma, FROZEN_DGAMMA));
    fold.running = &running, fold.gamma = normalize.gamma, fold.beta = normalize.beta, fold.scale_shift = &scale_shift;
    CHECK_OK(bn_fold(f.plan, &fold));
    CHECK(are_doubles(scales, scale) && are_doubles(shifts, shift));
    CHECK(are_floats(mean, RUNNING_MEAN) && are_floats(var, RUNNING_VAR) && running.batches == 0);

    running.variance = BN_VARIANCE_BIASED;
    CHECK_OK(bn_update_running_statistics(&running, &f.statistics, BN_AVERAGE_EXPONENTIAL, 0.5));
    CHECK(are_floats(mean, half_mean) && are_floats(var, half_var) && running.batches == 1);
    // 0.9 * 1.5 + 0.1 * 2 is no float: the result in double is rounded to the nearest one.
    CHECK_OK(bn_update_running_statistics(&running, &f.statistics, BN_AVERAGE_EXPONENTIAL, 0.1));
    CHECK(mean[0] == (float)((1 - 0.1) * 1.5 + 0.1 * 2) && mean[1] == 12 && running.batches == 2);
    CHECK(var[0] == (float)((1 - 0.1) * 2.5 + 0.1 * 1) && var[1] == 4);
    // Momentum 0, an empty batch, and averages that are out of the range of float.
    mean[1] = 0.1f;
    CHECK_OK(bn_update_running_statistics(&running, &f.statistics, BN_AVERAGE_EXPONENTIAL, 0));
    CHECK(mean[1] == 0.1f && running.batches == 3);
    f.statistics.count = 0;
    CHECK_OK(bn_update_running_statistics(&running, &f.statistics, BN_AVERAGE_EXPONENTIAL, 0.5));
    CHECK(mean[1] == 0.1f && running.batches == 3);
    f.statistics.count = VALUES, f.var[1] = 1e300;
    CHECK_OK(bn_update_running_statistics(&running, &f.statistics, BN_AVERAGE_EXPONENTIAL, 1));
    CHECK(are_floats(mean, MEAN) && var[0] == 1 && isinf(var[1]));
    tear_down(f);
}

// The errors of averages in float stay within those that the header states.
static void accuracy_in_float(void) {
    const double means[] = {1e3, -7, 1e-3}, u = ldexp(1, -24);
    for (size_t k = 0; k < sizeof means / sizeof *means; k++) {
        for (int32_t average = BN_AVERAGE_EXPONENTIAL; average <= BN_AVERAGE_CUMULATIVE; average++) {
            double mean = 0, var = 1, batch_mean, batch_var, most = 0;
            float float_mean = 0, float_var = 1;
            int ok = 1;
            bn_running_statistics wide, narrow;
            bn_statistics batch;
            INIT(wide), INIT(narrow), INIT(batch);
            wide.mean = doubles(&mean, 1), wide.var = doubles(&var, 1);
            narrow.float_mean = floats(&float_mean, 1), narrow.float_var = floats(&float_var, 1);
            batch.count = 32, batch.mean = doubles(&batch_mean, 1), batch.var = doubles(&batch_var, 1);
            for (int n = 1; n <= 1000; n++) {
                batch_mean = means[k] + sin(n), batch_var = 1 + 0.5 * cos(n);
                CHECK_OK(bn_update_running_statistics(&wide, &batch, average, 0.01));
                CHECK_OK(bn_update_running_statistics(&narrow, &batch, average, 0.01));
                most = fmax(most, fabs(mean));
                const double factor = average == BN_AVERAGE_EXPONENTIAL ? u / 0.01 : u / 2 * (n + 1);
                // The errors of the doubles are 1e-9 of this.
                ok &= fabs((double)float_mean - mean) <= 1.001 * factor * most;
                ok &= fabs((double)float_var - var) <= 1.001 * factor * 2;
            }
            CHECK(ok);
            // With double this difference would be 0: the error is that of float.
            CHECK((double)float_mean != mean);
        }
    }
}

// Folds into a layer of two outputs with two weights each, and into one of three outputs. Scales are 1 and 0.25 with
// the running statistics, 2 and 0.25 with those of the batch.
static void folding(int32_t element) {
    fixture f = set_up(element, 0);
    const int32_t p = parameter(element);
    static const double scale[CHANNELS] = {1, 0.25}, shift[CHANNELS] = {-0.5, -4};
    static const double batch_scale[CHANNELS] = {2, 0.25}, batch_shift[CHANNELS] = {-3.5, -4};
    static const double plain_scale[CHANNELS] = {0.5, 0.5}, plain_shift[CHANNELS] = {-0.5, -6};
    static const double weight[] = {1, 2, 3, 4}, before[] = {1, 2, 0.75, 1}, bias[] = {10, 20}, before_bias[] = {9.5, 1};
    static const double next[] = {1, 4, 2, 8, 3, 12}, after[] = {1, 1, 2, 2, 3, 3}, next_bias[] = {0, 1, 2};
    static const double after_bias[] = {-16.5, -32, -47.5};
    const size_t size = element_size(p);
    double *scales = (double *)allocate(CHANNELS, sizeof(double)), *shifts = (double *)allocate(CHANNELS, sizeof(double));
    void *weights = allocate(6, size), *biases = allocate(3, size);
    bn_scale_shift scale_shift;
    bn_fold_args fold;
    bn_fold_layer_args layer;
    INIT(scale_shift), INIT(fold), INIT(layer);
    scale_shift.scale = doubles(scales, CHANNELS), scale_shift.shift = doubles(shifts, CHANNELS);

    fold.running = &f.running, fold.scale_shift = &scale_shift;
    CHECK_OK(bn_fold(f.plan, &fold));
    CHECK(are_doubles(scales, plain_scale) && are_doubles(shifts, plain_shift));
    fold.gamma = in(f.gamma, CHANNELS), fold.beta = in(f.beta, CHANNELS);
    fold.running = NULL, fold.statistics = &f.statistics;
    CHECK_OK(bn_fold(f.plan, &fold));
    CHECK(are_doubles(scales, batch_scale) && are_doubles(shifts, batch_shift));
    fold.running = &f.running, fold.statistics = NULL;
    CHECK_OK(bn_fold(f.plan, &fold));
    CHECK(are_doubles(scales, scale) && are_doubles(shifts, shift));

    layer.scale_shift = &scale_shift, layer.weight = out(weights, 4), layer.bias = out(biases, 2);
    for (size_t i = 0; i < 4; i++) {
        set(p, weights, i, weight[i]);
    }
    set(p, biases, 0, bias[0]), set(p, biases, 1, bias[1]);
    CHECK_OK(bn_fold_preceding(f.plan, &layer));
    for (size_t i = 0; i < 4; i++) {
        CHECK(get(p, weights, i) == before[i]);
    }
    CHECK(get(p, biases, 0) == before_bias[0] && get(p, biases, 1) == before_bias[1]);

    layer.weight = out(weights, 6), layer.bias = out(biases, 3);
    for (size_t i = 0; i < 6; i++) {
        set(p, weights, i, next[i]);
        set(p, biases, i / 2, next_bias[i / 2]);
    }
    CHECK_OK(bn_fold_following(f.plan, &layer));
    for (size_t i = 0; i < 6; i++) {
        CHECK(get(p, weights, i) == after[i] && get(p, biases, i / 2) == after_bias[i / 2]);
    }

    // The same layers with the inputs first: [2, 2], and [2, 3]. With two groups of one input and one output, [2, 1, 2]
    // is what [2, 2] is with the outputs first.
    static const double by_input[] = {1, 3, 2, 4}, by_input_after[] = {1, 0.75, 2, 1};
    static const double next_by_input[] = {1, 2, 3, 4, 8, 12}, after_by_input[] = {1, 2, 3, 1, 2, 3};
    bn_fold_transposed_args transposed;
    INIT(transposed);
    transposed.scale_shift = &scale_shift, transposed.weight = out(weights, 4), transposed.bias = out(biases, 2);
    transposed.inputs = 2;
    for (transposed.groups = 1; transposed.groups <= 2; transposed.groups++) {
        for (size_t i = 0; i < 4; i++) {
            set(p, weights, i, transposed.groups == 1 ? by_input[i] : weight[i]);
        }
        set(p, biases, 0, bias[0]), set(p, biases, 1, bias[1]);
        CHECK_OK(bn_fold_preceding_transposed(f.plan, &transposed));
        for (size_t i = 0; i < 4; i++) {
            CHECK(get(p, weights, i) == (transposed.groups == 1 ? by_input_after[i] : before[i]));
        }
        CHECK(get(p, biases, 0) == before_bias[0] && get(p, biases, 1) == before_bias[1]);
    }
    for (size_t i = 0; i < 6; i++) {
        set(p, weights, i, next_by_input[i]);
        set(p, biases, i / 2, next_bias[i / 2]);
    }
    CHECK_OK(bn_fold_following_transposed(f.plan, &layer));
    for (size_t i = 0; i < 6; i++) {
        CHECK(get(p, weights, i) == after_by_input[i] && get(p, biases, i / 2) == after_bias[i / 2]);
    }
    free(scales), free(shifts), free(weights), free(biases);
    tear_down(f);
}

// A step in the caller's scratch memory, of exactly the required size and at an odd address, has the same bits as one
// in the plan's own.
static void scratch_memory(int32_t element) {
    const size_t shapes[][3] = {{3, 5, 7}, {0, 3, 1}, {200, 24, 1}};
    for (size_t k = 0; k < 3; k++) {
        bn_plan_desc desc = describe(element, shapes[k][0], shapes[k][1], shapes[k][2], 1e-5);
        bn_plan *own = make(&desc), *given = NULL;
        size_t bytes = 0, more = 0;
        desc.scratch = &bytes; // ignored
        CHECK_OK(bn_scratch_bytes(&desc, 1, &bytes));
        CHECK_OK(bn_scratch_bytes(&desc, 5, &more));
        CHECK(bytes > 0 && more > 4 * bytes && more <= 5 * bytes);
        CHECK_OK(bn_scratch_bytes(&desc, SIZE_MAX, &more));
        CHECK(more == SIZE_MAX);
        char *memory = (char *)allocate(1 + bytes, 1);
        desc.scratch = memory + 1, desc.scratch_bytes = bytes;
        CHECK_OK(bn_plan_create(&desc, &given));
        step a = new_step(&desc), b = new_step(&desc);
        run_step(own, a);
        run_step(given, b);
        CHECK(memcmp(a.y, b.y, a.len * element_size(element)) == 0);
        CHECK(memcmp(a.dx, b.dx, a.len * element_size(element)) == 0);
        CHECK(memcmp(a.dgamma, b.dgamma, a.channels * element_size(parameter(element))) == 0);
        free_step(a), free_step(b);
        CHECK_OK(bn_plan_destroy(own));
        CHECK_OK(bn_plan_destroy(given));
        free(memory);
    }
}

// No values or no channels: arrays of length 0 may be NULL.
static void empty(int32_t element) {
    double mean[2] = {7, 7}, var[2] = {7, 7}, dgamma[2] = {7, 7};
    bn_statistics statistics;
    bn_forward_training_args forward;
    bn_backward_args backward;
    for (size_t channels = 0; channels <= 2; channels += 2) {
        const bn_plan_desc desc = describe(element, channels == 0 ? 4 : 0, channels, 4, 1e-5);
        bn_plan *plan = make(&desc);
        INIT(statistics), INIT(forward), INIT(backward);
        statistics.mean = doubles(channels == 0 ? NULL : mean, channels);
        statistics.var = doubles(channels == 0 ? NULL : var, channels);
        forward.statistics = &statistics;
        CHECK_OK(bn_forward_training(plan, &forward));
        CHECK(statistics.count == (channels == 0 ? 16 : 0));
        backward.statistics = &statistics;
        backward.dgamma = out(channels == 0 ? NULL : dgamma, channels);
        CHECK_OK(bn_backward(plan, &backward));
        if (channels > 0) {
            CHECK(mean[0] == 0 && var[1] == 0 && get(parameter(element), dgamma, 1) == 0);
        }
        CHECK_OK(bn_plan_destroy(plan));
    }
}

static void forwards(void *ctx, size_t n, bn_task task, void *arg) {
    ++*(int *)ctx;
    for (size_t i = 0; i < n; i++) {
        task(arg, i);
    }
}

// Not as the header demands, but harmless: backwards, each index twice, and indices without a task.
static void careless(void *ctx, size_t n, bn_task task, void *arg) {
    ++*(int *)ctx;
    for (size_t i = 2 * n; i-- > 0;) {
        task(arg, i);
        task(arg, SIZE_MAX);
    }
}

static void forgetful(void *ctx, size_t n, bn_task task, void *arg) {
    ++*(int *)ctx;
    (void)n, (void)task, (void)arg;
}

static void small_calls(void) {
    int32_t isa = -1;
    CHECK(bn_version() == BN_VERSION);
    CHECK(BN_VERSION == BN_VERSION_MAJOR * 10000 + BN_VERSION_MINOR * 100 + BN_VERSION_PATCH);
    CHECK_OK(bn_best_isa(&isa));
    CHECK(isa >= BN_ISA_PORTABLE && isa <= BN_ISA_AVX512);
    CHECK_OK(bn_plan_destroy(NULL));
    CHECK(strcmp(bn_status_name(BN_OK), "BN_OK") == 0);
    CHECK(strcmp(bn_status_name(BN_ERROR_NULL), "BN_ERROR_NULL") == 0);
    CHECK(strcmp(bn_status_name(BN_ERROR_INTERNAL), "BN_ERROR_INTERNAL") == 0);
    CHECK(strcmp(bn_status_name(BN_ERROR_GROUPS), "BN_ERROR_GROUPS") == 0);
    CHECK(strcmp(bn_status_name(BN_ERROR_GROUPS + 1), "unknown status") == 0);
    CHECK(strcmp(bn_status_name(-1), "unknown status") == 0);
    for (int32_t status = BN_OK; status <= BN_ERROR_GROUPS; status++) {
        CHECK(strncmp(bn_status_name(status), "BN_", 3) == 0);
    }
    // Portable code runs everywhere, and a CPU with AVX-512 has AVX2 too.
    const int has_avx512 = isa == BN_ISA_AVX512, has_avx2 = isa == BN_ISA_AVX2 || has_avx512;
    for (int32_t i = BN_ISA_BEST; i <= BN_ISA_AVX512; i++) {
        if ((i == BN_ISA_AVX2 && !has_avx2) || (i == BN_ISA_AVX512 && !has_avx512)) {
            continue;
        }
        bn_plan_desc desc = describe(BN_ELEMENT_F32, 8, 3, 50, 1e-5);
        desc.isa = i;
        bn_plan *plan = make(&desc);
        step s = new_step(&desc);
        run_step(plan, s);
        check_textbook(&desc, s);
        free_step(s);
        CHECK_OK(bn_plan_destroy(plan));
    }
}

int main(void) {
    int calls[3] = {0, 0, 0};
    small_calls();
    accuracy_in_float();
    for (int32_t element = BN_ELEMENT_F32; element <= BN_ELEMENT_F16; element++) {
        for (int rows = 0; rows <= 1; rows++) {
            forward(element, rows);
            backward(element, rows);
            relu(element, rows);
            silu(element, rows);
            weighted(element, rows);
            invertible(element, rows);
            second_derivatives(element, rows);
            averages_in_float(element, rows);
        }
        averages(element);
        folding(element);
        scratch_memory(element);
        empty(element);
    }
    check_threads(BN_THREADS_POOL, 0, NULL, NULL, NULL);
    check_threads(BN_THREADS_POOL, 1, NULL, NULL, NULL);
    check_threads(BN_THREADS_POOL, 5, NULL, NULL, NULL);
    check_threads(BN_THREADS_CALLER, 3, forwards, &calls[0], NULL);
    check_threads(BN_THREADS_CALLER, 3, careless, &calls[1], NULL);
    check_threads(BN_THREADS_CALLER, 3, forgetful, &calls[2], NULL);
    CHECK(calls[0] > 0 && calls[1] > 0 && calls[2] > 0);
    return report("values");
}
