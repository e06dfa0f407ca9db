// Batch normalization of images on OpenMP threads, in C++. From the root of the repository, with the library installed
// by crates/capi/install or cargo cinstall in a directory of your choice, here target/prefix:
//   crates/capi/install target/prefix
//   cmake -S examples/c -B target/images -DCMAKE_PREFIX_PATH=$PWD/target/prefix
//   cmake --build target/images
//   target/images/images

#include <batchnorm.h>

#include <cstdio>
#include <memory>
#include <omp.h>
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

struct Destroy {
    void operator()(bn_plan *plan) const { bn_plan_destroy(plan); }
};

void parallel_for(void *, size_t n, bn_task task, void *arg) {
    const auto count = static_cast<long>(n);
#pragma omp parallel for schedule(static)
    for (long i = 0; i < count; i++) {
        task(arg, static_cast<size_t>(i));
    }
}

} // namespace

int main() try {
    const size_t n = 16, channels = 32, height = 56, width = 56, len = n * channels * height * width;
    auto desc = make<bn_plan_desc>();
    desc.outer = n;
    desc.channels = channels;
    desc.inner = height * width;
    desc.eps = 1e-5;
    desc.element = BN_ELEMENT_F32;
    desc.threads = BN_THREADS_CALLER;
    desc.thread_count = static_cast<size_t>(omp_get_max_threads());
    desc.parallel_for = parallel_for;
    bn_plan *raw = nullptr;
    check(bn_plan_create(&desc, &raw));
    const std::unique_ptr<bn_plan, Destroy> plan(raw);

    std::vector<float> x(len), y(len);
    for (size_t i = 0; i < len; i++) {
        x[i] = static_cast<float>(i % 1000) / 100.0f;
    }
    std::vector<double> mean(channels), var(channels);
    auto batch = make<bn_statistics>();
    batch.mean = {mean.data(), mean.size()};
    batch.var = {var.data(), var.size()};
    auto args = make<bn_forward_training_args>();
    args.x = {x.data(), x.size()};
    args.y = {y.data(), y.size()};
    args.statistics = &batch;
    check(bn_forward_training(plan.get(), &args));
    std::printf("channel 0: mean %.3f, variance %.3f; %.3f becomes %.3f\n", mean[0], var[0], x[0], y[0]);

    // How an error is reported.
    args.y.len -= 1;
    try {
        check(bn_forward_training(plan.get(), &args));
    } catch (const std::runtime_error &error) {
        std::printf("%s\n", error.what());
        return 0;
    }
    return 1;
} catch (const std::exception &error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
}
