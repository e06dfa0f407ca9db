//! Training steps, in every way that a forward and a backward pass are called.

use crate::{Buffer, Number, Problem, assert_same_arrays, bits_of};
use batchnorm::{Affine, BatchNorm, Element, GradientSums, Gradients, Source, Statistics};
use std::fmt::Debug;

/// How a forward and a backward pass are called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// In one call.
    Fused,
    /// In one call, which overwrites its input.
    FusedInPlace,
    /// First the reduction, then the map.
    Halves,
    /// First the reduction, then the map, which overwrites its input.
    HalvesInPlace,
}

/// All ways.
pub const WAYS: [Way; 4] = [Way::Fused, Way::FusedInPlace, Way::Halves, Way::HalvesInPlace];

impl Way {
    /// Whether inputs are overwritten.
    pub fn in_place(self) -> bool {
        matches!(self, Self::FusedInPlace | Self::HalvesInPlace)
    }
    /// Whether a pass is one call.
    pub fn fused(self) -> bool {
        matches!(self, Self::Fused | Self::FusedInPlace)
    }
}

/// All outputs of a training step.
#[derive(Clone, Debug)]
pub struct Outputs<T: Number> {
    /// Of the batch; empty if the step had constant statistics.
    pub statistics: Statistics,
    /// Of the backward pass.
    pub sums: GradientSums,
    /// The output of the layer.
    pub y: Vec<T>,
    /// The gradient of x.
    pub dx: Vec<T>,
    /// The gradient of gamma.
    pub dgamma: Vec<T::Param>,
    /// The gradient of beta.
    pub dbeta: Vec<T::Param>,
}

impl<T: Number> Outputs<T> {
    /// Every output by name, as bits.
    pub fn bits(&self) -> Vec<(&'static str, Vec<u64>)> {
        vec![
            ("mean", bits_of(self.statistics.mean())),
            ("var", bits_of(self.statistics.var())),
            ("y", bits_of(&self.y)),
            ("sums of g", bits_of(self.sums.g())),
            ("sums of g·(x − mean)", bits_of(self.sums.gx())),
            ("dx", bits_of(&self.dx)),
            ("dgamma", bits_of(&self.dgamma)),
            ("dbeta", bits_of(&self.dbeta)),
        ]
    }
}

/// Fails at the first value of an output whose bits differ.
pub fn assert_same_bits<T: Number>(expected: &Outputs<T>, actual: &Outputs<T>, context: &dyn Debug) {
    assert_same_arrays(&expected.bits(), &actual.bits(), context);
}

/// y and the batch's statistics. Buffers start at offsets that follow from `offset`, here and below.
pub fn forward<T: Number>(plan: &BatchNorm, p: &Problem<T>, way: Way, offset: usize) -> (Vec<T>, Statistics) {
    let mut statistics = Statistics::new(p.shape.channels());
    let (x, mut y) = (Buffer::new(&p.x, offset), Buffer::output(p.shape.len(), 5 * offset));
    if way.in_place() {
        y.copy_from_slice(&x);
    }
    match way {
        Way::Fused => plan.forward_training(&x, p.affine(), &mut y, &mut statistics).unwrap(),
        Way::FusedInPlace => plan.forward_training_in_place(&mut y, p.affine(), &mut statistics).unwrap(),
        Way::Halves => {
            plan.statistics::<T>(&x, &mut statistics).unwrap();
            plan.normalize::<T>(&x, &statistics, p.affine(), &mut y).unwrap();
        }
        Way::HalvesInPlace => {
            plan.statistics::<T>(&y, &mut statistics).unwrap();
            plan.normalize_in_place(&mut y, &statistics, p.affine()).unwrap();
        }
    }
    (y.to_vec(), statistics)
}

/// y for statistics that are given.
pub fn normalize<T: Number>(plan: &BatchNorm, p: &Problem<T>, source: Source<'_>, way: Way, offset: usize) -> Vec<T> {
    let (x, mut y) = (Buffer::new(&p.x, offset), Buffer::output(p.shape.len(), 5 * offset));
    if way.in_place() {
        y.copy_from_slice(&x);
        plan.normalize_in_place(&mut y, source, p.affine()).unwrap();
    } else {
        plan.normalize::<T>(&x, source, p.affine(), &mut y).unwrap();
    }
    y.to_vec()
}

/// The sums of the backward pass, dx, dgamma and dbeta.
pub type BackwardOutputs<T> = (GradientSums, Vec<T>, Vec<<T as Element>::Param>, Vec<<T as Element>::Param>);

/// The gradients. Of dx, dgamma and dbeta those that are not `wanted` are NaN; in place, dx is always wanted.
pub fn backward<T: Number>(
    plan: &BatchNorm,
    p: &Problem<T>,
    source: Source<'_>,
    way: Way,
    wanted: [bool; 3],
    offset: usize,
) -> BackwardOutputs<T> {
    let (len, channels) = (p.shape.len(), p.shape.channels());
    let mut sums = GradientSums::new(channels);
    let (x, dy) = (Buffer::new(&p.x, offset), Buffer::new(&p.dy, 3 * offset));
    let mut dx = Buffer::<T>::output(len, 7 * offset);
    let (mut dgamma, mut dbeta) = (Buffer::output(channels, offset), Buffer::output(channels, 2 * offset));
    plan.gradient_sums::<T>(&x, &dy, source, Affine::default(), &mut sums).unwrap();
    if way.in_place() {
        dx.copy_from_slice(&dy);
    }
    let [wanted_dx, wanted_dgamma, wanted_dbeta] = wanted;
    let parameters = (wanted_dgamma.then_some(&mut dgamma[..]), wanted_dbeta.then_some(&mut dbeta[..]));
    let (dgamma_out, dbeta_out) = if way.fused() {
        parameters
    } else {
        plan.parameter_gradients(source, &sums, parameters.0, parameters.1).unwrap();
        (None, None)
    };
    match (way, source) {
        (Way::Halves, Source::Batch(batch)) if wanted_dx => {
            plan.input_gradient::<T>(&x, &dy, &batch, &sums, p.affine(), &mut dx)
        }
        (Way::HalvesInPlace, Source::Batch(batch)) => {
            plan.input_gradient_in_place(&x, &mut dx, &batch, &sums, p.affine())
        }
        _ if way.in_place() => plan.backward_in_place(&x, &mut dx, source, p.affine(), dgamma_out, dbeta_out),
        _ => {
            let dx = wanted_dx.then_some(&mut dx[..]);
            let gradients = Gradients { dx, dgamma: dgamma_out, dbeta: dbeta_out, ..Gradients::default() };
            plan.backward(&x, &dy, source, p.affine(), gradients)
        }
    }
    .unwrap();
    (sums, dx.to_vec(), dgamma.to_vec(), dbeta.to_vec())
}
