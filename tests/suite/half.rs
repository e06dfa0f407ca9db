//! Are bf16 and f16 read and rounded as by the crate `half`, and computed as f32?

use crate::common::*;
use batchnorm::{Activation, Affine, BatchNorm, Element, GradientSums, Isa, Shape, Statistics};
use half::{bf16, f16};

/// A type of 16 bits.
trait Half: Number + Element<Param = f32> {
    fn from_bits(bits: u16) -> Self;
}

macro_rules! impl_half {
    ($($type:ident),*) => {$(
        impl Half for $type {
            fn from_bits(bits: u16) -> Self {
                Self::from_bits(bits)
            }
        }
    )*};
}

impl_half!(bf16, f16);

/// Mean 0 and variance 1, so that x̂ is x in a plan without eps.
fn neutral(channels: usize) -> Statistics {
    Statistics::from_parts(1.0, vec![0.0; channels], vec![1.0; channels]).unwrap()
}

/// Whole and partial vectors, in rows and in planes.
const EXTENTS: [(usize, usize); 4] = [(65_536, 1), (65_533, 1), (1, 65_536), (3120, 21)];

/// Every 16-bit pattern is read as the number that it stands for, and written unchanged.
fn every_pattern<T: Half>() {
    let patterns: Vec<T> = (0..=u16::MAX).map(T::from_bits).collect();
    for (channels, inner) in EXTENTS {
        let shape = Shape::ncl(1, channels, inner).unwrap();
        let (values, statistics) = (&patterns[..shape.len()], neutral(channels));
        every_isa(|isa| {
            let plan = BatchNorm::new(shape).eps(0.0).unwrap().isa(isa).unwrap();
            let (x, mut y) = (Buffer::new(values, 3), Buffer::output(values.len(), 5));
            plan.normalize(&x, &statistics, Affine::default(), &mut y).unwrap();
            for (x, y) in values.iter().zip(&*y) {
                // Adding beta, which is 0, makes −0 a positive zero.
                let expected = T::from_f32(x.to_f32() + 0.0);
                assert_eq!(expected.bits(), y.bits(), "{x:?} came back as {y:?}, {shape:?} {isa:?}");
            }
            if inner == 1 {
                let mut sums = GradientSums::new(channels);
                plan.gradient_sums(&x, &x, &statistics, Affine::default(), &mut sums).unwrap();
                for (x, g) in values.iter().zip(sums.g()) {
                    assert!(
                        f64::from(x.to_f32()) == *g || (x.to_f32().is_nan() && g.is_nan()),
                        "{x:?} was read as {g}"
                    );
                }
            }
        });
    }
}

#[test]
fn every_pattern_of_16_bits() {
    every_pattern::<bf16>();
    every_pattern::<f16>();
}

/// f32 values at, next to and halfway between all values of the type, which are the boundaries of rounding, are written
/// as the crate `half` rounds them. They are beta, and x̂ is 0.
fn every_boundary<T: Half>() {
    let finite = (0..=u16::MAX).map(T::from_bits).filter(|v| v.to_f32().is_finite());
    let next = |v: T| T::from_bits(u16::try_from(v.bits()).unwrap() + 1).to_f32();
    let around = |v: f32| [f32::from_bits(v.to_bits().saturating_sub(1)), v, f32::from_bits(v.to_bits() + 1)];
    let boundaries = finite.flat_map(|v| {
        // Behind the largest value, as if another followed.
        let (v, next) =
            (v.to_f32(), Some(next(v)).filter(|n| n.is_finite()).unwrap_or(v.to_f32() * (1.0 + T::U as f32)));
        [around(v), around(v + (next - v) / 2.0), around(next)].concat()
    });
    let mut values: Vec<f32> = boundaries.collect();
    values.extend([f32::MAX, f32::MIN, f32::INFINITY, f32::NEG_INFINITY, f32::NAN]);
    // Added to the bits of these, half of a unit carries into the sign.
    values.extend([0x7f80_0001, 0x7fff_ffff, 0xffff_8000].map(f32::from_bits));
    for (channels, inner) in [(4099, 1), (997, 21)] {
        let shape = Shape::ncl(1, channels, inner).unwrap();
        let (statistics, x) = (neutral(channels), vec![T::of(0.0); shape.len()]);
        for values in values.chunks(channels) {
            let mut beta = values.to_vec();
            beta.resize(channels, 1.0);
            for &isa in Isa::available() {
                let (plan, mut y) = (BatchNorm::new(shape).eps(0.0).unwrap().isa(isa).unwrap(), vec![T::NAN; x.len()]);
                plan.normalize(&x, &statistics, Affine { gamma: None, beta: Some(&beta) }, &mut y).unwrap();
                for (beta, y) in beta.iter().zip(y.chunks(inner)) {
                    // x̂ is a positive zero.
                    let expected = T::from_f32(0.0 + beta).bits();
                    assert!(y.iter().all(|y| y.bits() == expected), "{beta:e} became {y:?}, {isa:?}");
                }
            }
            if inner > 1 {
                break; // the same stores as in rows, which have tried all values
            }
        }
    }
}

#[test]
fn rounding_at_every_boundary() {
    every_boundary::<bf16>();
    every_boundary::<f16>();
}

/// Lengths around every boundary, with statistics of the batch and constant ones.
#[test]
fn lengths_around_every_boundary() {
    fn check<T: Half>(ledger: &mut Ledger) {
        for (i, shape) in boundary_shapes(T::LANES).into_iter().enumerate() {
            let fusion = Fusion::<T>::random(shape, i as u64, Activation::Identity, false, Weighting::Absent);
            let running = fusion.problem.running();
            let isa = Isa::available()[i % Isa::available().len()];
            for running in [None, Some(&running)] {
                let step = fusion.run(&fusion.plan().isa(isa).unwrap(), running, WAYS[i % 4], false, i);
                fusion.check(ledger, running, &step, &(T::NAME, shape, isa, WAYS[i % 4]));
            }
        }
    }
    let mut ledger = Ledger::default();
    check::<bf16>(&mut ledger);
    check::<f16>(&mut ledger);
    ledger.close("half", 100_000);
}

/// Sums and squares may be far beyond the largest value of the type, since they are f32 or f64. y beyond it is Inf.
#[test]
fn beyond_the_range() {
    let shape = Shape::nc(40_000, 1).unwrap();
    let x: Vec<f16> = (0..shape.len()).map(|k| f16::from_f32(if k % 2 == 0 { 65504.0 } else { 65472.0 })).collect();
    let (mut statistics, mut y) = (Statistics::new(1), vec![f16::ZERO; x.len()]);
    let affine = Affine { gamma: Some(&[65504.0][..]), beta: Some(&[65504.0][..]) };
    BatchNorm::new(shape).forward_training(&x, affine, &mut y, &mut statistics).unwrap();
    assert_eq!((statistics.mean(), statistics.var()), (&[65488.0][..], &[256.0][..]));
    assert!(y.iter().step_by(2).all(|y| *y == f16::INFINITY) && y.iter().skip(1).step_by(2).all(|y| y.is_finite()));

    // Squares of bf16 values overflow f32, so the channel is summed again in f64.
    let x: Vec<bf16> = (0..shape.len()).map(|k| bf16::from_f32(if k % 2 == 0 { 1e30 } else { -1e30 })).collect();
    let mut y = vec![bf16::ZERO; x.len()];
    BatchNorm::new(shape).forward_training(&x, Affine::default(), &mut y, &mut statistics).unwrap();
    assert_eq!((statistics.mean()[0], statistics.var()[0].sqrt()), (0.0, x[0].to_f64()));
    assert!(y.iter().zip(&x).all(|(y, x)| *y == bf16::from_f32(x.to_f32().signum())));
}
