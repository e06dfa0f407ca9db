//! What kernels are written over: vectors, and the instruction sets that have them.

use super::half::HalfLanes;
use super::real::Real;

/// One virtual vector register. Partial loads and stores touch only the memory of the first `n` lanes.
///
/// # Safety (of the memory operations)
/// The caller guarantees that the named lanes can be read or written at `p`. Only `stream` needs alignment.
pub trait Vector: Copy {
    type Scalar: Real;
    /// f64 accumulators, one per lane, in lane order. Those of lanes of f64, which have no more bits than what is added
    /// to them, come with a second value each: what their roundings have lost.
    type Wide: Copy;
    const LANES: usize;

    fn splat(v: Self::Scalar) -> Self;
    fn add(self, rhs: Self) -> Self;
    fn sub(self, rhs: Self) -> Self;
    fn mul(self, rhs: Self) -> Self;
    fn div(self, rhs: Self) -> Self;
    /// `otherwise` in lanes in which `self` is 0 or less, `then` in lanes in which it is positive or NaN.
    fn if_positive(self, then: Self, otherwise: Self) -> Self;
    /// 2 to the power of each lane. Lanes are integers, and the result is a normal number.
    fn exp2(self) -> Self;
    /// e to the power of each lane, within four roundings.
    fn exp(self) -> Self;
    /// The first `n` lanes; zero in the others.
    fn first(self, n: usize) -> Self;

    unsafe fn load(p: *const Self::Scalar) -> Self;
    /// Zero in the lanes from `n` on.
    unsafe fn load_first(p: *const Self::Scalar, n: usize) -> Self;
    unsafe fn store(self, p: *mut Self::Scalar);
    unsafe fn store_first(self, p: *mut Self::Scalar, n: usize);
    /// A non-temporal store, which bypasses the caches, if the tier has one. `p` must be aligned to [`STREAM_ALIGN`].
    unsafe fn stream(self, p: *mut Self::Scalar);

    /// Prefetches the cache line at `p`, which may be any address, into L1, or into L2 only.
    fn prefetch<const L1: bool>(p: *const u8);

    fn wide_zero() -> Self::Wide;
    /// `acc + self`, lane by lane, in f64.
    fn accumulate(self, acc: Self::Wide) -> Self::Wide;
    /// The accumulators at `p`, and what was lost at `rests`; only lanes of f64 use the latter.
    unsafe fn wide_load(p: *const f64, rests: *const f64) -> Self::Wide;
    unsafe fn wide_store(acc: Self::Wide, p: *mut f64, rests: *mut f64);
    /// The sum of the accumulators, in a fixed order: the upper half is added to the lower until one value is left.
    #[inline(always)]
    fn wide_sum(acc: Self::Wide) -> f64 {
        let [mut lanes, mut rests] = [[0.0f64; MAX_LANES]; 2];
        const { assert!(Self::LANES <= MAX_LANES && Self::LANES.is_power_of_two()) };
        // SAFETY: the arrays hold at least as many values as a vector has lanes.
        unsafe { Self::wide_store(acc, lanes.as_mut_ptr(), rests.as_mut_ptr()) };
        let mut n = Self::LANES;
        while n > 1 {
            n /= 2;
            for i in 0..n {
                let lost;
                [lanes[i], lost] = two_sum(lanes[i], lanes[i + n]);
                rests[i] += rests[i + n] + lost;
            }
        }
        if size_of::<Self::Scalar>() == size_of::<f64>() { with_rest(lanes[0], rests[0]) } else { lanes[0] }
    }
    /// Adds `self` to the first of two vectors, and what the rounding loses to the second.
    #[inline(always)]
    fn add_to_both(self, [sum, rest]: [Self; 2]) -> [Self; 2] {
        let s = sum.add(self);
        let t = s.sub(sum);
        [s, rest.add(sum.sub(s.sub(t)).add(self.sub(t)))]
    }
}

/// The rounded sum of two values, and what the rounding loses. Knuth, The Art of Computer Programming 2, 4.2.2.
#[inline(always)]
pub(crate) fn two_sum(a: f64, b: f64) -> [f64; 2] {
    let s = a + b;
    let t = s - a;
    [s, (a - (s - t)) + (b - t)]
}

/// A sum with what its roundings have lost, which is not a number if the sum is infinite.
#[inline(always)]
pub(crate) fn with_rest(sum: f64, rest: f64) -> f64 {
    let both = sum + rest;
    if both.is_nan() { sum } else { both }
}

/// The most lanes that a vector has.
pub(crate) const MAX_LANES: usize = 16;

/// Bytes to which the address of a streaming store must be aligned.
pub(crate) const STREAM_ALIGN: usize = 64;

/// One instruction set's vectors.
pub trait Simd: Sized + 'static {
    type F32: Vector<Scalar = f32> + HalfLanes;
    type F64: Vector<Scalar = f64>;

    /// Whether `stream` is more than a store.
    const STREAMS: bool;
    /// Whether kernels are compiled plain and for ReLU. Otherwise passes run those of any variant, which ask for each
    /// vector what is fused, and are slower in cache.
    const ALL_KINDS: bool;

    /// The first 8 lanes as f64.
    fn widen(v: Self::F32) -> Self::F64;
    /// Orders streaming stores before everything that follows, as other threads see it.
    fn fence();
    /// Calls a kernel, compiled for this instruction set and not inlined: code that several kernels share, or that is
    /// seldom run, exists once.
    ///
    /// # Safety
    /// The CPU has the instruction set. A kernel that runs in this tier proves it.
    unsafe fn enter<K: Kernel>(kernel: K);
}

/// Code to run in the context of an instruction set. `run` and all it calls must be `#[inline(always)]`, except through
/// [`Simd::enter`]: what is not inlined into the `#[target_feature]` function is compiled without the feature.
pub trait Kernel {
    /// Whether a CPU with AVX-512 runs the code for AVX2: if 512 bits gain too little, or the kernel is run too seldom,
    /// to compile it again.
    const AVX2_SERVES: bool = false;
    fn run<S: Simd>(self);
}
