//! Per-channel algebra: from statistics and sums, in f64, to the coefficients of a map. Loops without branches, over
//! [`Block`]s where there are many arrays, which the compiler vectorizes for the instruction set they are dispatched to.

use super::moments;
use crate::parallel::Shared;
use crate::simd::{Kernel, Real, Simd};
use std::ops::Range;

/// `1/sqrt(var + eps)`, and 0 for 0: a constant channel with eps = 0 has x̂ = 0.
#[inline(always)]
pub(crate) fn inv_std(var: f64, eps: f64) -> f64 {
    let v = var + eps;
    if v == 0.0 { 0.0 } else { 1.0 / v.sqrt() }
}

/// Whether f64 holds gamma·inv_std wherever lanes hold gamma: what f64 needs beyond that, small tensors of f32 would feel.
#[inline(always)]
fn holds_scale<P: Real>() -> bool {
    P::MAX < f64::MAX
}

/// gamma·inv_std, to find factors for it: 0 only if one of the two is, and subnormal where the smallest factor is wanted.
#[inline(always)]
fn size_of_scale<P: Real>(gamma: f64, inv_std: f64) -> f64 {
    let scale = gamma * inv_std;
    let lost = !holds_scale::<P>() & (scale == 0.0) & (gamma != 0.0) & (inv_std != 0.0);
    if lost { f64::from_bits(1) } else { scale }
}

/// What is left of gamma·inv_std beside a factor of it.
#[inline(always)]
fn beside<P: Real>(factor: f64, gamma: f64, inv_std: f64) -> f64 {
    if holds_scale::<P>() {
        return gamma * inv_std / factor;
    }
    // Beyond the range only where gamma is 0.
    let rest = inv_std / factor;
    gamma * if rest > f64::MAX { f64::MAX } else { rest }
}

/// The power of two at or below a positive normal number, and 0 for subnormal ones.
#[inline(always)]
fn power_of_two(v: f64) -> f64 {
    f64::from_bits(v.to_bits() & f64::INFINITY.to_bits())
}

/// By how much a prescale may pass the limit of lanes.
const MARGIN: f64 = (1u64 << 26) as f64;

/// A power of two by which x and mean are multiplied, exactly, before they are subtracted, so that a channel whose
/// values are huge or tiny is computed where lanes neither overflow nor lose bits; 1 for ordinary channels.
#[inline(always)]
fn prescale<P: Real>(mean: f64, var: f64, inv_std: f64, scale: f64) -> f64 {
    let largest = mean.abs().max(var.sqrt());
    let scale = scale.abs();
    let ordinary = (largest <= P::LIMIT)
        & (inv_std <= P::LIMIT)
        & ((scale == 0.0) | ((scale <= P::LIMIT) & (scale >= 1.0 / P::LIMIT)));
    // Below 1 only where the rest of the scale would leave the range, and by no more than that: bits that x loses then are
    // multiplied by a tiny rest. Above 1 no larger than the scale, or x would overflow where y does not; but just above it
    // where gamma is too small for its bound to cover what a subnormal mean lost, which is then not multiplied.
    let above = if scale * (P::LIMIT * MARGIN) < inv_std { 2.0 } else { 1.0 };
    let factor = power_of_two(scale) * if scale < 1.0 / P::LIMIT { P::LIMIT } else { above };
    let least = if scale >= 1.0 / P::LIMIT { 1.0 } else { 0.0 };
    let wanted = factor.max(least).min(P::LIMIT / power_of_two(largest));
    let wanted = wanted.clamp(1.0 / (P::LIMIT * MARGIN), P::LIMIT * MARGIN);
    if ordinary { 1.0 } else { wanted }
}

/// The largest power of two below `1/sqrt(v)`, without the root and the division, which small tensors feel.
#[inline(always)]
fn power_of_two_below_inverse_root(v: f64) -> f64 {
    let exponent = v.to_bits() >> 52 & 0x7ff;
    f64::from_bits((2045 - ((exponent + 1023) >> 1)) << 52)
}

/// As [`prescale`], for the gradients: deviations are multiplied by g and by inv_std squared, so that lanes leave their
/// range earlier. They are brought to about x̂, whose products with g are in range, or, where eps outweighs the variance by
/// far, to where they do not lose bits.
#[inline(always)]
fn gradient_prescale<P: Real>(mean: f64, var: f64, var_with_eps: f64) -> f64 {
    let (limit, square_limit) = (P::LIMIT * P::LIMIT, P::SQUARE_LIMIT * P::SQUARE_LIMIT);
    let ordinary = (var == 0.0) | ((var <= square_limit) & (var >= 1.0 / square_limit));
    let wanted = power_of_two_below_inverse_root(var_with_eps.min(limit * var));
    let wanted = wanted.min(P::LIMIT / power_of_two(mean.abs()));
    let wanted = wanted.clamp(1.0 / (P::LIMIT * MARGIN), P::LIMIT * MARGIN);
    if ordinary { 1.0 } else { wanted }
}

/// An f64 as the sum of two lane values.
#[inline(always)]
fn split<P: Real>(v: f64) -> (P, P) {
    let hi = P::from_f64(v);
    (hi, P::from_f64(v - hi.to_f64()))
}

/// Partial results of the segments of a batch, two arrays each, to be put together in a tree that the number of
/// segments alone decides: neighbours, then neighbouring pairs, and so on.
pub(crate) struct Partials<'a> {
    pub(crate) slots: &'a Shared<f64>,
    /// From a slot's first array to its second; twice that from slot to slot.
    pub(crate) padded: usize,
    pub(crate) channels: Range<usize>,
    /// Values of a channel in each segment, or their weight.
    pub(crate) counts: &'a [f64],
}

/// How two partial results of the given counts become one.
pub(crate) trait Merge {
    fn merge(a_count: f64, a: [&mut [f64]; 2], b_count: f64, b: [&[f64]; 2]);
}

/// Means and M2.
pub(crate) struct Chan;

impl Merge for Chan {
    #[inline(always)]
    fn merge(a_count: f64, a: [&mut [f64]; 2], b_count: f64, b: [&[f64]; 2]) {
        moments::merge(a_count, a, b_count, b);
    }
}

/// Sums.
pub(crate) struct Sum;

impl Merge for Sum {
    #[inline(always)]
    fn merge(_: f64, a: [&mut [f64]; 2], _: f64, b: [&[f64]; 2]) {
        for (a, b) in a.into_iter().zip(b) {
            for (a, b) in a.iter_mut().zip(b) {
                *a += b;
            }
        }
    }
}

impl<'a> Partials<'a> {
    /// # Safety
    /// Nothing else uses these channels of slot `i` while the slices live.
    #[inline(always)]
    unsafe fn slot(&self, i: usize) -> [&'a mut [f64]; 2] {
        let Range { start, end } = self.channels;
        let at = 2 * i * self.padded;
        // SAFETY: slots are as long as `padded` says; the rest is the caller's promise.
        unsafe {
            [self.slots.slice(at + start..at + end), self.slots.slice(at + self.padded + start..at + self.padded + end)]
        }
    }

    /// Merges all slots into the first and returns it.
    ///
    /// # Safety
    /// Nothing else uses these channels of the slots while the result lives.
    #[inline(always)]
    unsafe fn fold<M: Merge>(&self) -> [&'a mut [f64]; 2] {
        let slots = self.counts.len();
        let count = |first: usize, n: usize| self.counts[first..(first + n).min(slots)].iter().sum();
        let mut step = 1;
        while step < slots {
            for i in (0..slots - step).step_by(2 * step) {
                // SAFETY: the two slots are different ones; the caller's promise.
                let (a, b) = unsafe { (self.slot(i), self.slot(i + step)) };
                M::merge(count(i, step), a, count(i + step, step), [&*b[0], &*b[1]]);
            }
            step *= 2;
        }
        // SAFETY: the caller's promise; the slices made above are gone.
        unsafe { self.slot(0) }
    }
}

/// Partial moments, to mean and biased variance.
pub(crate) struct Finish<'a> {
    pub(crate) partials: Partials<'a>,
    pub(crate) mean: &'a mut [f64],
    pub(crate) var: &'a mut [f64],
}

impl Kernel for Finish<'_> {
    #[inline(always)]
    fn run<S: Simd>(self) {
        // SAFETY: whoever makes a `Finish` promises that it alone uses its channels' partials.
        let [mean, m2] = unsafe { self.partials.fold::<Chan>() };
        self.mean.copy_from_slice(mean);
        // Weights that are all 0 leave no values, and M2 is 0 then.
        let count = self.partials.counts.iter().sum::<f64>().max(f64::MIN_POSITIVE);
        for (var, m2) in self.var.iter_mut().zip(m2) {
            *var = *m2 / count;
        }
    }
}

/// What coefficients are made from: arrays of one length, a channel each.
#[derive(Clone, Copy)]
pub(crate) struct Channels<'a, P> {
    pub(crate) mean: &'a [f64],
    pub(crate) var: &'a [f64],
    pub(crate) eps: f64,
    /// 1 where absent.
    pub(crate) gamma: Option<&'a [P]>,
    /// 0 where absent.
    pub(crate) beta: Option<&'a [P]>,
    /// Whether the gradients see `gamma·x̂ + beta`, rebuilt from y, in the place of x.
    pub(crate) rebuild: bool,
}

/// Channels that are computed side by side: enough to leave the compiler a loop, few enough for L1.
const BLOCK: usize = 64;

/// A value of some channels each.
type Values<T> = [T; BLOCK];

/// Some [`Channels`], copied where the compiler sees that nothing else points to them and how many there are: over
/// many slices it writes scalar code, and inference of 1×64×7×7 takes 1.5 times as long. Few slices need no copies.
struct Block {
    n: usize,
    mean: Values<f64>,
    var: Values<f64>,
    eps: f64,
    gamma: Values<f64>,
    beta: Values<f64>,
}

/// The first `n` of some values.
#[inline(always)]
fn values<P: Real>(from: &[P], n: usize) -> Values<f64> {
    let mut values = [0.0; BLOCK];
    for (to, from) in values.iter_mut().zip(&from[..n]) {
        *to = from.to_f64();
    }
    values
}

/// A channel as the gradients see it: `x̂ = (v − mean)·factor`, where v is x or, where x is rebuilt, `gamma·x̂ + beta`.
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

impl Block {
    #[inline(always)]
    fn inv_std(&self, i: usize) -> f64 {
        inv_std(self.var[i], self.eps)
    }
}

impl<P: Real> Channels<'_, P> {
    /// The channels from `c` on, as many as a block has or there are.
    #[inline(always)]
    fn block(&self, c: usize) -> Block {
        let n = BLOCK.min(self.mean.len() - c);
        Block {
            n,
            mean: values(&self.mean[c..], n),
            var: values(&self.var[c..], n),
            eps: self.eps,
            gamma: self.gamma.map_or([1.0; BLOCK], |gamma| values(&gamma[c..], n)),
            beta: self.beta.map_or([0.0; BLOCK], |beta| values(&beta[c..], n)),
        }
    }

    /// Where blocks start.
    #[inline(always)]
    fn blocks(&self) -> std::iter::StepBy<Range<usize>> {
        (0..self.mean.len()).step_by(BLOCK)
    }

    #[inline(always)]
    fn inv_std(&self, c: usize) -> f64 {
        inv_std(self.var[c], self.eps)
    }

    #[inline(always)]
    fn gamma(&self, c: usize) -> f64 {
        self.gamma.map_or(1.0, |gamma| gamma[c].to_f64())
    }

    #[inline(always)]
    fn seen(&self, c: usize) -> Seen {
        if self.rebuild {
            Seen::rebuilt(self.gamma(c), self.beta.map_or(0.0, |beta| beta[c].to_f64()))
        } else {
            Seen::given(self.mean[c], self.var[c], self.eps)
        }
    }
}

/// Writes the `n` values of a block to arrays, from channel `c` on.
#[inline(always)]
fn put<P: Copy, const K: usize>(out: &mut [&mut [P]; K], c: usize, n: usize, values: &[Values<P>; K]) {
    for (out, values) in out.iter_mut().zip(values) {
        out[c..c + n].copy_from_slice(&values[..n]);
    }
}

/// Coefficients of [`Normalize`](super::normalize::Normalize): prescale, mean_hi, mean_lo, scale, shift.
pub(crate) struct Forward<'a, P> {
    pub(crate) channels: Channels<'a, P>,
    pub(crate) out: [&'a mut [P]; 5],
}

impl<P: Real> Kernel for Forward<'_, P> {
    #[inline(always)]
    fn run<S: Simd>(self) {
        let mut out = self.out;
        for c in self.channels.blocks() {
            let of = self.channels.block(c);
            let [mut prescales, mut hi, mut lo, mut scale, mut shift] = [[P::from_f64(0.0); BLOCK]; 5];
            for i in 0..of.n {
                let inv_std = of.inv_std(i);
                let a = prescale::<P>(of.mean[i], of.var[i], inv_std, size_of_scale::<P>(of.gamma[i], inv_std));
                prescales[i] = P::from_f64(a);
                (hi[i], lo[i]) = split(of.mean[i] * a);
                // Finite where gamma is, so that x = mean gives beta even where eps lets inv_std leave the range of lanes.
                let largest = if of.gamma[i].is_finite() { P::MAX } else { f64::INFINITY };
                let rest = beside::<P>(a, of.gamma[i], inv_std);
                let rest = if rest > largest { largest } else { rest };
                scale[i] = P::from_f64(if rest < -largest { -largest } else { rest });
                shift[i] = P::from_f64(of.beta[i]);
            }
            put(&mut out, c, of.n, &[prescales, hi, lo, scale, shift]);
        }
    }
}

/// Coefficients of [`GradientTerms`](super::gradient_sums::GradientTerms): prescale, mean_hi, mean_lo.
pub(crate) struct Center<'a, P> {
    pub(crate) channels: Channels<'a, P>,
    pub(crate) out: [&'a mut [P]; 3],
}

impl<P: Real> Kernel for Center<'_, P> {
    #[inline(always)]
    fn run<S: Simd>(self) {
        let [prescale, hi, lo] = self.out;
        for c in 0..self.channels.mean.len() {
            let seen = self.channels.seen(c);
            let a = gradient_prescale::<P>(seen.mean, seen.var, seen.var_with_eps);
            prescale[c] = P::from_f64(a);
            (hi[c], lo[c]) = split(seen.mean * a);
        }
    }
}

/// Partial sums of [`GradientTerms`](super::gradient_sums::GradientTerms), to Σg and Σg·(x − mean).
pub(crate) struct FinishSums<'a, P> {
    pub(crate) channels: Channels<'a, P>,
    pub(crate) partials: Partials<'a>,
    pub(crate) prescale: &'a [P],
    pub(crate) g: &'a mut [f64],
    pub(crate) gx: &'a mut [f64],
}

impl<P: Real> Kernel for FinishSums<'_, P> {
    #[inline(always)]
    fn run<S: Simd>(self) {
        // SAFETY: whoever makes a `FinishSums` promises that it alone uses its channels' partials.
        let [g, gx] = unsafe { self.partials.fold::<Sum>() };
        self.g.copy_from_slice(g);
        for (c, ((out, sum), prescale)) in self.gx.iter_mut().zip(gx).zip(self.prescale).enumerate() {
            let mut unit = 1.0 / prescale.to_f64();
            if self.channels.rebuild {
                // To that of x. A channel without variance and eps has x̂ = 0.
                let inv_std = self.channels.inv_std(c);
                unit = if inv_std == 0.0 { 0.0 } else { self.channels.seen(c).factor * unit / inv_std };
            }
            *out = *sum * unit;
        }
    }
}

/// Coefficients of [`InputGradient`](super::input_gradient::InputGradient): prescale, mean_hi, mean_lo, scale, mean of
/// g, slope, boost.
pub(crate) struct Backward<'a, P> {
    pub(crate) channels: Channels<'a, P>,
    /// Values per channel that the statistics and the sums are over; `None` where the statistics are constants.
    pub(crate) count: Option<f64>,
    pub(crate) g: &'a [f64],
    pub(crate) gx: &'a [f64],
    pub(crate) out: [&'a mut [P]; 7],
}

impl<P: Real> Kernel for Backward<'_, P> {
    #[inline(always)]
    fn run<S: Simd>(self) {
        let mut out = self.out;
        let rebuild = self.channels.rebuild;
        // The sums are not used where the statistics are constants.
        let count = self.count.unwrap_or(1.0);
        for c in self.channels.blocks() {
            let of = self.channels.block(c);
            let (g, gx) = (values(&self.g[c..], of.n), values(&self.gx[c..], of.n));
            let [mut prescales, mut hi, mut lo, mut scale, mut mean_g, mut slope, mut boost] =
                [[P::from_f64(0.0); BLOCK]; 7];
            for i in 0..of.n {
                let inv_std = of.inv_std(i);
                // One factor may be beyond the range of lanes where the product is not.
                let b = prescale::<P>(0.0, 0.0, 0.0, size_of_scale::<P>(of.gamma[i], inv_std));
                (boost[i], scale[i]) = (P::from_f64(b), P::from_f64(beside::<P>(b, of.gamma[i], inv_std)));
                let seen = if rebuild {
                    Seen::rebuilt(of.gamma[i], of.beta[i])
                } else {
                    Seen::given(of.mean[i], of.var[i], of.eps)
                };
                let a = gradient_prescale::<P>(seen.mean, seen.var, seen.var_with_eps);
                prescales[i] = P::from_f64(a);
                (hi[i], lo[i]) = split(seen.mean * a);
                mean_g[i] = P::from_f64(g[i] / count);
                // inv_std in two places rather than squared: its square leaves the range of f64 for the smallest variances.
                slope[i] = P::from_f64(-(inv_std * (gx[i] / count)) * (seen.factor / a));
            }
            put(&mut out, c, of.n, &[prescales, hi, lo, scale, mean_g, slope, boost]);
        }
    }
}

/// Coefficients of [`Normalize`](super::normalize::Normalize) that make it `scale·g`: the input gradient where the
/// statistics are constants, with x not even read.
pub(crate) struct Frozen<'a, P> {
    pub(crate) channels: Channels<'a, P>,
    pub(crate) out: [&'a mut [P]; 5],
}

impl<P: Real> Kernel for Frozen<'_, P> {
    #[inline(always)]
    fn run<S: Simd>(self) {
        let mut out = self.out;
        for c in self.channels.blocks() {
            let of = self.channels.block(c);
            let [mut prescales, mut scale, zeros] = [[P::from_f64(0.0); BLOCK]; 3];
            for i in 0..of.n {
                let inv_std = of.inv_std(i);
                // In two factors, as above.
                let a = prescale::<P>(0.0, 0.0, 0.0, size_of_scale::<P>(of.gamma[i], inv_std));
                (prescales[i], scale[i]) = (P::from_f64(a), P::from_f64(beside::<P>(a, of.gamma[i], inv_std)));
            }
            put(&mut out, c, of.n, &[prescales, zeros, zeros, scale, zeros]);
        }
    }
}

/// What second derivatives need of a channel beside its [`Channels`], in f64: sums over `count` values, and the
/// cotangents of dgamma and dbeta.
#[derive(Clone, Copy)]
pub(crate) struct SecondSums {
    pub(crate) count: f64,
    /// Σg, Σg·(x − mean), Σv, Σv·(x − mean), Σg·(v − mean(v)).
    pub(crate) sums: [f64; 5],
    pub(crate) dgamma: f64,
    pub(crate) dbeta: f64,
}

impl<P: Real> Channels<'_, P> {
    /// The gradients of `Σ v·dx + cotangents·(dgamma, dbeta)` in a channel: coefficients of
    /// [`Second`](super::second::Second) for x and for dy, and the gradient of gamma.
    ///
    /// With s = inv_std, h = mean(g·x̂), p = mean(v·x̂) and A = mean(v·g) − mean(v)·mean(g) − p·h:
    /// dy: `γs·(v − mean(v) − p·x̂) + dgamma·x̂ + dbeta`; gamma: `s·M·A`; x:
    /// `s·(−γsh·(v − mean(v)) + (dgamma − γsp)·(g − mean(g)) − x̂·(γsA + dgamma·h − 2γshp))`.
    pub(crate) fn second(&self, c: usize, of: SecondSums) -> ([[P; super::second::COEFS]; 2], P) {
        let (s, gamma, m) = (self.inv_std(c), self.gamma(c), of.count);
        let [g, gx, v, vx, gv] = of.sums.map(|sum| sum / m);
        let (h, p) = (gx * s, vx * s);
        let a = gv - p * h;
        let prescale = gradient_prescale::<P>(self.mean[c], self.var[c], self.var[c] + self.eps);
        let (hi, lo) = split(self.mean[c] * prescale);
        let coefs = |k_x: f64, k_v: f64, k_g: f64, k: f64| {
            let [prescale, k_x, v, k_v, g, k_g, k] = [prescale, k_x / prescale, v, k_v, g, k_g, k].map(P::from_f64);
            [prescale, hi, lo, k_x, v, k_v, g, k_g, k]
        };
        let scale = gamma * s;
        let x = coefs(
            -s * s * (scale * a + of.dgamma * h - 2.0 * scale * h * p),
            -s * scale * h,
            s * (of.dgamma - scale * p),
            0.0,
        );
        ([x, coefs(s * (of.dgamma - scale * p), scale, 0.0, of.dbeta)], P::from_f64(s * m * a))
    }
}

/// dgamma = inv_std·Σg·(x − mean) and dbeta = Σg, where they are asked for.
pub(crate) struct ParameterGradients<'a, P> {
    pub(crate) channels: Channels<'a, P>,
    pub(crate) g: &'a [f64],
    pub(crate) gx: &'a [f64],
    pub(crate) dgamma: Option<&'a mut [P]>,
    pub(crate) dbeta: Option<&'a mut [P]>,
}

impl<P: Real> Kernel for ParameterGradients<'_, P> {
    #[inline(always)]
    fn run<S: Simd>(self) {
        if let Some(dgamma) = self.dgamma {
            for (c, (out, gx)) in dgamma.iter_mut().zip(self.gx).enumerate() {
                *out = P::from_f64(gx * self.channels.inv_std(c));
            }
        }
        if let Some(dbeta) = self.dbeta {
            for (out, g) in dbeta.iter_mut().zip(self.g) {
                *out = P::from_f64(*g);
            }
        }
    }
}
