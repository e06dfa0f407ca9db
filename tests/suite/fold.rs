//! Does a network give the same outputs after a normalization was folded into an adjacent layer?

use crate::common::*;
use batchnorm::*;

/// A convolution of a batch of images with stride 1, or a transposed one, or a linear layer if the extent and the kernel
/// are 1.
#[derive(Clone, Copy, Debug)]
struct Layer {
    transposed: bool,
    images: usize,
    inputs: usize,
    outputs: usize,
    groups: usize,
    extent: usize,
    kernel: usize,
    /// Of a transposed convolution.
    stride: usize,
    /// On each side; what a transposed convolution leaves out of its output.
    padding: usize,
}

const CONVOLUTION: Layer = Layer {
    transposed: false,
    images: 2,
    inputs: 4,
    outputs: 6,
    groups: 1,
    extent: 6,
    kernel: 3,
    stride: 1,
    padding: 0,
};
const LINEAR: Layer = Layer { images: 5, inputs: 7, extent: 1, kernel: 1, ..CONVOLUTION };

impl Layer {
    /// The largest number of products in the sum of an output.
    fn products(&self) -> usize {
        self.inputs / self.groups * self.kernel * self.kernel
    }

    fn out_extent(&self) -> usize {
        match self.transposed {
            true => (self.extent - 1) * self.stride + self.kernel - 2 * self.padding,
            false => self.extent + 2 * self.padding + 1 - self.kernel,
        }
    }

    /// Where the input is that a tap of the kernel multiplies for an output, in one dimension.
    fn source(&self, output: usize, tap: usize) -> Option<usize> {
        let at = match self.transposed {
            true => (output + self.padding).checked_sub(tap).filter(|k| k % self.stride == 0).map(|k| k / self.stride),
            false => (output + tap).checked_sub(self.padding),
        };
        at.filter(|&k| k < self.extent)
    }

    /// The index of the weight between an output and the input `c` of its group.
    fn weight(&self, o: usize, c: usize, tap: usize) -> usize {
        let (of_group, inputs) = (self.outputs / self.groups, self.inputs / self.groups);
        let row = match self.transposed {
            true => (o / of_group * inputs + c) * of_group + o % of_group,
            false => o * inputs + c,
        };
        row * self.kernel * self.kernel + tap
    }

    fn input(&self) -> Shape {
        Shape::nchw(self.images, self.inputs, self.extent, self.extent).unwrap()
    }

    fn output(&self) -> Shape {
        Shape::nchw(self.images, self.outputs, self.out_extent(), self.out_extent()).unwrap()
    }

    /// The layer's output. Images of input channel c are padded with `pad[c]`; a transposed convolution needs zeros.
    fn run<T: Float>(&self, x: &[T], weight: &[T], bias: &[T], pad: &[T]) -> Vec<T> {
        let (extent, group) = (self.extent, self.inputs / self.groups);
        let value = |n: usize, c: usize, row: Option<usize>, column: Option<usize>| match (row, column) {
            (Some(row), Some(column)) => x[((n * self.inputs + c) * extent + row) * extent + column],
            _ => pad[c],
        };
        let mut out = vec![];
        for n in 0..self.images {
            for o in 0..self.outputs {
                let first = o / (self.outputs / self.groups) * group;
                for at in 0..self.out_extent() * self.out_extent() {
                    let (row, column) = (at / self.out_extent(), at % self.out_extent());
                    let mut sum = bias[o];
                    for k in 0..self.products() {
                        let (c, tap) = (k / self.kernel / self.kernel, k % (self.kernel * self.kernel));
                        let (row, column) =
                            (self.source(row, tap / self.kernel), self.source(column, tap % self.kernel));
                        let weight = weight[self.weight(o, c, tap)];
                        // Rounded once each: for f32, the f64 in between changes nothing.
                        let product = T::of(weight.to_f64() * value(n, first + c, row, column).to_f64());
                        sum = T::of(sum.to_f64() + product.to_f64());
                    }
                    out.push(sum);
                }
            }
        }
        out
    }
}

/// A normalization between test layers: running statistics, eps 1e-5, gamma and beta.
struct Normalization<T> {
    running: RunningStatistics,
    gamma: Vec<T>,
    beta: Vec<T>,
}

impl<T: Float> Normalization<T> {
    /// Means are about `offset` times the standard deviations.
    fn random(channels: usize, offset: f64, random: &mut Random) -> Self {
        let std: Vec<f64> = (0..channels).map(|_| 0.5 + random.uniform()).collect();
        let mean = std.iter().map(|std| std * offset * random.normal()).collect::<Vec<_>>();
        let var = std.iter().map(|std| std * std).collect();
        let mut normal = || (0..channels).map(|_| T::of(random.normal())).collect::<Vec<_>>();
        let (gamma, beta) = (normal(), normal());
        Self { running: RunningStatistics::from_parts(mean, var, 1).unwrap(), gamma, beta }
    }

    fn affine(&self) -> Affine<'_, T> {
        Affine::new(&self.gamma, &self.beta)
    }

    fn fold(&self, shape: Shape) -> Fold {
        let mut fold = Fold::new(shape.channels());
        BatchNorm::new(shape).fold(&self.running, self.affine(), &mut fold).unwrap();
        fold
    }

    fn run(&self, shape: Shape, x: &[T]) -> Vec<T> {
        let mut y = vec![T::NAN; x.len()];
        BatchNorm::new(shape).normalize(x, &self.running, self.affine(), &mut y).unwrap();
        y
    }
}

fn normals<T: Float>(n: usize, random: &mut Random) -> Vec<T> {
    (0..n).map(|_| T::of(random.normal())).collect()
}

fn abs<T: Float>(values: &[T]) -> Vec<f64> {
    values.iter().map(|v| v.to_f64().abs()).collect()
}

/// Fails if a difference is over `roundings·u` times the size of the terms.
fn assert_close<T: Float>(unfolded: &[T], folded: &[T], sizes: &[f64], roundings: usize, layer: &Layer) {
    for (k, size) in sizes.iter().enumerate() {
        let (difference, bound) = ((unfolded[k].to_f64() - folded[k].to_f64()).abs(), roundings as f64 * T::U * size);
        assert!(difference <= bound, "{} {layer:?}: output {k} is off by {difference:e} of {bound:e}", T::NAME);
    }
    assert_eq!(unfolded.len(), sizes.len());
}

/// Folds into the preceding layer. The size of an output with K products is S = |scale|·(Σ|w·x| + |b| + |mean|) +
/// |beta|.
///
/// Without folding, the layer has K + 1 roundings. The normalization has at most four in scale, two in x − mean, one in
/// the product and one in the sum. With folding, there are as many in scale and one in a weight; in a bias there is one
/// each for mean·scale, for beta minus that, for scale·b and for the sum; the layer has K + 1. In all (K + 9) + (K +
/// 9).
fn preceding<T: Float>(layer: Layer, offset: f64) {
    let mut random = Random(7);
    let n = Normalization::<T>::random(layer.outputs, offset, &mut random);
    let x = normals::<T>(layer.input().len(), &mut random);
    let (mut weight, mut bias): (Vec<T>, Vec<T>) =
        (normals(layer.outputs * layer.products(), &mut random), normals(layer.outputs, &mut random));
    // So that the data has the mean that the normalization subtracts.
    for (bias, mean) in bias.iter_mut().zip(n.running.mean()) {
        *bias = T::of(bias.to_f64() + mean);
    }
    let zeros = vec![T::of(0.0); layer.inputs];
    let unfolded = n.run(layer.output(), &layer.run(&x, &weight, &bias, &zeros));
    let fold = n.fold(layer.output());
    let mut sizes = layer.run(&abs(&x), &abs(&weight), &abs(&bias), &to_f64(&zeros));
    for (k, size) in sizes.iter_mut().enumerate() {
        let c = k / layer.output().inner() % layer.outputs;
        *size = fold.scale()[c].abs() * (*size + n.running.mean()[c].abs()) + n.beta[c].to_f64().abs();
    }
    if layer.transposed {
        fold.apply_to_preceding_transposed(&mut weight, &mut bias, layer.inputs, layer.groups).unwrap();
    } else {
        fold.apply_to_preceding(&mut weight, &mut bias).unwrap();
    }
    assert_close(&unfolded, &layer.run(&x, &weight, &bias, &zeros), &sizes, 2 * (layer.products() + 9), &layer);
}

/// Folds into the following layer. The size of an output with K products is S = Σ|w|·(|scale|·(|x| + |mean|) + |beta|)
/// + |b|.
///
/// Without folding, there are 8 roundings in the normalization, as above, and K + 1 in the layer. With folding, there
/// are 5 in a weight; in the bias 6 for a shift, K + 1 for the sum and 1 for the bias itself; and K + 1 in the layer.
/// In all (K + 9) + (2·K + 9).
fn following<T: Float>(layer: Layer, offset: f64, pad: bool) {
    let mut random = Random(8);
    let n = Normalization::<T>::random(layer.inputs, offset, &mut random);
    let mut x = normals::<T>(layer.input().len(), &mut random);
    for (k, x) in x.iter_mut().enumerate() {
        *x = T::of(x.to_f64() + n.running.mean()[k / layer.input().inner() % layer.inputs]);
    }
    let (mut weight, mut bias): (Vec<T>, Vec<T>) =
        (normals(layer.outputs * layer.products(), &mut random), normals(layer.outputs, &mut random));
    let fold = n.fold(layer.input());
    let unfolded = layer.run(&n.run(layer.input(), &x), &weight, &bias, &vec![T::of(0.0); layer.inputs]);
    let channel =
        |c: usize, x: f64| fold.scale()[c].abs() * (x.abs() + n.running.mean()[c].abs()) + n.beta[c].to_f64().abs();
    let instead = |c: usize| if pad { -fold.shift()[c] / fold.scale()[c] } else { f64::NAN };
    let channels = 0..layer.inputs;
    let around: Vec<T> = channels.clone().map(|c| T::of(instead(c))).collect();
    let terms: Vec<f64> =
        x.iter().enumerate().map(|(k, x)| channel(k / layer.input().inner() % layer.inputs, x.to_f64())).collect();
    let terms_around: Vec<f64> = channels.map(|c| channel(c, instead(c))).collect();
    let sizes = layer.run(&terms, &abs(&weight), &abs(&bias), &terms_around);
    if layer.transposed {
        fold.apply_to_following_transposed(&mut weight, &mut bias).unwrap();
    } else {
        fold.apply_to_following(&mut weight, &mut bias).unwrap();
    }
    assert_close(&unfolded, &layer.run(&x, &weight, &bias, &around), &sizes, 3 * layer.products() + 18, &layer);
}

fn both_directions<T: Float>() {
    for offset in [0.0, 1.0, 1e3] {
        let padded = Layer { padding: 1, ..CONVOLUTION };
        let grouped = Layer { groups: 2, ..CONVOLUTION };
        let depthwise = Layer { groups: 4, outputs: 4, ..CONVOLUTION };
        for layer in [LINEAR, CONVOLUTION, padded, grouped, depthwise] {
            preceding::<T>(layer, offset);
        }
        let input_first = Layer { transposed: true, ..LINEAR };
        let upsampling = Layer { transposed: true, kernel: 2, stride: 2, ..CONVOLUTION };
        let overlapping = Layer { transposed: true, stride: 2, padding: 1, ..CONVOLUTION };
        for groups in [1, 2] {
            for layer in
                [upsampling, overlapping, Layer { stride: 3, ..overlapping }, Layer { stride: 1, ..upsampling }]
            {
                preceding::<T>(Layer { groups, ..layer }, offset);
            }
        }
        preceding::<T>(input_first, offset);
        preceding::<T>(Layer { groups: 4, outputs: 4, ..overlapping }, offset);
        following::<T>(input_first, offset, false);
        following::<T>(Layer { transposed: true, kernel: 1, ..CONVOLUTION }, offset, false);
        following::<T>(LINEAR, offset, false);
        following::<T>(CONVOLUTION, offset, false);
        following::<T>(padded, offset, true);
    }
}

#[test]
fn f32_networks_give_the_same() {
    both_directions::<f32>();
}

#[test]
fn f64_networks_give_the_same() {
    both_directions::<f64>();
}

#[test]
fn zero_padding_is_right_where_shift_is_zero() {
    let layer = Layer { padding: 1, ..CONVOLUTION };
    let mut random = Random(9);
    let x = normals::<f64>(layer.input().len(), &mut random);
    let weight = normals(layer.outputs * layer.products(), &mut random);
    let (zeros, bias) = (vec![0.0; layer.inputs], vec![0.0; layer.outputs]);
    let compare = |mean: f64| {
        let n = Normalization {
            // Powers of two, so that only sums are rounded.
            running: RunningStatistics::from_parts(vec![mean; layer.inputs], vec![4.0; layer.inputs], 1).unwrap(),
            gamma: vec![2.0; layer.inputs],
            beta: vec![0.0; layer.inputs],
        };
        let plan = BatchNorm::new(layer.input()).eps(0.0).unwrap();
        let (mut y, mut fold) = (vec![0.0; x.len()], Fold::new(layer.inputs));
        plan.normalize(&x, &n.running, n.affine(), &mut y).unwrap();
        plan.fold(&n.running, n.affine(), &mut fold).unwrap();
        let (mut weight, mut bias): (Vec<f64>, _) = (weight.clone(), bias.clone());
        let unfolded = layer.run(&y, &weight, &bias, &zeros);
        fold.apply_to_following(&mut weight, &mut bias).unwrap();
        unfolded == layer.run(&x, &weight, &bias, &zeros)
    };
    assert!(compare(0.0));
    assert!(!compare(1.0), "borders should have shown that zeros are wrong here");
}

#[test]
fn f32_weights_are_rounded_once() {
    let (mean, var, third) = (vec![1e6, -3.0], vec![2.0, 5.0], 1.0f32 / 3.0);
    let running = RunningStatistics::from_parts(mean, var, 1).unwrap();
    let mut fold = Fold::new(2);
    let plan = BatchNorm::new(Shape::nhwc(4, 2, 2, 2).unwrap()).eps(0.5).unwrap();
    plan.fold(&running, Affine::new(&[third, 7.0], &[0.1, 0.2]), &mut fold).unwrap();
    let (mut weight, mut bias) = ([0.7f32, 0.3, 1.1, -0.9], [0.25f32, 1e-3]);
    fold.apply_to_preceding(&mut weight, &mut bias).unwrap();
    let scale = [f64::from(third) / 2.5f64.sqrt(), 7.0 / 5.5f64.sqrt()];
    let shift = [f64::from(0.1f32) - 1e6 * scale[0], f64::from(0.2f32) + 3.0 * scale[1]];
    let w = [0.7f32, 0.3, 1.1, -0.9].map(f64::from);
    // One rounding to f32 of a value that is exact but for the last bits of an f64: hardly more than half an ulp.
    let rounded_once = |actual: f32, exact: f64| (f64::from(actual) - exact).abs() <= f32::U * exact.abs() * 1.000_001;
    for c in 0..2 {
        assert!(
            rounded_once(weight[2 * c], scale[c] * w[2 * c])
                && rounded_once(weight[2 * c + 1], scale[c] * w[2 * c + 1])
        );
        assert!(rounded_once(bias[c], scale[c] * f64::from([0.25f32, 1e-3][c]) + shift[c]));
    }
}

#[test]
fn a_channel_without_variance_gives_beta() {
    let shape = Shape::nc(1, 2).unwrap();
    let statistics = Statistics::from_parts(3.0, vec![1e30, 5.0], vec![0.0, 4.0]).unwrap();
    let mut fold = Fold::new(2);
    let plan = BatchNorm::new(shape).eps(0.0).unwrap();
    plan.fold(&statistics, Affine::new(&[3.0f32, 3.0], &[0.1, 0.2]), &mut fold).unwrap();
    assert_eq!((fold.scale()[0], fold.shift()[0]), (0.0, f64::from(0.1f32)));
    let (mut weight, mut bias) = ([1e30f32, 1.0], [0.0f32; 2]);
    fold.apply_to_preceding(&mut weight, &mut bias).unwrap();
    assert_eq!((weight[0], bias[0]), (0.0, 0.1));
    // Without gamma and beta, which are then 1 and 0.
    plan.fold(&statistics, Affine::<f32>::default(), &mut fold).unwrap();
    assert_eq!((fold.scale(), fold.shift()), (&[0.0, 0.5][..], &[0.0, -2.5][..]));
}

#[test]
fn nan_stays_in_its_channel() {
    let statistics = Statistics::from_parts(3.0, vec![f64::NAN, 5.0], vec![f64::NAN, 4.0]).unwrap();
    let mut fold = Fold::new(2);
    let plan = BatchNorm::new(Shape::nc(1, 2).unwrap()).eps(0.0).unwrap();
    plan.fold(&statistics, Affine::<f64>::default(), &mut fold).unwrap();
    let (mut weight, mut bias) = ([2.0f64; 4], [0.0f64; 2]);
    fold.apply_to_preceding(&mut weight, &mut bias).unwrap();
    assert!(weight[0].is_nan() && bias[0].is_nan());
    assert_eq!((&weight[2..], bias[1]), (&[1.0; 2][..], -2.5));
}

#[test]
fn nothing_to_fold() {
    let none = Fold::new(0);
    none.apply_to_preceding::<f32>(&mut [], &mut []).unwrap();
    none.apply_to_preceding_transposed::<f32>(&mut [], &mut [], 3, 3).unwrap();
    let mut bias = [3.0f32];
    none.apply_to_following(&mut [], &mut bias).unwrap();
    none.apply_to_following_transposed(&mut [], &mut bias).unwrap();
    Fold::new(4).apply_to_following::<f32>(&mut [], &mut []).unwrap();
    Fold::new(4).apply_to_following_transposed::<f32>(&mut [], &mut []).unwrap();
    assert_eq!(bias, [3.0]);
    // A layer without inputs has a bias all the same.
    let fold = Fold::from_parts(vec![2.0], vec![1.0]).unwrap();
    fold.apply_to_preceding_transposed(&mut [], &mut bias, 0, 1).unwrap();
    assert_eq!(bias, [7.0]);
}

#[test]
fn misuse_is_an_error_and_nothing_is_written() {
    let running = RunningStatistics::new(3);
    let plan = BatchNorm::new(Shape::nc(1, 3).unwrap());
    let mut fold = Fold::new(3);
    let untouched = fold.clone();
    let (three, two) = ([2.0f32; 3], [2.0f32; 2]);
    let mut wrong = |expected: &str, source: Source<'_>, affine| {
        let error = plan.fold::<f32>(source, affine, &mut fold).unwrap_err();
        assert_eq!(error.to_string(), expected);
        assert_eq!(fold, untouched);
    };
    let length = |name: &str| format!("{name} has the wrong length: expected 3 elements, got 2");
    wrong(&length("gamma"), (&running).into(), Affine::new(&two, &three));
    wrong(&length("beta"), (&running).into(), Affine::new(&three, &two));
    wrong(&length("running statistics"), (&RunningStatistics::new(2)).into(), Affine::default());
    wrong(&length("statistics"), (&Statistics::new(2)).into(), Affine::default());
    let negative = RunningStatistics::from_parts(vec![0.0; 3], vec![1.0, -1.0, 1.0], 1).unwrap();
    let expected = "variance of channel 1 is invalid: expected a number >= 0, got -1";
    wrong(expected, (&negative).into(), Affine::default());
    let expected = "the statistics are empty: expected a count of at least 1 value per channel, got 0";
    wrong(expected, (&Statistics::new(3)).into(), Affine::default());
    let other = &mut Fold::new(2);
    assert_eq!(plan.fold(&running, Affine::<f32>::default(), other).unwrap_err().to_string(), length("fold"));
    assert_eq!(*other, Fold::new(2));
    assert_eq!(Fold::from_parts(vec![0.0; 3], vec![0.0; 2]).unwrap_err().to_string(), length("shift"));

    let fold = Fold::from_parts(vec![2.0; 3], vec![1.0; 3]).unwrap();
    type Apply = fn(&Fold, &mut [f32], &mut [f32]) -> Result<(), Error>;
    let wrong = |expected: &str, weights: usize, biases: usize, apply: Apply| {
        let (mut weight, mut bias) = (vec![7.0f32; weights], vec![7.0f32; biases]);
        let error = apply(&fold, &mut weight, &mut bias).unwrap_err();
        assert_eq!(error.to_string(), expected);
        assert!(weight.iter().chain(&bias).all(|&v| v == 7.0));
    };
    let (preceding, following): (Apply, Apply) = (Fold::apply_to_preceding, Fold::apply_to_following);
    wrong(&length("bias"), 6, 2, preceding);
    let multiple = |of: usize, got: usize| {
        format!("weight has the wrong length: expected a positive multiple of {of} elements, got {got}")
    };
    wrong(&multiple(3, 7), 7, 3, preceding);
    wrong(&multiple(3, 0), 0, 3, preceding);
    wrong(&multiple(6, 9), 9, 2, following);
    wrong(&multiple(6, 0), 0, 2, following);
    wrong(&multiple(0, 3), 3, 0, following);

    // One group of two inputs, and three groups of two.
    let one: Apply = |fold, weight, bias| fold.apply_to_preceding_transposed(weight, bias, 2, 1);
    let three: Apply = |fold, weight, bias| fold.apply_to_preceding_transposed(weight, bias, 6, 3);
    wrong(&length("bias"), 6, 2, one);
    wrong(&multiple(6, 7), 7, 3, one);
    wrong(&multiple(6, 0), 0, 3, one);
    wrong(&multiple(6, 9), 9, 3, three);
    let endless: Apply = |fold, weight, bias| fold.apply_to_preceding_transposed(weight, bias, usize::MAX, 1);
    wrong(&multiple(usize::MAX, 6), 6, 3, endless);
    let groups = |inputs: usize, groups: usize| {
        format!("groups is invalid: expected a divisor of {inputs} inputs and 3 outputs, got {groups}")
    };
    wrong(&groups(2, 0), 6, 3, |fold, weight, bias| fold.apply_to_preceding_transposed(weight, bias, 2, 0));
    wrong(&groups(2, 2), 6, 3, |fold, weight, bias| fold.apply_to_preceding_transposed(weight, bias, 2, 2));
    wrong(&groups(4, 3), 6, 3, |fold, weight, bias| fold.apply_to_preceding_transposed(weight, bias, 4, 3));
    let transposed: Apply = Fold::apply_to_following_transposed;
    wrong("weight has the wrong length: expected 6 elements, got 12", 12, 2, transposed);
    wrong("weight has the wrong length: expected 0 elements, got 3", 3, 0, transposed);
}

#[test]
fn a_subnormal_weight_is_rounded_to_nearest() {
    // gamma·inv_std is 2⁻¹⁴⁰, and 2⁻¹⁰⁶⁰ in f64.
    let fold = Fold::from_parts(vec![2f64.powi(-140)], vec![0.0]).unwrap();
    for w in [1.0f32, 1.3, -0.7, 1.0 / 1024.0] {
        let (mut weight, mut bias) = ([w], [w]);
        fold.apply_to_preceding(&mut weight, &mut bias).unwrap();
        let error = (f64::from(weight[0]) - fold.scale()[0] * f64::from(w)).abs();
        assert!(error <= 2f64.powi(-150), "{w} {error:e}");
        assert_eq!(bias, weight);
    }
    let fold = Fold::from_parts(vec![2f64.powi(-1060)], vec![0.0]).unwrap();
    let (mut weight, mut bias) = ([1.3f64], [1.0]);
    fold.apply_to_following(&mut weight, &mut bias).unwrap();
    // In units of the smallest subnormal: 1.3·2¹⁴ = 21299.2.
    assert_eq!((weight[0].to_bits(), bias), (21299, [1.0]));
}
