//! The structs and constants of the header, and how a struct is read.

use super::plan::bn_plan;
use super::status::{BN_ERROR_ALIGNMENT, BN_ERROR_ENUM, BN_ERROR_NULL, BN_ERROR_STRUCT_SIZE, Status, fail};
use std::ffi::c_void;

/// float.
pub const BN_ELEMENT_F32: i32 = 0;
/// double.
pub const BN_ELEMENT_F64: i32 = 1;
/// bfloat16, the upper half of a float, as a uint16_t.
pub const BN_ELEMENT_BF16: i32 = 2;
/// IEEE 754 binary16, as a uint16_t.
pub const BN_ELEMENT_F16: i32 = 3;

/// z.
pub const BN_ACTIVATION_IDENTITY: i32 = 0;
/// max(z, 0).
pub const BN_ACTIVATION_RELU: i32 = 1;
/// z where z is positive, slope * z elsewhere.
pub const BN_ACTIVATION_LEAKY_RELU: i32 = 2;
/// z / (1 + exp(-z)), also known as swish.
pub const BN_ACTIVATION_SILU: i32 = 3;

/// The fastest instruction set of this CPU.
pub const BN_ISA_BEST: i32 = 0;
/// What the library was compiled for.
pub const BN_ISA_PORTABLE: i32 = 1;
/// 256-bit code for x86-64 with AVX2, FMA and F16C.
pub const BN_ISA_AVX2: i32 = 2;
/// 512-bit code for x86-64 with AVX-512F.
pub const BN_ISA_AVX512: i32 = 3;

/// The thread that calls.
pub const BN_THREADS_SEQUENTIAL: i32 = 0;
/// Threads that belong to the plan and end with it.
pub const BN_THREADS_POOL: i32 = 1;
/// Those of the caller, by a bn_parallel_for.
pub const BN_THREADS_CALLER: i32 = 2;

/// The most threads that a plan can own.
pub const BN_MAX_POOL_THREADS: usize = 1024;

/// running = (1 - momentum) * running + momentum * batch: the momentum weighs the new value.
pub const BN_AVERAGE_EXPONENTIAL: i32 = 0;
/// The plain average over all batches so far; momentum is not used.
pub const BN_AVERAGE_CUMULATIVE: i32 = 1;

/// Running variances estimate the population's, over M - 1.
pub const BN_VARIANCE_UNBIASED: i32 = 0;
/// Running variances are those that batches are normalized with, over M.
pub const BN_VARIANCE_BIASED: i32 = 1;

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

/// Arguments of bn_compute_statistics.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct bn_statistics_args {
    /// sizeof(bn_statistics_args).
    pub struct_size: usize,
    /// Input.
    pub x: bn_slice,
    /// A weight for each position, finite and >= 0, or absent for 1. Where it is 0 nothing exists: outputs are 0.
    pub weights: bn_slice,
    /// Output.
    pub statistics: *mut bn_statistics,
}

/// Arguments of bn_forward_training.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct bn_forward_training_args {
    /// sizeof(bn_forward_training_args).
    pub struct_size: usize,
    /// Input.
    pub x: bn_slice,
    /// Per channel, or absent for 1.
    pub gamma: bn_slice,
    /// Per channel, or absent for 0.
    pub beta: bn_slice,
    /// Input: what is added before the activation, or absent.
    pub residual: bn_slice,
    /// A weight for each position, finite and >= 0, or absent for 1. Where it is 0 nothing exists: outputs are 0.
    pub weights: bn_slice,
    /// Output; may replace x.
    pub y: bn_slice_mut,
    /// Output: those of the batch.
    pub statistics: *mut bn_statistics,
}

/// Arguments of bn_normalize.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct bn_normalize_args {
    /// sizeof(bn_normalize_args).
    pub struct_size: usize,
    /// Input.
    pub x: bn_slice,
    /// Those of the batch that x is, or is a part of: this or running, the other NULL.
    pub statistics: *const bn_statistics,
    /// Averages from training.
    pub running: *const bn_running_statistics,
    /// Per channel, or absent for 1.
    pub gamma: bn_slice,
    /// Per channel, or absent for 0.
    pub beta: bn_slice,
    /// Input: what is added before the activation, or absent.
    pub residual: bn_slice,
    /// A weight for each position, finite and >= 0, or absent for 1. Where it is 0 nothing exists: outputs are 0.
    pub weights: bn_slice,
    /// Output; may replace x.
    pub y: bn_slice_mut,
}

/// Arguments of bn_compute_gradient_sums.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct bn_gradient_sums_args {
    /// sizeof(bn_gradient_sums_args).
    pub struct_size: usize,
    /// Input.
    pub x: bn_slice,
    /// Input: the gradient of y.
    pub dy: bn_slice,
    /// Those of the batch that x is, or is a part of: this or running, the other NULL.
    pub statistics: *const bn_statistics,
    /// Averages from training.
    pub running: *const bn_running_statistics,
    /// Per channel, where the activation's argument is computed again, or absent for 1.
    pub gamma: bn_slice,
    /// As gamma, or absent for 0.
    pub beta: bn_slice,
    /// That of the forward pass, or absent; read where the activation's argument is computed again.
    pub residual: bn_slice,
    /// y of the forward pass, or absent: ReLU and leaky ReLU take their derivative from its sign. Without it, and for SiLU,
    /// the activation's argument is computed again, from x, gamma, beta and the residual.
    pub output: bn_slice,
    /// Those of the forward pass, or absent.
    pub weights: bn_slice,
    /// Output.
    pub sums: *mut bn_gradient_sums,
}

/// Arguments of bn_input_gradient.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct bn_input_gradient_args {
    /// sizeof(bn_input_gradient_args).
    pub struct_size: usize,
    /// Input.
    pub x: bn_slice,
    /// Input: the gradient of y.
    pub dy: bn_slice,
    /// Those of the whole batch.
    pub statistics: *const bn_statistics,
    /// Those of the whole batch.
    pub sums: *const bn_gradient_sums,
    /// Per channel, or absent for 1.
    pub gamma: bn_slice,
    /// Per channel, where the activation's argument is computed again, or absent for 0.
    pub beta: bn_slice,
    /// That of the forward pass, or absent; read where the activation's argument is computed again.
    pub residual: bn_slice,
    /// y of the forward pass, or absent: ReLU and leaky ReLU take their derivative from its sign. Without it, and for SiLU,
    /// the activation's argument is computed again, from x, gamma, beta and the residual.
    pub output: bn_slice,
    /// Those of the forward pass, or absent.
    pub weights: bn_slice,
    /// Output: the gradient of x; may replace dy.
    pub dx: bn_slice_mut,
    /// Output: the gradient of the residual, or absent.
    pub dresidual: bn_slice_mut,
}

/// Arguments of bn_parameter_gradients.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct bn_parameter_gradients_args {
    /// sizeof(bn_parameter_gradients_args).
    pub struct_size: usize,
    /// Those that the sums were computed with: this or running, the other NULL.
    pub statistics: *const bn_statistics,
    /// Averages from training.
    pub running: *const bn_running_statistics,
    /// Input.
    pub sums: *const bn_gradient_sums,
    /// Output per channel, or absent.
    pub dgamma: bn_slice_mut,
    /// Output per channel, or absent.
    pub dbeta: bn_slice_mut,
}

/// Arguments of bn_backward.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct bn_backward_args {
    /// sizeof(bn_backward_args).
    pub struct_size: usize,
    /// Input.
    pub x: bn_slice,
    /// Input: the gradient of y.
    pub dy: bn_slice,
    /// Those of the batch, through which gradients flow: this or running, the other NULL.
    pub statistics: *const bn_statistics,
    /// Averages from training, which are constants.
    pub running: *const bn_running_statistics,
    /// Per channel, or absent for 1.
    pub gamma: bn_slice,
    /// Per channel, where the activation's argument is computed again, or absent for 0.
    pub beta: bn_slice,
    /// That of the forward pass, or absent; read where the activation's argument is computed again.
    pub residual: bn_slice,
    /// y of the forward pass, or absent: ReLU and leaky ReLU take their derivative from its sign. Without it, and for SiLU,
    /// the activation's argument is computed again, from x, gamma, beta and the residual.
    pub output: bn_slice,
    /// Those of the forward pass, or absent.
    pub weights: bn_slice,
    /// Output: the gradient of x, or absent; may replace dy.
    pub dx: bn_slice_mut,
    /// Output: the gradient of the residual, or absent.
    pub dresidual: bn_slice_mut,
    /// Output per channel, or absent.
    pub dgamma: bn_slice_mut,
    /// Output per channel, or absent.
    pub dbeta: bn_slice_mut,
}

/// Arguments of bn_forward_training_invertible.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct bn_forward_training_invertible_args {
    /// sizeof(bn_forward_training_invertible_args).
    pub struct_size: usize,
    /// Input, and output: y takes the place of x.
    pub x: bn_slice_mut,
    /// Per channel, or absent for 1.
    pub gamma: bn_slice,
    /// Per channel, or absent for 0.
    pub beta: bn_slice,
    /// Output: those of the batch.
    pub statistics: *mut bn_statistics,
}

/// Arguments of bn_backward_from_output.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct bn_backward_from_output_args {
    /// sizeof(bn_backward_from_output_args).
    pub struct_size: usize,
    /// Input: what the forward pass left.
    pub y: bn_slice,
    /// Input: the gradient of y.
    pub dy: bn_slice,
    /// Those of the batch.
    pub statistics: *const bn_statistics,
    /// Per channel, or absent for 1: that of the forward pass.
    pub gamma: bn_slice,
    /// Per channel, or absent for 0: that of the forward pass.
    pub beta: bn_slice,
    /// Output: the gradient of x, or absent.
    pub dx: bn_slice_mut,
    /// Output per channel, or absent.
    pub dgamma: bn_slice_mut,
    /// Output per channel, or absent.
    pub dbeta: bn_slice_mut,
}

/// Arguments of bn_double_backward. A cotangent is the gradient of a scalar with respect to what bn_backward made.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct bn_double_backward_args {
    /// sizeof(bn_double_backward_args).
    pub struct_size: usize,
    /// Input.
    pub x: bn_slice,
    /// Input: the gradient of y.
    pub dy: bn_slice,
    /// Those of the batch.
    pub statistics: *const bn_statistics,
    /// Per channel, or absent for 1.
    pub gamma: bn_slice,
    /// Input: with respect to dx.
    pub dx_cotangent: bn_slice,
    /// With respect to dgamma, per channel, or absent for 0.
    pub dgamma_cotangent: bn_slice,
    /// With respect to dbeta, per channel, or absent for 0.
    pub dbeta_cotangent: bn_slice,
    /// Output: the gradient of the scalar with respect to x, or absent.
    pub x_gradient: bn_slice_mut,
    /// Output: that with respect to dy, or absent.
    pub dy_gradient: bn_slice_mut,
    /// Output per channel: that with respect to gamma, or absent.
    pub gamma_gradient: bn_slice_mut,
}

/// Arguments of bn_fold.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct bn_fold_args {
    /// sizeof(bn_fold_args).
    pub struct_size: usize,
    /// Those of a batch: this or running, the other NULL.
    pub statistics: *const bn_statistics,
    /// Averages from training.
    pub running: *const bn_running_statistics,
    /// Per channel, or absent for 1.
    pub gamma: bn_slice,
    /// Per channel, or absent for 0.
    pub beta: bn_slice,
    /// Output.
    pub scale_shift: *mut bn_scale_shift,
}

/// Arguments of bn_fold_preceding and bn_fold_following.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct bn_fold_layer_args {
    /// sizeof(bn_fold_layer_args).
    pub struct_size: usize,
    /// Input.
    pub scale_shift: *const bn_scale_shift,
    /// Input and output: those of a linear or convolution layer.
    pub weight: bn_slice_mut,
    /// Input and output: one value an output; zeros for a layer that had none.
    pub bias: bn_slice_mut,
}

/// A `repr(C)` struct of plain fields that begins with its struct_size.
///
/// # Safety
/// It is that, and every bit pattern is a value of it.
pub(crate) unsafe trait Descriptor: Copy {}

macro_rules! descriptors {
    ($($t:ident)*) => {$(
        // SAFETY: the struct is repr(C), begins with struct_size, and has integers, floats and raw or nullable pointers.
        unsafe impl Descriptor for $t {}
    )*};
}
descriptors!(bn_plan_desc bn_statistics bn_gradient_sums bn_running_statistics bn_statistics_args
    bn_forward_training_args bn_normalize_args bn_gradient_sums_args bn_input_gradient_args bn_parameter_gradients_args
    bn_backward_args bn_forward_training_invertible_args bn_backward_from_output_args bn_double_backward_args
    bn_scale_shift bn_fold_args bn_fold_layer_args);

/// That a pointer is neither NULL nor misaligned.
pub(crate) fn check_pointer<T>(name: &str, p: *const T) -> Result<(), Status> {
    if p.is_null() {
        return Err(fail(BN_ERROR_NULL, format_args!("{name} is NULL")));
    }
    if !p.is_aligned() {
        let expected = align_of::<T>();
        return Err(fail(
            BN_ERROR_ALIGNMENT,
            format_args!("{name} is misaligned: expected {expected} bytes, got {p:p}"),
        ));
    }
    Ok(())
}

/// A copy of a struct, if its size is that of the library's.
///
/// # Safety
/// Where `p` is not NULL and aligned, a usize can be read from it and, if that is the struct's size, the struct.
pub(crate) unsafe fn read<T: Descriptor>(name: &str, p: *const T) -> Result<T, Status> {
    check_pointer(name, p)?;
    // SAFETY: the caller's promise; a descriptor begins with a usize.
    let size = unsafe { p.cast::<usize>().read() };
    if size != size_of::<T>() {
        let expected = size_of::<T>();
        return Err(fail(
            BN_ERROR_STRUCT_SIZE,
            format_args!("{name} has the wrong struct_size: expected {expected} bytes, got {size}"),
        ));
    }
    // SAFETY: the caller's promise, with the size that was expected.
    Ok(unsafe { p.read() })
}

/// The plan behind a handle.
///
/// # Safety
/// Where it is not NULL and aligned, it came from `bn_plan_create` and was not destroyed; it is not while the result lives.
pub(crate) unsafe fn plan<'a>(handle: *const bn_plan) -> Result<&'a bn_plan, Status> {
    check_pointer("plan", handle)?;
    // SAFETY: the caller's promise.
    Ok(unsafe { &*handle })
}

/// That a reserved field is 0.
pub(crate) fn check_reserved(name: &str, value: i32) -> Result<(), Status> {
    if value == 0 {
        Ok(())
    } else {
        Err(fail(BN_ERROR_ENUM, format_args!("{name} is reserved: expected 0, got {value}")))
    }
}

/// One of an enum's values.
pub(crate) fn choose<T: Copy>(name: &str, value: i32, values: &[T]) -> Result<T, Status> {
    usize::try_from(value).ok().and_then(|i| values.get(i)).copied().ok_or_else(|| {
        let last = values.len() - 1;
        fail(BN_ERROR_ENUM, format_args!("{name} is out of range: expected 0 to {last}, got {value}"))
    })
}
