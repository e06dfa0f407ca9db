//! The native part of the Python package `batchnorm`.
//!
//! Its functions take arrays by address and length. Types, and that the memory exists, are checked by the Python code
//! of this package, which alone calls them: it holds a reference to each array during a call. Lengths, alignment,
//! overlap and values are checked here and in the core, before anything is written. The passes run without Python's
//! lock.

mod arrays;
mod averages;
mod elements;
mod error;
#[cfg(target_os = "linux")]
mod openmp;
mod pages;
mod passes;
mod plan;
mod source;
mod threads;

use crate::arrays::{Raw, Two};
use crate::averages::Update;
use crate::elements::{by_element, by_parameter, by_wide_element};
use crate::error::Failure;
use crate::passes::{Inputs, Outputs, Second};
use crate::plan::{Settings, plan};
use crate::source::RawSource;
use batchnorm::{BatchNorm, Shape, Statistics};
use half::{bf16, f16};
use pyo3::prelude::*;

/// gamma, beta, the residual, the output and the weights.
type RawInputs = (Option<Raw>, Option<Raw>, Option<Raw>, Option<Raw>, Option<Raw>);

fn inputs((gamma, beta, residual, output, weights): RawInputs) -> Inputs {
    Inputs { gamma, beta, residual, output, weights }
}

/// dx, dresidual, dgamma and dbeta.
type RawOutputs = (Option<Raw>, Option<Raw>, Option<Raw>, Option<Raw>);

fn outputs((dx, dresidual, dgamma, dbeta): RawOutputs) -> Outputs {
    Outputs { dx, dresidual, dgamma, dbeta }
}

/// Makes the plan of a call and runs it without Python's lock. The pass is also given the numbers of its types.
fn run<T: Send>(
    py: Python<'_>,
    settings: &Settings,
    pass: impl FnOnce(&BatchNorm, (usize, usize)) -> Result<T, Failure> + Send,
) -> PyResult<T> {
    Ok(py.detach(|| pass(&plan(settings)?, (settings.0, settings.1)))?)
}

/// `(outer, channels, inner)` of a tensor, from its dims and its strides in elements.
#[pyfunction]
fn shape_of(dims: Vec<usize>, strides: Vec<isize>, axis: usize) -> PyResult<(usize, usize, usize)> {
    let shape = Shape::from_strides(&dims, &strides, axis).map_err(Failure::from)?;
    Ok((shape.outer(), shape.channels(), shape.inner()))
}

#[pyfunction]
fn statistics(py: Python<'_>, settings: Settings, x: Raw, given: RawInputs, statistics: Two) -> PyResult<f64> {
    run(py, &settings, |plan, types| {
        use passes::statistics as pass;
        // SAFETY: the Python code of the package gives valid arrays, and keeps them.
        unsafe { by_element!(types, pass(plan, x, inputs(given), statistics)) }
    })
}

/// `running` is the number of the element type of running averages, their mean and var, and the momentum with which
/// they are updated, which saves a call.
#[pyfunction]
#[pyo3(signature = (settings, x, given, y, statistics, running = None))]
fn forward_training(
    py: Python<'_>,
    settings: Settings,
    x: Raw,
    given: RawInputs,
    y: Raw,
    statistics: Two,
    running: Option<(usize, Raw, Raw, f64)>,
) -> PyResult<f64> {
    run(py, &settings, |plan, types| {
        use passes::forward_training as pass;
        // SAFETY: the Python code of the package gives valid arrays, and keeps them.
        unsafe {
            let count = by_element!(types, pass(plan, x, inputs(given), y, statistics))?;
            if let Some((element, mean, var, momentum)) = running {
                let (batch, momentum) = ((Some(count), 1, statistics.0, statistics.1), Some(momentum));
                Update { mean, var, batches: 0, batch, momentum, biased: false, any_momentum: true }.run(element)?;
            }
            Ok(count)
        }
    })
}

#[pyfunction]
fn normalize(py: Python<'_>, settings: Settings, x: Raw, source: RawSource, given: RawInputs, y: Raw) -> PyResult<()> {
    run(py, &settings, |plan, types| {
        use passes::normalize as pass;
        // SAFETY: the Python code of the package gives valid arrays, and keeps them.
        unsafe { by_element!(types, pass(plan, x, source, inputs(given), y)) }
    })
}

#[pyfunction]
fn gradient_sums(
    py: Python<'_>,
    settings: Settings,
    x_and_dy: Two,
    source: RawSource,
    given: RawInputs,
    sums: Two,
) -> PyResult<()> {
    run(py, &settings, |plan, types| {
        use passes::gradient_sums as pass;
        // SAFETY: the Python code of the package gives valid arrays, and keeps them.
        unsafe { by_element!(types, pass(plan, x_and_dy, source, inputs(given), sums)) }
    })
}

#[pyfunction]
#[allow(clippy::too_many_arguments)] // those of the pass
fn input_gradient(
    py: Python<'_>,
    settings: Settings,
    x_and_dy: Two,
    source: RawSource,
    sums: Two,
    given: RawInputs,
    gradients: RawOutputs,
) -> PyResult<()> {
    run(py, &settings, |plan, types| {
        use passes::input_gradient as pass;
        // SAFETY: the Python code of the package gives valid arrays, and keeps them.
        unsafe { by_element!(types, pass(plan, x_and_dy, source, sums, inputs(given), outputs(gradients))) }
    })
}

#[pyfunction]
fn parameter_gradients(
    py: Python<'_>,
    settings: Settings,
    source: RawSource,
    sums: Two,
    gradients: RawOutputs,
) -> PyResult<()> {
    run(py, &settings, |plan, (_, parameter)| {
        use passes::parameter_gradients as pass;
        // SAFETY: the Python code of the package gives valid arrays, and keeps them.
        unsafe { by_parameter!(parameter, pass(plan, source, sums, outputs(gradients))) }
    })
}

#[pyfunction]
fn backward(
    py: Python<'_>,
    settings: Settings,
    x_and_dy: Two,
    source: RawSource,
    given: RawInputs,
    gradients: RawOutputs,
) -> PyResult<()> {
    run(py, &settings, |plan, types| {
        use passes::backward as pass;
        // SAFETY: the Python code of the package gives valid arrays, and keeps them.
        unsafe { by_element!(types, pass(plan, x_and_dy, source, inputs(given), outputs(gradients))) }
    })
}

#[pyfunction]
fn backward_from_output(
    py: Python<'_>,
    settings: Settings,
    y_and_dy: Two,
    source: RawSource,
    given: RawInputs,
    gradients: RawOutputs,
) -> PyResult<()> {
    run(py, &settings, |plan, types| {
        use passes::backward_from_output as pass;
        // SAFETY: the Python code of the package gives valid arrays, and keeps them.
        unsafe { by_wide_element!(types, pass(plan, y_and_dy, source, inputs(given), outputs(gradients))) }
    })
}

/// `cotangents` are those of dx, dgamma and dbeta, `gradients` are of x, dy and gamma.
#[pyfunction]
fn double_backward(
    py: Python<'_>,
    settings: Settings,
    x_and_dy: Two,
    source: RawSource,
    gamma: Option<Raw>,
    cotangents: (Raw, Option<Raw>, Option<Raw>),
    gradients: (Option<Raw>, Option<Raw>, Option<Raw>),
) -> PyResult<()> {
    let ((dx, dgamma, dbeta), (of_x, of_dy, of_gamma)) = (cotangents, gradients);
    let second = Second { dx, dgamma, dbeta, of_x, of_dy, of_gamma };
    let inputs = Inputs { gamma, ..Inputs::default() };
    run(py, &settings, |plan, types| {
        use passes::double_backward as pass;
        // SAFETY: the Python code of the package gives valid arrays, and keeps them.
        unsafe { by_wide_element!(types, pass(plan, x_and_dy, source, inputs, second)) }
    })
}

/// Scale and shift.
#[pyfunction]
fn fold(py: Python<'_>, settings: Settings, source: RawSource, given: RawInputs, out: Two) -> PyResult<()> {
    run(py, &settings, |plan, (_, parameter)| {
        use passes::fold as pass;
        // SAFETY: the Python code of the package gives valid arrays, and keeps them.
        unsafe { by_parameter!(parameter, pass(plan, source, inputs(given), out)) }
    })
}

/// Updates running averages. Returns the number of batches.
#[pyfunction]
#[allow(clippy::too_many_arguments)] // those of the update
fn update_running(
    element: usize,
    mean: Raw,
    var: Raw,
    batches: u64,
    batch: RawSource,
    momentum: Option<f64>,
    biased: bool,
    any_momentum: bool,
) -> PyResult<u64> {
    let update = Update { mean, var, batches, batch, momentum, biased, any_momentum };
    // SAFETY: the Python code of the package gives valid arrays, and keeps them.
    Ok(unsafe { update.run(element) }?)
}

/// Count, mean and var of the values of several batches, which are given as a row each: the count, the means and the
/// variances, in f64. Rows are merged in their order.
#[pyfunction]
fn merge_statistics(rows: Raw, merged: Raw, channels: usize) -> PyResult<()> {
    let merge = || -> Result<(), Failure> {
        let mut arrays = arrays::Arrays::new();
        let (rows, merged) = (arrays.input::<f64>("rows", rows)?, arrays.output::<f64>("merged", merged)?);
        arrays.check_overlap(None)?;
        // SAFETY: the Python code of the package gives valid arrays, and keeps them.
        let (rows, merged) = unsafe { (rows.slice(), merged.slice_mut()) };
        let width = 2 * channels + 1;
        if merged.len() != width || !rows.len().is_multiple_of(width) {
            let (rows, merged) = (rows.len(), merged.len());
            let message = format!("rows have the wrong length: expected {width} values each, got {rows} and {merged}");
            return Err(Failure::value(message));
        }
        let mut whole = Statistics::new(channels);
        for row in rows.chunks_exact(width) {
            let (mean, var) = row[1..].split_at(channels);
            whole.merge(&Statistics::from_parts(row[0], mean, var)?)?;
        }
        merged[0] = whole.count();
        merged[1..=channels].copy_from_slice(whole.mean());
        merged[channels + 1..].copy_from_slice(whole.var());
        Ok(())
    };
    Ok(merge()?)
}

/// Finds the OpenMP runtime that a loaded library is linked to, for passes on more than one thread. Returns whether it
/// was found; otherwise they run on a pool.
#[pyfunction]
fn use_openmp_of(library: &str) -> bool {
    #[cfg(target_os = "linux")]
    return openmp::find(library);
    #[cfg(not(target_os = "linux"))]
    return false;
}

/// Asks for huge pages in the memory of an output that is about to be written.
#[pyfunction]
fn want_huge_pages(address: usize, bytes: usize) {
    pages::want_huge(address, bytes);
}

#[pymodule]
mod _native {
    #[pymodule_export]
    use super::{
        backward, backward_from_output, double_backward, fold, forward_training, gradient_sums, input_gradient,
        merge_statistics, normalize, parameter_gradients, shape_of, statistics, update_running, use_openmp_of,
        want_huge_pages,
    };
}
