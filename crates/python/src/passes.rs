//! The passes: for each a function that is generic over the types of activations and parameters.

use crate::arrays::{Array, Arrays, Raw, Two, slice, uninit};
use crate::error::Failure;
use crate::source::{Given, RawSource};
use batchnorm::{
    Affine, BatchNorm, Cotangents, Element, Extras, Fold, GradientSums, Gradients, SecondGradients, Statistics,
};
use std::mem::MaybeUninit;

/// The arrays that most passes take besides x, each of which may be absent.
#[derive(Clone, Copy, Default)]
pub(crate) struct Inputs {
    pub(crate) gamma: Option<Raw>,
    pub(crate) beta: Option<Raw>,
    pub(crate) residual: Option<Raw>,
    pub(crate) output: Option<Raw>,
    pub(crate) weights: Option<Raw>,
}

/// [`Inputs`] whose memory has been checked.
struct InputArrays<E: Element, P> {
    gamma: Option<Array<P>>,
    beta: Option<Array<P>>,
    residual: Option<Array<E>>,
    output: Option<Array<E>>,
    weights: Option<Array<E::Param>>,
}

impl Inputs {
    fn check<E: Element, P>(&self, arrays: &mut Arrays) -> Result<InputArrays<E, P>, Failure> {
        Ok(InputArrays {
            gamma: arrays.optional_input("gamma", self.gamma)?,
            beta: arrays.optional_input("beta", self.beta)?,
            residual: arrays.optional_input("residual", self.residual)?,
            output: arrays.optional_input("output", self.output)?,
            weights: arrays.optional_input("weights", self.weights)?,
        })
    }
}

impl<E: Element, P> InputArrays<E, P> {
    /// # Safety
    /// As [`Array::slice`].
    unsafe fn affine<'a>(&self) -> Affine<'a, P> {
        // SAFETY: the caller's promise.
        unsafe { Affine { gamma: slice(self.gamma), beta: slice(self.beta) } }
    }

    /// # Safety
    /// As [`Array::slice`].
    unsafe fn extras<'a>(&self) -> Extras<'a, E> {
        // SAFETY: the caller's promise.
        unsafe { Extras { residual: slice(self.residual), output: slice(self.output), weights: slice(self.weights) } }
    }
}

/// Where gradients go, each of which may be absent.
#[derive(Clone, Copy)]
pub(crate) struct Outputs {
    pub(crate) dx: Option<Raw>,
    pub(crate) dresidual: Option<Raw>,
    pub(crate) dgamma: Option<Raw>,
    pub(crate) dbeta: Option<Raw>,
}

/// [`Outputs`] whose memory has been checked.
struct OutputArrays<E, P> {
    dx: Option<Array<E>>,
    dresidual: Option<Array<E>>,
    dgamma: Option<Array<P>>,
    dbeta: Option<Array<P>>,
}

impl Outputs {
    fn check<E, P>(&self, arrays: &mut Arrays) -> Result<OutputArrays<E, P>, Failure> {
        Ok(OutputArrays {
            dx: arrays.optional_output("dx", self.dx)?,
            dresidual: arrays.optional_output("dresidual", self.dresidual)?,
            dgamma: arrays.optional_output("dgamma", self.dgamma)?,
            dbeta: arrays.optional_output("dbeta", self.dbeta)?,
        })
    }
}

impl<E, P> OutputArrays<E, P> {
    /// # Safety
    /// As [`Array::uninit`].
    unsafe fn gradients<'a>(&self) -> Gradients<'a, MaybeUninit<E>, MaybeUninit<P>> {
        // SAFETY: the caller's promise.
        unsafe {
            Gradients {
                dx: uninit(self.dx),
                dresidual: uninit(self.dresidual),
                dgamma: uninit(self.dgamma),
                dbeta: uninit(self.dbeta),
            }
        }
    }
}

/// # Safety (of all passes)
/// Each array is memory with so many elements of its type, those of outputs perhaps uninitialized, and nothing else
/// writes it, nor reads an output, during the call.
pub(crate) unsafe fn statistics<E: Element, P: Element<Param = E::Param>>(
    plan: &BatchNorm,
    x: Raw,
    inputs: Inputs,
    (mean, var): Two,
) -> Result<f64, Failure> {
    let mut arrays = Arrays::new();
    let x = arrays.input::<E>("x", x)?;
    let inputs = inputs.check::<E, P>(&mut arrays)?;
    let (mean, var) = (arrays.output::<f64>("mean", mean)?, arrays.output::<f64>("var", var)?);
    arrays.check_overlap(None)?;
    // SAFETY: the caller's promise; what becomes a slice has been checked.
    unsafe {
        let mut statistics = Statistics::empty(mean.slice_mut(), var.slice_mut())?;
        plan.with(inputs.extras()).statistics(x.slice(), &mut statistics)?;
        Ok(statistics.count())
    }
}

pub(crate) unsafe fn forward_training<E: Element, P: Element<Param = E::Param>>(
    plan: &BatchNorm,
    x: Raw,
    inputs: Inputs,
    y: Raw,
    (mean, var): Two,
) -> Result<f64, Failure> {
    let mut arrays = Arrays::new();
    let (x, y) = (arrays.input::<E>("x", x)?, arrays.output::<E>("y", y)?);
    let inputs = inputs.check::<E, P>(&mut arrays)?;
    let (mean, var) = (arrays.output::<f64>("mean", mean)?, arrays.output::<f64>("var", var)?);
    let in_place = arrays.check_overlap(Some(["x", "y"]))?;
    // SAFETY: the caller's promise; what becomes a slice has been checked.
    unsafe {
        let mut statistics = Statistics::empty(mean.slice_mut(), var.slice_mut())?;
        let with = plan.with(inputs.extras()).parameters_of::<P>();
        if in_place {
            with.forward_training_in_place(y.slice_mut(), inputs.affine(), &mut statistics)?;
        } else {
            with.uninit().forward_training(x.slice(), inputs.affine(), y.uninit(), &mut statistics)?;
        }
        Ok(statistics.count())
    }
}

pub(crate) unsafe fn normalize<E: Element, P: Element<Param = E::Param>>(
    plan: &BatchNorm,
    x: Raw,
    source: RawSource,
    inputs: Inputs,
    y: Raw,
) -> Result<(), Failure> {
    let mut arrays = Arrays::new();
    let (x, y) = (arrays.input::<E>("x", x)?, arrays.output::<E>("y", y)?);
    let (inputs, source) = (inputs.check::<E, P>(&mut arrays)?, Given::new(&mut arrays, source)?);
    let in_place = arrays.check_overlap(Some(["x", "y"]))?;
    // SAFETY: the caller's promise; what becomes a slice has been checked.
    unsafe {
        let source = source.read()?;
        let with = plan.with(inputs.extras()).parameters_of::<P>();
        if in_place {
            with.normalize_in_place(y.slice_mut(), source.source(), inputs.affine())?;
        } else {
            with.uninit().normalize(x.slice(), source.source(), inputs.affine(), y.uninit())?;
        }
    }
    Ok(())
}

pub(crate) unsafe fn gradient_sums<E: Element, P: Element<Param = E::Param>>(
    plan: &BatchNorm,
    (x, dy): Two,
    source: RawSource,
    inputs: Inputs,
    (g, gx): Two,
) -> Result<(), Failure> {
    let mut arrays = Arrays::new();
    let (x, dy) = (arrays.input::<E>("x", x)?, arrays.input::<E>("dy", dy)?);
    let (inputs, source) = (inputs.check::<E, P>(&mut arrays)?, Given::new(&mut arrays, source)?);
    let (g, gx) = (arrays.output::<f64>("g", g)?, arrays.output::<f64>("gx", gx)?);
    arrays.check_overlap(None)?;
    // SAFETY: the caller's promise; what becomes a slice has been checked.
    unsafe {
        let source = source.read()?;
        let mut sums = GradientSums::from_parts(g.slice_mut(), gx.slice_mut())?;
        let with = plan.with(inputs.extras()).parameters_of::<P>();
        with.gradient_sums(x.slice(), dy.slice(), source.source(), inputs.affine(), &mut sums)?;
    }
    Ok(())
}

pub(crate) unsafe fn input_gradient<E: Element, P: Element<Param = E::Param>>(
    plan: &BatchNorm,
    (x, dy): Two,
    source: RawSource,
    (g, gx): Two,
    inputs: Inputs,
    outputs: Outputs,
) -> Result<(), Failure> {
    let mut arrays = Arrays::new();
    let (x, dy) = (arrays.input::<E>("x", x)?, arrays.input::<E>("dy", dy)?);
    let outputs = outputs.check::<E, P>(&mut arrays)?;
    let (inputs, source) = (inputs.check::<E, P>(&mut arrays)?, Given::new(&mut arrays, source)?);
    let (g, gx) = (arrays.input::<f64>("g", g)?, arrays.input::<f64>("gx", gx)?);
    let in_place = arrays.check_overlap(Some(["dy", "dx"]))?;
    // SAFETY: the caller's promise; what becomes a slice has been checked.
    unsafe {
        let (statistics, sums) = (source.read()?.batch()?, GradientSums::from_parts(g.slice(), gx.slice())?);
        let with = plan.with(inputs.extras()).parameters_of::<P>();
        if in_place {
            let gradients = Gradients { dresidual: outputs.dresidual.map(|d| d.slice_mut()), ..Gradients::default() };
            with.input_gradient_in_place(x.slice(), dy.slice_mut(), &statistics, &sums, inputs.affine(), gradients)?;
        } else {
            let (x, dy, gradients) = (x.slice(), dy.slice(), outputs.gradients());
            with.uninit().input_gradient(x, dy, &statistics, &sums, inputs.affine(), gradients)?;
        }
    }
    Ok(())
}

pub(crate) unsafe fn backward<E: Element, P: Element<Param = E::Param>>(
    plan: &BatchNorm,
    (x, dy): Two,
    source: RawSource,
    inputs: Inputs,
    outputs: Outputs,
) -> Result<(), Failure> {
    let mut arrays = Arrays::new();
    let (x, dy) = (arrays.input::<E>("x", x)?, arrays.input::<E>("dy", dy)?);
    let outputs = outputs.check::<E, P>(&mut arrays)?;
    let (inputs, source) = (inputs.check::<E, P>(&mut arrays)?, Given::new(&mut arrays, source)?);
    let in_place = arrays.check_overlap(Some(["dy", "dx"]))?;
    // SAFETY: the caller's promise; what becomes a slice has been checked.
    unsafe {
        let source = source.read()?;
        let with = plan.with(inputs.extras()).parameters_of::<P>();
        if in_place {
            let OutputArrays { dresidual, dgamma, dbeta, .. } = outputs;
            let gradients = Gradients {
                dx: None,
                dresidual: dresidual.map(|d| d.slice_mut()),
                dgamma: dgamma.map(|d| d.slice_mut()),
                dbeta: dbeta.map(|d| d.slice_mut()),
            };
            with.backward_in_place(x.slice(), dy.slice_mut(), source.source(), inputs.affine(), gradients)?;
        } else {
            let (x, dy, gradients) = (x.slice(), dy.slice(), outputs.gradients());
            with.uninit().backward(x, dy, source.source(), inputs.affine(), gradients)?;
        }
    }
    Ok(())
}

pub(crate) unsafe fn backward_from_output<E: Element>(
    plan: &BatchNorm,
    (y, dy): Two,
    source: RawSource,
    inputs: Inputs,
    outputs: Outputs,
) -> Result<(), Failure> {
    let mut arrays = Arrays::new();
    let (y, dy) = (arrays.input::<E>("y", y)?, arrays.input::<E>("dy", dy)?);
    let outputs = outputs.check::<E, E::Param>(&mut arrays)?;
    let (inputs, source) = (inputs.check::<E, E::Param>(&mut arrays)?, Given::new(&mut arrays, source)?);
    arrays.check_overlap(None)?;
    // SAFETY: the caller's promise; what becomes a slice has been checked.
    unsafe {
        let statistics = source.read()?.batch()?;
        let (y, dy, gradients) = (y.slice(), dy.slice(), outputs.gradients());
        plan.backward_from_output_uninit(y, dy, &statistics, inputs.affine(), gradients)?;
    }
    Ok(())
}

/// The arrays of second derivatives that are not those of every pass.
#[derive(Clone, Copy)]
pub(crate) struct Second {
    pub(crate) dx: Raw,
    pub(crate) dgamma: Option<Raw>,
    pub(crate) dbeta: Option<Raw>,
    pub(crate) of_x: Option<Raw>,
    pub(crate) of_dy: Option<Raw>,
    pub(crate) of_gamma: Option<Raw>,
}

pub(crate) unsafe fn double_backward<E: Element>(
    plan: &BatchNorm,
    (x, dy): Two,
    source: RawSource,
    inputs: Inputs,
    second: Second,
) -> Result<(), Failure> {
    let mut arrays = Arrays::new();
    let (x, dy) = (arrays.input::<E>("x", x)?, arrays.input::<E>("dy", dy)?);
    let (inputs, source) = (inputs.check::<E, E::Param>(&mut arrays)?, Given::new(&mut arrays, source)?);
    let dx = arrays.input::<E>("the cotangent of dx", second.dx)?;
    let dgamma = arrays.optional_input("the cotangent of dgamma", second.dgamma)?;
    let dbeta = arrays.optional_input("the cotangent of dbeta", second.dbeta)?;
    let of_x = arrays.optional_output("the gradient of x", second.of_x)?;
    let of_dy = arrays.optional_output("the gradient of dy", second.of_dy)?;
    let of_gamma = arrays.optional_output("the gradient of gamma", second.of_gamma)?;
    arrays.check_overlap(None)?;
    // SAFETY: the caller's promise; what becomes a slice has been checked.
    unsafe {
        let source = source.read()?;
        let cotangents = Cotangents { dx: dx.slice(), dgamma: slice(dgamma), dbeta: slice(dbeta) };
        let gradients = SecondGradients { x: uninit(of_x), dy: uninit(of_dy), gamma: uninit(of_gamma) };
        let (x, dy, source) = (x.slice(), dy.slice(), source.source());
        plan.double_backward_uninit(x, dy, source, inputs.affine(), cotangents, gradients)?;
    }
    Ok(())
}

pub(crate) unsafe fn parameter_gradients<P: Element<Param = P>>(
    plan: &BatchNorm,
    source: RawSource,
    (g, gx): Two,
    outputs: Outputs,
) -> Result<(), Failure> {
    let mut arrays = Arrays::new();
    let source = Given::new(&mut arrays, source)?;
    let (g, gx) = (arrays.input::<f64>("g", g)?, arrays.input::<f64>("gx", gx)?);
    let outputs = outputs.check::<P, P>(&mut arrays)?;
    arrays.check_overlap(None)?;
    // SAFETY: the caller's promise; what becomes a slice has been checked.
    unsafe {
        let (source, sums) = (source.read()?, GradientSums::from_parts(g.slice(), gx.slice())?);
        let [dgamma, dbeta] = [outputs.dgamma, outputs.dbeta].map(|d| d.map(|d| d.slice_mut()));
        plan.parameter_gradients(source.source(), &sums, dgamma, dbeta)?;
    }
    Ok(())
}

pub(crate) unsafe fn fold<P: Element<Param = P>>(
    plan: &BatchNorm,
    source: RawSource,
    inputs: Inputs,
    (scale, shift): Two,
) -> Result<(), Failure> {
    let mut arrays = Arrays::new();
    let (inputs, source) = (inputs.check::<P, P>(&mut arrays)?, Given::new(&mut arrays, source)?);
    let (scale, shift) = (arrays.output::<f64>("scale", scale)?, arrays.output::<f64>("shift", shift)?);
    arrays.check_overlap(None)?;
    // SAFETY: the caller's promise; what becomes a slice has been checked.
    unsafe {
        let (source, mut fold) = (source.read()?, Fold::from_parts(scale.slice_mut(), shift.slice_mut())?);
        plan.fold(source.source(), inputs.affine(), &mut fold)?;
    }
    Ok(())
}
