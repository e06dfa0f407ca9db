//! The private vector trait, its three tiers, and the one place that enters them.
//!
//! A vector is 16 lanes of f32 or 8 of f64 whatever the machine has (`__m512`; two `__m256`; `wide::f32x16`), and only
//! operations whose result IEEE 754 fixes to the last bit are here. Same lanes, same order, same roundings: kernels
//! written over [`Vector`] give the same bits on every tier. A multiply-add is fused only where its product is exact, and
//! the bits are those of a product and a sum: SSE2 and wasm have none.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod exp;
#[cfg(feature = "half")]
mod half;
mod portable;

#[cfg(feature = "half")]
pub(crate) use half::HalfLanes;

/// Nothing to convert without the feature `half`.
#[cfg(not(feature = "half"))]
pub trait HalfLanes {}
#[cfg(not(feature = "half"))]
impl<V> HalfLanes for V {}

use crate::Error;

/// An instruction set that the kernels are compiled for.
///
/// The choice changes speed only: results have the same bits on all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Isa {
    /// The `wide` crate over whatever the crate was compiled for: SSE2, NEON, wasm simd128 or scalar code.
    Portable,
    /// 256-bit code for x86-64 with AVX2, F16C and FMA.
    Avx2,
    /// 512-bit code for x86-64 with AVX-512F.
    Avx512,
}

impl Isa {
    /// The instruction sets that this CPU can run, slowest first. Never empty.
    ///
    /// ```
    /// use batchnorm::Isa;
    /// assert_eq!(Isa::available()[0], Isa::Portable);
    /// assert_eq!(Isa::available().last(), Some(&Isa::best()));
    /// ```
    pub fn available() -> &'static [Isa] {
        const ALL: [Isa; 3] = [Isa::Portable, Isa::Avx2, Isa::Avx512];
        &ALL[..=Self::best() as usize]
    }

    /// The fastest instruction set that this CPU can run.
    pub fn best() -> Isa {
        #[cfg(target_arch = "x86_64")]
        let has_avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("f16c");
        #[cfg(target_arch = "x86_64")]
        if has_avx2 && is_x86_feature_detected!("fma") {
            // A CPU with AVX-512F has all three; `available` relies on that order.
            return if is_x86_feature_detected!("avx512f") { Isa::Avx512 } else { Isa::Avx2 };
        }
        Isa::Portable
    }

    pub(crate) fn check(self) -> Result<Self, Error> {
        let best = Self::best();
        if self <= best { Ok(self) } else { Err(Error::UnsupportedIsa { isa: self, best }) }
    }
}

/// A floating-point type that lanes compute in.
pub trait Real: Copy + PartialEq + std::fmt::Debug + Send + Sync + 'static {
    /// The largest finite value.
    const MAX: f64;
    /// Lanes scaled to stay below this and above its inverse neither overflow nor meet subnormals in a map.
    const LIMIT: f64;
    /// As [`LIMIT`](Self::LIMIT), for the squares of such values, with room for what they are multiplied by.
    const SQUARE_LIMIT: f64;
    /// 1.5 times the power of two at which the type has integers only: adding it and subtracting it again rounds to the
    /// nearest integer.
    const ROUNDER: f64;
    /// A smaller argument of `exp` is cut to this, of which it is 0.
    const EXP_LIMIT: f64;
    /// ln 2 in two terms, the first short enough for its products with binary exponents to be exact.
    const LN_2: [f64; 2];
    /// The degree at which the series of `exp` to 0.35 is below a rounding.
    const EXP_DEGREE: usize;
    /// To the nearest.
    fn from_f64(v: f64) -> Self;
    /// Exact.
    fn to_f64(self) -> f64;
}

impl Real for f32 {
    const MAX: f64 = f32::MAX as f64;
    const LIMIT: f64 = f64::from_bits((1023 + 100) << 52); // 2^100
    const SQUARE_LIMIT: f64 = (1u64 << 40) as f64;
    const ROUNDER: f64 = (3u64 << 22) as f64;
    const EXP_LIMIT: f64 = -104.0;
    const LN_2: [f64; 2] = [355.0 / 512.0, -2.121_944_400_546_905_8e-4];
    const EXP_DEGREE: usize = 7;
    #[inline(always)]
    fn from_f64(v: f64) -> f32 {
        v as f32
    }
    #[inline(always)]
    fn to_f64(self) -> f64 {
        f64::from(self)
    }
}

impl Real for f64 {
    const MAX: f64 = f64::MAX;
    const LIMIT: f64 = f64::from_bits((1023 + 500) << 52); // 2^500
    const SQUARE_LIMIT: f64 = f64::from_bits((1023 + 300) << 52); // 2^300
    const ROUNDER: f64 = (3u64 << 51) as f64;
    const EXP_LIMIT: f64 = -746.0;
    const LN_2: [f64; 2] = [f64::from_bits(0x3fe6_2e42_fee0_0000), 1.908_214_929_270_587_7e-10];
    const EXP_DEGREE: usize = 13;
    #[inline(always)]
    fn from_f64(v: f64) -> f64 {
        v
    }
    #[inline(always)]
    fn to_f64(self) -> f64 {
        self
    }
}

/// One virtual vector register. Partial loads and stores touch the first `n` lanes' memory only.
///
/// # Safety (of the memory operations)
/// The caller guarantees that the lanes named can be read or written at `p`; no alignment is needed but for `stream`.
pub trait Vector: Copy {
    type Scalar: Real;
    /// f64 accumulators, one a lane, in lane order.
    type Wide: Copy;
    const LANES: usize;

    fn splat(v: Self::Scalar) -> Self;
    fn add(self, rhs: Self) -> Self;
    fn sub(self, rhs: Self) -> Self;
    fn mul(self, rhs: Self) -> Self;
    fn div(self, rhs: Self) -> Self;
    /// Lanes of `otherwise` where this is 0 or less, of `then` where it is more or NaN.
    fn if_positive(self, then: Self, otherwise: Self) -> Self;
    /// 2 to the power of lanes that hold integers, in the range of normal numbers.
    fn exp2(self) -> Self;
    /// e to the power of lanes, within four roundings.
    fn exp(self) -> Self;
    /// The first `n` lanes; zero in the others.
    fn first(self, n: usize) -> Self;

    unsafe fn load(p: *const Self::Scalar) -> Self;
    /// Zero in the lanes from `n` on.
    unsafe fn load_first(p: *const Self::Scalar, n: usize) -> Self;
    unsafe fn store(self, p: *mut Self::Scalar);
    unsafe fn store_first(self, p: *mut Self::Scalar, n: usize);
    /// A store that passes the caches by, where the tier has one. `p` must be aligned to [`STREAM_ALIGN`].
    unsafe fn stream(self, p: *mut Self::Scalar);

    /// Asks for the cache line at `p`, which may be any address, into L1 or else L2.
    fn prefetch<const L1: bool>(p: *const u8);

    fn wide_zero() -> Self::Wide;
    /// `acc + self`, lane by lane, in f64.
    fn accumulate(self, acc: Self::Wide) -> Self::Wide;
    /// Whether f64 holds the squares of lanes.
    const EXACT_SQUARES: bool = false;
    /// `acc` plus `self` and its square, lane by lane, in f64; the square is rounded only where f64 does not hold it.
    #[inline(always)]
    fn accumulate_squares(self, acc: [Self::Wide; 2]) -> [Self::Wide; 2] {
        [self.accumulate(acc[0]), self.mul(self).accumulate(acc[1])]
    }
    unsafe fn wide_load(p: *const f64) -> Self::Wide;
    unsafe fn wide_store(acc: Self::Wide, p: *mut f64);
    /// The sum of a vector's accumulators, in a fixed order: halves onto each other until one is left.
    #[inline(always)]
    fn wide_sum(acc: Self::Wide) -> f64 {
        let mut lanes = [0.0f64; MAX_LANES];
        const { assert!(Self::LANES <= MAX_LANES && Self::LANES.is_power_of_two()) };
        // SAFETY: `lanes` holds at least as many values as a vector has lanes.
        unsafe { Self::wide_store(acc, lanes.as_mut_ptr()) };
        let mut n = Self::LANES;
        while n > 1 {
            n /= 2;
            for i in 0..n {
                lanes[i] += lanes[i + n];
            }
        }
        lanes[0]
    }
}

/// The most lanes that a vector has.
pub(crate) const MAX_LANES: usize = 16;

/// Bytes to which the address of a streaming store must be aligned.
pub(crate) const STREAM_ALIGN: usize = 64;

/// One instruction set's vectors.
pub trait Simd: Sized + 'static {
    type F32: Vector<Scalar = f32> + HalfLanes;
    type F64: Vector<Scalar = f64>;

    /// The first 8 lanes as f64.
    fn widen(v: Self::F32) -> Self::F64;
    /// Orders streaming stores before everything that comes after, as other threads see it.
    fn fence();
}

/// Code to run in the context of an instruction set. `run` and all it calls must be `#[inline(always)]`: what is not
/// inlined into the `#[target_feature]` function is compiled without the feature.
pub(crate) trait Kernel {
    fn run<S: Simd>(self);
}

/// Runs a kernel with the code of `isa`, which must have passed [`Isa::check`].
pub(crate) fn dispatch<K: Kernel>(isa: Isa, kernel: K) {
    match isa {
        // SAFETY: every Isa in a plan has passed `Isa::check`, so this CPU has the feature.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => unsafe { avx512::enter(kernel) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => unsafe { avx2::enter(kernel) },
        _ => kernel.run::<portable::Portable>(),
    }
}
