//! How bytes become shapes, values and settings.

use arbitrary::{Arbitrary, Unstructured};
use batchnorm::{Shape, reference};
use batchnorm_testing::{Float, Problem, Value, mix};

/// A number, most often one of the kind that breaks things.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub enum Scalar {
    Zero,
    NegativeZero,
    One,
    Three,
    Milli,
    Thousand,
    TenMillion,
    Subnormal,
    SmallestNormal,
    Tiny,
    Huge,
    Largest,
    Infinity,
    Nan,
    Any(f32),
    Wide(f64),
}

impl Scalar {
    pub fn f64(self) -> f64 {
        match self {
            Self::Zero => 0.0,
            Self::NegativeZero => -0.0,
            Self::One => 1.0,
            Self::Three => -3.0,
            Self::Milli => 1e-3,
            Self::Thousand => 1e3,
            Self::TenMillion => 1e7,
            Self::Subnormal => 1e-41,
            Self::SmallestNormal => f64::from(f32::MIN_POSITIVE),
            Self::Tiny => 1e-25,
            Self::Huge => 1e20,
            Self::Largest => 3e38,
            Self::Infinity => f64::INFINITY,
            Self::Nan => f64::NAN,
            Self::Any(v) => f64::from(v),
            Self::Wide(v) => v,
        }
    }

    /// 1 instead of NaN and Inf, and otherwise cut to the range of `E`.
    pub fn finite<E: Value>(self) -> f64 {
        finite::<E>(if self.f64().is_finite() { self.f64() } else { 1.0 })
    }
}

pub(crate) fn finite<E: Value>(v: f64) -> f64 {
    E::of(v.clamp(-E::LARGEST, E::LARGEST)).number()
}

/// The values of a channel: `offset + scale·f(k)`.
#[derive(Arbitrary, Clone, Copy, Debug)]
struct Fill {
    pattern: Pattern,
    offset: Scalar,
    scale: Scalar,
    seed: u8,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Pattern {
    Constant,
    Alternating,
    Ramp,
    Noise,
    /// Noise with a few values far out.
    Heavy,
}

impl Fill {
    /// The value at position `k` of `m`.
    fn at<E: Float>(self, k: usize, m: usize) -> f64 {
        let noise = noise(self.seed, k);
        let f = match self.pattern {
            Pattern::Constant => 0.0,
            Pattern::Alternating => 1.0 - 2.0 * (k % 2) as f64,
            Pattern::Ramp => k as f64 / m as f64,
            Pattern::Noise => noise,
            Pattern::Heavy => 0.1 / (noise.abs() + 1e-4) * noise.signum(),
        };
        finite::<E>(self.offset.finite::<E>() + self.scale.finite::<E>() * f)
    }
}

/// Uniform in [-1, 1).
fn noise(seed: u8, k: usize) -> f64 {
    let state = (k as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (u64::from(seed) << 56);
    (mix(state) >> 11) as f64 / (1u64 << 52) as f64 - 1.0
}

/// Extents, limited to sizes that allow hundreds of executions per second. Large ones are split over threads.
#[derive(Clone, Copy, Debug)]
pub struct Dims {
    outer: u16,
    channels: u16,
    inner: u16,
    /// Channels last.
    rows: bool,
    size: u16,
}

impl Arbitrary<'_> for Dims {
    /// The size follows from all bytes from here on. If it were a byte of its own, nearly all mutations of a large
    /// input would be large too, and little else would run.
    fn arbitrary(u: &mut Unstructured<'_>) -> arbitrary::Result<Self> {
        let rest = u.peek_bytes(u.len()).unwrap_or_default();
        let hash = rest.iter().fold(0x811c_9dc5, |h, &b| (h ^ u32::from(b)).wrapping_mul(0x0100_0193));
        let (outer, channels, inner, rows) = u.arbitrary()?;
        Ok(Self { outer, channels, inner, rows, size: (hash >> 16) as u16 })
    }
}

impl Dims {
    pub fn shape(self) -> Shape {
        let (limit, channels) = match self.size {
            // One in 512: large enough for several threads and for several segments per channel.
            0..128 => (140_000, 80),
            // One in 64: more channels than a group of rows has.
            128..1152 => (1 << 14, 10_000),
            _ => (1 << 10, 80),
        };
        let below = |v: u16, n: usize| usize::from(v) % (n + 1);
        let channels = below(self.channels, channels);
        let left = limit / channels.max(1);
        let inner = if self.rows { 1 } else { below(self.inner, left) };
        let outer = below(self.outer, left / inner.max(1));
        Shape::new(outer, channels, inner).expect("a small shape")
    }
}

/// One element that gets a value of its own.
#[derive(Arbitrary, Clone, Copy, Debug)]
struct Point {
    at: u32,
    value: Scalar,
}

/// The input of a target. Channels share fills and parameters in turn.
#[derive(Arbitrary, Debug)]
pub struct Case {
    pub dims: Dims,
    /// f64 instead of f32.
    pub double: bool,
    eps: Scalar,
    x: [Fill; 3],
    x_points: [Option<Point>; 3],
    dy: [Fill; 2],
    dy_points: [Option<Point>; 2],
    gamma: Option<[Scalar; 3]>,
    beta: Option<[Scalar; 3]>,
}

fn fill<E: Float>(shape: Shape, fills: &[Fill], points: &[Option<Point>]) -> Vec<E> {
    let mut out = vec![E::of(0.0); shape.len()];
    let m = shape.values_per_channel();
    for c in 0..shape.channels() {
        for (k, at) in reference::indices(shape, c).enumerate() {
            out[at] = E::of(fills[c % fills.len()].at::<E>(k, m));
        }
    }
    for point in points.iter().flatten().filter(|_| !shape.is_empty()) {
        out[point.at as usize % shape.len()] = E::of(point.value.f64());
    }
    out
}

impl Case {
    /// The case in an element type.
    pub fn problem<E: Float>(&self) -> Problem<E> {
        let shape = self.dims.shape();
        let params = |values: &Option<[Scalar; 3]>| {
            values.map(|v| (0..shape.channels()).map(|c| E::of(v[c % 3].finite::<E>())).collect())
        };
        Problem {
            shape,
            eps: self.eps.finite::<f64>().abs(),
            x: fill(shape, &self.x, &self.x_points),
            dy: fill(shape, &self.dy, &self.dy_points),
            gamma: params(&self.gamma),
            beta: params(&self.beta),
        }
    }
}
