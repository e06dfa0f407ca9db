// This crate, through its C interface.
#include "contestant.h"
#include "batchnorm.h"

#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

void check(int32_t status) {
    if (status != BN_OK) {
        throw std::runtime_error(std::string(bn_status_name(status)) + ": " + bn_last_error_message());
    }
}

template <typename T> T make() {
    T object{};
    object.struct_size = sizeof(T);
    return object;
}

void parallel_for(void *, size_t n, bn_task task, void *arg) {
    const auto count = static_cast<long>(n);
#pragma omp parallel for schedule(static)
    for (long i = 0; i < count; i++) {
        task(arg, static_cast<size_t>(i));
    }
}

struct Destroy {
    void operator()(bn_plan *plan) const { bn_plan_destroy(plan); }
};

class Ours : public Contestant {
  public:
    explicit Ours(const Case &c)
        : mean(c.c), var(c.c), running_mean(c.mean, c.mean + c.c), running_var(c.var, c.var + c.c) {
        const size_t channels = c.c, plane = c.h * c.w, len = c.n * c.c * plane;
        auto desc = make<bn_plan_desc>();
        desc.outer = c.channels_last ? c.n * plane : c.n;
        desc.channels = channels;
        desc.inner = c.channels_last ? 1 : plane;
        desc.eps = c.eps;
        desc.element = BN_ELEMENT_F32;
        desc.isa = c.isa;
        desc.thread_count = c.threads;
        if (c.threads == 1) {
            desc.threads = BN_THREADS_SEQUENTIAL;
            desc.thread_count = 0;
        } else if (c.own_threads) {
            desc.threads = BN_THREADS_POOL;
        } else {
            desc.threads = BN_THREADS_CALLER;
            desc.parallel_for = parallel_for;
        }
        bn_plan *raw = nullptr;
        check(bn_plan_create(&desc, &raw));
        plan.reset(raw);

        batch.mean = {mean.data(), channels};
        batch.var = {var.data(), channels};
        running.mean = {running_mean.data(), channels};
        running.var = {running_var.data(), channels};
        running.batches = 1;

        forward.x = inference.x = backward.x = {c.x, len};
        forward.gamma = inference.gamma = backward.gamma = {c.gamma, channels};
        forward.beta = inference.beta = {c.beta, channels};
        forward.y = inference.y = backward.dx = {c.out, len};
        forward.statistics = &batch;
        inference.running = &running;
        backward.dy = {c.dy, len};
        backward.statistics = &batch;
        backward.dgamma = {c.dgamma, channels};
        backward.dbeta = {c.dbeta, channels};
    }

    void run(Pass pass) override {
        switch (pass) {
        case FORWARD:
            return check(bn_forward_training(plan.get(), &forward));
        case INFERENCE:
            return check(bn_normalize(plan.get(), &inference));
        case BACKWARD:
            return check(bn_backward(plan.get(), &backward));
        }
    }

  private:
    std::unique_ptr<bn_plan, Destroy> plan;
    std::vector<double> mean, var, running_mean, running_var;
    bn_statistics batch = make<bn_statistics>();
    bn_running_statistics running = make<bn_running_statistics>();
    bn_forward_training_args forward = make<bn_forward_training_args>();
    bn_normalize_args inference = make<bn_normalize_args>();
    bn_backward_args backward = make<bn_backward_args>();
};

} // namespace

extern "C" Contestant *ours_new(const Case *c) noexcept { return new Ours(*c); }
