//! The structs of the header that a caller keeps between calls, and its function types.

use batchnorm::ThreadPool;
use std::ffi::c_void;
use std::sync::Arc;

/// One task of a pass, to be called with an index and with the arg that parallel_for was given.
pub type bn_task = unsafe extern "C" fn(arg: *mut c_void, index: usize);

/// Runs a loop on the caller's own threads: calls task(arg, 0) to task(arg, n - 1), each once, on any threads and in
/// any order, and returns when all of them have returned. ctx is the plan's parallel_for_ctx. The function must not
/// throw or leave by longjmp. If several threads use a plan at once, they may also call this function at once.
///
/// Indices that it skips are run by the library, and repeated ones are ignored. But no task may start after the
/// function has returned.
pub type bn_parallel_for = Option<unsafe extern "C" fn(ctx: *mut c_void, n: usize, task: bn_task, arg: *mut c_void)>;

/// Threads that plans share. Each plan has a reference, so that a pool may be destroyed before its plans.
pub struct bn_pool(pub(crate) Arc<ThreadPool>);

/// An array that is read. The top of this header says which element type it has.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct bn_slice {
    /// The first element.
    pub data: *const c_void,
    /// The number of elements, not of bytes.
    pub len: usize,
}

/// An array that is written. The top of this header says which element type it has.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct bn_slice_mut {
    /// The first element.
    pub data: *mut c_void,
    /// The number of elements, not of bytes.
    pub len: usize,
}

/// An array of double with one element per channel. It is not written if the struct that contains it is passed as
/// const.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct bn_doubles {
    /// The first element.
    pub data: *mut f64,
    /// The number of elements, not of bytes.
    pub len: usize,
}

/// An array of float with one element per channel. It is not written if the struct that contains it is passed as const.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct bn_floats {
    /// The first element.
    pub data: *mut f32,
    /// The number of elements, not of bytes.
    pub len: usize,
}

/// The description from which a plan is made.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct bn_plan_desc {
    /// sizeof(bn_plan_desc).
    pub struct_size: usize,
    /// The number of blocks of channels: images, or pixels if channels come last.
    pub outer: usize,
    /// The number of channels. Each has its own statistics.
    pub channels: usize,
    /// The number of neighbouring elements of one channel: the size of a plane, or 1 if channels come last.
    pub inner: usize,
    /// Added to the variance before the square root, >= 0; 1e-5 is usual.
    pub eps: f64,
    /// The slope of BN_ACTIVATION_LEAKY_RELU, >= 0; 0 for any other activation.
    pub slope: f64,
    /// BN_ELEMENT_
    pub element: i32,
    /// BN_ISA_
    pub isa: i32,
    /// BN_THREADS_
    pub threads: i32,
    /// BN_ACTIVATION_, applied in the same sweep. Backward passes start from the gradient of the activation's result.
    pub activation: i32,
    /// For BN_THREADS_SEQUENTIAL 0. For BN_THREADS_POOL 0 if pool is given; otherwise at most BN_MAX_POOL_THREADS,
    /// including the calling thread, or 0 for one thread per core. For BN_THREADS_CALLER at least 1: the number of
    /// threads that parallel_for uses. With 1, the work is not split.
    pub thread_count: usize,
    /// For BN_THREADS_CALLER only.
    pub parallel_for: bn_parallel_for,
    /// Passed to parallel_for.
    pub parallel_for_ctx: *mut c_void,
    /// For BN_THREADS_POOL: a pool to share with other plans, or NULL for threads of the plan's own.
    pub pool: *const bn_pool,
    /// Memory that passes need for per-channel arrays, of any alignment. Only the plan may use it until the plan is
    /// destroyed. If it is NULL, the plan allocates its own from the heap.
    pub scratch: *mut c_void,
    /// At least the result of bn_scratch_bytes, or 0 if scratch is NULL. If there is enough for several calls, that
    /// many can use the plan at once without allocating.
    pub scratch_bytes: usize,
}

/// Mean and biased variance of each channel over count values: what a pass computes from a batch or from a part of one.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct bn_statistics {
    /// sizeof(bn_statistics).
    pub struct_size: usize,
    /// The number of values per channel, or the sum of their weights.
    pub count: f64,
    /// The mean of each channel.
    pub mean: bn_doubles,
    /// The mean squared deviation of each channel.
    pub var: bn_doubles,
}

/// Sums over g = dy * act', the gradient before the activation, of a batch or of a part of one. The backward pass needs
/// those of the whole batch.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct bn_gradient_sums {
    /// sizeof(bn_gradient_sums).
    pub struct_size: usize,
    /// The sum of g of each channel.
    pub g: bn_doubles,
    /// The sum of g * (x - mean) of each channel.
    pub gx: bn_doubles,
}

/// Averages of mean and variance over the batches seen in training, for inference. They start with a mean of 0, a
/// variance of 1 and 0 batches.
///
/// Their arrays are mean and var, or float_mean and float_var; the other two are absent. Floats are converted to double
/// for a call, which allocates two doubles per channel. An update computes in double, and then rounds the averages to
/// float once: by up to 2^-24, relative to the average. Over many updates these errors add up to 2^-24 / momentum, and
/// over N batches of BN_AVERAGE_CUMULATIVE to 2^-25 * (N + 1); a change that is smaller than a rounding is lost. The
/// error of the mean enters y times |gamma| / sqrt(var + eps), so that of y grows with |mean| / sqrt(var), even if the
/// mean was rounded only once. Doubles cost none of this.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct bn_running_statistics {
    /// sizeof(bn_running_statistics).
    pub struct_size: usize,
    /// The number of batches averaged so far.
    pub batches: u64,
    /// The running mean of each channel, or absent if float_mean is given.
    pub mean: bn_doubles,
    /// The running variance of each channel, or absent if float_var is given.
    pub var: bn_doubles,
    /// BN_VARIANCE_
    pub variance: i32,
    /// 0.
    pub reserved: i32,
    /// The running mean of each channel, or absent if mean is given.
    pub float_mean: bn_floats,
    /// The running variance of each channel, or absent if var is given.
    pub float_var: bn_floats,
}

/// A normalization with constant statistics: y = scale * x + shift.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct bn_scale_shift {
    /// sizeof(bn_scale_shift).
    pub struct_size: usize,
    /// The factor of each channel.
    pub scale: bn_doubles,
    /// The shift of each channel, added after scaling.
    pub shift: bn_doubles,
}
