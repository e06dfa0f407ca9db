// The limits that the memory of this machine sets: sweeps that only move data.
#include "contestant.h"

#include <algorithm>
#include <numeric>

#ifdef __SSE__
#include <immintrin.h>
#endif

namespace {

constexpr int64_t TASK = 1 << 16; // elements: large enough to hide a task's overhead, small enough to balance the load

// Many independent sums, so that additions need not wait for each other.
float sum(const float *x, int64_t len) {
    constexpr int64_t MANY = 128;
    float sums[MANY] = {};
    for (int64_t i = 0; i + MANY <= len; i += MANY) {
        for (int64_t j = 0; j < MANY; j++) {
            sums[j] += x[i + j];
        }
    }
    return std::accumulate(sums, sums + MANY, 0.0f);
}

// out = a, or a + b, with non-temporal stores. The buffers are aligned to cache lines.
template <bool TWO> void stream(const float *a, const float *b, float *out, int64_t len) {
    int64_t i = 0;
#if defined(__AVX512F__)
    for (; i + 16 <= len; i += 16) {
        const __m512 v = _mm512_load_ps(a + i);
        _mm512_stream_ps(out + i, TWO ? _mm512_add_ps(v, _mm512_load_ps(b + i)) : v);
    }
    _mm_sfence();
#elif defined(__SSE__)
    for (; i + 4 <= len; i += 4) {
        const __m128 v = _mm_load_ps(a + i);
        _mm_stream_ps(out + i, TWO ? _mm_add_ps(v, _mm_load_ps(b + i)) : v);
    }
    _mm_sfence();
#endif
    for (; i < len; i++) {
        out[i] = TWO ? a[i] + b[i] : a[i];
    }
}

class Limits : public Contestant {
  public:
    explicit Limits(const Case &c) : c(c), len(c.n * c.c * c.h * c.w) {}

    // The passes stand for a read, a copy, and a sum of two tensors into a third.
    void run(Pass pass) override {
        float total = 0;
        // As in the contestants, a small tensor is not worth the cost of waking threads.
#pragma omp parallel for reduction(+ : total) if (len > 4 * TASK)
        for (int64_t at = 0; at < len; at += TASK) {
            const int64_t part = std::min(TASK, len - at);
            switch (pass) {
            case FORWARD:
                total += sum(c.x + at, part);
                break;
            case INFERENCE:
                stream<false>(c.x + at, nullptr, c.out + at, part);
                break;
            case BACKWARD:
                stream<true>(c.x + at, c.dy + at, c.out + at, part);
                break;
            }
        }
        sink = total;
    }

  private:
    const Case c;
    const int64_t len;
    volatile float sink = 0;
};

} // namespace

extern "C" {
Contestant *limits_new(const Case *c) noexcept { return new Limits(*c); }
void contestant_run(Contestant *contestant, Pass pass) noexcept { contestant->run(pass); }
const char *contestant_implementation(const Contestant *contestant, Pass pass) noexcept {
    return contestant->implementation(pass);
}
void contestant_free(Contestant *contestant) noexcept { delete contestant; }
}
