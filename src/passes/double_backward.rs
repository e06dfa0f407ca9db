//! Second derivatives. Rarely needed, so it is composed of other passes: it makes more sweeps than a dedicated one, and
//! allocates.

use super::arrays::{ChannelArrays, MAPPED, stride};
use super::backward::backward;
use super::engine::Engine;
use super::inputs::PassInputs;
use super::request::{Backward, BackwardOutputs, DoubleBackward, Fusions, Parameters};
use super::tiling::{Grid, MapTile, Steps};
use crate::kernels::double_backward::COEFS;
use crate::kernels::input_gradient::InputGradient;
use crate::kernels::scale::{gradient_prescale, inv_std, split};
use crate::lanes::Storage;
use crate::parallel::Shared;
use crate::simd::{Real, dispatch};
use crate::statistics::{GradientSums, Source, Statistics};
use std::ops::Range;
use std::ptr::null_mut;

/// # Safety
/// See [`request`](super::request).
pub(super) unsafe fn double_backward<E: Storage>(engine: &Engine, request: DoubleBackward<'_, E, E::Scalar>) {
    let DoubleBackward { dy, x, v, statistics, gamma, dgamma_cotangent, dbeta_cotangent, of_x, of_dy, of_gamma } =
        request;
    let (shape, channels) = (engine.shape, engine.shape.channels());
    let sums = |x: *const E, dy: *const E, source: Source<'_>| {
        let mut sums = GradientSums::new(channels);
        let request = Backward {
            dy,
            x,
            rebuild: false,
            fusions: Fusions::NONE,
            source,
            parameters: Parameters { gamma: None, beta: None },
            sums: None,
            sums_out: Some(sums.view_mut()),
            out: BackwardOutputs::NONE,
        };
        // SAFETY: the caller's promise.
        unsafe { backward(engine, request) };
        sums
    };
    let count = statistics.count.max(f64::MIN_POSITIVE);
    let (of_g, of_v) = (sums(x, dy, Source::from(&statistics)), sums(x, v, Source::from(&statistics)));
    // Centred, or a mean of v would cancel against Σdy·v.
    let mean_v: Vec<f64> = of_v.g().iter().map(|sum| sum / count).collect();
    let products = sums(v, dy, Source::Batch(Statistics { count, mean: &mean_v, var: &vec![1.0; channels] }));

    let stride = stride(shape);
    let mut buffers = [vec![0.0f64; MAPPED * stride], vec![0.0f64; MAPPED * stride]];
    let coefs = buffers.each_mut().map(|buffer| ChannelArrays::<E::Scalar>::new(buffer.as_mut_ptr(), stride));
    let all = 0..channels;
    // SAFETY: the buffers have as many arrays, and nothing else uses them yet.
    let mut arrays = unsafe { [coefs[0].slices::<COEFS>(&all), coefs[1].slices(&all)] };
    let mut of_gamma = of_gamma;
    for c in 0..channels {
        let [dgamma, dbeta] = [dgamma_cotangent, dbeta_cotangent].map(|v| v.map_or(0.0, |v| v[c].to_f64()));
        let channel = Channel {
            mean: statistics.mean[c],
            var: statistics.var[c],
            eps: engine.eps,
            gamma: gamma.map_or(1.0, |gamma| gamma[c].to_f64()),
            count,
            sums: [of_g.g()[c], of_g.gx()[c], of_v.g()[c], of_v.gx()[c], products.gx()[c]],
            dgamma,
            dbeta,
        };
        let (values, gamma) = channel.gradients::<E::Scalar>();
        for (arrays, values) in arrays.iter_mut().zip(values) {
            arrays.iter_mut().zip(values).for_each(|(array, value)| array[c] = value);
        }
        if let Some(out) = &mut of_gamma {
            out[c] = gamma;
        }
    }
    if shape.is_empty() {
        return;
    }
    let grid = Grid::for_map(shape);
    // The gradient of dy does not depend on dy, so v stands in its place.
    for (coefs, (g, out)) in coefs.iter().zip([(dy, of_x), (v, of_dy)]) {
        // SAFETY: the buffers have as many arrays, and the slices are gone.
        unsafe { coefs.repeat(COEFS, &all, shape) };
        if let Some(out) = out {
            let inputs = PassInputs::for_double_backward(shape, [g, x], v);
            engine.walk::<E>(&grid, 4, &DoubleBackwardMap { engine, inputs, coefs, out: Shared::new(out) });
        }
    }
}

/// A channel: its statistics, sums over `count` values, and the cotangents of dgamma and dbeta.
struct Channel {
    mean: f64,
    var: f64,
    eps: f64,
    gamma: f64,
    count: f64,
    /// Σg, Σg·(x − mean), Σv, Σv·(x − mean), Σg·(v − mean(v)).
    sums: [f64; 5],
    dgamma: f64,
    dbeta: f64,
}

impl Channel {
    /// The gradients of `Σ v·dx + dgamma_cotangent·dgamma + dbeta_cotangent·dbeta`: coefficients of
    /// [`double_backward`](crate::kernels::double_backward) for x and for dy, and the gradient of gamma.
    ///
    /// With s = inv_std, h = mean(g·x̂), p = mean(v·x̂) and A = mean(v·g) − mean(v)·mean(g) − p·h:
    /// dy: `γs·(v − mean(v) − p·x̂) + dgamma·x̂ + dbeta`; gamma: `s·M·A`; x:
    /// `s·(−γsh·(v − mean(v)) + (dgamma − γsp)·(g − mean(g)) − x̂·(γsA + dgamma·h − 2γshp))`.
    fn gradients<P: Real>(&self) -> ([[P; COEFS]; 2], P) {
        let s = inv_std(self.var, self.eps);
        let (gamma, m) = (self.gamma, self.count);
        let [g, gx, v, vx, gv] = self.sums.map(|sum| sum / m);
        let (h, p) = (gx * s, vx * s);
        let a = gv - p * h;
        let prescale = gradient_prescale::<P>(self.mean, self.var, self.var + self.eps);
        let (hi, lo) = split(self.mean * prescale);
        let coefs = |k_x: f64, k_v: f64, k_g: f64, k: f64| {
            let [prescale, k_x, v, k_v, g, k_g, k, one] =
                [prescale, k_x / prescale, v, k_v, g, k_g, k, 1.0].map(P::from_f64);
            [prescale, hi, lo, k_x, v, k_v, one, one, g, k_g, k]
        };
        let scale = gamma * s;
        let x = coefs(
            -s * s * (scale * a + self.dgamma * h - 2.0 * scale * h * p),
            -s * scale * h,
            s * (self.dgamma - scale * p),
            0.0,
        );
        ([x, coefs(s * (self.dgamma - scale * p), scale, 0.0, self.dbeta)], P::from_f64(s * m * a))
    }
}

struct DoubleBackwardMap<'a, E: Storage> {
    engine: &'a Engine,
    inputs: PassInputs<E>,
    coefs: &'a ChannelArrays<E::Scalar>,
    out: Shared<E>,
}

impl<E: Storage> Steps for DoubleBackwardMap<'_, E> {
    fn finish(&self, _: Range<usize>) {}

    fn map(&self, tile: MapTile) {
        let out = [self.out.ptr(), null_mut()];
        // SAFETY: whoever ran the request promised the pointers; tiles are disjoint, and the coefficients are computed.
        unsafe {
            dispatch(self.engine.isa, self.inputs.map::<InputGradient<true>>(self.engine, tile, self.coefs, out));
        }
    }
}
