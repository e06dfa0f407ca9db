//! Records and modules of burn become ours, and ours burn's.

use crate::support::{EPSILON, MOMENTUM, ours, random, theirs, values};
use batchnorm_burn::{BatchNorm, BatchNormConfig};
use burn::config::Config;
use burn::module::Module;
use burn::nn;
use burn::store::ModuleRecord;
use burn::tensor::{DType, Device};

/// Parameters and running statistics, all of which differ from those of a new layer.
fn state_of_burn(norm: &nn::BatchNorm) -> [Vec<f64>; 4] {
    state(&norm.clone().into())
}

fn state(norm: &BatchNorm) -> [Vec<f64>; 4] {
    [&norm.gamma.val(), &norm.beta.val(), &norm.running_mean.value_sync(), &norm.running_var.value_sync()].map(values)
}

/// A record as it is on disk.
fn on_disk(module: impl Module) -> ModuleRecord {
    ModuleRecord::from_bytes(module.into_record().into_bytes().unwrap()).unwrap()
}

#[test]
fn a_record_of_burn_loads_into_ours() {
    let trained = theirs(3, DType::F32);
    trained.forward(random([4, 3, 5], DType::F32));
    let expected = state_of_burn(&trained);
    let new: BatchNorm = BatchNormConfig::new(3).init(&Device::flex());
    assert_ne!(state(&new), expected);
    assert_eq!(state(&new.load_record(on_disk(trained))), expected);
}

#[test]
fn a_record_of_ours_loads_into_burns() {
    let trained = ours(3, DType::F32);
    trained.forward(random([4, 3, 5], DType::F32));
    let expected = state(&trained);
    let new = nn::BatchNormConfig::new(3).init(&Device::flex());
    assert_eq!(state_of_burn(&new.load_record(on_disk(trained))), expected);
}

#[test]
fn a_file_with_a_configuration_of_burn_loads_into_ours() {
    let theirs = nn::BatchNormConfig::new(3).with_epsilon(EPSILON).with_momentum(MOMENTUM);
    let ours = BatchNormConfig::load_binary(theirs.to_string().as_bytes()).unwrap();
    assert_eq!((ours.num_features, ours.epsilon, ours.momentum), (3, EPSILON, MOMENTUM));
}

#[test]
fn modules_convert_with_ids_and_settings() {
    let trained = theirs(3, DType::F32);
    trained.forward(random([4, 3, 5], DType::F32));
    let (id, expected) = (trained.gamma.id, state_of_burn(&trained));
    let norm = BatchNorm::from(trained);
    assert_eq!((norm.gamma.id, state(&norm)), (id, expected.clone()));
    let norm = nn::BatchNorm::from(norm.freeze());
    assert_eq!((norm.gamma.id, norm.training.is_enabled(), state_of_burn(&norm)), (id, false, expected));
    assert_eq!((norm.momentum, norm.epsilon), (MOMENTUM, EPSILON));
}
