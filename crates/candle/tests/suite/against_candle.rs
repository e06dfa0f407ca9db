//! Outputs, running statistics and gradients, for all ranks, in f64 and f32.
//!
//! Both modules round, and candle's adds the M values of a channel one after the other, so that its sums are off by up
//! to M·u·Σ|v|. That is larger than all else. The bounds are 4·M·u times the magnitudes that are summed: one M·u each
//! for the mean, for the variance and for the sum itself, and as much for all other roundings, as M is at least 16.

use crate::common::{Parameters, backward, check, largest, unit, values};
use candle_core::{DType, Result, Var};
use candle_nn::ModuleT;

const SHAPES: [&[usize]; 5] = [&[40, 3], &[5, 17, 9], &[4, 3, 5, 7], &[3, 2, 2, 3, 4], &[16, 1]];
const EPS: f64 = 1e-3;

fn compare(train: bool) -> Result<()> {
    for (dims, dtype) in SHAPES.iter().flat_map(|dims| [DType::F64, DType::F32].map(|dtype| (dims, dtype))) {
        let context = format!("{dims:?} {dtype:?} train {train}");
        let parameters = Parameters::new(dims[1], dtype)?;
        let (ours, theirs) = (parameters.ours(EPS, 0.25)?, parameters.candles(EPS, 0.25)?);
        let (x, dy) = (Var::from_tensor(&values(dims, -1.0, 5, dtype)?)?, values(dims, -2.0, 6, dtype)?);
        let (y, expected) = (ours.forward_t(&x, train)?, theirs.forward_t(&x, train)?);

        let m = (x.elem_count() / dims[1]) as f64;
        assert!(m >= 16.0, "{context}");
        let rounding = 4.0 * m * unit(dtype);
        // Values are at most 3 from 0, 4 from their mean, and 1/inv_std is at least 0.5.
        let (inv_std, gamma) = (2.0, largest(&parameters.weight)?);
        let x_hat = 4.0 * inv_std;
        check(&format!("y {context}"), &y, &expected, rounding * (gamma * x_hat + 2.0))?;
        check(&format!("running mean {context}"), ours.running_mean(), theirs.running_mean(), rounding * 3.0)?;
        check(&format!("running var {context}"), ours.running_var(), theirs.running_var(), rounding * 16.0)?;

        let (ours, theirs) = (backward(&y, &dy)?, backward(&expected, &dy)?);
        let gradient = |var: &Var| (ours.get(var).unwrap().clone(), theirs.get(var).unwrap().clone());
        let (dbeta, expected) = gradient(&parameters.bias);
        check(&format!("dbeta {context}"), &dbeta, &expected, rounding * m * 2.0)?;
        let (dgamma, expected) = gradient(&parameters.weight);
        check(&format!("dgamma {context}"), &dgamma, &expected, rounding * m * 2.0 * x_hat)?;
        // dx consists of g, the mean of g, and x̂ times that of g·x̂.
        let (dx, expected) = gradient(&x);
        let scale = gamma * inv_std * 2.0 * (2.0 + x_hat * x_hat);
        check(&format!("dx {context}"), &dx, &expected, rounding * scale)?;
    }
    Ok(())
}

#[test]
fn training() -> Result<()> {
    compare(true)
}

/// Frozen layers too: gradients flow through the running statistics as constants.
#[test]
fn inference() -> Result<()> {
    compare(false)
}

#[test]
fn without_weight_and_bias() -> Result<()> {
    let (dims, dtype) = ([8, 3, 5], DType::F64);
    let Parameters { mean, var, .. } = Parameters::new(3, dtype)?;
    let ours = batchnorm_candle::BatchNorm::new_no_bias(3, mean.clone(), var.clone(), EPS)?;
    let theirs = candle_nn::BatchNorm::new_no_bias(3, mean, var, EPS)?;
    assert!(ours.weight_and_bias().is_none());
    let (x, dy) = (Var::from_tensor(&values(&dims, -1.0, 5, dtype)?)?, values(&dims, -2.0, 6, dtype)?);
    for train in [false, true] {
        let (y, expected) = (ours.forward_t(&x, train)?, theirs.forward_t(&x, train)?);
        let rounding = 4.0 * 40.0 * unit(dtype);
        check("y", &y, &expected, rounding * 8.0)?;
        let [dx, expected] =
            [backward(&y, &dy)?, backward(&expected, &dy)?].map(|gradients| gradients.get(&x).cloned());
        check("dx", &dx.unwrap(), &expected.unwrap(), rounding * 4.0 * 66.0)?;
    }
    Ok(())
}

/// Statistics of f32, which candle's module has, would lose the digits that gradients need far from 0. With ours, the
/// errors are those of the same values without the offset.
#[test]
fn far_from_zero() -> Result<()> {
    let dims = [64, 3, 8];
    let offset = 4096.0;
    let dy = values(&dims, -2.0, 6, DType::F64)?;
    let run = |from: f64, dtype| {
        let parameters = Parameters::new(3, dtype)?;
        let (norm, x) = (parameters.ours(EPS, 0.1)?, Var::from_tensor(&values(&dims, from, 5, dtype)?)?);
        let y = norm.forward_t(&x, true)?;
        let gradients = backward(&y, &dy.to_dtype(dtype)?)?;
        let gradient = |var: &Var| gradients.get(var).unwrap().to_dtype(DType::F64);
        Ok::<_, candle_core::Error>([y.to_dtype(DType::F64)?, gradient(&x)?, gradient(&parameters.weight)?])
    };
    let (far, near) = (run(offset, DType::F32)?, run(-2.0, DType::F64)?);
    // A few roundings of values of these magnitudes; the sum of dgamma has 512 terms of at most 2·x̂ of 4.
    let bounds = [16.0 * 10.0, 16.0 * 64.0, 16.0 * 512.0 * 8.0].map(|magnitudes| magnitudes * unit(DType::F32));
    for ((what, bound), (far, near)) in ["y", "dx", "dgamma"].into_iter().zip(bounds).zip(far.iter().zip(&near)) {
        check(what, far, near, bound)?;
    }
    Ok(())
}

#[test]
fn no_examples() -> Result<()> {
    let parameters = Parameters::new(3, DType::F32)?;
    let norm = parameters.ours(EPS, 0.1)?;
    let x = values(&[0, 3, 4], 0.0, 1, DType::F32)?;
    for train in [false, true] {
        assert_eq!(norm.forward_t(&x, train)?.dims(), [0, 3, 4]);
        check("running mean", norm.running_mean(), &parameters.mean, 0.0)?;
    }
    Ok(())
}
