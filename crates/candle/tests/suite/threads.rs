//! Passes on candle's threads.

use crate::common::{Parameters, check_same, values};
use batchnorm as bn;
use candle_core::utils::barrier_pool;
use candle_core::{DType, Result, Tensor};
use candle_nn::ModuleT;
use std::sync::Mutex;

/// 2 MB, of which each of several threads gets a part.
const DIMS: [usize; 4] = [16, 32, 32, 32];

#[test]
fn results_are_those_of_one_thread() -> Result<()> {
    let parameters = Parameters::new(32, DType::F32)?;
    let x = values(&DIMS, -1.0, 5, DType::F32)?;
    let y = parameters.ours(1e-5, 0.1)?.forward_t(&x, true)?;

    let [n, c, h, w] = DIMS;
    let plan = bn::BatchNorm::new(bn::Shape::nchw(n, c, h, w).unwrap()).threads(bn::Threads::Sequential);
    let elements = |tensor: &Tensor| tensor.flatten_all()?.to_vec1::<f32>();
    let (gamma, beta) = (elements(&parameters.weight)?, elements(&parameters.bias)?);
    let (mut expected, mut statistics) = (vec![0.0; x.elem_count()], bn::Statistics::new(c));
    let affine = bn::Affine::new(&gamma, &beta);
    plan.forward_training(&elements(&x)?, affine, &mut expected, &mut statistics).unwrap();
    check_same("y", &y, &Tensor::from_vec(expected, &DIMS, x.device())?)
}

/// A thread of candle's pool cannot wait for the pool.
#[test]
fn threads_of_the_pool_may_normalize() -> Result<()> {
    let norm = Parameters::new(32, DType::F32)?.ours(1e-5, 0.1)?;
    let x = values(&DIMS, -1.0, 5, DType::F32)?;
    let results = Mutex::new(Vec::new());
    barrier_pool().execute(|thread| {
        if thread == 0 {
            results.lock().unwrap().push(norm.forward_t(&x, false));
        }
    });
    let results = results.into_inner().unwrap();
    assert_eq!(results.len(), 1);
    for y in results {
        check_same("y", &y?, &norm.forward_t(&x, false)?)?;
    }
    Ok(())
}
