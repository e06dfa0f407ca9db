//! 16-bit types, whose results are those of f32, rounded once.

use crate::common::{Parameters, backward, check, check_same, largest, unit, values};
use candle_core::{DType, Result, Tensor, Var};
use candle_nn::ModuleT;

fn round(tensor: &Tensor, dtype: DType) -> Result<Tensor> {
    tensor.to_dtype(dtype)?.to_dtype(DType::F32)
}

#[test]
fn results_are_those_of_f32_rounded_once() -> Result<()> {
    let dims = [4, 3, 5, 7];
    for (dtype, of_parameters) in
        [(DType::BF16, DType::BF16), (DType::BF16, DType::F32), (DType::F16, DType::F16), (DType::F16, DType::F32)]
    {
        // The same values in both types.
        let [x, dy] = [(-1.0, 5), (-2.0, 6)].map(|(from, seed)| values(&dims, from, seed, DType::F32));
        let (x, dy) = (round(&x?, dtype)?, round(&dy?, dtype)?);
        let run = |dtype: DType, of_parameters: DType, train: bool| {
            let wide = Parameters::new(3, DType::F32)?;
            let exact = |tensor: &Tensor| tensor.to_dtype(DType::BF16)?.to_dtype(DType::F32)?.to_dtype(of_parameters);
            let parameters = Parameters {
                mean: exact(&wide.mean)?,
                var: exact(&wide.var)?,
                weight: Var::from_tensor(&exact(&wide.weight)?)?,
                bias: Var::from_tensor(&exact(&wide.bias)?)?,
            };
            let (norm, x) = (parameters.ours(1e-5, 0.25)?, Var::from_tensor(&x.to_dtype(dtype)?)?);
            let y = norm.forward_t(&x, train)?;
            let gradients = backward(&y, &dy.to_dtype(dtype)?)?;
            let gradient = |var: &Var| gradients.get(var).unwrap().clone();
            let gradients = [&parameters.weight, &parameters.bias].map(gradient);
            let running = [norm.running_mean().clone(), norm.running_var().clone()];
            Ok::<_, candle_core::Error>(([y, gradient(&x)], gradients, running))
        };
        for train in [false, true] {
            let context = format!("{dtype:?} with {of_parameters:?}, train {train}");
            let (actual, expected) = (run(dtype, of_parameters, train)?, run(DType::F32, DType::F32, train)?);
            for (actual, expected) in actual.0.iter().zip(&expected.0) {
                check_same(&format!("y or dx, {context}"), actual, &expected.to_dtype(dtype)?)?;
            }
            let others = actual.1.iter().zip(&expected.1).chain(actual.2.iter().zip(&expected.2));
            for (actual, expected) in others {
                check_same(&format!("gradients and averages, {context}"), actual, &expected.to_dtype(of_parameters)?)?;
            }
        }
    }
    Ok(())
}

/// candle rounds to the type after each of its four operations.
#[test]
fn inference_agrees_with_candle() -> Result<()> {
    for dtype in [DType::BF16, DType::F16] {
        let parameters = Parameters::new(3, dtype)?;
        let x = values(&[4, 3, 5, 7], -1.0, 5, dtype)?;
        let (ours, theirs) = (parameters.ours(1e-5, 0.1)?, parameters.candles(1e-5, 0.1)?);
        let magnitude = largest(&parameters.weight)? * 4.0 * 2.0 + 2.0;
        check("y", &ours.forward_t(&x, false)?, &theirs.forward_t(&x, false)?, 6.0 * unit(dtype) * magnitude)?;
    }
    Ok(())
}
