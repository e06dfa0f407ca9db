//! Tensors in other layouts than the standard one.

use crate::common::{Parameters, backward, check_same, values};
use batchnorm_candle::BatchNorm;
use candle_core::{DType, Result, Tensor, Var};
use candle_nn::ModuleT;

const DTYPE: DType = DType::F32;

fn norm(channels: usize) -> Result<(BatchNorm, Parameters)> {
    let parameters = Parameters::new(channels, DTYPE)?;
    Ok((parameters.ours(1e-5, 0.1)?, parameters))
}

/// An image whose axes are in the order `[n, h, w, c]` in memory, and every other order: the results are those of the
/// rows that it consists of, in the same order.
#[test]
fn permuted_tensors_keep_their_order() -> Result<()> {
    let in_memory = Var::from_tensor(&values(&[2, 5, 7, 3], -1.0, 5, DTYPE)?)?;
    // The axis of memory that is each of n, c, h and w.
    for axes in [[0, 3, 1, 2], [0, 3, 2, 1], [3, 0, 1, 2], [1, 2, 0, 3]] {
        let x = in_memory.permute(axes)?;
        let (norm, parameters) = norm(x.dim(1)?)?;
        let dy = values(x.dims(), -2.0, 6, DTYPE)?;
        for train in [false, true] {
            let y = norm.forward_t(&x, train)?;
            assert_eq!((y.dims(), y.stride()), (x.dims(), x.stride()), "{axes:?}");
            let gradients = backward(&y, &dy)?;

            // The same values as planes or rows of a tensor in standard layout.
            let (outer, inner) = in_memory.dims().split_at(axes[1]);
            let dims = (outer.iter().product::<usize>(), x.dim(1)?, inner[1..].iter().product::<usize>());
            let flat = Var::from_tensor(&in_memory.reshape(dims)?)?;
            let expected = norm.forward_t(&flat, train)?;
            let back = |tensor: &Tensor| tensor.reshape(in_memory.dims())?.permute(axes);
            check_same("y", &y, &back(&expected)?)?;
            let mut to_memory = [0; 4];
            axes.iter().enumerate().for_each(|(axis, &place)| to_memory[place] = axis);
            let expected = backward(&expected, &dy.permute(to_memory)?.contiguous()?.reshape(dims)?)?;
            check_same("dx", &gradients.get(&in_memory).unwrap().permute(axes)?, &back(expected.get(&flat).unwrap())?)?;
            for var in [&parameters.weight, &parameters.bias] {
                check_same("gradients of parameters", gradients.get(var).unwrap(), expected.get(var).unwrap())?;
            }
        }
    }
    Ok(())
}

/// Parts of tensors, and tensors that repeat values, are copied.
#[test]
fn tensors_with_gaps_are_copied() -> Result<()> {
    let (norm, _) = norm(3)?;
    let whole = Var::from_tensor(&values(&[4, 6, 5], -1.0, 5, DTYPE)?)?;
    let row = values(&[1, 3, 5], -1.0, 5, DTYPE)?;
    for x in [whole.narrow(1, 2, 3)?, whole.narrow(0, 1, 2)?.narrow(1, 0, 3)?, row.broadcast_as((4, 3, 5))?] {
        let y = norm.forward_t(&x, true)?;
        check_same("y", &y, &norm.forward_t(&x.contiguous()?, true)?)?;
    }
    let x = whole.narrow(1, 2, 3)?;
    let gradients = backward(&norm.forward_t(&x, true)?, &values(x.dims(), -2.0, 6, DTYPE)?)?;
    let copy = Var::from_tensor(&x.contiguous()?.copy()?.detach())?;
    let expected = backward(&norm.forward_t(&copy, true)?, &values(x.dims(), -2.0, 6, DTYPE)?)?;
    check_same("dx", &gradients.get(&whole).unwrap().narrow(1, 2, 3)?, expected.get(&copy).unwrap())
}

/// A part of a larger tensor without gaps is read where it starts.
#[test]
fn offsets_are_respected() -> Result<()> {
    let (norm, _) = norm(3)?;
    let x = values(&[6, 3, 5], -1.0, 5, DTYPE)?.narrow(0, 2, 3)?;
    assert!(x.is_contiguous());
    let alone = Tensor::from_vec(x.flatten_all()?.to_vec1::<f32>()?, x.dims(), x.device())?;
    check_same("y", &norm.forward_t(&x, true)?, &norm.forward_t(&alone, true)?)
}

/// Only the gradients that are needed are computed, of whatever is a variable.
#[test]
fn gradients_of_what_is_not_a_variable_are_absent() -> Result<()> {
    let (_, parameters) = norm(3)?;
    let [weight, bias] = [&parameters.weight, &parameters.bias].map(|var| var.as_detached_tensor());
    let fixed = BatchNorm::new(3, parameters.mean.clone(), parameters.var.clone(), weight.clone(), bias, 1e-5)?;
    let x = Var::from_tensor(&values(&[6, 3, 5], -1.0, 5, DTYPE)?)?;
    let gradients = fixed.forward_t(&x, true)?.backward()?;
    assert!(gradients.get(&x).is_some() && gradients.get(&weight).is_none());
    // x alone is no variable.
    let norm = parameters.ours(1e-5, 0.1)?;
    let constant = x.as_detached_tensor();
    let gradients = norm.forward_t(&constant, true)?.backward()?;
    assert!(gradients.get(&constant).is_none() && gradients.get(&parameters.bias).is_some());
    let gradients = norm.forward_add_relu_t(&x, &constant, true)?.backward()?;
    assert!(gradients.get(&constant).is_none() && gradients.get(&x).is_some());
    Ok(())
}
