//! Training a small convolutional network on the digits with both modules.

use crate::common::{unit, values};
use candle_core::{DType, Device, Result, Tensor};
use candle_nn::{ModuleT, Optimizer, SGD, VarBuilder, VarMap};

#[path = "../../examples/digits/network.rs"]
mod network;

use network::{Digits, Network, copy};

const BATCH: u32 = 32;
const STEPS: u32 = 20;

/// The losses of all steps, and then the accuracy on the images for testing, with each module from the same weights.
fn courses(dtype: DType) -> Result<Vec<(Vec<f64>, f64)>> {
    let [train, test] = Digits::split(dtype)?;
    let maps = [VarMap::new(), VarMap::new()];
    let [vb_candle, vb_ours] = maps.each_ref().map(|map| VarBuilder::from_varmap(map, dtype, &Device::Cpu));
    let networks = [
        Network::new(vb_candle, |c, vb| Ok(Box::new(candle_nn::batch_norm(c, 1e-5, vb)?) as Box<dyn ModuleT>))?,
        Network::new(vb_ours, |c, vb| Ok(Box::new(batchnorm_candle::batch_norm(c, 1e-5, vb)?) as Box<dyn ModuleT>))?,
    ];
    initialize(&maps[0], dtype)?;
    copy(&maps[0], &maps[1])?;
    let mut courses = Vec::new();
    for (network, map) in networks.iter().zip(&maps) {
        let (mut optimizer, mut losses) = (SGD::new(map.all_vars(), 1.0)?, Vec::new());
        for step in 0..STEPS {
            let picks: Vec<u32> = (0..BATCH).map(|i| (step * BATCH + i) * 3 % train.len() as u32).collect();
            losses.push(network.step(&train.select(&picks)?, &mut optimizer)?);
        }
        courses.push((losses, network.accuracy(&test)?));
    }
    Ok(courses)
}

/// The same weights in each run: candle's random numbers on a CPU have no seed.
fn initialize(map: &VarMap, dtype: DType) -> Result<()> {
    let variables = map.data().lock().unwrap();
    let bias = &variables["linear.bias"];
    bias.set(&bias.zeros_like()?)?;
    let mut kernels: Vec<_> = variables.iter().filter(|(_, var)| var.rank() > 1).collect();
    kernels.sort_by_key(|(name, _)| *name);
    for (seed, (_, var)) in kernels.into_iter().enumerate() {
        // Values from -2 to 2 have the variance 4/3; it becomes the inverse of the number of inputs.
        let inputs = (var.elem_count() / var.dims()[0]) as f64;
        let weights: Tensor = (values(var.dims(), -2.0, seed as u64, dtype)? * (0.75 / inputs).sqrt())?;
        var.set(&weights)?;
    }
    Ok(())
}

/// Each of the two layers may round the M values of a channel differently in each step, by 4·M·u of their magnitude, as
/// `against_candle` says. Losses of about 1 follow.
#[test]
fn losses_are_the_same() -> Result<()> {
    for dtype in [DType::F64, DType::F32] {
        let [(theirs, accuracy_of_theirs), (ours, accuracy)] = &courses(dtype)?[..] else { unreachable!() };
        for (step, (theirs, ours)) in theirs.iter().zip(ours).enumerate() {
            let bound = (step + 1) as f64 * 2.0 * 4.0 * f64::from(BATCH) * 64.0 * unit(dtype);
            let difference = (theirs - ours).abs();
            assert!(difference <= bound, "{dtype:?}, step {step}: expected {theirs} within {bound:e}, got {ours}");
        }
        assert!(ours[STEPS as usize - 1] < 0.8 * ours[0], "{dtype:?}: nothing was learned: {ours:?}");
        // 2 of 359 images may be that near to the border of two classes.
        assert!((accuracy - accuracy_of_theirs).abs() <= 2.0 / 359.0, "{dtype:?}: {accuracy} {accuracy_of_theirs}");
    }
    Ok(())
}
