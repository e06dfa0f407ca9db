// The passes on a plain pool of std::thread.

#include "step.h"

#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

namespace {

// Workers that sleep until there is a loop to run, and claim its indices one by one.
class Pool {
public:
    explicit Pool(size_t workers) {
        for (size_t i = 0; i < workers; i++) {
            threads_.emplace_back([this] { work(); });
        }
    }

    ~Pool() {
        {
            std::lock_guard<std::mutex> lock(mutex_);
            stop_ = true;
        }
        wake_.notify_all();
        for (std::thread &thread : threads_) {
            thread.join();
        }
    }

    void run(size_t n, bn_task task, void *arg) {
        std::lock_guard<std::mutex> one_loop_at_a_time(loop_);
        std::unique_lock<std::mutex> lock(mutex_);
        n_ = n, next_ = 0, done_ = 0, task_ = task, arg_ = arg;
        wake_.notify_all();
        claim(lock);
        finished_.wait(lock, [this] { return done_ == n_; });
    }

private:
    void claim(std::unique_lock<std::mutex> &lock) {
        while (next_ < n_) {
            const size_t i = next_++;
            lock.unlock();
            task_(arg_, i);
            lock.lock();
            if (++done_ == n_) {
                finished_.notify_all();
            }
        }
    }

    void work() {
        std::unique_lock<std::mutex> lock(mutex_);
        while (!stop_) {
            claim(lock);
            wake_.wait(lock, [this] { return stop_ || next_ < n_; });
        }
    }

    std::mutex loop_, mutex_;
    std::condition_variable wake_, finished_;
    std::vector<std::thread> threads_;
    size_t n_ = 0, next_ = 0, done_ = 0;
    bn_task task_ = nullptr;
    void *arg_ = nullptr;
    bool stop_ = false;
};

void parallel_for(void *ctx, size_t n, bn_task task, void *arg) { static_cast<Pool *>(ctx)->run(n, task, arg); }

} // namespace

int main() {
    Pool pool(3);
    check_threads(BN_THREADS_CALLER, 4, parallel_for, &pool, NULL);

    // One plan, used by several threads at once.
    const bn_plan_desc desc = describe(BN_ELEMENT_F32, 4, 64, 1024, 1e-5);
    bn_plan *plan = make(&desc);
    step expected = new_step(&desc);
    run_step(plan, expected);
    std::vector<step> steps;
    for (int i = 0; i < 4; i++) {
        steps.push_back(new_step(&desc));
    }
    std::vector<std::thread> threads;
    for (const step &s : steps) {
        threads.emplace_back([plan, &s] {
            bn_statistics statistics;
            bn_forward_training_args forward;
            INIT(statistics), INIT(forward);
            statistics.mean = doubles(s.mean, s.channels);
            statistics.var = doubles(s.var, s.channels);
            forward.x = in(s.x, s.len);
            forward.gamma = in(s.gamma, s.channels);
            forward.beta = in(s.beta, s.channels);
            forward.y = out(s.y, s.len);
            forward.statistics = &statistics;
            for (int k = 0; k < 20; k++) {
                if (bn_forward_training(plan, &forward) != BN_OK) {
                    abort();
                }
            }
        });
    }
    for (std::thread &thread : threads) {
        thread.join();
    }
    for (const step &s : steps) {
        CHECK(memcmp(s.y, expected.y, s.len * sizeof(float)) == 0);
        free_step(s);
    }
    free_step(expected);
    CHECK_OK(bn_plan_destroy(plan));
    return report("threads_std");
}
