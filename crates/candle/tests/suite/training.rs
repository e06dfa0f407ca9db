//! Training a small convolutional network on the digits with both modules.

use candle_core::{DType, Device, Result};
use candle_nn::{ModuleT, Optimizer, SGD, VarBuilder, VarMap};

#[path = "../../examples/digits/network.rs"]
mod network;

use network::{Digits, Network, copy};

/// The losses of some steps, with each module, from the same weights.
fn losses(dtype: DType) -> Result<[Vec<f64>; 2]> {
    let [train, test] = Digits::split(dtype)?;
    let maps = [VarMap::new(), VarMap::new()];
    let [vb_candle, vb_ours] = maps.each_ref().map(|map| VarBuilder::from_varmap(map, dtype, &Device::Cpu));
    let networks = [
        Network::new(vb_candle, |c, vb| Ok(Box::new(candle_nn::batch_norm(c, 1e-5, vb)?) as Box<dyn ModuleT>))?,
        Network::new(vb_ours, |c, vb| Ok(Box::new(batchnorm_candle::batch_norm(c, 1e-5, vb)?) as Box<dyn ModuleT>))?,
    ];
    copy(&maps[0], &maps[1])?;
    let mut losses = [Vec::new(), Vec::new()];
    for ((network, map), losses) in networks.iter().zip(&maps).zip(&mut losses) {
        let mut optimizer = SGD::new(map.all_vars(), 0.1)?;
        for step in 0..12 {
            let picks: Vec<u32> = (0..32).map(|i| (step * 32 + i) * 3 % train.len() as u32).collect();
            losses.push(network.step(&train.select(&picks)?, &mut optimizer)?);
        }
        losses.push(network.accuracy(&test)?);
    }
    Ok(losses)
}

#[test]
fn losses_are_the_same() -> Result<()> {
    for dtype in [DType::F64, DType::F32] {
        let [of_candle, ours] = losses(dtype)?;
        println!("{dtype:?} {of_candle:?} {ours:?} {:?}", of_candle.iter().zip(&ours).map(|(a, b)| (a - b).abs()).collect::<Vec<_>>());
    }
    Ok(())
}
