//! Safetensors that one module writes and the other reads.

use crate::common::{check, check_same, unit, values};
use batchnorm_candle::batch_norm;
use candle_core::{DType, Device, Result, Tensor};
use candle_nn::{ModuleT, VarBuilder, VarMap};
use std::collections::HashMap;
use std::path::PathBuf;

/// A file that is deleted at the end of a test.
struct File(PathBuf);

impl File {
    fn new(name: &str) -> Self {
        Self(std::env::temp_dir().join(format!("batchnorm-candle-{}-{name}.safetensors", std::process::id())))
    }
}

impl Drop for File {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

type Module = Box<dyn ModuleT>;
type Maker = fn(VarBuilder) -> Result<Module>;

const OURS: Maker = |vb| Ok(Box::new(batch_norm(3, 1e-5, vb)?));
const CANDLES: Maker = |vb| Ok(Box::new(candle_nn::batch_norm(3, 1e-5, vb)?));

fn builder(map: &VarMap) -> VarBuilder<'_> {
    VarBuilder::from_varmap(map, DType::F32, &Device::Cpu)
}

/// Trains a little with one module, saves it, and returns its output.
fn train(make: Maker, file: &File) -> Result<Tensor> {
    let map = VarMap::new();
    let module = make(builder(&map).pp("norm"))?;
    for seed in 0..3 {
        let x = values(&[8, 3, 5], 1.0, seed, DType::F32)?;
        let gradients = module.forward_t(&x, true)?.sqr()?.backward()?;
        for name in ["norm.weight", "norm.bias"] {
            let var = map.data().lock().unwrap()[name].clone();
            var.set(&(var.as_tensor() - (gradients.get(&var).unwrap() * 0.001)?)?.detach())?;
        }
    }
    map.save(&file.0)?;
    module.forward_t(&input()?, false)
}

fn input() -> Result<Tensor> {
    values(&[4, 3, 6], 0.0, 9, DType::F32)
}

#[test]
fn each_module_reads_what_the_other_wrote() -> Result<()> {
    for (name, write, read) in [("ours", OURS, CANDLES), ("candles", CANDLES, OURS)] {
        let file = File::new(name);
        let expected = train(write, &file)?;
        // The roundings of inference: four operations on values of at most |gamma|·x̂ + |beta|, which are less than 16.
        let bound = 8.0 * unit(DType::F32) * 16.0;

        let mut map = VarMap::new();
        let module = read(builder(&map).pp("norm"))?;
        map.load(&file.0)?;
        check("loaded into a map", &module.forward_t(&input()?, false)?, &expected, bound)?;

        // SAFETY: nothing changes the file while it is mapped.
        let vb = unsafe { VarBuilder::from_mmaped_safetensors(&[&file.0], DType::F32, &Device::Cpu)? };
        check("mapped", &read(vb.pp("norm"))?.forward_t(&input()?, false)?, &expected, bound)?;
    }
    Ok(())
}

/// As PyTorch writes it, with a count of batches; and one without, which only a cumulative average needs.
#[test]
fn counts_of_batches_in_files() -> Result<()> {
    let file = File::new("count");
    let zeros = |_: &str| Tensor::zeros(3, DType::F32, &Device::Cpu);
    let mut tensors = HashMap::from([("running_mean", zeros("")?), ("weight", zeros("")?), ("bias", zeros("")?)]);
    tensors.insert("running_var", Tensor::ones(3, DType::F32, &Device::Cpu)?);
    tensors.insert("num_batches_tracked", Tensor::new(7i64, &Device::Cpu)?);
    candle_core::safetensors::save(&tensors, &file.0)?;
    let vb = || {
        // SAFETY: nothing changes the file while it is mapped.
        unsafe { VarBuilder::from_mmaped_safetensors(&[&file.0], DType::F32, &Device::Cpu) }
    };
    let x = values(&[8, 3], 1.0, 1, DType::F32)?;
    let norm = batch_norm(3, 1e-5, vb()?)?.cumulative(vb()?)?;
    norm.forward_t(&x, true)?;
    assert_eq!(norm.num_batches_tracked().unwrap().to_scalar::<i64>()?, 8);
    // Seven batches with mean 0, and this one.
    let expected = (x.mean(0)? / 8.0)?;
    check("running mean", norm.running_mean(), &expected, 16.0 * unit(DType::F32))?;
    assert_eq!(batch_norm(3, 1e-5, vb()?)?.num_batches_tracked().unwrap().to_scalar::<i64>()?, 7);

    tensors.remove("num_batches_tracked");
    candle_core::safetensors::save(&tensors, &file.0)?;
    let norm = batch_norm(3, 1e-5, vb()?)?;
    assert!(norm.num_batches_tracked().is_none());
    check_same("gamma 0", &norm.forward_t(&x, false)?, &x.zeros_like()?)?;
    let message = norm.cumulative(vb()?).unwrap_err().to_string();
    assert!(message.contains("num_batches_tracked"), "{message}");
    Ok(())
}
