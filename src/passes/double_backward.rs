//! Second derivatives. Rarely needed, so it is composed of other passes: it makes more sweeps than a dedicated one, and
//! allocates.

use super::arrays::{ChannelArrays, MAPPED, Window, stride};
use super::backward::backward;
use super::engine::Engine;
use super::inputs::PassInputs;
use super::request::{Backward, BackwardOutputs, DoubleBackward, Fusions, Parameters};
use super::tiling::{Grid, MapTile, Steps};
use super::walked::Walked;
use crate::kernels::coefficients::plain_nan;
use crate::kernels::double_backward::COEFS;
use crate::kernels::input_gradient::InputGradient;
use crate::kernels::operands::Any;
use crate::kernels::scale::{gradient_prescale, inv_std, split};
use crate::lanes::Storage;
use crate::parallel::Shared;
use crate::simd::Real;
use crate::statistics::{GradientSums, WideSource};
use std::ops::Range;
use std::ptr::null_mut;

/// # Safety
/// See [`request`](super::request).
pub(super) unsafe fn double_backward<E: Storage>(engine: &Engine, request: DoubleBackward<'_, E, E::Scalar>) {
    let DoubleBackward { dy, x, v, source, gamma, dgamma_cotangent, dbeta_cotangent, of_x, of_dy, of_gamma } = request;
    let (shape, channels) = (engine.shape, engine.shape.channels());
    let sums = |x: *const E, dy: *const E, source: WideSource<'_>| {
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
    let (count, of_g, of_v) = match source.count {
        Some(count) => (count.max(f64::MIN_POSITIVE), sums(x, dy, source), sums(x, v, source)),
        // dx has no means of dy and dy·x̂ then: they are 0.
        None => (1.0, GradientSums::new(channels), GradientSums::new(channels)),
    };
    // Centred, or a mean of v would cancel against Σdy·v.
    let mean_v: Vec<f64> = of_v.g().iter().map(|sum| sum / count).collect();
    let products = sums(v, dy, WideSource { count: Some(count), mean: &mean_v, var: &vec![1.0; channels] });

    let walked = Walked::new(shape, false);
    let stride = stride::<E::Scalar>(walked.shape, walked.shape.channels());
    let window = Window::of_columns(walked.shape.channels());
    let (mut x_buffer, mut dy_buffer) = (vec![0.0f64; MAPPED * stride], vec![0.0f64; MAPPED * stride]);
    let x_coefs = ChannelArrays::<E::Scalar>::new(x_buffer.as_mut_ptr(), stride);
    let dy_coefs = ChannelArrays::<E::Scalar>::new(dy_buffer.as_mut_ptr(), stride);
    let all = 0..channels;
    // SAFETY: the buffers have as many arrays, and nothing else uses them yet.
    let (x_arrays, dy_arrays) = unsafe { (x_coefs.slices::<COEFS>(&all), dy_coefs.slices::<COEFS>(&all)) };
    let mut of_gamma = of_gamma;
    let cotangent = |v: Option<&[E::Scalar]>, c: usize| v.map_or(0.0, |v| v[c].to_wide());
    for c in 0..channels {
        let channel = Channel {
            constant: source.count.is_none(),
            mean: source.mean[c],
            var: source.var[c],
            eps: engine.eps,
            gamma: gamma.map_or(1.0, |gamma| gamma[c].to_wide()),
            count,
            sums: [of_g.g()[c], of_g.gx()[c], of_v.g()[c], of_v.gx()[c], products.gx()[c]],
            dgamma: cotangent(dgamma_cotangent, c),
            dbeta: cotangent(dbeta_cotangent, c),
        };
        let gradients = channel.gradients::<E::Scalar>();
        for k in 0..COEFS {
            x_arrays[k][c] = E::Scalar::from_wide(plain_nan(gradients.of_x[k]));
            dy_arrays[k][c] = E::Scalar::from_wide(plain_nan(gradients.of_dy[k]));
        }
        if let Some(out) = &mut of_gamma {
            out[c].write(E::Scalar::from_wide(gradients.of_gamma));
        }
    }
    if shape.is_empty() {
        return;
    }
    let grid = Grid::for_map(walked.shape);
    // The gradient of dy does not depend on dy, so v stands in its place.
    for (coefs, g, out) in [(&x_coefs, dy, of_x), (&dy_coefs, v, of_dy)] {
        // SAFETY: the buffers have as many arrays, and the slices are gone.
        unsafe { coefs.repeat(COEFS, &all, &walked, &window) };
        if let Some(out) = out {
            let inputs = PassInputs::for_double_backward(shape, [g, x], v);
            engine.walk::<E>(&grid, 4, &DoubleBackwardMap { engine, inputs, coefs, out: Shared::new(out) });
        }
    }
}

/// A channel: its statistics, sums over `count` values, and the cotangents of dgamma and dbeta.
struct Channel {
    /// Whether the statistics are constants.
    constant: bool,
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

/// Coefficients of [`double_backward`](crate::kernels::double_backward) for the gradients of x and of dy, and the
/// gradient of gamma.
struct ChannelGradients {
    of_x: [f64; COEFS],
    of_dy: [f64; COEFS],
    of_gamma: f64,
}

impl Channel {
    /// The gradients of `Σ v·dx + dgamma_cotangent·dgamma + dbeta_cotangent·dbeta`.
    ///
    /// With s = inv_std, h = mean(g·x̂), p = mean(v·x̂) and A = mean(v·g) − mean(v)·mean(g) − p·h:
    /// dy: `γs·(v − mean(v) − p·x̂) + dgamma·x̂ + dbeta`; gamma: `s·M·A`; x:
    /// `s·(−γsh·(v − mean(v)) + (dgamma − γsp)·(g − mean(g)) − x̂·(γsA + dgamma·h − 2γshp))`.
    ///
    /// If the statistics are constants, mean(v), mean(g), h and p are 0, and x has no term with x̂.
    fn gradients<P: Real>(&self) -> ChannelGradients {
        let s = inv_std(self.var, self.eps);
        let (gamma, m, [g, gx, v, vx, gv]) = (self.gamma, self.count, self.sums);
        let (mean_g, mean_v, gv) = (g / m, v / m, gv / m);
        let (h, p) = (gx / m * s, vx / m * s);
        let a = gv - p * h;
        let prescale = gradient_prescale::<P>(self.mean, self.var, self.var + self.eps);
        let (hi, lo) = split::<P>(self.mean * prescale);
        let coefs = |k_x: f64, k_v: f64, k_g: f64, k: f64| {
            let k_x = k_x / prescale;
            [hi.to_wide(), k_x, mean_v, k_v, prescale, 1.0, mean_g, k_g, k - lo * k_x, 1.0]
        };
        let scale = gamma * s;
        let through = scale * a + self.dgamma * h - 2.0 * scale * h * p;
        ChannelGradients {
            of_x: coefs(
                if self.constant { 0.0 } else { -s * s * through },
                -s * scale * h,
                s * (self.dgamma - scale * p),
                0.0,
            ),
            of_dy: coefs(s * (self.dgamma - scale * p), scale, 0.0, self.dbeta),
            of_gamma: s * m * a,
        }
    }
}

struct DoubleBackwardMap<'a, E: Storage> {
    engine: &'a Engine,
    inputs: PassInputs<E>,
    coefs: &'a ChannelArrays<E::Scalar>,
    out: Shared<E>,
}

impl<E: Storage> Steps for DoubleBackwardMap<'_, E> {
    fn window(&self, _: usize) -> usize {
        0
    }

    fn finish(&self, _: Range<usize>, _: &Window) {}

    fn map(&self, tile: MapTile, _: &Window) {
        let out = [self.out.ptr(), null_mut()];
        // SAFETY: whoever ran the request promised the pointers; tiles are disjoint, and the coefficients are computed.
        unsafe {
            self.inputs.map::<InputGradient<Any>>(self.engine, tile, self.coefs, out);
        }
    }
}
