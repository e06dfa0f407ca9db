//! Per-channel algebra: from statistics and sums, in f64, to the coefficients of a map. Loops without branches, over
//! [`Group`]s if there are many arrays, which the compiler vectorizes for the instruction set that they are dispatched
//! to.

use super::merge::Sums;
use super::partials::Partials;
use super::scale::{gradient_prescale, inv_std, prescale, rest_of_scale, size_of_scale, split};
use crate::simd::{Kernel, Real, Simd};
use std::mem::MaybeUninit;
use std::ops::Range;

/// What coefficients are made from: arrays of one length, one value per channel.
#[derive(Clone, Copy)]
pub(crate) struct Channels<'a, P> {
    pub(crate) mean: &'a [f64],
    pub(crate) var: &'a [f64],
    pub(crate) eps: f64,
    /// 1 if absent.
    pub(crate) gamma: Option<&'a [P]>,
    /// 0 if absent.
    pub(crate) beta: Option<&'a [P]>,
    /// Whether the gradients see `gamma·x̂ + beta`, rebuilt from y, instead of x.
    pub(crate) rebuild: bool,
}

/// Channels that are computed together: enough for vector code, few enough for L1.
const GROUP: usize = 64;

/// One value for each channel of a group.
type OfGroup<T> = [T; GROUP];

/// A group of [`Channels`], copied to arrays of known length, so that the compiler can exclude aliasing: over many
/// slices it writes scalar code, and inference of 1×64×7×7 takes 1.5 times as long. Few slices need no copies.
struct Group {
    n: usize,
    mean: OfGroup<f64>,
    var: OfGroup<f64>,
    eps: f64,
    gamma: OfGroup<f64>,
    beta: OfGroup<f64>,
}

/// The first `n` of some values.
#[inline(always)]
fn values<P: Real>(from: &[P], n: usize) -> OfGroup<f64> {
    let mut values = [0.0; GROUP];
    for (to, from) in values.iter_mut().zip(&from[..n]) {
        *to = plain_nan(from.to_wide());
    }
    values
}

/// The value, without the bits that a NaN may carry: rounded to bf16 in lanes, they might make it a number.
#[inline(always)]
pub(crate) fn plain_nan(v: f64) -> f64 {
    if v.is_nan() { f64::NAN } else { v }
}

/// A channel as the gradients see it: `x̂ = (v − mean)·factor`, in which v is x or, if x is rebuilt, `gamma·x̂ + beta`.
struct Seen {
    mean: f64,
    var: f64,
    var_with_eps: f64,
    factor: f64,
}

impl Seen {
    #[inline(always)]
    fn given(mean: f64, var: f64, eps: f64) -> Self {
        Self { mean, var, var_with_eps: var + eps, factor: inv_std(var, eps) }
    }

    #[inline(always)]
    fn rebuilt(gamma: f64, beta: f64) -> Self {
        Self { mean: beta, var: gamma * gamma, var_with_eps: gamma * gamma, factor: 1.0 / gamma }
    }
}

impl Group {
    #[inline(always)]
    fn inv_std(&self, i: usize) -> f64 {
        inv_std(self.var[i], self.eps)
    }
}

impl<P: Real> Channels<'_, P> {
    /// The channels from `c` on, as many as a group has or there are.
    #[inline(always)]
    fn group(&self, c: usize) -> Group {
        let n = GROUP.min(self.mean.len() - c);
        Group {
            n,
            mean: values(&self.mean[c..], n),
            var: values(&self.var[c..], n),
            eps: self.eps,
            gamma: self.gamma.map_or([1.0; GROUP], |gamma| values(&gamma[c..], n)),
            beta: self.beta.map_or([0.0; GROUP], |beta| values(&beta[c..], n)),
        }
    }

    /// The first channels of all groups.
    #[inline(always)]
    fn groups(&self) -> std::iter::StepBy<Range<usize>> {
        (0..self.mean.len()).step_by(GROUP)
    }

    #[inline(always)]
    fn inv_std(&self, c: usize) -> f64 {
        inv_std(self.var[c], self.eps)
    }

    #[inline(always)]
    fn gamma(&self, c: usize) -> f64 {
        self.gamma.map_or(1.0, |gamma| gamma[c].to_wide())
    }

    #[inline(always)]
    fn seen(&self, c: usize) -> Seen {
        if self.rebuild {
            Seen::rebuilt(self.gamma(c), self.beta.map_or(0.0, |beta| beta[c].to_wide()))
        } else {
            Seen::given(self.mean[c], self.var[c], self.eps)
        }
    }
}

/// Writes the `n` values of a group to arrays, from channel `c` on.
#[inline(always)]
fn put<P: Copy, const K: usize>(out: &mut [&mut [P]; K], c: usize, n: usize, values: &[OfGroup<P>; K]) {
    for (out, values) in out.iter_mut().zip(values) {
        out[c..c + n].copy_from_slice(&values[..n]);
    }
}

/// The value nearest to `v`, finite if `if_finite` is.
#[inline(always)]
fn limited<P: Real>(v: f64, if_finite: f64) -> f64 {
    let largest = if if_finite.is_finite() { P::MAX } else { f64::INFINITY };
    let v = if v > largest { largest } else { v };
    if v < -largest { -largest } else { v }
}

/// Coefficients of [`Normalize`](super::normalize::Normalize): mean_hi, scale, shift, prescale.
pub(crate) struct NormalizeCoefs<'a, P> {
    pub(crate) channels: Channels<'a, P>,
    pub(crate) out: [&'a mut [P]; 4],
}

impl<P: Real> Kernel for NormalizeCoefs<'_, P> {
    #[inline(always)]
    fn run<S: Simd>(self) {
        let mut out = self.out;
        for c in self.channels.groups() {
            let of = self.channels.group(c);
            let [mut hi, mut scale, mut shift, mut prescales] = [[P::from_wide(0.0); GROUP]; 4];
            for i in 0..of.n {
                let inv_std = of.inv_std(i);
                let a = prescale::<P>(of.mean[i], of.var[i], inv_std, size_of_scale::<P>(of.gamma[i], inv_std));
                prescales[i] = P::from_wide(a);
                let lo;
                (hi[i], lo) = split(of.mean[i] * a);
                // Finite if gamma is, so that x = mean gives beta even if eps lets inv_std leave the range of lanes.
                let rest = limited::<P>(rest_of_scale::<P>(a, of.gamma[i], inv_std), of.gamma[i]);
                scale[i] = P::from_wide(rest);
                // An infinite scale decides y alone, unless x is equal to the mean.
                let lost = if rest.is_infinite() { 0.0 } else { lo * rest };
                shift[i] = P::from_wide(limited::<P>(of.beta[i] - lost, of.beta[i]));
            }
            put(&mut out, c, of.n, &[hi, scale, shift, prescales]);
        }
    }
}

/// Coefficients of the [gradient sums](super::gradient_sums): mean_hi, prescale.
pub(crate) struct CenterCoefs<'a, P> {
    pub(crate) channels: Channels<'a, P>,
    pub(crate) out: [&'a mut [P]; 2],
}

impl<P: Real> Kernel for CenterCoefs<'_, P> {
    #[inline(always)]
    fn run<S: Simd>(self) {
        let [hi, prescale] = self.out;
        for c in 0..self.channels.mean.len() {
            let seen = self.channels.seen(c);
            let a = gradient_prescale::<P>(seen.mean, seen.var, seen.var_with_eps);
            prescale[c] = P::from_wide(a);
            (hi[c], _) = split(seen.mean * a);
        }
    }
}

/// Partial [gradient sums](super::gradient_sums), to Σg and Σg·(x − mean).
pub(crate) struct SumsOfAll<'a, P> {
    pub(crate) channels: Channels<'a, P>,
    pub(crate) partials: Partials<'a, 2>,
    pub(crate) prescale: &'a [P],
    pub(crate) g: &'a mut [f64],
    pub(crate) gx: &'a mut [f64],
}

impl<P: Real> Kernel for SumsOfAll<'_, P> {
    #[inline(always)]
    fn run<S: Simd>(self) {
        let [g, gx] = self.partials.fold::<Sums>();
        self.g.copy_from_slice(g);
        for (c, ((out, sum), prescale)) in self.gx.iter_mut().zip(gx).zip(self.prescale).enumerate() {
            let (seen, mut unit) = (self.channels.seen(c), 1.0 / prescale.to_wide());
            if self.channels.rebuild {
                // To the unit of x. A channel without variance and eps has x̂ = 0.
                let inv_std = self.channels.inv_std(c);
                unit = if inv_std == 0.0 { 0.0 } else { seen.factor * unit / inv_std };
            }
            // The sum is about mean_hi, and is moved to the mean. If both are equal an infinite Σg must not make it NaN.
            let (_, lo) = split::<P>(seen.mean * prescale.to_wide());
            let lost = if lo == 0.0 { 0.0 } else { lo * g[c] };
            *out = (*sum - lost) * unit;
        }
    }
}

/// Coefficients of [`InputGradient`](super::input_gradient::InputGradient): mean_hi, scale, slope, constant, prescale,
/// boost.
pub(crate) struct InputGradientCoefs<'a, P> {
    pub(crate) channels: Channels<'a, P>,
    /// Values per channel in the statistics and the sums; `None` if the statistics are constants.
    pub(crate) count: Option<f64>,
    pub(crate) g: &'a [f64],
    pub(crate) gx: &'a [f64],
    pub(crate) out: [&'a mut [P]; 6],
}

impl<P: Real> Kernel for InputGradientCoefs<'_, P> {
    #[inline(always)]
    fn run<S: Simd>(self) {
        let mut out = self.out;
        let rebuild = self.channels.rebuild;
        // The sums are not used if the statistics are constants.
        let count = self.count.unwrap_or(1.0);
        for c in self.channels.groups() {
            let of = self.channels.group(c);
            let (g, gx) = (values(&self.g[c..], of.n), values(&self.gx[c..], of.n));
            let [mut hi, mut scale, mut slopes, mut constant, mut prescales, mut boost] =
                [[P::from_wide(0.0); GROUP]; 6];
            for i in 0..of.n {
                let inv_std = of.inv_std(i);
                // One factor may be beyond the range of lanes although the product is not.
                let b = prescale::<P>(0.0, 0.0, 0.0, size_of_scale::<P>(of.gamma[i], inv_std));
                (boost[i], scale[i]) = (P::from_wide(b), P::from_wide(rest_of_scale::<P>(b, of.gamma[i], inv_std)));
                let seen = if rebuild {
                    Seen::rebuilt(of.gamma[i], of.beta[i])
                } else {
                    Seen::given(of.mean[i], of.var[i], of.eps)
                };
                let a = gradient_prescale::<P>(seen.mean, seen.var, seen.var_with_eps);
                prescales[i] = P::from_wide(a);
                let lo;
                (hi[i], lo) = split(seen.mean * a);
                // inv_std in two places rather than squared: its square leaves the range of f64 for the smallest
                // variances.
                let slope = -(inv_std * (gx[i] / count)) * (seen.factor / a);
                slopes[i] = P::from_wide(slope);
                constant[i] = P::from_wide(-(g[i] / count) - lo * slope);
            }
            put(&mut out, c, of.n, &[hi, scale, slopes, constant, prescales, boost]);
        }
    }
}

/// Coefficients with which [`Normalize`](super::normalize::Normalize) is `scale·g`: the input gradient if the
/// statistics are constants, which does not even read x.
pub(crate) struct ConstantCoefs<'a, P> {
    pub(crate) channels: Channels<'a, P>,
    pub(crate) out: [&'a mut [P]; 4],
}

impl<P: Real> Kernel for ConstantCoefs<'_, P> {
    #[inline(always)]
    fn run<S: Simd>(self) {
        let mut out = self.out;
        for c in self.channels.groups() {
            let of = self.channels.group(c);
            let [mut prescales, mut scale, zeros] = [[P::from_wide(0.0); GROUP]; 3];
            for i in 0..of.n {
                let inv_std = of.inv_std(i);
                // In two factors, as above.
                let a = prescale::<P>(0.0, 0.0, 0.0, size_of_scale::<P>(of.gamma[i], inv_std));
                (prescales[i], scale[i]) = (P::from_wide(a), P::from_wide(rest_of_scale::<P>(a, of.gamma[i], inv_std)));
            }
            put(&mut out, c, of.n, &[zeros, scale, zeros, prescales]);
        }
    }
}

/// dgamma = inv_std·Σg·(x − mean) and dbeta = Σg, if they are wanted.
pub(crate) struct ParameterGradients<'a, P> {
    pub(crate) channels: Channels<'a, P>,
    pub(crate) g: &'a [f64],
    pub(crate) gx: &'a [f64],
    pub(crate) dgamma: Option<&'a mut [MaybeUninit<P>]>,
    pub(crate) dbeta: Option<&'a mut [MaybeUninit<P>]>,
}

impl<P: Real> Kernel for ParameterGradients<'_, P> {
    #[inline(always)]
    fn run<S: Simd>(self) {
        if let Some(dgamma) = self.dgamma {
            for (c, (out, gx)) in dgamma.iter_mut().zip(self.gx).enumerate() {
                out.write(P::from_wide(gx * self.channels.inv_std(c)));
            }
        }
        if let Some(dbeta) = self.dbeta {
            for (out, g) in dbeta.iter_mut().zip(self.g) {
                out.write(P::from_wide(*g));
            }
        }
    }
}
