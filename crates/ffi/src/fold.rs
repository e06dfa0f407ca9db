//! Folding: a normalization with constant statistics as a scale and a shift, and these as part of the layer before or
//! after it.

use crate::args::{bn_fold_args, bn_fold_layer_args, bn_fold_transposed_args};
use crate::arrays::{Access, Arrays};
use crate::call::call;
use crate::elements::by_parameter;
use crate::plan::bn_plan;
use crate::read::sized;
use crate::status::Status;
use crate::views::{AffineView, FoldView, SourceView};
use batchnorm::{Element, Error, Fold};

unsafe fn fold<P: Element<Param = P>>(plan: &bn_plan, args: bn_fold_args) -> Result<(), Status> {
    let (channels, mut arrays) = (plan.channels(), Arrays::new(plan));
    let affine = AffineView::<P>::new(&mut arrays, args.gamma, args.beta, channels)?;
    // SAFETY: the caller's promise; what becomes a slice has been checked.
    unsafe {
        let source = SourceView::new(&mut arrays, args.statistics, args.running, channels)?;
        let out = FoldView::new(&mut arrays, args.scale_shift, channels, Access::Write)?;
        arrays.check_overlap(None)?;
        Ok(plan.batch_norm.fold(source.read()?, affine.read(), &mut out.write()?)?)
    }
}

/// Folds into a layer by a method of the core, which checks the weights. `outputs` is the length of the bias, if it
/// follows from the plan.
///
/// # Safety
/// As [`Pass`](crate::call::Pass).
unsafe fn fold_layer<'a, P: Element<Param = P>>(
    plan: &bn_plan,
    args: bn_fold_layer_args,
    outputs: Option<usize>,
    apply: impl FnOnce(&Fold<&'a [f64]>, &mut [P], &mut [P]) -> Result<(), Error>,
) -> Result<(), Status> {
    let mut arrays = Arrays::new(plan);
    let weight = arrays.output::<P>("weight", args.weight, args.weight.len)?;
    let bias = arrays.output::<P>("bias", args.bias, outputs.unwrap_or(args.bias.len))?;
    // SAFETY: the caller's promise; what becomes a slice has been checked.
    unsafe {
        let fold = FoldView::new(&mut arrays, args.scale_shift, plan.channels(), Access::Read)?;
        arrays.check_overlap(None)?;
        Ok(apply(&fold.read()?, weight.slice_mut(), bias.slice_mut())?)
    }
}

unsafe fn fold_preceding<P: Element<Param = P>>(plan: &bn_plan, args: bn_fold_layer_args) -> Result<(), Status> {
    // SAFETY: the caller's promise.
    unsafe { fold_layer::<P>(plan, args, Some(plan.channels()), Fold::apply_to_preceding) }
}

unsafe fn fold_preceding_transposed<P: Element<Param = P>>(
    plan: &bn_plan,
    args: bn_fold_transposed_args,
) -> Result<(), Status> {
    let bn_fold_transposed_args { scale_shift, weight, bias, inputs, groups, .. } = args;
    let layer = bn_fold_layer_args { scale_shift, weight, bias, ..sized() };
    // SAFETY: the caller's promise.
    unsafe {
        fold_layer::<P>(plan, layer, Some(plan.channels()), |fold, weight, bias| {
            fold.apply_to_preceding_transposed(weight, bias, inputs, groups)
        })
    }
}

unsafe fn fold_following<P: Element<Param = P>>(plan: &bn_plan, args: bn_fold_layer_args) -> Result<(), Status> {
    // SAFETY: the caller's promise.
    unsafe { fold_layer::<P>(plan, args, None, Fold::apply_to_following) }
}

unsafe fn fold_following_transposed<P: Element<Param = P>>(
    plan: &bn_plan,
    args: bn_fold_layer_args,
) -> Result<(), Status> {
    // SAFETY: the caller's promise.
    unsafe { fold_layer::<P>(plan, args, None, Fold::apply_to_following_transposed) }
}

/// scale = gamma / sqrt(var + eps), shift = beta - mean * scale. scale * x + shift is bn_normalize with these
/// statistics, without the activation and the residual, which remain after the folded layer.
///
/// The error of bn_normalize does not grow with the data's offset. That of scale * x + shift does: if |mean| is much
/// larger than the standard deviation, two large numbers nearly cancel. A folded layer that sums K products in float
/// has an error of at most (K + 2) * 2^-24 * (sum of |w * x| + |b|), with a bias b of about |gamma * mean| / sqrt(var).
/// If gamma is so tiny that folded weights are subnormal, the error grows by 2^-150 * (1 + sum of |x|), or by 2^-126 *
/// (1 + sum of |x|) if subnormals are flushed to zero, here or by the layer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bn_fold(plan: *const bn_plan, args: *const bn_fold_args) -> i32 {
    // SAFETY: the header demands what this needs.
    unsafe { call(plan, args, by_parameter!(fold)) }
}

/// Folds into the linear or convolution layer whose output is normalized: w = scale * w, b = scale * b + shift.
///
/// weight is scaled along its first axis. It is [channels, k]: one row per output channel of the layer, with all k
/// weights that are summed for it. This also holds for a grouped convolution. bias has one value per channel.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bn_fold_preceding(plan: *const bn_plan, args: *const bn_fold_layer_args) -> i32 {
    // SAFETY: the header demands what this needs.
    unsafe { call(plan, args, by_parameter!(fold_preceding)) }
}

/// bn_fold_preceding for weights that have the layer's inputs as their first axis: those of a transposed convolution,
/// with any stride, padding and dilation, and of layouts that store [inputs, outputs].
///
/// weight is scaled along its second axis. It is [inputs, channels / groups, k]; the inputs of a group follow each
/// other, and so do its channels. Linear layers that store [inputs, channels] have one group and k = 1, and so have
/// convolutions that store [height, width, inputs, channels], with height * width * inputs inputs. bias has one value
/// per channel.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bn_fold_preceding_transposed(
    plan: *const bn_plan,
    args: *const bn_fold_transposed_args,
) -> i32 {
    // SAFETY: the header demands what this needs.
    unsafe { call(plan, args, by_parameter!(fold_preceding_transposed)) }
}

/// Folds into the linear or convolution layer whose input is normalized: w = scale * w, b = b + sum of w * shift.
///
/// weight is scaled along its second axis. It is [outputs, channels, k], bias has one value per output. A convolution
/// must not pad its input with zeros unless shift is 0; it may pad channel c with -shift / scale of this channel. A
/// grouped convolution consists of several layers: each needs its own plan.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bn_fold_following(plan: *const bn_plan, args: *const bn_fold_layer_args) -> i32 {
    // SAFETY: the header demands what this needs.
    unsafe { call(plan, args, by_parameter!(fold_following)) }
}

/// bn_fold_following for weights that have the layer's inputs as their first axis: those of linear layers that store
/// [inputs, outputs], and of transposed convolutions with a kernel of 1, stride 1 and one group.
///
/// weight is scaled along its first axis. It is [channels, outputs], bias has one value per output.
///
/// Other transposed convolutions cannot absorb a shift. The bias is the same at all positions of an output, but the sum
/// of w * shift is not: with a stride, neighbouring positions sum different taps of the kernel, and near the borders
/// some taps have no input. The scale alone can be folded, by multiplying the weights of input c by scale c, which
/// suffices where shift is 0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bn_fold_following_transposed(plan: *const bn_plan, args: *const bn_fold_layer_args) -> i32 {
    // SAFETY: the header demands what this needs.
    unsafe { call(plan, args, by_parameter!(fold_following_transposed)) }
}
