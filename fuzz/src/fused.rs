//! What is fused to the passes of a [`Case`], in any element type, and what the reference says of it.

use crate::{Case, Data, Float, Value, bits, case::finite};
use arbitrary::Arbitrary;
use batchnorm::{Activation, Affine, Element, Extras, Shape, Statistics, reference};
use half::{bf16, f16};

/// An element type, whose gamma and beta may be of another.
pub trait Number: Element<Param: Float> + PartialEq {
    /// Half an ulp at 1.
    const ROUNDING: f64;
    const LARGEST: f64;
    /// The smallest positive value.
    const SMALLEST: f64;
    fn narrow(v: f64) -> Self;
    fn wide(self) -> f64;
    /// Bits to compare, one pattern for every NaN.
    fn pattern(self) -> u64 {
        bits(self.wide())
    }
}

macro_rules! number {
    ($($type:ty, $rounding:expr, $largest:expr, $smallest:expr, $narrow:expr, $wide:expr;)*) => {$(
        impl Number for $type {
            const ROUNDING: f64 = $rounding;
            const LARGEST: f64 = $largest;
            const SMALLEST: f64 = $smallest;
            fn narrow(v: f64) -> Self {
                $narrow(v)
            }
            fn wide(self) -> f64 {
                $wide(self)
            }
        }
    )*};
}

number! {
    f32, f32::U, <f32 as Float>::MAX, f32::SUBNORMAL, Float::of, Float::f64;
    f64, f64::U, <f64 as Float>::MAX, f64::SUBNORMAL, Float::of, Float::f64;
    bf16, 1.0 / 256.0, bf16::MAX.to_f64_const(), bf16::MIN_POSITIVE_SUBNORMAL.to_f64_const(), bf16::from_f64, bf16::to_f64;
    f16, 1.0 / 2048.0, f16::MAX.to_f64_const(), f16::MIN_POSITIVE_SUBNORMAL.to_f64_const(), f16::from_f64, f16::to_f64;
}

#[derive(Arbitrary, Clone, Copy, Debug)]
pub enum Type {
    F32,
    F64,
    Bf16,
    F16,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Act {
    Identity,
    Relu,
    LeakyRelu(u8),
    Silu,
}

/// What is fused to a case.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub struct Fusing {
    pub element: Type,
    activation: Act,
    residual: Option<[Value; 3]>,
    /// Weights of positions, repeated.
    weights: Option<[Value; 5]>,
}

impl Fusing {
    pub fn activation(self) -> Activation {
        match self.activation {
            Act::Identity => Activation::Identity,
            Act::Relu => Activation::Relu,
            Act::LeakyRelu(slope) => Activation::LeakyRelu(f64::from(slope) / 64.0),
            Act::Silu => Activation::Silu,
        }
    }

    pub fn problem<E: Number>(self, case: &Case) -> Problem<E> {
        let Data { shape, eps, x, dy, gamma, beta } = case.data::<f64>();
        let cast = |v: Vec<f64>| v.into_iter().map(E::narrow).collect::<Vec<_>>();
        let params = |v: Option<Vec<f64>>| v.map(|v| v.into_iter().map(|v| Float::of(finite::<E::Param>(v))).collect());
        let repeat = |v: &[Value], n: usize| (0..n).map(|k| v[k % v.len()].f64()).collect::<Vec<_>>();
        let weight = |v: f64| Float::of(if v.is_finite() { finite::<E::Param>(v.abs()).min(1e30) } else { 0.0 });
        Problem {
            shape,
            eps,
            activation: self.activation(),
            x: cast(x),
            dy: cast(dy),
            gamma: params(gamma),
            beta: params(beta),
            residual: self.residual.map(|v| cast(repeat(&v, shape.len()))),
            weights: self.weights.map(|v| repeat(&v, shape.values_per_channel()).into_iter().map(weight).collect()),
        }
    }
}

/// All inputs of a step.
pub struct Problem<E: Element> {
    pub shape: Shape,
    pub eps: f64,
    pub activation: Activation,
    pub x: Vec<E>,
    pub dy: Vec<E>,
    pub gamma: Option<Vec<E::Param>>,
    pub beta: Option<Vec<E::Param>>,
    pub residual: Option<Vec<E>>,
    pub weights: Option<Vec<E::Param>>,
}

/// All outputs of a step.
pub struct Step<E: Element> {
    pub y: Vec<E>,
    pub dx: Vec<E>,
    pub dresidual: Vec<E>,
    pub dgamma: Vec<E::Param>,
    pub dbeta: Vec<E::Param>,
}

/// An error, and what it is relative to beside itself.
fn stored<E: Number>(exact: f64, error: f64) -> f64 {
    let rounding = if size_of::<E>() < size_of::<E::Param>() { E::ROUNDING * (exact.abs() + error) } else { 0.0 };
    error + rounding + E::SMALLEST
}

impl<E: Number> Problem<E> {
    pub fn affine(&self) -> Affine<'_, E::Param> {
        Affine { gamma: self.gamma.as_deref(), beta: self.beta.as_deref() }
    }

    pub fn extras(&self) -> Extras<'_, E> {
        Extras { residual: self.residual.as_deref(), output: None, weights: self.weights.as_deref() }
    }

    pub fn exists(&self, position: usize) -> bool {
        self.weights.as_ref().is_none_or(|w| w[position].f64() > 0.0)
    }

    /// Compares a step with the reference, channel by channel, as far as a channel is of a size that bounds of a few
    /// lines describe; and asserts that there is nothing where nothing exists.
    pub fn check(&self, frozen: bool, statistics: &Statistics, step: &Step<E>) {
        let (shape, m) = (self.shape, self.shape.values_per_channel());
        let w: Vec<f64> = self.weights.as_ref().map_or(vec![1.0; m], |w| w.iter().map(|w| w.f64()).collect());
        let (total, heaviest) = (w.iter().sum::<f64>(), w.iter().fold(0.0f64, |a, &b| a.max(b)));
        let wide = |v: &[E]| v.iter().map(|v| v.wide()).collect::<Vec<_>>();
        let (x, dy) = (wide(&self.x), wide(&self.dy));
        let residual = self.residual.as_deref().map_or(vec![0.0; x.len()], wide);
        let param =
            |p: &Option<Vec<E::Param>>, c: usize, absent| p.as_ref().map_or(absent, |p: &Vec<E::Param>| p[c].f64());
        let ordinary = |v: f64| v == 0.0 || (1e-4..=1e4).contains(&v.abs());
        for c in 0..shape.channels() {
            let (gamma, beta) = (param(&self.gamma, c, 1.0), param(&self.beta, c, 0.0));
            let (mean, var) = (statistics.mean()[c], statistics.var()[c]);
            let inv_std = reference::inv_std(var, self.eps);
            let (mut existing, mut all_ordinary) = (vec![], total == 0.0 || ordinary(total) && ordinary(heaviest));
            for (position, k) in reference::indices(shape, c).enumerate() {
                if !self.exists(position) {
                    let found = [step.y[k], step.dx[k], step.dresidual[k]].map(E::wide);
                    assert!(found == [0.0; 3], "{found:?} at masked element {k}");
                    continue;
                }
                all_ordinary &= [x[k], dy[k], residual[k], w[position]].into_iter().all(ordinary);
                existing.push((k, w[position]));
            }
            let kappa = if var == 0.0 { 1.0 } else { (1.0 + mean * mean / var).sqrt() };
            let known = [gamma, beta, mean, var + self.eps].into_iter().all(ordinary) && kappa <= 1e4;
            if !(known && all_ordinary) || existing.is_empty() {
                continue;
            }
            let relative = <E::Param as Float>::relative(kappa) + f64::EPSILON * (m as f64 + kappa + 8.0);
            let (mut sums, mut errors, mut sizes) = ([0.0; 2], [0.0; 2], [0.0; 2]);
            let mut terms = vec![];
            for &(k, w) in &existing {
                let x_hat = (x[k] - mean) * inv_std;
                let z = gamma * x_hat + beta + residual[k];
                let z_error = relative * (gamma.abs() * (1.0 + x_hat.abs()) + beta.abs() + z.abs()) + E::SMALLEST;
                let y = reference::activate(self.activation, z);
                let slope = if let Activation::LeakyRelu(slope) = self.activation { slope.max(1.0) } else { 1.1 };
                within::<E>("y", k, y, step.y[k].wide(), stored::<E>(y, slope * z_error + relative * y.abs()));
                let exact = reference::activation_gradient(self.activation, z, dy[k]);
                let other = reference::activation_gradient(self.activation, -z, dy[k]);
                let found = step.dresidual[k].wide();
                let kink = z.abs() <= z_error && !matches!(self.activation, Activation::Silu | Activation::Identity);
                let g = if kink && (found - other).abs() < (found - exact).abs() { other } else { exact };
                let g_error = dy[k].abs() * slope * (2.0 * relative)
                    + if matches!(self.activation, Activation::Silu) { dy[k].abs() * z_error } else { 0.0 };
                within::<E>("dresidual", k, g, step.dresidual[k].wide(), stored::<E>(g, g_error));
                for (j, factor) in [1.0, x_hat].into_iter().enumerate() {
                    sums[j] += g * factor;
                    sizes[j] += (g * factor).abs();
                    errors[j] += g_error * factor.abs();
                }
                terms.push((k, w, x_hat, g, g_error));
            }
            let errors = [errors[0] + relative * sizes[0], errors[1] + relative * (sizes[1] + sizes[0])];
            let tiny = E::SMALLEST;
            within::<E>("dbeta", c, sums[0], step.dbeta[c].f64(), errors[0] + tiny);
            within::<E>("dgamma", c, sums[1], step.dgamma[c].f64(), errors[1] + tiny);
            for (k, w, x_hat, g, g_error) in terms {
                let share = if frozen { 0.0 } else { w / total };
                let dx = gamma * inv_std * (g - share * (sums[0] + x_hat * sums[1]));
                let size = g.abs() + share * (sums[0].abs() + (x_hat * sums[1]).abs());
                let through = share * (errors[0] + x_hat.abs() * errors[1]);
                let error = (gamma * inv_std).abs() * (2.0 * relative * size + g_error + through + tiny);
                within::<E>("dx", k, dx, step.dx[k].wide(), stored::<E>(dx, error));
            }
        }
    }
}

#[track_caller]
fn within<E: Number>(what: &str, at: usize, expected: f64, actual: f64, bound: f64) {
    let error = (actual - expected).abs();
    let beyond = expected.abs() + bound >= E::LARGEST && actual.is_infinite();
    assert!(beyond || error <= bound, "{what}[{at}]: expected {expected:e}, got {actual:e}, bound {bound:e}");
}
