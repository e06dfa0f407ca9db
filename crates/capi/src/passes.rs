//! The passes: one function generic over the element type each, and the call that chooses the type.

use super::arrays::{Access, Array, Arrays};
use super::descriptors::{
    Descriptor, bn_backward_args, bn_forward_training_args, bn_gradient_sums_args, bn_input_gradient_args,
    bn_normalize_args, bn_parameter_gradients_args, bn_statistics_args, plan, read,
};
use super::plan::{Element as PlanElement, bn_plan};
use super::statistics::{STATISTICS, SUMS, SourceView, StatisticsView, SumsView};
use super::status::{Status, guard};
use batchnorm::{Affine, Element, Gradients};

/// # Safety
/// The arguments' pointers are as the header asks for.
pub(crate) type Pass<A> = unsafe fn(&bn_plan, A) -> Result<(), Status>;

/// # Safety
/// As [`Pass`], and as the header asks for the plan.
pub(crate) unsafe fn call<A: Descriptor>(handle: *const bn_plan, args: *const A, f32: Pass<A>, f64: Pass<A>) -> i32 {
    // SAFETY: the caller's promise.
    guard(|| unsafe {
        let plan = plan(handle)?;
        let args = read("args", args)?;
        match plan.element {
            PlanElement::F32 => f32(plan, args),
            PlanElement::F64 => f64(plan, args),
        }
    })
}

/// # Safety
/// As [`Array::slice`].
pub(crate) unsafe fn slice<'a, T>(array: Option<Array<T>>) -> Option<&'a [T]> {
    // SAFETY: the caller's promise.
    array.map(|array| unsafe { array.slice() })
}

/// # Safety
/// As [`Array::slice_mut`].
unsafe fn slice_mut<'a, T>(array: Option<Array<T>>) -> Option<&'a mut [T]> {
    // SAFETY: the caller's promise.
    array.map(|array| unsafe { array.slice_mut() })
}

unsafe fn compute_statistics<E: Element>(plan: &bn_plan, args: bn_statistics_args) -> Result<(), Status> {
    let (shape, mut arrays) = (plan.batch_norm.shape(), Arrays::new(plan));
    let x = arrays.input::<E>("x", args.x, shape.len())?;
    // SAFETY: the caller's promise; what becomes a slice and is written has been checked.
    unsafe {
        let out = StatisticsView::new(&mut arrays, STATISTICS, args.statistics, shape.channels(), Access::Write)?;
        arrays.check_overlap(None)?;
        let mut statistics = out.write()?;
        plan.batch_norm.statistics(x.slice(), &mut statistics)?;
        out.store(&statistics);
        Ok(())
    }
}

unsafe fn forward_training<E: Element>(plan: &bn_plan, args: bn_forward_training_args) -> Result<(), Status> {
    let (shape, mut arrays) = (plan.batch_norm.shape(), Arrays::new(plan));
    let x = arrays.input::<E>("x", args.x, shape.len())?;
    let gamma = arrays.input_or_absent::<E::Param>("gamma", args.gamma, shape.channels())?;
    let beta = arrays.input_or_absent::<E::Param>("beta", args.beta, shape.channels())?;
    let y = arrays.output::<E>("y", args.y, shape.len())?;
    // SAFETY: the caller's promise; what becomes a slice and is written has been checked.
    unsafe {
        let out = StatisticsView::new(&mut arrays, STATISTICS, args.statistics, shape.channels(), Access::Write)?;
        let in_place = arrays.check_overlap(Some(["x", "y"]))?;
        let affine = Affine { gamma: slice(gamma), beta: slice(beta) };
        let mut statistics = out.write()?;
        if in_place {
            plan.batch_norm.forward_training_in_place(y.slice_mut(), affine, &mut statistics)?;
        } else {
            plan.batch_norm.forward_training(x.slice(), affine, y.slice_mut(), &mut statistics)?;
        }
        out.store(&statistics);
        Ok(())
    }
}

unsafe fn normalize<E: Element>(plan: &bn_plan, args: bn_normalize_args) -> Result<(), Status> {
    let (shape, mut arrays) = (plan.batch_norm.shape(), Arrays::new(plan));
    let x = arrays.input::<E>("x", args.x, shape.len())?;
    let gamma = arrays.input_or_absent::<E::Param>("gamma", args.gamma, shape.channels())?;
    let beta = arrays.input_or_absent::<E::Param>("beta", args.beta, shape.channels())?;
    let y = arrays.output::<E>("y", args.y, shape.len())?;
    // SAFETY: the caller's promise; what becomes a slice has been checked.
    unsafe {
        let source = SourceView::new(&mut arrays, args.statistics, args.running, shape.channels())?;
        let in_place = arrays.check_overlap(Some(["x", "y"]))?;
        let affine = Affine { gamma: slice(gamma), beta: slice(beta) };
        if in_place {
            plan.batch_norm.normalize_in_place(y.slice_mut(), source.read()?, affine)?;
        } else {
            plan.batch_norm.normalize(x.slice(), source.read()?, affine, y.slice_mut())?;
        }
        Ok(())
    }
}

unsafe fn compute_gradient_sums<E: Element>(plan: &bn_plan, args: bn_gradient_sums_args) -> Result<(), Status> {
    let (shape, mut arrays) = (plan.batch_norm.shape(), Arrays::new(plan));
    let x = arrays.input::<E>("x", args.x, shape.len())?;
    let dy = arrays.input::<E>("dy", args.dy, shape.len())?;
    // SAFETY: the caller's promise; what becomes a slice and is written has been checked.
    unsafe {
        let source = SourceView::new(&mut arrays, args.statistics, args.running, shape.channels())?;
        let out = SumsView::new(&mut arrays, SUMS, args.sums, shape.channels(), Access::Write)?;
        arrays.check_overlap(None)?;
        Ok(plan.batch_norm.gradient_sums(
            x.slice(),
            dy.slice(),
            source.read()?,
            Affine::default(),
            &mut out.write()?,
        )?)
    }
}

unsafe fn input_gradient<E: Element>(plan: &bn_plan, args: bn_input_gradient_args) -> Result<(), Status> {
    let (shape, mut arrays) = (plan.batch_norm.shape(), Arrays::new(plan));
    let channels = shape.channels();
    let x = arrays.input::<E>("x", args.x, shape.len())?;
    let dy = arrays.input::<E>("dy", args.dy, shape.len())?;
    let gamma = arrays.input_or_absent::<E::Param>("gamma", args.gamma, channels)?;
    let dx = arrays.output::<E>("dx", args.dx, shape.len())?;
    // SAFETY: the caller's promise; what becomes a slice has been checked.
    unsafe {
        let statistics =
            StatisticsView::new(&mut arrays, STATISTICS, args.statistics.cast_mut(), channels, Access::Read)?;
        let sums = SumsView::new(&mut arrays, SUMS, args.sums, channels, Access::Read)?;
        let in_place = arrays.check_overlap(Some(["dy", "dx"]))?;
        let affine = Affine { gamma: slice(gamma), beta: None };
        let (statistics, sums) = (&statistics.read()?, &sums.read()?);
        if in_place {
            plan.batch_norm.input_gradient_in_place(x.slice(), dx.slice_mut(), statistics, sums, affine)?;
        } else {
            plan.batch_norm.input_gradient(x.slice(), dy.slice(), statistics, sums, affine, dx.slice_mut())?;
        }
        Ok(())
    }
}

unsafe fn parameter_gradients<P: Element<Param = P>>(
    plan: &bn_plan,
    args: bn_parameter_gradients_args,
) -> Result<(), Status> {
    let (channels, mut arrays) = (plan.channels(), Arrays::new(plan));
    let dgamma = arrays.output_or_absent::<P>("dgamma", args.dgamma, channels)?;
    let dbeta = arrays.output_or_absent::<P>("dbeta", args.dbeta, channels)?;
    // SAFETY: the caller's promise; what becomes a slice has been checked.
    unsafe {
        let source = SourceView::new(&mut arrays, args.statistics, args.running, channels)?;
        let sums = SumsView::new(&mut arrays, SUMS, args.sums, channels, Access::Read)?;
        arrays.check_overlap(None)?;
        let (source, sums) = (source.read()?, sums.read()?);
        Ok(plan.batch_norm.parameter_gradients(source, &sums, slice_mut(dgamma), slice_mut(dbeta))?)
    }
}

unsafe fn backward<E: Element>(plan: &bn_plan, args: bn_backward_args) -> Result<(), Status> {
    let (shape, mut arrays) = (plan.batch_norm.shape(), Arrays::new(plan));
    let channels = shape.channels();
    let x = arrays.input::<E>("x", args.x, shape.len())?;
    let dy = arrays.input::<E>("dy", args.dy, shape.len())?;
    let gamma = arrays.input_or_absent::<E::Param>("gamma", args.gamma, channels)?;
    let dx = arrays.output_or_absent::<E>("dx", args.dx, shape.len())?;
    let dgamma = arrays.output_or_absent::<E::Param>("dgamma", args.dgamma, channels)?;
    let dbeta = arrays.output_or_absent::<E::Param>("dbeta", args.dbeta, channels)?;
    // SAFETY: the caller's promise; what becomes a slice has been checked.
    unsafe {
        let source = SourceView::new(&mut arrays, args.statistics, args.running, channels)?;
        let in_place = arrays.check_overlap(Some(["dy", "dx"]))?;
        let affine = Affine { gamma: slice(gamma), beta: None };
        let (dx, dgamma, dbeta) = (slice_mut(dx), slice_mut(dgamma), slice_mut(dbeta));
        let source = source.read()?;
        match dx {
            Some(dx) if in_place => plan.batch_norm.backward_in_place(x.slice(), dx, source, affine, dgamma, dbeta)?,
            dx => {
                let gradients = Gradients { dx, dgamma, dbeta, ..Gradients::default() };
                plan.batch_norm.backward(x.slice(), dy.slice(), source, affine, gradients)?;
            }
        }
        Ok(())
    }
}

/// Mean and variance of each channel of x: the first half of a forward pass in training.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bn_compute_statistics(plan: *const bn_plan, args: *const bn_statistics_args) -> i32 {
    // SAFETY: the header asks for what this needs.
    unsafe { call(plan, args, compute_statistics::<f32>, compute_statistics::<f64>) }
}

/// y = gamma * (x - mean) / sqrt(var + eps) + beta with the batch's own statistics, which are returned too.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bn_forward_training(plan: *const bn_plan, args: *const bn_forward_training_args) -> i32 {
    // SAFETY: the header asks for what this needs.
    unsafe { call(plan, args, forward_training::<f32>, forward_training::<f64>) }
}

/// y = gamma * (x - mean) / sqrt(var + eps) + beta with given statistics: running ones for inference, the batch's for
/// the second half of a forward pass in training.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bn_normalize(plan: *const bn_plan, args: *const bn_normalize_args) -> i32 {
    // SAFETY: the header asks for what this needs.
    unsafe { call(plan, args, normalize::<f32>, normalize::<f64>) }
}

/// The sums of dy and of dy * (x - mean) of each channel: the first half of the backward pass.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bn_compute_gradient_sums(plan: *const bn_plan, args: *const bn_gradient_sums_args) -> i32 {
    // SAFETY: the header asks for what this needs.
    unsafe { call(plan, args, compute_gradient_sums::<f32>, compute_gradient_sums::<f64>) }
}

/// dx from the statistics and sums of the whole batch, of which x and dy may be a part: the second half of the backward
/// pass.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bn_input_gradient(plan: *const bn_plan, args: *const bn_input_gradient_args) -> i32 {
    // SAFETY: the header asks for what this needs.
    unsafe { call(plan, args, input_gradient::<f32>, input_gradient::<f64>) }
}

/// The gradients of gamma and beta from the sums, those that are asked for.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bn_parameter_gradients(plan: *const bn_plan, args: *const bn_parameter_gradients_args) -> i32 {
    // SAFETY: the header asks for what this needs.
    unsafe { call(plan, args, parameter_gradients::<f32>, parameter_gradients::<f64>) }
}

/// The gradients of x, gamma and beta, those that are asked for.
///
/// With a batch's statistics they flow through mean and variance; with running ones these are constants.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bn_backward(plan: *const bn_plan, args: *const bn_backward_args) -> i32 {
    // SAFETY: the header asks for what this needs.
    unsafe { call(plan, args, backward::<f32>, backward::<f64>) }
}
