//! Running statistics, and where they are kept.

use crate::common::{check, check_same, unit, values};
use batchnorm_candle::{BatchNormConfig, batch_norm};
use candle_core::{DType, Device, Result, Tensor};
use candle_nn::{ModuleT, VarBuilder, VarMap};

fn variable(map: &VarMap, name: &str) -> Tensor {
    map.data().lock().unwrap()[name].as_tensor().copy().unwrap().detach()
}

fn builder(map: &VarMap) -> VarBuilder<'_> {
    VarBuilder::from_varmap(map, DType::F64, &Device::Cpu)
}

#[test]
fn a_map_has_the_variables_of_candle_and_sees_every_update() -> Result<()> {
    let [map, of_candle] = [VarMap::new(), VarMap::new()];
    let config = BatchNormConfig { momentum: 0.5, ..BatchNormConfig::default() };
    let ours = batch_norm(3, config, builder(&map).pp("norm"))?;
    let theirs = candle_nn::batch_norm(3, config, builder(&of_candle).pp("norm"))?;
    let names = |map: &VarMap| {
        let mut names: Vec<_> = map.data().lock().unwrap().keys().cloned().collect();
        names.sort();
        names
    };
    assert_eq!(names(&map), names(&of_candle));
    for seed in 0..3 {
        let x = values(&[8, 3, 5], -1.0, seed, DType::F64)?;
        ours.forward_t(&x, true)?;
        theirs.forward_t(&x, true)?;
        for name in ["norm.running_mean", "norm.running_var"] {
            // 40 values of a channel, squared at most 9, as `against_candle` says.
            check(name, &variable(&map, name), &variable(&of_candle, name), 4.0 * 40.0 * unit(DType::F64) * 16.0)?;
        }
        check_same("the module's own", ours.running_mean(), &variable(&map, "norm.running_mean"))?;
    }
    // Inference changes nothing, and clones share the statistics.
    let before = variable(&map, "norm.running_mean");
    ours.forward_t(&values(&[8, 3, 5], 5.0, 7, DType::F64)?, false)?;
    check_same("after inference", ours.running_mean(), &before)?;
    ours.clone().forward_train(&values(&[8, 3, 5], 5.0, 7, DType::F64)?)?;
    assert_ne!(ours.running_mean().to_vec1::<f64>()?, before.to_vec1::<f64>()?);
    Ok(())
}

#[test]
fn cumulative_averages_count_batches() -> Result<()> {
    let map = VarMap::new();
    let norm = batch_norm(2, 1e-5, builder(&map))?.cumulative(builder(&map))?;
    let count = || variable(&map, "num_batches_tracked").to_scalar::<i64>();
    assert_eq!(count()?, 0);
    let mut means = Vec::new();
    for seed in 0..4 {
        // Batches of different sizes count the same.
        let x = values(&[8 + 8 * seed as usize, 2], -1.0, seed, DType::F64)?;
        norm.forward_t(&x, true)?;
        means.push(x.mean(0)?);
        assert_eq!(count()?, seed as i64 + 1);
        let expected = Tensor::stack(&means, 0)?.mean(0)?;
        check("running mean", norm.running_mean(), &expected, 4.0 * 32.0 * unit(DType::F64) * 3.0)?;
    }
    assert_eq!(norm.num_batches_tracked().unwrap().to_scalar::<i64>()?, 4);
    assert_eq!(norm.momentum(), 0.0);
    Ok(())
}

/// A count that is there already, as in a checkpoint of PyTorch, goes on; a layer with exponential averages counts too.
#[test]
fn a_count_that_is_there_is_updated() -> Result<()> {
    let map = VarMap::new();
    batch_norm(2, 1e-5, builder(&map))?.cumulative(builder(&map))?;
    let norm = batch_norm(2, 1e-5, builder(&map))?;
    for batches in 1..3 {
        norm.forward_t(&values(&[8, 2], -1.0, 1, DType::F64)?, true)?;
        assert_eq!(variable(&map, "num_batches_tracked").to_scalar::<i64>()?, batches);
    }
    assert_eq!(norm.momentum(), 0.1);
    Ok(())
}
