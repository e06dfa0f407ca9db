//! Tensors whose axes lie in memory in another order, with gaps, or backwards.

use crate::support::{assert_close, ours, random, step};
use burn::tensor::{DType, Tensor, s};

/// Each kind of x and dy gives what contiguous copies of them give.
#[track_caller]
fn compare<const D: usize>(name: &str, x: Tensor<D>, dy: Tensor<D>) {
    let contiguous = |tensor: &Tensor<D>| Tensor::from_data(tensor.to_data(), (&tensor.device(), DType::F64));
    let channels = x.dims()[1];
    let [expected, actual] = [(contiguous(&x), contiguous(&dy)), (x, dy)].map(|(x, dy)| {
        let norm = ours(channels, DType::F64);
        let plain = step(&norm, |x| norm.forward(x), &x, &dy);
        let frozen = ours(channels, DType::F64);
        let residual = dy.clone();
        let fused = step(&frozen, |x| frozen.forward_add_relu(x, residual), &x, &dy);
        plain.into_iter().chain(fused).collect::<Vec<_>>()
    });
    for (actual, expected) in actual.iter().zip(&expected) {
        // The kernels of both layouts sum in other orders; they round sums in f64 as often as they add.
        assert_close(name, actual, expected, 64, DType::F64);
    }
}

#[test]
fn every_order_of_axes() {
    for axes in [[0, 3, 1, 2], [3, 0, 1, 2], [1, 0, 2, 3], [2, 3, 1, 0], [0, 1, 3, 2]] {
        let x = random([3, 4, 5, 6], DType::F64).permute(axes);
        let dims = x.dims();
        compare("dy in standard order", x.clone(), random(dims, DType::F64));
        compare("dy in the same order", x, random([3, 4, 5, 6], DType::F64).permute(axes));
        compare("x in standard order", random(dims, DType::F64), random([3, 4, 5, 6], DType::F64).permute(axes));
    }
}

#[test]
fn parts_of_tensors() {
    let whole = || random([6, 4, 5, 3], DType::F64);
    compare("some examples", whole().slice(s![2..5, .., .., ..]), whole().slice(s![0..3, .., .., ..]));
    compare("some channels", whole().slice(s![.., 1..3, .., ..]), whole().slice(s![.., 2..4, .., ..]));
    compare("every second row", whole().slice(s![.., .., 0..5;2, ..]), whole().slice(s![.., .., 0..5;2, ..]));
    compare("some channels, which lie last", random([6, 5, 4], DType::F64).swap_dims(1, 2).slice(s![.., 1..3, ..]), {
        random([6, 2, 5], DType::F64)
    });
}

#[test]
fn backwards_and_repeated() {
    compare("flipped", random([4, 3, 5], DType::F64).flip([0, 2]), random([4, 3, 5], DType::F64).flip([1]));
    compare(
        "expanded",
        random([4, 1, 5], DType::F64).expand([4, 3, 5]),
        random([1, 3, 1], DType::F64).expand([4, 3, 5]),
    );
}
