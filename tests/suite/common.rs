//! What the tests share: element types, inputs, misaligned buffers, every way to run a pass, comparison by bits.

use batchnorm::{Affine, BatchNorm, Element, GradientSums, Gradients, Isa, RunningStatistics, Shape, Statistics};
use std::fmt::Debug;
use std::ops::{Deref, DerefMut};

/// A type of numbers as tests see it.
pub(crate) trait Value: Copy + Debug + Default + PartialEq {
    const NAME: &'static str;
    /// Half an ulp at 1.
    const U: f64;
    const SMALLEST_SUBNORMAL: f64;
    const LARGEST: f64;
    /// The largest gamma·inv_std of dx: the largest value times the largest power of two that is a factor of its own.
    const LARGEST_SCALE: f64;
    const NAN: Self;
    fn of(v: f64) -> Self;
    fn to_f64(self) -> f64;
    /// The bits; the same for every NaN, whose payloads are not promised.
    fn bits(self) -> u64;
}

/// An element type.
pub(crate) trait Number: Value + Element<Param: Value> {
    /// Lanes of a virtual vector.
    const LANES: usize = 64 / size_of::<Self::Param>();
}

/// An element type that is its own type of gamma and beta.
pub(crate) trait Float: Number + Element<Param = Self> {}

impl<T: Value + Element<Param: Value>> Number for T {}
impl<T: Number + Element<Param = T>> Float for T {}

impl Value for f32 {
    const NAME: &'static str = "f32";
    const U: f64 = f32::EPSILON as f64 / 2.0;
    const SMALLEST_SUBNORMAL: f64 = 1.0 / (1u128 << 127) as f64 / (1u64 << 22) as f64;
    const LARGEST: f64 = f32::MAX as f64;
    const LARGEST_SCALE: f64 = f32::MAX as f64 * (1u128 << 126) as f64;
    const NAN: Self = f32::NAN;
    fn of(v: f64) -> Self {
        v as f32
    }
    fn to_f64(self) -> f64 {
        self.into()
    }
    fn bits(self) -> u64 {
        if self.is_nan() { f32::NAN.to_bits().into() } else { self.to_bits().into() }
    }
}

impl Value for f64 {
    const NAME: &'static str = "f64";
    const U: f64 = f64::EPSILON / 2.0;
    const SMALLEST_SUBNORMAL: f64 = f64::from_bits(1);
    const LARGEST: f64 = f64::MAX;
    const LARGEST_SCALE: f64 = f64::MAX;
    const NAN: Self = f64::NAN;
    fn of(v: f64) -> Self {
        v
    }
    fn to_f64(self) -> f64 {
        self
    }
    fn bits(self) -> u64 {
        if self.is_nan() { f64::NAN.to_bits() } else { self.to_bits() }
    }
}

#[cfg(feature = "half")]
macro_rules! half_value {
    ($type:ident) => {
        impl Value for half::$type {
            const NAME: &'static str = stringify!($type);
            const U: f64 = half::$type::EPSILON.to_f64_const() / 2.0;
            const SMALLEST_SUBNORMAL: f64 = half::$type::MIN_POSITIVE_SUBNORMAL.to_f64_const();
            const LARGEST: f64 = half::$type::MAX.to_f64_const();
            const LARGEST_SCALE: f64 = <f32 as Value>::LARGEST_SCALE;
            const NAN: Self = half::$type::NAN;
            fn of(v: f64) -> Self {
                Self::from_f64(v)
            }
            fn to_f64(self) -> f64 {
                self.into()
            }
            fn bits(self) -> u64 {
                if self.is_nan() { Self::NAN.to_bits().into() } else { self.to_bits().into() }
            }
        }
    };
}

#[cfg(feature = "half")]
half_value!(bf16);
#[cfg(feature = "half")]
half_value!(f16);

pub(crate) fn to_f64<T: Value>(values: &[T]) -> Vec<f64> {
    values.iter().map(|v| v.to_f64()).collect()
}

/// Random numbers that are the same everywhere: SplitMix64.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    /// In 0..n.
    pub(crate) fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }
    /// In (0, 1).
    pub(crate) fn uniform(&mut self) -> f64 {
        ((self.next() >> 12) as f64 + 0.5) / (1u64 << 52) as f64
    }
    /// Standard normal, by Box and Muller.
    pub(crate) fn normal(&mut self) -> f64 {
        (-2.0 * self.uniform().ln()).sqrt() * (std::f64::consts::TAU * self.uniform()).cos()
    }
}

/// A slice whose first element lies `offset` elements behind a cache line. What is around it must stay as it was.
pub(crate) struct Buffer<T: Value> {
    memory: Vec<T>,
    start: usize,
    len: usize,
}

const CANARY: f64 = -123.0;

impl<T: Value> Buffer<T> {
    pub(crate) fn new(values: &[T], offset: usize) -> Self {
        let line = 64 / size_of::<T>();
        let mut memory = vec![T::of(CANARY); values.len() + 4 * line];
        let start = line + memory.as_ptr().align_offset(64) + offset % line;
        memory[start..start + values.len()].copy_from_slice(values);
        Self { memory, start, len: values.len() }
    }
    /// NaN wherever nothing is written.
    pub(crate) fn output(len: usize, offset: usize) -> Self {
        Self::new(&vec![T::NAN; len], offset)
    }
}

impl<T: Value> Deref for Buffer<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        &self.memory[self.start..self.start + self.len]
    }
}

impl<T: Value> DerefMut for Buffer<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.memory[self.start..self.start + self.len]
    }
}

impl<T: Value> Drop for Buffer<T> {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            let (before, rest) = self.memory.split_at(self.start);
            assert!(
                before.iter().chain(&rest[self.len..]).all(|v| v.to_f64() == CANARY),
                "written outside of a buffer"
            );
        }
    }
}

/// Standard normal values.
pub(crate) fn normal<T: Value>(random: &mut Random, n: usize) -> Vec<T> {
    (0..n).map(|_| T::of(random.normal())).collect()
}

/// All inputs of a training step.
#[derive(Clone, Debug)]
pub(crate) struct Problem<T: Number> {
    pub(crate) shape: Shape,
    pub(crate) eps: f64,
    pub(crate) x: Vec<T>,
    pub(crate) dy: Vec<T>,
    pub(crate) gamma: Option<Vec<T::Param>>,
    pub(crate) beta: Option<Vec<T::Param>>,
}

impl<T: Number> Problem<T> {
    /// Normal data of mean c and standard deviation 1 + c/4 in channel c.
    pub(crate) fn random(shape: Shape, seed: u64) -> Self {
        let mut random = Random(seed);
        let mut x = vec![T::default(); shape.len()];
        for c in 0..shape.channels() {
            for k in batchnorm::reference::indices(shape, c) {
                x[k] = T::of(c as f64 + (1.0 + c as f64 / 4.0) * random.normal());
            }
        }
        let dy = normal(&mut random, shape.len());
        let [gamma, beta] = [(); 2].map(|()| normal(&mut random, shape.channels()));
        Self { shape, eps: 1e-5, x, dy, gamma: Some(gamma), beta: Some(beta) }
    }
    pub(crate) fn affine(&self) -> Affine<'_, T::Param> {
        Affine { gamma: self.gamma.as_deref(), beta: self.beta.as_deref() }
    }
    pub(crate) fn gamma_f64(&self) -> Vec<f64> {
        self.gamma.as_ref().map_or(vec![1.0; self.shape.channels()], |g| to_f64(g))
    }
    pub(crate) fn beta_f64(&self) -> Vec<f64> {
        self.beta.as_ref().map_or(vec![0.0; self.shape.channels()], |b| to_f64(b))
    }
    pub(crate) fn plan(&self) -> BatchNorm {
        BatchNorm::new(self.shape).eps(self.eps).unwrap()
    }
    /// Running statistics of about the size of the batch's.
    pub(crate) fn running(&self) -> RunningStatistics {
        let channels = 0..self.shape.channels();
        let var = channels.clone().map(|c| (1.0 + c as f64 / 4.0).powi(2)).collect();
        RunningStatistics::from_parts(channels.map(|c| c as f64 + 0.25).collect(), var, 7).unwrap()
    }
}

/// How a forward and a backward pass are called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    Fused,
    FusedInPlace,
    Halves,
    HalvesInPlace,
}

pub(crate) const WAYS: [Way; 4] = [Way::Fused, Way::FusedInPlace, Way::Halves, Way::HalvesInPlace];

/// All outputs of a training step.
#[derive(Clone, Debug)]
pub(crate) struct Outputs<T: Number> {
    pub(crate) statistics: Statistics,
    pub(crate) sums: GradientSums,
    pub(crate) y: Vec<T>,
    pub(crate) dx: Vec<T>,
    pub(crate) dgamma: Vec<T::Param>,
    pub(crate) dbeta: Vec<T::Param>,
}

/// A training step. Buffers start at different offsets, which follow from `offset`.
pub(crate) fn train<T: Number>(plan: &BatchNorm, p: &Problem<T>, way: Way, offset: usize) -> Outputs<T> {
    let (len, channels) = (p.shape.len(), p.shape.channels());
    let (mut statistics, mut sums) = (Statistics::new(channels), GradientSums::new(channels));
    let (x, dy) = (Buffer::new(&p.x, offset), Buffer::new(&p.dy, 3 * offset));
    let (mut y, mut dx) = (Buffer::output(len, 5 * offset), Buffer::output(len, 7 * offset));
    let (mut dgamma, mut dbeta) = (Buffer::output(channels, offset), Buffer::output(channels, 2 * offset));
    match way {
        Way::Fused => plan.forward_training(&x, p.affine(), &mut y, &mut statistics).unwrap(),
        Way::FusedInPlace => {
            y.copy_from_slice(&x);
            plan.forward_training_in_place(&mut y, p.affine(), &mut statistics).unwrap();
        }
        Way::Halves => {
            plan.statistics(&x, &mut statistics).unwrap();
            plan.normalize(&x, &statistics, p.affine(), &mut y).unwrap();
        }
        Way::HalvesInPlace => {
            plan.statistics(&x, &mut statistics).unwrap();
            y.copy_from_slice(&x);
            plan.normalize_in_place(&mut y, &statistics, p.affine()).unwrap();
        }
    }
    plan.gradient_sums(&x, &dy, &statistics, Affine::default(), &mut sums).unwrap();
    match way {
        Way::Fused => {
            let gradients = Gradients {
                dx: Some(&mut dx),
                dgamma: Some(&mut dgamma),
                dbeta: Some(&mut dbeta),
                ..Gradients::default()
            };
            plan.backward(&x, &dy, &statistics, p.affine(), gradients).unwrap();
        }
        Way::FusedInPlace => {
            dx.copy_from_slice(&dy);
            plan.backward_in_place(&x, &mut dx, &statistics, p.affine(), Some(&mut dgamma), Some(&mut dbeta)).unwrap();
        }
        Way::Halves => {
            plan.parameter_gradients(&statistics, &sums, Some(&mut dgamma), Some(&mut dbeta)).unwrap();
            plan.input_gradient(&x, &dy, &statistics, &sums, p.affine(), &mut dx).unwrap();
        }
        Way::HalvesInPlace => {
            plan.parameter_gradients(&statistics, &sums, Some(&mut dgamma), Some(&mut dbeta)).unwrap();
            dx.copy_from_slice(&dy);
            plan.input_gradient_in_place(&x, &mut dx, &statistics, &sums, p.affine()).unwrap();
        }
    }
    Outputs { statistics, sums, y: y.to_vec(), dx: dx.to_vec(), dgamma: dgamma.to_vec(), dbeta: dbeta.to_vec() }
}

/// A step with constant statistics; `Outputs::statistics` stays empty.
pub(crate) fn train_frozen<T: Number>(
    plan: &BatchNorm,
    p: &Problem<T>,
    running: &RunningStatistics,
    way: Way,
    offset: usize,
) -> Outputs<T> {
    let (len, channels) = (p.shape.len(), p.shape.channels());
    let mut sums = GradientSums::new(channels);
    let (x, dy) = (Buffer::new(&p.x, offset), Buffer::new(&p.dy, 3 * offset));
    let (mut y, mut dx) = (Buffer::output(len, 5 * offset), Buffer::output(len, 7 * offset));
    let (mut dgamma, mut dbeta) = (Buffer::output(channels, offset), Buffer::output(channels, 2 * offset));
    plan.gradient_sums(&x, &dy, running, Affine::default(), &mut sums).unwrap();
    match way {
        Way::FusedInPlace | Way::HalvesInPlace => {
            y.copy_from_slice(&x);
            plan.normalize_in_place(&mut y, running, p.affine()).unwrap();
            dx.copy_from_slice(&dy);
            plan.backward_in_place(&x, &mut dx, running, p.affine(), Some(&mut dgamma), Some(&mut dbeta)).unwrap();
        }
        Way::Fused | Way::Halves => {
            plan.normalize(&x, running, p.affine(), &mut y).unwrap();
            let gradients = Gradients {
                dx: Some(&mut dx),
                dgamma: Some(&mut dgamma),
                dbeta: Some(&mut dbeta),
                ..Gradients::default()
            };
            plan.backward(&x, &dy, running, p.affine(), gradients).unwrap();
        }
    }
    let (y, dx, dgamma, dbeta) = (y.to_vec(), dx.to_vec(), dgamma.to_vec(), dbeta.to_vec());
    Outputs { statistics: Statistics::new(channels), sums, y, dx, dgamma, dbeta }
}

/// Whether two slices have the same bits.
pub(crate) fn same<T: Value>(a: &[T], b: &[T]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.bits() == b.bits())
}

impl<T: Number> Outputs<T> {
    /// Every output by name, as bits.
    pub(crate) fn bits(&self) -> [(&'static str, Vec<u64>); 8] {
        fn of<F: Value>(values: &[F]) -> Vec<u64> {
            values.iter().map(|v| v.bits()).collect()
        }
        [
            ("mean", of(self.statistics.mean())),
            ("var", of(self.statistics.var())),
            ("y", of(&self.y)),
            ("sums of g", of(self.sums.g())),
            ("sums of g·(x − mean)", of(self.sums.gx())),
            ("dx", of(&self.dx)),
            ("dgamma", of(&self.dgamma)),
            ("dbeta", of(&self.dbeta)),
        ]
    }
}

/// Fails with the first bit pattern that differs.
pub(crate) fn assert_same_bits<T: Number>(expected: &Outputs<T>, actual: &Outputs<T>, context: &dyn Debug) {
    assert_same_arrays(&expected.bits(), &actual.bits(), context);
}

/// [`assert_same_bits`] of outputs that are bits already.
pub(crate) fn assert_same_arrays(
    expected: &[(&'static str, Vec<u64>)],
    actual: &[(&'static str, Vec<u64>)],
    context: &dyn Debug,
) {
    for ((name, expected), (_, actual)) in expected.iter().zip(actual) {
        assert_eq!(expected.len(), actual.len(), "{name}: {context:?}");
        if let Some(k) = (0..actual.len()).find(|&k| expected[k] != actual[k]) {
            panic!("{name}[{k}] differs: {:#x}, but {:#x} for {context:?}", expected[k], actual[k]);
        }
    }
}

/// Shapes whose lengths lie around every boundary: vectors, chunks, blocks, groups of channels, segments; and primes.
/// Small enough to be walked by all settings; `of` is a type's lanes.
pub(crate) fn boundary_shapes(lanes: usize) -> Vec<Shape> {
    let chunk = 8 * lanes;
    let around = |n: usize| [n - 1, n, n + 1];
    let lengths = [vec![1, 2, 3], around(lanes).into(), around(chunk).into(), around(2 * chunk).into(), vec![61, 509]];
    let mut shapes = vec![];
    for n in lengths.concat() {
        shapes.push((1, 1, n)); // one plane
        shapes.push((3, 2, n)); // runs that start anywhere in a block
        shapes.push((n, 3, 1)); // a narrow row
        shapes.push((5, n, 1)); // rows of any width
    }
    for rows in [around(8), around(64), around(128), around(256)].concat() {
        shapes.push((rows, lanes + 1, 1));
    }
    // Rows of whole vectors: one, a panel, more than a panel, and so many that coefficients fill a cache.
    for vectors in [1, 3, 4, 5, 41] {
        shapes.push((19, vectors * lanes, 1));
    }
    shapes.extend([(2, 15, 5), (2, 16, 5), (2, 17, 5), (7, 33, 3), (4, 1, 2), (1, 509, 2), (4100, 2, 1)]);
    shapes.into_iter().map(|(o, c, i)| Shape::new(o, c, i).unwrap()).collect()
}

/// Shapes of more than one segment: planes cut inside, between images, and rows, narrow and wide.
pub(crate) fn segmented_shapes() -> Vec<Shape> {
    [(1, 2, 3 * 16384 + 1), (9, 3, 4999), (131_072 + 65, 1, 1), (2 * 512 + 1, 257, 1)]
        .map(|(o, c, i)| Shape::new(o, c, i).unwrap())
        .into()
}

/// Runs `f` for every instruction set of this machine.
pub(crate) fn every_isa(mut f: impl FnMut(Isa)) {
    Isa::available().iter().for_each(|&isa| f(isa));
}
