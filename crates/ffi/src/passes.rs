//! The passes: for each a function that is generic over the element type, and the call that dispatches to it.

use crate::args::{
    bn_backward_args, bn_backward_from_output_args, bn_double_backward_args, bn_forward_training_args,
    bn_forward_training_invertible_args, bn_gradient_sums_args, bn_input_gradient_args, bn_normalize_args,
    bn_parameter_gradients_args, bn_statistics_args,
};
use crate::arrays::{Access, Arrays, slice, slice_mut};
use crate::call::call;
use crate::elements::{by_element, by_parameter};
use crate::plan::bn_plan;
use crate::status::Status;
use crate::structs::bn_slice;
use crate::views::{AffineView, ExtrasView, ParametersView, STATISTICS, SUMS, SourceView, StatisticsView, SumsView};
use batchnorm::{Cotangents, Element, Gradients, SecondGradients};
use half::{bf16, f16};
use std::ptr::null;

/// Stands for an array that a call has no argument for.
const ABSENT: bn_slice = bn_slice { data: null(), len: 0 };

unsafe fn compute_statistics<E: Element>(plan: &bn_plan, args: bn_statistics_args) -> Result<(), Status> {
    let (shape, mut arrays) = (plan.batch_norm.shape(), Arrays::new(plan));
    let x = arrays.input::<E>("x", args.x, shape.len())?;
    let extras = ExtrasView::new(&mut arrays, ABSENT, ABSENT, args.weights, shape)?;
    // SAFETY: the caller's promise; what becomes a slice and is written has been checked.
    unsafe {
        let out = StatisticsView::new(&mut arrays, STATISTICS, args.statistics, shape.channels(), Access::Write)?;
        arrays.check_overlap(None)?;
        let mut statistics = out.write()?;
        plan.batch_norm.with(extras.read()).statistics(x.slice(), &mut statistics)?;
        out.store(&statistics);
        Ok(())
    }
}

unsafe fn forward_training<E: Element>(plan: &bn_plan, args: bn_forward_training_args) -> Result<(), Status> {
    let (shape, mut arrays) = (plan.batch_norm.shape(), Arrays::new(plan));
    let x = arrays.input::<E>("x", args.x, shape.len())?;
    let affine = AffineView::new(&mut arrays, args.gamma, args.beta, shape.channels())?;
    let extras = ExtrasView::new(&mut arrays, args.residual, ABSENT, args.weights, shape)?;
    let y = arrays.output::<E>("y", args.y, shape.len())?;
    // SAFETY: the caller's promise; what becomes a slice and is written has been checked.
    unsafe {
        let out = StatisticsView::new(&mut arrays, STATISTICS, args.statistics, shape.channels(), Access::Write)?;
        let in_place = arrays.check_overlap(Some(["x", "y"]))?;
        let (with, affine, mut statistics) = (plan.batch_norm.with(extras.read()), affine.read(), out.write()?);
        if in_place {
            with.forward_training_in_place(y.slice_mut(), affine, &mut statistics)?;
        } else {
            with.forward_training(x.slice(), affine, y.slice_mut(), &mut statistics)?;
        }
        out.store(&statistics);
        Ok(())
    }
}

unsafe fn normalize<E: Element>(plan: &bn_plan, args: bn_normalize_args) -> Result<(), Status> {
    let (shape, mut arrays) = (plan.batch_norm.shape(), Arrays::new(plan));
    let x = arrays.input::<E>("x", args.x, shape.len())?;
    let affine = AffineView::new(&mut arrays, args.gamma, args.beta, shape.channels())?;
    let extras = ExtrasView::new(&mut arrays, args.residual, ABSENT, args.weights, shape)?;
    let y = arrays.output::<E>("y", args.y, shape.len())?;
    // SAFETY: the caller's promise; what becomes a slice has been checked.
    unsafe {
        let source = SourceView::new(&mut arrays, args.statistics, args.running, shape.channels())?;
        let in_place = arrays.check_overlap(Some(["x", "y"]))?;
        let (with, affine, source) = (plan.batch_norm.with(extras.read()), affine.read(), source.read()?);
        if in_place {
            with.normalize_in_place(y.slice_mut(), source, affine)?;
        } else {
            with.normalize(x.slice(), source, affine, y.slice_mut())?;
        }
        Ok(())
    }
}

unsafe fn compute_gradient_sums<E: Element>(plan: &bn_plan, args: bn_gradient_sums_args) -> Result<(), Status> {
    let (shape, mut arrays) = (plan.batch_norm.shape(), Arrays::new(plan));
    let x = arrays.input::<E>("x", args.x, shape.len())?;
    let dy = arrays.input::<E>("dy", args.dy, shape.len())?;
    let affine = AffineView::new(&mut arrays, args.gamma, args.beta, shape.channels())?;
    let extras = ExtrasView::new(&mut arrays, args.residual, args.output, args.weights, shape)?;
    // SAFETY: the caller's promise; what becomes a slice and is written has been checked.
    unsafe {
        let source = SourceView::new(&mut arrays, args.statistics, args.running, shape.channels())?;
        let out = SumsView::new(&mut arrays, SUMS, args.sums, shape.channels(), Access::Write)?;
        arrays.check_overlap(None)?;
        let (with, affine, source) = (plan.batch_norm.with(extras.read()), affine.read(), source.read()?);
        Ok(with.gradient_sums(x.slice(), dy.slice(), source, affine, &mut out.write()?)?)
    }
}

unsafe fn input_gradient<E: Element>(plan: &bn_plan, args: bn_input_gradient_args) -> Result<(), Status> {
    let (shape, mut arrays) = (plan.batch_norm.shape(), Arrays::new(plan));
    let channels = shape.channels();
    let x = arrays.input::<E>("x", args.x, shape.len())?;
    let dy = arrays.input::<E>("dy", args.dy, shape.len())?;
    let affine = AffineView::new(&mut arrays, args.gamma, args.beta, channels)?;
    let extras = ExtrasView::new(&mut arrays, args.residual, args.output, args.weights, shape)?;
    let dx = arrays.output::<E>("dx", args.dx, shape.len())?;
    let dresidual = arrays.output_or_absent::<E>("dresidual", args.dresidual, shape.len())?;
    // SAFETY: the caller's promise; what becomes a slice has been checked.
    unsafe {
        let statistics =
            StatisticsView::new(&mut arrays, STATISTICS, args.statistics.cast_mut(), channels, Access::Read)?;
        let sums = SumsView::new(&mut arrays, SUMS, args.sums, channels, Access::Read)?;
        let in_place = arrays.check_overlap(Some(["dy", "dx"]))?;
        let (with, affine) = (plan.batch_norm.with(extras.read()), affine.read());
        let (statistics, sums) = (&statistics.read()?, &sums.read()?);
        let gradients = Gradients { dresidual: slice_mut(dresidual), ..Gradients::default() };
        if in_place {
            with.input_gradient_in_place(x.slice(), dx.slice_mut(), statistics, sums, affine, gradients)?;
        } else {
            let gradients = Gradients { dx: Some(dx.slice_mut()), ..gradients };
            with.input_gradient(x.slice(), dy.slice(), statistics, sums, affine, gradients)?;
        }
        Ok(())
    }
}

unsafe fn parameter_gradients<P: Element<Param = P>>(
    plan: &bn_plan,
    args: bn_parameter_gradients_args,
) -> Result<(), Status> {
    let (channels, mut arrays) = (plan.channels(), Arrays::new(plan));
    let parameters = ParametersView::<P>::new(&mut arrays, args.dgamma, args.dbeta, channels)?;
    // SAFETY: the caller's promise; what becomes a slice has been checked.
    unsafe {
        let source = SourceView::new(&mut arrays, args.statistics, args.running, channels)?;
        let sums = SumsView::new(&mut arrays, SUMS, args.sums, channels, Access::Read)?;
        arrays.check_overlap(None)?;
        let (source, sums, Gradients::<P> { dgamma, dbeta, .. }) = (source.read()?, sums.read()?, parameters.write());
        Ok(plan.batch_norm.parameter_gradients(source, &sums, dgamma, dbeta)?)
    }
}

unsafe fn backward<E: Element>(plan: &bn_plan, args: bn_backward_args) -> Result<(), Status> {
    let (shape, mut arrays) = (plan.batch_norm.shape(), Arrays::new(plan));
    let x = arrays.input::<E>("x", args.x, shape.len())?;
    let dy = arrays.input::<E>("dy", args.dy, shape.len())?;
    let affine = AffineView::new(&mut arrays, args.gamma, args.beta, shape.channels())?;
    let extras = ExtrasView::new(&mut arrays, args.residual, args.output, args.weights, shape)?;
    let dx = arrays.output_or_absent::<E>("dx", args.dx, shape.len())?;
    let dresidual = arrays.output_or_absent::<E>("dresidual", args.dresidual, shape.len())?;
    let parameters = ParametersView::new(&mut arrays, args.dgamma, args.dbeta, shape.channels())?;
    // SAFETY: the caller's promise; what becomes a slice has been checked.
    unsafe {
        let source = SourceView::new(&mut arrays, args.statistics, args.running, shape.channels())?;
        let in_place = arrays.check_overlap(Some(["dy", "dx"]))?;
        let (with, affine, source) = (plan.batch_norm.with(extras.read()), affine.read(), source.read()?);
        let gradients = Gradients { dresidual: slice_mut(dresidual), ..parameters.write() };
        match slice_mut(dx) {
            Some(dx) if in_place => with.backward_in_place(x.slice(), dx, source, affine, gradients)?,
            dx => with.backward(x.slice(), dy.slice(), source, affine, Gradients { dx, ..gradients })?,
        }
        Ok(())
    }
}

unsafe fn forward_training_invertible<E: Element>(
    plan: &bn_plan,
    args: bn_forward_training_invertible_args,
) -> Result<(), Status> {
    let (shape, mut arrays) = (plan.batch_norm.shape(), Arrays::new(plan));
    let x = arrays.output::<E>("x", args.x, shape.len())?;
    let affine = AffineView::new(&mut arrays, args.gamma, args.beta, shape.channels())?;
    // SAFETY: the caller's promise; what becomes a slice and is written has been checked.
    unsafe {
        let out = StatisticsView::new(&mut arrays, STATISTICS, args.statistics, shape.channels(), Access::Write)?;
        arrays.check_overlap(None)?;
        let mut statistics = out.write()?;
        plan.batch_norm.forward_training_invertible(x.slice_mut(), affine.read(), &mut statistics)?;
        out.store(&statistics);
        Ok(())
    }
}

unsafe fn backward_from_output<E: Element>(plan: &bn_plan, args: bn_backward_from_output_args) -> Result<(), Status> {
    let (shape, mut arrays) = (plan.batch_norm.shape(), Arrays::new(plan));
    let channels = shape.channels();
    let y = arrays.input::<E>("y", args.y, shape.len())?;
    let dy = arrays.input::<E>("dy", args.dy, shape.len())?;
    let affine = AffineView::new(&mut arrays, args.gamma, args.beta, channels)?;
    let dx = arrays.output_or_absent::<E>("dx", args.dx, shape.len())?;
    let parameters = ParametersView::new(&mut arrays, args.dgamma, args.dbeta, channels)?;
    // SAFETY: the caller's promise; what becomes a slice has been checked.
    unsafe {
        let statistics =
            StatisticsView::new(&mut arrays, STATISTICS, args.statistics.cast_mut(), channels, Access::Read)?;
        arrays.check_overlap(None)?;
        let gradients = Gradients { dx: slice_mut(dx), ..parameters.write() };
        let (y, dy, statistics) = (y.slice(), dy.slice(), &statistics.read()?);
        Ok(plan.batch_norm.backward_from_output(y, dy, statistics, affine.read(), gradients)?)
    }
}

unsafe fn double_backward<E: Element>(plan: &bn_plan, args: bn_double_backward_args) -> Result<(), Status> {
    let (shape, mut arrays) = (plan.batch_norm.shape(), Arrays::new(plan));
    let (len, channels) = (shape.len(), shape.channels());
    let x = arrays.input::<E>("x", args.x, len)?;
    let dy = arrays.input::<E>("dy", args.dy, len)?;
    let affine = AffineView::new(&mut arrays, args.gamma, ABSENT, channels)?;
    let dx = arrays.input::<E>("dx_cotangent", args.dx_cotangent, len)?;
    let dgamma = arrays.input_or_absent("dgamma_cotangent", args.dgamma_cotangent, channels)?;
    let dbeta = arrays.input_or_absent("dbeta_cotangent", args.dbeta_cotangent, channels)?;
    let of_x = arrays.output_or_absent("x_gradient", args.x_gradient, len)?;
    let of_dy = arrays.output_or_absent("dy_gradient", args.dy_gradient, len)?;
    let of_gamma = arrays.output_or_absent("gamma_gradient", args.gamma_gradient, channels)?;
    // SAFETY: the caller's promise; what becomes a slice has been checked.
    unsafe {
        let source = SourceView::new(&mut arrays, args.statistics, args.running, channels)?;
        arrays.check_overlap(None)?;
        let cotangents = Cotangents { dx: dx.slice(), dgamma: slice(dgamma), dbeta: slice(dbeta) };
        let gradients = SecondGradients { x: slice_mut(of_x), dy: slice_mut(of_dy), gamma: slice_mut(of_gamma) };
        let (x, dy, source) = (x.slice(), dy.slice(), source.read()?);
        Ok(plan.batch_norm.double_backward(x, dy, source, affine.read(), cotangents, gradients)?)
    }
}

/// Mean and variance of each channel of x: the first half of a forward pass in training.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bn_compute_statistics(plan: *const bn_plan, args: *const bn_statistics_args) -> i32 {
    // SAFETY: the header demands what this needs.
    unsafe { call(plan, args, by_element!(compute_statistics)) }
}

/// y = act(gamma * (x - mean) / sqrt(var + eps) + beta + residual) with the batch's own statistics, which are also
/// returned.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bn_forward_training(plan: *const bn_plan, args: *const bn_forward_training_args) -> i32 {
    // SAFETY: the header demands what this needs.
    unsafe { call(plan, args, by_element!(forward_training)) }
}

/// y = act(gamma * (x - mean) / sqrt(var + eps) + beta + residual) with given statistics: running ones for inference,
/// those of the batch for the second half of a forward pass in training.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bn_normalize(plan: *const bn_plan, args: *const bn_normalize_args) -> i32 {
    // SAFETY: the header demands what this needs.
    unsafe { call(plan, args, by_element!(normalize)) }
}

/// The sums of g and of g * (x - mean) of each channel: the first half of the backward pass.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bn_compute_gradient_sums(plan: *const bn_plan, args: *const bn_gradient_sums_args) -> i32 {
    // SAFETY: the header demands what this needs.
    unsafe { call(plan, args, by_element!(compute_gradient_sums)) }
}

/// dx from the statistics and sums of the whole batch, of which x and dy may be only a part: the second half of the
/// backward pass.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bn_input_gradient(plan: *const bn_plan, args: *const bn_input_gradient_args) -> i32 {
    // SAFETY: the header demands what this needs.
    unsafe { call(plan, args, by_element!(input_gradient)) }
}

/// The gradients of gamma and beta from the sums. Only those that are requested are computed.
///
/// Sums of a part of the batch give this part's share; those of all parts add up to the gradients. An engine that adds
/// gradients over its processes anyway passes its own sums, and one that does not passes the merged ones.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bn_parameter_gradients(plan: *const bn_plan, args: *const bn_parameter_gradients_args) -> i32 {
    // SAFETY: the header demands what this needs.
    unsafe { call(plan, args, by_parameter!(parameter_gradients)) }
}

/// The gradients of x, the residual, gamma and beta. Only those that are requested are computed.
///
/// With the statistics of a batch, gradients flow through mean and variance; running ones are constants.
///
/// dy is the gradient of y as it is, and no weight is applied to it: dbeta and dgamma add g and g * (x - mean) /
/// sqrt(var + eps) of all positions whose weight is not 0, and so do the sums of bn_compute_gradient_sums. Only the
/// means that dx subtracts are weighted: each of the two sums is multiplied by w / sum of w, instead of by 1 / M. A
/// loss that weighs positions has its weights in dy already.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bn_backward(plan: *const bn_plan, args: *const bn_backward_args) -> i32 {
    // SAFETY: the header demands what this needs.
    unsafe { call(plan, args, by_element!(backward)) }
}

/// bn_forward_training for a layer that keeps only y for its backward pass, bn_backward_from_output: one array fewer in
/// memory.
///
/// The activation must be the identity or a leaky ReLU with a positive slope. In each channel |beta| must be at most
/// 64 * |gamma|, and gamma must be such that y stays in the normal range of its type, for f64 between 2^-500 and 2^500.
///
/// Then n = (x - mean) / sqrt(var + eps) is rebuilt from y with an error of at most 10 * u * (1 + |n| + |beta /
/// gamma|), where u is half an ulp of 1 in the element type.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bn_forward_training_invertible(
    plan: *const bn_plan,
    args: *const bn_forward_training_invertible_args,
) -> i32 {
    // SAFETY: the header demands what this needs.
    unsafe { call(plan, args, by_element!(forward_training_invertible)) }
}

/// The gradients of x, gamma and beta from the outputs of bn_forward_training_invertible. Only those that are requested
/// are computed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bn_backward_from_output(
    plan: *const bn_plan,
    args: *const bn_backward_from_output_args,
) -> i32 {
    // SAFETY: the header demands what this needs.
    unsafe { call(plan, args, by_element!(backward_from_output)) }
}

/// The derivatives of bn_backward, for gradient penalties: the gradients of the sum of dx_cotangent * dx,
/// dgamma_cotangent * dgamma and dbeta_cotangent * dbeta. Only those that are requested are
/// computed. The plan must have no activation: apply it outside the plan.
///
/// Rarely needed, so it is composed of other passes: it makes more sweeps than a dedicated one, and allocates some
/// per-channel arrays.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bn_double_backward(plan: *const bn_plan, args: *const bn_double_backward_args) -> i32 {
    // SAFETY: the header demands what this needs.
    unsafe { call(plan, args, by_element!(double_backward)) }
}
