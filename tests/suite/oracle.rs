//! Do results keep the bounds of docs/numerics.md against exact arithmetic?

use crate::common::*;
use batchnorm::reference::indices;
pub(crate) use batchnorm_testing::oracle::{Double, inv_std, statistics};
use std::fmt::Debug;

/// The largest gamma·inv_std for which dx is promised.
pub(crate) fn largest_scale<T: Value>() -> f64 {
    (T::LARGEST * T::LARGEST_FACTOR).min(f64::MAX)
}

/// Checks mean, var and y of a training step against the exact mean and variance of each channel.
pub(crate) fn check_forward<T: Float>(
    ledger: &mut Ledger,
    p: &Problem<T>,
    exact: &[(Double, Double)],
    out: &Outputs<T>,
    context: &dyn Debug,
) {
    for (c, &(mean, var)) in exact.iter().enumerate() {
        let context: &dyn Debug = &(context, "channel", c);
        let kappa = kappa(mean.0, var.0);
        if var.0 == 0.0 {
            ledger.note::<T>("var of a constant", out.statistics.var()[c], 0.0, context);
        } else if kappa <= WORST_KAPPA {
            let f = Factors::new::<T>(kappa);
            let stored = Double::from(out.statistics.mean()[c]);
            let rounding = f64::EPSILON / 2.0 * mean.0.abs();
            ledger.note::<T>("mean", (stored - mean).abs().0, f.mean * var.0.sqrt() + rounding, context);
            let stored = Double::from(out.statistics.var()[c]);
            ledger.note::<T>("var", (stored - var).abs().0, f.var * var.0, context);
        } else {
            continue;
        }
        check_y(ledger, p, c, (mean, var), &out.y, context);
    }
}

/// Checks y of one channel, normalized with the given mean and variance.
pub(crate) fn check_y<T: Float>(
    ledger: &mut Ledger,
    p: &Problem<T>,
    c: usize,
    (mean, var): (Double, Double),
    y: &[T],
    context: &dyn Debug,
) {
    let (gamma, beta) = (p.gamma_f64()[c], p.beta_f64()[c]);
    let inv_std = inv_std(var, p.eps);
    let f = Factors::new::<T>(kappa(mean.0, var.0));
    for k in indices(p.shape, c) {
        let x_hat = (Double::from(p.x[k].to_f64()) - mean) * inv_std;
        let exact = Double::from(gamma) * x_hat + beta.into();
        let bound = f.y * (gamma.abs() * (1.0 + x_hat.0.abs()) + beta.abs()) + T::SMALLEST_SUBNORMAL;
        if var.0 == 0.0 {
            ledger.note::<T>("y of a constant", (y[k].to_f64() - beta).abs(), 0.0, context);
        } else {
            ledger.note::<T>("y", (Double::from(y[k].to_f64()) - exact).abs().0, bound, &(context, k));
        }
    }
}

/// Checks dbeta and dgamma against the exact gradients for the given statistics, and dx against the exact one for these
/// and `out.sums`, since the inputs of a pass count as exact. The result may be subnormal, and so may the means of dy
/// and of dy·x̂; their roundings are multiplied by the same factors as the means. `batch` is the number of values per
/// channel if gradients flow through the statistics, and `None` if these are constants.
pub(crate) fn check_gradients<T: Float>(
    ledger: &mut Ledger,
    p: &Problem<T>,
    (mean, var): (&[f64], &[f64]),
    batch: Option<f64>,
    out: &Outputs<T>,
    context: &dyn Debug,
) {
    let gamma = p.gamma_f64();
    for c in 0..p.shape.channels() {
        let context: &dyn Debug = &(context, "channel", c);
        let s = inv_std(var[c].into(), p.eps);
        let kappa = kappa(mean[c], var[c]);
        if kappa > WORST_KAPPA {
            continue;
        }
        let f = Factors::new::<T>(kappa);
        let terms = indices(p.shape, c).map(|k| {
            let g = Double::from(p.dy[k].to_f64());
            let x_hat = (Double::from(p.x[k].to_f64()) - mean[c].into()) * s;
            (k, g, x_hat)
        });
        let sum = terms.clone().map(|(_, g, _)| g).sum::<Double>();
        let sum_x_hat = terms.clone().map(|(_, g, x_hat)| g * x_hat).sum::<Double>();
        let sizes = terms.clone().map(|(_, g, x_hat)| (g.0.abs(), (g.0 * x_hat.0).abs()));
        let (size, size_x_hat) = sizes.fold((0.0, 0.0), |a, b| (a.0 + b.0, a.1 + b.1));
        let tiny = T::SMALLEST_SUBNORMAL;
        let (dbeta, dgamma) = (Double::from(out.dbeta[c].to_f64()), Double::from(out.dgamma[c].to_f64()));
        ledger.note::<T>("dbeta", (dbeta - sum).abs().0, f.sums * size + tiny, context);
        ledger.note::<T>("dgamma", (dgamma - sum_x_hat).abs().0, f.sums * size_x_hat + tiny, context);
        let (mean_g, mean_g_x_hat) = match batch {
            Some(m) => (Double::from(out.sums.g()[c]) / m.into(), Double::from(out.sums.gx()[c]) * s / m.into()),
            None => (0.0.into(), 0.0.into()),
        };
        let scale = Double::from(gamma[c]) * s;
        let s_abs = scale.0.abs();
        assert!(s_abs <= largest_scale::<T>(), "dx is not promised there: {context:?}");
        for (k, g, x_hat) in terms {
            let exact = scale * (g - mean_g - x_hat * mean_g_x_hat);
            let size = g.0.abs() + mean_g.0.abs() + (x_hat * mean_g_x_hat).0.abs();
            let dx = out.dx[k].to_f64();
            // Beyond the range of the type, dx must be infinite.
            let error = match exact.0 {
                e if e.abs() > T::LARGEST && e.is_sign_negative() == dx.is_sign_negative() && dx.is_infinite() => 0.0,
                _ => (Double::from(dx) - exact).abs().0,
            };
            ledger.note::<T>(
                "dx",
                error,
                f.dx * s_abs * size + tiny * (1.0 + s_abs * (1.0 + x_hat.0.abs())),
                &(context, k),
            );
        }
    }
}
