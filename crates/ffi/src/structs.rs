//! The structs of the header that a caller keeps, and the types of its functions.

use std::ffi::c_void;

/// A part of a pass, to be called with an index and the arg that came with it.
pub type bn_task = unsafe extern "C" fn(arg: *mut c_void, index: usize);

/// The caller's own threads: calls task(arg, 0) to task(arg, n - 1), each once, on any threads and in any order, and
/// returns when all of them have returned. ctx is that of the plan. It must not throw or leave by longjmp, and may be
/// called by several threads at once where the plan is used so.
///
/// Indices that it leaves out or repeats are made good for; a task that starts after it has returned is not.
pub type bn_parallel_for = Option<unsafe extern "C" fn(ctx: *mut c_void, n: usize, task: bn_task, arg: *mut c_void)>;

/// An array that is read. The top of this header says of what type.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct bn_slice {
    /// The first element.
    pub data: *const c_void,
    /// Elements, not bytes.
    pub len: usize,
}

/// An array that is written. The top of this header says of what type.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct bn_slice_mut {
    /// The first element.
    pub data: *mut c_void,
    /// Elements, not bytes.
    pub len: usize,
}

/// An array of double, one a channel. It is only read where the struct that it is in is passed as const.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct bn_doubles {
    /// The first element.
    pub data: *mut f64,
    /// Elements, not bytes.
    pub len: usize,
}

/// What a plan is made from.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct bn_plan_desc {
    /// sizeof(bn_plan_desc).
    pub struct_size: usize,
    /// Blocks of channels: images, or pixels where channels come last.
    pub outer: usize,
    /// Channels, each with statistics of its own.
    pub channels: usize,
    /// Neighbouring elements of one channel: the size of a plane; 1 where channels come last.
    pub inner: usize,
    /// Added to the variance before its root is taken, >= 0; 1e-5 is usual.
    pub eps: f64,
    /// That of BN_ACTIVATION_LEAKY_RELU, >= 0; 0 for any other activation.
    pub slope: f64,
    /// BN_ELEMENT_
    pub element: i32,
    /// BN_ISA_
    pub isa: i32,
    /// BN_THREADS_
    pub threads: i32,
    /// BN_ACTIVATION_, in the same sweep: passes take the gradient of what comes after it.
    pub activation: i32,
    /// 0 for BN_THREADS_SEQUENTIAL; up to BN_MAX_POOL_THREADS for BN_THREADS_POOL, the calling thread among them, or 0
    /// for one a core; at least 1 for BN_THREADS_CALLER: how many parallel_for works on. With 1 nothing is split.
    pub thread_count: usize,
    /// For BN_THREADS_CALLER only.
    pub parallel_for: bn_parallel_for,
    /// Passed on to parallel_for.
    pub parallel_for_ctx: *mut c_void,
    /// Memory that passes need for per-channel arrays, the plan's alone until it is destroyed; or NULL, and the plan
    /// takes it from the heap. Any alignment.
    pub scratch: *mut c_void,
    /// At least what bn_scratch_bytes says, or 0. Where there is room for several calls, so many can use the plan at once
    /// without a call that allocates.
    pub scratch_bytes: usize,
}

/// Mean and biased variance of each channel over count values: what a pass learns about a batch, or a part of one.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct bn_statistics {
    /// sizeof(bn_statistics).
    pub struct_size: usize,
    /// Values per channel, or the sum of their weights.
    pub count: f64,
    /// The mean of each channel.
    pub mean: bn_doubles,
    /// The mean squared deviation of each channel.
    pub var: bn_doubles,
}

/// Sums over g = dy * act', the gradient before the activation, of a batch or a part of one: what the backward pass needs
/// to know of the whole.
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

/// Averages of mean and variance over the batches seen in training, for test time. They start with 0, 1 and no batches.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct bn_running_statistics {
    /// sizeof(bn_running_statistics).
    pub struct_size: usize,
    /// How many batches were averaged.
    pub batches: u64,
    /// The running mean of each channel.
    pub mean: bn_doubles,
    /// The running variance of each channel.
    pub var: bn_doubles,
    /// BN_VARIANCE_
    pub variance: i32,
    /// 0.
    pub reserved: i32,
}

/// A normalization with constant statistics: y = scale * x + shift.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct bn_scale_shift {
    /// sizeof(bn_scale_shift).
    pub struct_size: usize,
    /// What x of each channel is multiplied by.
    pub scale: bn_doubles,
    /// What is added then.
    pub shift: bn_doubles,
}
