// oneDNN, which selects the implementation that it considers best for each layout.
#include "contestant.h"
#include "dnnl.hpp"

#include <array>
#include <string>
#include <unordered_map>

namespace {

using dnnl::memory;
using Forward = dnnl::batch_normalization_forward;
using Backward = dnnl::batch_normalization_backward;
using Flags = dnnl::normalization_flags;
using Args = std::unordered_map<int, memory>;

memory::desc activation(const Case &c) {
    using Tag = memory::format_tag;
    if (c.h * c.w == 1) {
        return {{c.n, c.c}, memory::data_type::f32, Tag::nc};
    }
    return {{c.n, c.c, c.h, c.w}, memory::data_type::f32, c.channels_last ? Tag::nhwc : Tag::nchw};
}

class OneDnn : public Contestant {
  public:
    explicit OneDnn(const Case &c) {
        const auto eps = static_cast<float>(c.eps);
        const auto affine = Flags::use_scale | Flags::use_shift;
        const auto md = activation(c);
        const memory::desc per_channel{{c.c}, memory::data_type::f32, memory::format_tag::a};
        const Forward::primitive_desc training(engine, dnnl::prop_kind::forward_training, md, md, eps, affine);
        const Forward::primitive_desc given(
            engine, dnnl::prop_kind::forward_inference, md, md, eps, affine | Flags::use_global_stats);
        const Backward::primitive_desc gradients(engine, dnnl::prop_kind::backward, md, md, md, eps, affine, training);
        implementations = {training.impl_info_str(), given.impl_info_str(), gradients.impl_info_str()};
        primitives = {Forward(training), Forward(given), Backward(gradients)};

        const auto view = [&](const memory::desc &d, const float *data) {
            return memory(d, engine, const_cast<float *>(data)); // inputs are not written
        };
        const auto x = view(md, c.x), out = view(md, c.out);
        const auto gamma = view(per_channel, c.gamma), beta = view(per_channel, c.beta);
        const memory mean(per_channel, engine), var(per_channel, engine);
        args = {
            Args{{DNNL_ARG_SRC, x}, {DNNL_ARG_SCALE, gamma}, {DNNL_ARG_SHIFT, beta}, {DNNL_ARG_MEAN, mean},
                {DNNL_ARG_VARIANCE, var}, {DNNL_ARG_DST, out}},
            Args{{DNNL_ARG_SRC, x}, {DNNL_ARG_SCALE, gamma}, {DNNL_ARG_SHIFT, beta},
                {DNNL_ARG_MEAN, view(per_channel, c.mean)}, {DNNL_ARG_VARIANCE, view(per_channel, c.var)},
                {DNNL_ARG_DST, out}},
            Args{{DNNL_ARG_SRC, x}, {DNNL_ARG_DIFF_DST, view(md, c.dy)}, {DNNL_ARG_SCALE, gamma},
                {DNNL_ARG_MEAN, mean}, {DNNL_ARG_VARIANCE, var}, {DNNL_ARG_DIFF_SRC, out},
                {DNNL_ARG_DIFF_SCALE, view(per_channel, c.dgamma)}, {DNNL_ARG_DIFF_SHIFT, view(per_channel, c.dbeta)}},
        };
    }

    void run(Pass pass) override {
        primitives[pass].execute(stream, args[pass]);
        stream.wait();
    }

    const char *implementation(Pass pass) const override { return implementations[pass].c_str(); }

  private:
    dnnl::engine engine{dnnl::engine::kind::cpu, 0};
    dnnl::stream stream{engine};
    std::array<dnnl::primitive, 3> primitives;
    std::array<Args, 3> args;
    std::array<std::string, 3> implementations;
};

} // namespace

extern "C" Contestant *onednn_new(const Case *c) noexcept { return new OneDnn(*c); }
