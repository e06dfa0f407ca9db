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
    let device = device.autodiff();
    let images = Images::load().unwrap();
    let picks: Vec<_> = (0..1024).collect();

    let theirs = Network::<nn::BatchNorm>::new(4, &device);
    let ours = Network::<BatchNorm>::new(4, &device).load_record(theirs.clone().into_record());
    let (mut theirs, mut ours) = (Training::new(theirs, 1), Training::new(ours, 1));
    for epoch in 0..2 {
        let expected = theirs.epoch(&images, &picks, &device);
        let actual = ours.epoch(&images, &picks, &device);
        for (step, (actual, expected)) in actual.iter().zip(&expected).enumerate() {
            println!("{:e}", actual - expected);
            assert!((actual - expected).abs() < 1e-10, "epoch {epoch}, step {step}: {actual} and {expected}");
        }
        assert!(expected.len() == 16);
    }
    let test: Vec<_> = (1024..images.len()).collect();
    let accuracies = [&theirs.network.accuracy(images.batch(&test, &Device::flex())), {
        &ours.network.accuracy(images.batch(&test, &Device::flex()))
    }];
    assert_eq!(accuracies[0], accuracies[1]);
}
