//! A convolutional network learns digits with burn's module and with ours. In a process of its own, as the type of new
//! tensors is set for the whole process: in f64, as rounding errors grow from step to step.

#[path = "../examples/digits/data.rs"]
mod data;
#[path = "../examples/digits/network.rs"]
mod network;

use batchnorm_burn::BatchNorm;
use burn::module::Module;
use burn::nn;
use burn::tensor::{Device, FloatDType};
use data::Images;
use network::{Network, Training};

#[test]
fn both_have_the_same_losses() {
    let mut device = Device::flex();
    device.configure(FloatDType::F64).unwrap();
    device.seed(1);
    let device = device.autodiff();
    let images = Images::load().unwrap();
    let [train, test] = images.split();

    let theirs = Network::<nn::BatchNorm>::new(4, &device);
    let ours = Network::<BatchNorm>::new(4, &device).load_record(theirs.clone().into_record());
    let (mut theirs, mut ours) = (Training::new(theirs, 1), Training::new(ours, 1));
    for epoch in 0..2 {
        let expected = theirs.epoch(&images, &train[..512], &device);
        let actual = ours.epoch(&images, &train[..512], &device);
        assert_eq!(expected.len(), 8);
        for (step, (actual, expected)) in actual.iter().zip(&expected).enumerate() {
            // Sums of 4096 values, each rounded to 1e-16: 1e-12 at most, and in practice three digits less.
            assert!((actual - expected).abs() < 1e-12, "epoch {epoch}, step {step}: {actual} and {expected}");
        }
    }
    let batch = || images.batch(&test[..256], &Device::flex());
    assert_eq!(ours.network.accuracy(batch()), theirs.network.accuracy(batch()));
}
