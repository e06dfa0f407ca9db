//! The values of the header's enums, and its limits.

/// float.
pub const BN_ELEMENT_F32: i32 = 0;
/// double.
pub const BN_ELEMENT_F64: i32 = 1;
/// bfloat16, the upper half of a float, stored as a uint16_t.
pub const BN_ELEMENT_BF16: i32 = 2;
/// IEEE 754 binary16, stored as a uint16_t.
pub const BN_ELEMENT_F16: i32 = 3;

/// act(z) = z.
pub const BN_ACTIVATION_IDENTITY: i32 = 0;
/// act(z) = max(z, 0).
pub const BN_ACTIVATION_RELU: i32 = 1;
/// act(z) = z if z is positive, slope * z otherwise.
pub const BN_ACTIVATION_LEAKY_RELU: i32 = 2;
/// act(z) = z / (1 + exp(-z)), also known as swish.
pub const BN_ACTIVATION_SILU: i32 = 3;

/// The fastest instruction set of this CPU.
pub const BN_ISA_BEST: i32 = 0;
/// The instruction set that the library was compiled for.
pub const BN_ISA_PORTABLE: i32 = 1;
/// 256-bit code for x86-64 with AVX2 and F16C.
pub const BN_ISA_AVX2: i32 = 2;
/// 512-bit code for x86-64 with AVX-512F.
pub const BN_ISA_AVX512: i32 = 3;

/// The calling thread.
pub const BN_THREADS_SEQUENTIAL: i32 = 0;
/// A pool of threads: of the plan's own, which end with it, or shared by several plans.
pub const BN_THREADS_POOL: i32 = 1;
/// The caller's own threads, through a bn_parallel_for.
pub const BN_THREADS_CALLER: i32 = 2;

/// The most threads of a pool.
pub const BN_MAX_POOL_THREADS: usize = 1024;

/// running = (1 - momentum) * running + momentum * batch: momentum is the weight of the new value.
pub const BN_AVERAGE_EXPONENTIAL: i32 = 0;
/// The plain average over all batches so far; momentum is not used.
pub const BN_AVERAGE_CUMULATIVE: i32 = 1;

/// Running variances are unbiased estimates of the population variance, with the divisor M - 1.
pub const BN_VARIANCE_UNBIASED: i32 = 0;
/// Running variances are those that batches are normalized with, with the divisor M.
pub const BN_VARIANCE_BIASED: i32 = 1;
