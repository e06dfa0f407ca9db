//! ReLU and residual in the same sweep, against candle's separate operations.

use crate::common::{Parameters, backward, check, check_same, unit, values};
use batchnorm_candle::BatchNorm;
use candle_core::{DType, Result, Tensor, Var};
use candle_nn::ModuleT;

/// y may differ by the roundings of the values of a channel, as `against_candle` says. No argument of a ReLU in these
/// tests is that near to 0, so that both find the same mask.
#[test]
fn candle_gives_the_same_in_separate_sweeps() -> Result<()> {
    let (dims, dtype) = ([6, 3, 4, 5], DType::F64);
    for ((train, affine), permuted) in [(true, true), (true, false), (false, true), (false, false)]
        .into_iter()
        .flat_map(|case| [(case, false), (case, true)])
    {
        let context = format!("train {train}, affine {affine}, permuted {permuted}");
        let parameters = Parameters::new(3, dtype)?;
        let (ours, theirs): (BatchNorm, Box<dyn ModuleT>) = if affine {
            (parameters.ours(1e-5, 0.1)?, Box::new(parameters.candles(1e-5, 0.1)?))
        } else {
            let Parameters { mean, var, .. } = &parameters;
            let theirs = candle_nn::BatchNorm::new_no_bias(3, mean.clone(), var.clone(), 1e-5)?;
            (BatchNorm::new_no_bias(3, mean.clone(), var.clone(), 1e-5)?, Box::new(theirs))
        };
        let variable = |from, seed| -> Result<(Var, Tensor)> {
            let var = Var::from_tensor(&values(&[6, 4, 5, 3], from, seed, dtype)?)?;
            let tensor = var.permute((0, 3, 1, 2))?;
            Ok((var, tensor))
        };
        let ((x_var, x), (residual_var, residual)) = (variable(-1.0, 5)?, variable(-2.0, 7)?);
        // The residual comes in the layout of x, or in the standard one.
        let residual = if permuted { residual } else { residual.contiguous()? };
        let dy = values(&dims, -2.0, 6, dtype)?;

        let z = theirs.forward_t(&x, train)?;
        let cases = [
            ("relu", ours.forward_relu_t(&x, train)?, z.clone()),
            ("add relu", ours.forward_add_relu_t(&x, &residual, train)?, (z + &residual)?),
        ];
        let rounding = 4.0 * 120.0 * unit(dtype);
        for (name, y, z) in cases {
            assert!(z.abs()?.flatten_all()?.min(0)?.to_scalar::<f64>()? > rounding * 40.0, "{name} {context}");
            let expected = z.relu()?;
            check(&format!("y of {name}, {context}"), &y, &expected, rounding * 30.0)?;
            let (actual, expected) = (backward(&y, &dy)?, backward(&expected, &dy)?);
            let vars = [
                (&x_var, 2.5 * 2.0 * 2.0 * 66.0),
                (&residual_var, 2.0),
                (&parameters.weight, 1920.0),
                (&parameters.bias, 240.0),
            ];
            for (at, (var, magnitude)) in vars.into_iter().enumerate() {
                let what = format!("gradient {at} of {name}, {context}");
                match (actual.get(var), expected.get(var)) {
                    (Some(actual), Some(expected)) => check(&what, actual, expected, rounding * magnitude)?,
                    (actual, expected) => assert_eq!(actual.is_some(), expected.is_some(), "{what}"),
                }
            }
        }
    }
    Ok(())
}

/// A block whose branch and shortcut are the same tensor.
#[test]
fn a_residual_may_be_x() -> Result<()> {
    let parameters = Parameters::new(3, DType::F32)?;
    let norm = parameters.ours(1e-5, 0.1)?;
    let x = Var::from_tensor(&values(&[6, 3, 5], -1.0, 5, DType::F32)?)?;
    let copy = Var::from_tensor(&x.copy()?.detach())?;
    let y = norm.forward_add_relu_t(&x, &x, true)?;
    let expected = norm.forward_add_relu_t(&x, &copy, true)?;
    check_same("y", &y, &expected)?;
    let dy = values(&[6, 3, 5], -2.0, 6, DType::F32)?;
    let (actual, expected) = (backward(&y, &dy)?, backward(&expected, &dy)?);
    let sum = (expected.get(&x).unwrap() + expected.get(&copy).unwrap())?;
    check_same("dx", actual.get(&x).unwrap(), &sum)
}
