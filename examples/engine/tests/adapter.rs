//! The adapter against the specification, `batchnorm::reference`, within the bounds of docs/numerics.md.

use batchnorm::{self as bn, Shape, reference};
use engine::conv::Pointwise;
use engine::error::Error;
use engine::norm::BatchNorm;
use engine::tensor::Tensor;
use engine::threads::ThreadPool;
use half::bf16;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// Half an ulp of f32 at 1.
const U: f64 = f32::EPSILON as f64 / 2.0;
const EPS: f64 = 1e-5;

fn pool(threads: usize) -> Arc<ThreadPool> {
    Arc::new(ThreadPool::new(threads).unwrap())
}

/// Values around a mean of 3, which are the same on every run.
fn values(n: usize, seed: usize) -> Vec<f32> {
    (0..n).map(|i| ((i + seed).wrapping_mul(2_654_435_761) >> 8 & 0xffff) as f32 / 16384.0 + 1.0).collect()
}

fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&v| v.into()).collect()
}

fn layer(channels: usize, threads: usize) -> BatchNorm<f32> {
    let (gamma, beta) = (values(channels, 5), values(channels, 6));
    BatchNorm::new(gamma, beta, pool(threads)).unwrap()
}

/// `[n, c, h, w]`, and `[n, c, h, w]` of images that are stored as `[n, h, w, c]`.
fn layouts([n, c, h, w]: [usize; 4], seed: usize) -> [Tensor<f32>; 2] {
    let len = n * c * h * w;
    let channels_last = Tensor::new(&[n, h, w, c], values(len, seed)).unwrap().permuted(&[0, 3, 1, 2]).unwrap();
    [Tensor::new(&[n, c, h, w], values(len, seed)).unwrap(), channels_last]
}

#[track_caller]
fn assert_close(name: &str, actual: &[f32], expected: &[f64], bound: impl Fn(usize) -> f64) {
    assert_eq!(actual.len(), expected.len(), "length of {name}");
    for (k, (&actual, &expected)) in actual.iter().zip(expected).enumerate() {
        let error = (f64::from(actual) - expected).abs();
        assert!(error <= bound(k), "{name}[{k}]: expected {expected}, got {actual}, bound {:e}", bound(k));
    }
}

/// Where a forward pass has its statistics from.
enum Forward<'a> {
    Training,
    Frozen,
    Given(&'a bn::Statistics),
}

/// A step of the layer against the specification.
#[track_caller]
fn check(layer: &mut BatchNorm<f32>, x: &Tensor<f32>, dy: &Tensor<f32>, forward: Forward<'_>) {
    let frozen = matches!(forward, Forward::Frozen);
    let [n, c, plane] = [x.dims()[0], x.dims()[1], x.dims()[2..].iter().product()];
    let shape = Shape::new(n, c, plane).unwrap();
    let (wide_x, wide_dy) = (wide(&x.to_vec()), wide(&dy.to_vec()));
    let (gamma, beta) = (wide(&values(c, 5)), wide(&values(c, 6)));
    let before = [layer.running_mean.clone(), layer.running_var.clone()].map(|v| wide(&v));
    let (mean, var) = if frozen { before.clone().into() } else { reference::statistics(shape, &wide_x) };
    let statistics = (&mean[..], &var[..]);

    let forward = match forward {
        Forward::Training => layer.forward_training(x),
        Forward::Frozen => layer.forward_frozen(x),
        Forward::Given(statistics) => layer.forward_with_statistics(x, statistics.clone()),
    };
    let (y, saved) = forward.unwrap();
    let inv_std: Vec<_> = var.iter().map(|&var| reference::inv_std(var, EPS)).collect();
    let channel = |k: usize| k / plane % c;
    let x_hat = |k: usize| (wide_x[k] - mean[channel(k)]) * inv_std[channel(k)];
    let expected = reference::normalize(shape, &wide_x, statistics, EPS, &gamma, &beta);
    assert_eq!(y.dims(), x.dims());
    assert_close("y", &y.to_vec(), &expected, |k| {
        8.0 * U * (gamma[channel(k)].abs() * (1.0 + x_hat(k).abs()) + beta[channel(k)].abs())
    });

    let gradients = layer.backward(&saved, dy, true).unwrap();
    let backward = if frozen { reference::backward_frozen } else { reference::backward };
    let (dx, dgamma, dbeta) = backward(shape, &wide_x, &wide_dy, statistics, EPS, &gamma);
    let sums = |f: &dyn Fn(usize) -> f64| -> Vec<f64> {
        (0..c).map(|c| reference::indices(shape, c).map(|k| f(k).abs()).sum()).collect()
    };
    let (sum_g, sum_gx) = (sums(&|k| wide_dy[k]), sums(&|k| wide_dy[k] * x_hat(k)));
    let [actual_dgamma, actual_dbeta] = gradients.parameters.unwrap();
    assert_close("dgamma", &actual_dgamma.to_vec(), &dgamma, |c| 8.0 * U * sum_gx[c]);
    assert_close("dbeta", &actual_dbeta.to_vec(), &dbeta, |c| 8.0 * U * sum_g[c]);
    let m = shape.values_per_channel() as f64;
    assert_close("dx", &gradients.dx.to_vec(), &dx, |k| {
        // 16u for dx itself. Its inputs, dbeta and dgamma, are off by at most 8u, relative to sums of absolute values.
        let (c, through) = (channel(k), if frozen { 0.0 } else { 1.0 / m });
        let parts = wide_dy[k].abs() + through * (sum_g[c] + x_hat(k).abs() * sum_gx[c]);
        (16.0 + 8.0) * U * gamma[c].abs() * inv_std[c] * parts
    });
    let without = layer.backward(&saved, dy, false).unwrap();
    assert_eq!((without.dx.to_vec(), without.parameters.is_none()), (gradients.dx.to_vec(), true));

    let after = [&layer.running_mean, &layer.running_var];
    let unbiased = |var: f64| var * m / (m - 1.0);
    let average = |old: f64, new: f64| if frozen { old } else { 0.9 * old + 0.1 * new };
    for c in 0..c {
        let new = [mean[c], unbiased(var[c])];
        for ((after, before), new) in after.iter().zip(&before).zip(new) {
            let expected = average(before[c], new);
            assert!((f64::from(after[c]) - expected).abs() <= 4.0 * U * (before[c].abs() + new.abs()));
        }
    }
}

#[test]
fn training_agrees_with_the_reference_in_every_layout() {
    // The second is so large that it runs on all threads.
    for dims in [[3, 5, 4, 6], [8, 16, 48, 48]] {
        let (xs, dys) = (layouts(dims, 1), layouts(dims, 2));
        for x in &xs {
            for dy in &dys {
                check(&mut layer(dims[1], 3), x, dy, Forward::Training);
            }
        }
    }
    // Axes in other orders, with gaps, and of length 1.
    let x = Tensor::new(&[6, 7, 5, 4], values(840, 1)).unwrap();
    let dy = Tensor::new(&[6, 7, 5, 4], values(840, 2)).unwrap();
    let mut orders = vec![];
    for first in 0..4 {
        for axes in [[0, 1, 2, 3], [0, 2, 1, 3], [0, 1, 3, 2]] {
            orders.push(axes.map(|axis| (axis + first) % 4));
        }
    }
    for order in orders {
        let [x, dy] = [&x, &dy].map(|t| t.permuted(&order).unwrap());
        check(&mut layer(x.dims()[1], 2), &x, &dy, Forward::Training);
        for axis in 0..4 {
            for len in [1, 3] {
                let [x, dy] = [&x, &dy].map(|t| t.narrowed(axis, 1, len).unwrap());
                check(&mut layer(x.dims()[1], 2), &x, &dy, Forward::Training);
            }
        }
    }
    check(
        &mut layer(7, 2),
        &Tensor::new(&[9, 7], values(63, 1)).unwrap(),
        &Tensor::new(&[9, 7], values(63, 2)).unwrap(),
        Forward::Training,
    );
}

#[test]
fn a_large_mean_costs_no_accuracy() {
    // The mean is 3500 times the standard deviation. Statistics that were saved in f32 would exceed the bounds.
    let ([x, _], [dy, _]) = (layouts([3, 5, 4, 6], 1), layouts([3, 5, 4, 6], 2));
    let far = x.to_vec().into_iter().map(|v| v + 4096.0).collect();
    check(&mut layer(5, 2), &Tensor::new(x.dims(), far).unwrap(), &dy, Forward::Training);
}

#[test]
fn a_layer_follows_batches_of_other_shapes() {
    let mut layer = layer(5, 2);
    for dims in [[3, 5, 4, 6], [2, 5, 3, 3], [3, 5, 4, 6]] {
        let ([x, last], [dy, _]) = (layouts(dims, 1), layouts(dims, 2));
        check(&mut layer, &x, &dy, Forward::Training);
        check(&mut layer, &last, &dy, Forward::Training);
        check(&mut layer, &last, &dy, Forward::Frozen);
    }
    assert_eq!(layer.batches, 6);
}

#[test]
fn frozen_layers_use_the_running_statistics() {
    let dims = [2, 5, 3, 4];
    for x in layouts(dims, 1) {
        for dy in layouts(dims, 2) {
            let mut layer = layer(5, 2);
            layer.running_mean = values(5, 7);
            layer.running_var = values(5, 8);
            check(&mut layer, &x, &dy, Forward::Frozen);
            assert_eq!(layer.batches, 0);
        }
    }
}

#[test]
fn threads_do_not_change_bits() {
    for x in layouts([8, 16, 48, 48], 1) {
        let step = |threads| {
            let mut layer = layer(16, threads);
            let (y, saved) = layer.forward_training(&x).unwrap();
            let gradients = layer.backward(&saved, &x, true).unwrap();
            (y.to_vec(), gradients.dx.to_vec(), gradients.parameters.unwrap().map(|d| d.to_vec()), layer.running_var)
        };
        assert_eq!(step(1), step(3));
    }
}

#[test]
fn sixteen_bit_parameters_are_widened_and_their_gradients_rounded() {
    let [x, dy] = [layouts([2, 5, 3, 4], 1), layouts([2, 5, 3, 4], 2)].map(|[x, _]| x);
    let narrow = |seed| -> Vec<bf16> { values(5, seed).into_iter().map(bf16::from_f32).collect() };
    let widened = |seed| -> Vec<f32> { narrow(seed).into_iter().map(bf16::to_f32).collect() };
    let mut half = BatchNorm::new(narrow(5), narrow(6), pool(2)).unwrap();
    let mut single = BatchNorm::new(widened(5), widened(6), pool(2)).unwrap();
    let ((y, saved), (expected, single_saved)) =
        (half.forward_training(&x).unwrap(), single.forward_training(&x).unwrap());
    assert_eq!(y.to_vec(), expected.to_vec());
    let gradients = half.backward(&saved, &dy, true).unwrap().parameters.unwrap();
    let expected = single.backward(&single_saved, &dy, true).unwrap().parameters.unwrap();
    for (actual, expected) in gradients.iter().zip(expected) {
        assert_eq!(actual.to_vec(), expected.to_vec().into_iter().map(bf16::from_f32).collect::<Vec<_>>());
    }
    // The same layer takes 16-bit activations, too.
    let x = Tensor::new(x.dims(), x.to_vec().into_iter().map(bf16::from_f32).collect()).unwrap();
    let (y, _) = half.forward_training(&x).unwrap();
    assert_eq!(y.dims(), x.dims());
}

#[test]
fn the_epilogue_gives_the_statistics_of_the_output() {
    // Tiles that end with an image, that do not, and of a whole image.
    for (pixels, outputs) in [(2 * (1 << 17) / 512, 512), (300, 512), (63, 5)] {
        let conv = Pointwise { images: 3, pixels, inputs: 4, outputs };
        let (x, weight) = (values(3 * pixels * 4, 1), values(outputs * 4, 2));
        let run = |threads| {
            let mut y = vec![f32::NAN; 3 * pixels * outputs];
            let statistics = conv.run_with_statistics(&x, &weight, &mut y, &pool(threads)).unwrap();
            (y, statistics)
        };
        let (y, statistics) = run(2);
        assert_eq!((&y, &statistics), (&run(1).0, &run(3).1));
        let mut without = vec![f32::NAN; y.len()];
        conv.run(&x, &weight, &mut without, &pool(2)).unwrap();
        assert_eq!(y, without);

        for (k, y) in y.iter().enumerate() {
            let (x, weight) = (&x[k / outputs * 4..][..4], &weight[k % outputs * 4..][..4]);
            let products = x.iter().zip(weight).map(|(&x, &w)| f64::from(x) * f64::from(w));
            // Four products and three sums of positive numbers.
            let expected: f64 = products.sum();
            assert!((f64::from(*y) - expected).abs() <= 8.0 * U * expected, "y[{k}]");
        }
        let shape = Shape::nc(3 * pixels, outputs).unwrap();
        let (mean, var) = reference::statistics(shape, &wide(&y));
        for c in 0..outputs {
            assert!((statistics.mean()[c] - mean[c]).abs() <= 2.0 * U * var[c].sqrt());
            assert!((statistics.var()[c] - var[c]).abs() <= 4.0 * U * var[c]);
        }

        // The layer then normalizes x = y, and the count tells when statistics are of another tensor.
        let [x, dy] = [y, values(3 * pixels * outputs, 3)]
            .map(|v| Tensor::new(&[3, pixels, outputs], v).unwrap().permuted(&[0, 2, 1]).unwrap());
        check(&mut layer(outputs, 2), &x, &dy, Forward::Given(&statistics));
        let other = x.narrowed(0, 0, 2).unwrap();
        assert!(matches!(layer(outputs, 2).forward_with_statistics(&other, statistics), Err(Error::Dims { .. })));
    }
    let conv = Pointwise { images: 2, pixels: 3, inputs: 4, outputs: 5 };
    let (x, weight, pool) = (values(24, 1), values(20, 2), pool(2));
    let mut y = vec![7.0; 30];
    assert!(matches!(conv.run(&x[1..], &weight, &mut y, &pool), Err(Error::Dims { .. })));
    assert!(matches!(conv.run(&x, &weight[1..], &mut y, &pool), Err(Error::Dims { .. })));
    assert!(matches!(conv.run(&x, &weight, &mut y[1..], &pool), Err(Error::Dims { .. })));
    for conv in
        [Pointwise { images: 0, ..conv }, Pointwise { inputs: 0, ..conv }, Pointwise { pixels: usize::MAX, ..conv }]
    {
        assert!(matches!(conv.run_with_statistics(&x, &weight, &mut y, &pool), Err(Error::Dims { .. })));
    }
    assert_eq!(y, [7.0; 30]);
}

#[test]
fn wrong_arguments_are_errors_and_change_nothing() {
    let mut layer = layer(5, 2);
    let [x, _] = layouts([2, 5, 3, 4], 1);
    let (_, saved) = layer.forward_training(&x).unwrap();
    let running = (layer.running_mean.clone(), layer.running_var.clone(), layer.batches);
    let dims = |dims: &[usize]| Tensor::new(dims, values(dims.iter().product(), 1)).unwrap();

    let error = layer.forward_training(&dims(&[5])).err().unwrap();
    assert_eq!(error.to_string(), "wrong dimensions: expected x to be [n, c, ..], got [5]");
    // The kernel's own errors name what they expected and got.
    let error = layer.forward_training(&dims(&[2, 6, 3])).err().unwrap();
    assert_eq!(error, Error::BatchNorm(bn::Error::Length { argument: "gamma", expected: 6, actual: 5 }));
    assert!(std::error::Error::source(&error).unwrap().is::<bn::Error>());
    let error = layer.forward_frozen(&dims(&[2, 6, 3])).err().unwrap();
    assert!(matches!(error, Error::BatchNorm(bn::Error::Length { .. })));
    // As many elements, but other dimensions: only the engine can know.
    assert!(matches!(layer.backward(&saved, &dims(&[5, 2, 3, 4]), true), Err(Error::Dims { .. })));
    // A variance of one value is no estimate.
    let error = layer.forward_training(&dims(&[1, 5])).err().unwrap();
    assert_eq!(error, Error::BatchNorm(bn::Error::TooFewValues { count: 1.0 }));
    assert_eq!((layer.running_mean.clone(), layer.running_var.clone(), layer.batches), running);

    let error = BatchNorm::<f32>::new(vec![1.0; 5], vec![0.0; 4], pool(1)).err().unwrap();
    assert!(matches!(error, Error::Dims { .. }));
}

#[test]
fn empty_batches_are_no_error() {
    let mut layer = layer(5, 2);
    for dims in [[0, 5, 3], [3, 5, 0]] {
        let x = Tensor::<f32>::new(&dims, vec![]).unwrap();
        for x in [x.clone(), x.permuted(&[2, 1, 0]).unwrap()] {
            let (y, saved) = layer.forward_training(&x).unwrap();
            let gradients = layer.backward(&saved, &x, true).unwrap();
            assert_eq!((y.dims(), gradients.dx.is_empty(), layer.batches), (x.dims(), true, 0));
            assert!(gradients.parameters.unwrap().iter().all(|d| d.to_vec() == [0.0; 5]));
        }
    }
}

#[test]
fn tensors_are_views() {
    let x = Tensor::new(&[2, 3, 4], (0..24).collect()).unwrap();
    let last = x.permuted(&[0, 2, 1]).unwrap();
    assert_eq!((last.dims(), last.strides()), (&[2, 4, 3][..], &[12, 1, 4][..]));
    assert_eq!(last.to_vec()[..4], [0, 4, 8, 1]);
    let part = last.narrowed(1, 2, 2).unwrap();
    assert_eq!((part.to_vec(), part.memory()[0]), (vec![2, 6, 10, 3, 7, 11, 14, 18, 22, 15, 19, 23], 2));
    let copy = last.in_layout_of(&Tensor::new(&[2, 4, 3], vec![(); 24]).unwrap()).unwrap();
    assert_eq!((copy.strides(), copy.memory()), (&[12, 3, 1][..], &last.to_vec()[..]));

    let none = Tensor::<f32>::new(&[0, 5], vec![]).unwrap().narrowed(1, 3, 2).unwrap();
    assert!(none.memory().is_empty() && none.to_vec().is_empty());

    assert!(Tensor::new(&[2, 3], vec![0; 5]).is_err());
    assert!(Tensor::new(&[0, usize::MAX, 2], Vec::<f32>::new()).is_err());
    assert!(x.permuted(&[0, 1, 1]).is_err() && x.permuted(&[0, 1]).is_err());
    assert!(x.narrowed(3, 0, 1).is_err() && x.narrowed(2, 3, 2).is_err() && x.narrowed(2, 4, 0).is_err());
    assert!(x.in_layout_of(&last).is_err());
}

#[test]
fn loops_run_every_index_once() {
    let pool = pool(3);
    let count = |n: usize| {
        let runs: Vec<_> = (0..n).map(|_| AtomicUsize::new(0)).collect();
        pool.for_each(n, &|outer| {
            runs[outer].fetch_add(1, Relaxed);
            // A loop in a loop.
            pool.for_each(n, &|inner| {
                runs[inner].fetch_add(1, Relaxed);
            });
        });
        runs.into_iter().all(|runs| runs.into_inner() == n + 1)
    };
    assert!((0..10).all(count));
    let panic = |index| assert_ne!(index, 4, "passed on");
    let passed = catch_unwind(AssertUnwindSafe(|| pool.for_each(9, &panic))).unwrap_err();
    assert!(passed.downcast_ref::<String>().unwrap().contains("passed on"));
    assert!(count(9));
}

#[test]
fn the_document_quotes_this_code() {
    let [document, code] = [
        include_str!("../../../docs/engines.md"),
        concat!(include_str!("../src/norm.rs"), include_str!("../src/conv.rs"), include_str!("../src/tensor.rs")),
    ];
    let lines = |text: &str| text.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join("\n");
    let (code, mut quotes) = (lines(code), 0);
    for quote in document.split("```rust\n").skip(1).map(|rest| rest.split("```").next().unwrap()) {
        assert!(code.contains(&lines(quote)), "not in the code:\n{quote}");
        quotes += 1;
    }
    assert!(quotes >= 5, "only {quotes} quotes");
}
