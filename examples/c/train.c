// A training step and the inference of one example through the C interface. From the root of the repository:
//   cargo build --release -p batchnorm-capi
//   cc -std=c11 -Icrates/capi/include examples/c/train.c target/release/libbatchnorm.a -lpthread -ldl -lm -o target/train
//   target/train
// The same with the shared library, in the directory where it was built:
//   cc -std=c11 -Icrates/capi/include examples/c/train.c -Ltarget/release -lbatchnorm -Wl,-rpath,target/release -o target/train
//   target/train

#include <batchnorm.h>
#include <stdio.h>
#include <stdlib.h>

enum { EXAMPLES = 4, FEATURES = 2, LEN = EXAMPLES * FEATURES };

static void check(int32_t status) {
    if (status != BN_OK) {
        fprintf(stderr, "%s: %s\n", bn_status_name(status), bn_last_error_message());
        exit(1);
    }
}

static bn_plan *plan_for(size_t examples) {
    bn_plan *plan;
    check(bn_plan_create(&(bn_plan_desc){.struct_size = sizeof(bn_plan_desc), .outer = examples, .channels = FEATURES,
                                         .inner = 1, .eps = 1e-5, .element = BN_ELEMENT_F32}, &plan));
    return plan;
}

int main(void) {
    const float x[LEN] = {1, 10, 2, 20, 3, 30, 4, 40}, dy[LEN] = {1, 0, 0, 0, 0, 0, 0, 1};
    const float gamma[FEATURES] = {2, 2}, beta[FEATURES] = {0.5, 0.5};
    float y[LEN], dx[LEN], dgamma[FEATURES], dbeta[FEATURES];
    double mean[FEATURES], var[FEATURES], running_mean[FEATURES] = {0, 0}, running_var[FEATURES] = {1, 1};
    bn_statistics batch = {sizeof batch, .mean = {mean, FEATURES}, .var = {var, FEATURES}};
    bn_running_statistics running = {sizeof running, .mean = {running_mean, FEATURES}, .var = {running_var, FEATURES}};

    // Training: normalize with the batch's own statistics, and update the running ones.
    bn_plan *plan = plan_for(EXAMPLES);
    check(bn_forward_training(plan, &(bn_forward_training_args){
        sizeof(bn_forward_training_args), .x = {x, LEN}, .y = {y, LEN}, .gamma = {gamma, FEATURES},
        .beta = {beta, FEATURES}, .statistics = &batch}));
    check(bn_update_running_statistics(&running, &batch, BN_AVERAGE_EXPONENTIAL, 0.1));
    printf("mean %g %g, y %g ... %g\n", mean[0], mean[1], y[0], y[LEN - 1]);

    // Backward: request the gradients that are needed.
    check(bn_backward(plan, &(bn_backward_args){
        sizeof(bn_backward_args), .x = {x, LEN}, .dy = {dy, LEN}, .statistics = &batch, .gamma = {gamma, FEATURES},
        .dx = {dx, LEN}, .dgamma = {dgamma, FEATURES}, .dbeta = {dbeta, FEATURES}}));
    printf("dgamma %g %g, dbeta %g %g, dx %g ... %g\n", dgamma[0], dgamma[1], dbeta[0], dbeta[1], dx[0], dx[LEN - 1]);
    check(bn_plan_destroy(plan));

    // Inference: one example, with the running statistics, in place.
    plan = plan_for(1);
    float one[FEATURES] = {1, 10};
    check(bn_normalize(plan, &(bn_normalize_args){
        sizeof(bn_normalize_args), .x = {one, FEATURES}, .y = {one, FEATURES}, .running = &running,
        .gamma = {gamma, FEATURES}, .beta = {beta, FEATURES}}));
    printf("inference %g %g\n", one[0], one[1]);
    check(bn_plan_destroy(plan));
    return 0;
}
