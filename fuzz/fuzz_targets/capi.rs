//! The C interface with arbitrary descriptors, lengths and pointers, in memory between two inaccessible pages: no call
//! crashes or panics, one that fails writes nothing, and one that succeeds writes only its outputs, which do not
//! overlap.
#![no_main]

use arbitrary::Arbitrary;
use batchnorm_ffi::*;
use libfuzzer_sys::fuzz_target;
use std::ffi::c_void;
use std::mem::zeroed;
use std::ops::Range;
use std::ptr::{null, null_mut, with_exposed_provenance_mut};
use std::sync::LazyLock;

const PAGE: usize = 4096;
const BYTES: usize = 6 * PAGE;
/// The number of arrays of all calls, each with a slot of its own.
const ARRAYS: usize = 16;

/// The address of `BYTES` of memory between two inaccessible pages.
static MEMORY: LazyLock<usize> = LazyLock::new(|| {
    let (access, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    // SAFETY: the mapping is new, and its inner part is made accessible.
    unsafe {
        let first = libc::mmap(null_mut(), BYTES + 2 * PAGE, libc::PROT_NONE, flags, -1, 0);
        assert_ne!(first, libc::MAP_FAILED);
        let start = first.byte_add(PAGE);
        assert_eq!(libc::mprotect(start, BYTES, access), 0);
        start.expose_provenance()
    }
});

/// A value that is right most of the time.
#[derive(Arbitrary, Clone, Copy, Debug)]
enum Tweak<T> {
    Right,
    RightToo,
    AlsoRight,
    Wrong(T),
}

impl<T> Tweak<T> {
    fn map<U>(self, f: impl FnOnce(T) -> U) -> Tweak<U> {
        if let Self::Wrong(value) = self { Tweak::Wrong(f(value)) } else { Tweak::Right }
    }

    fn or(self, right: T) -> T {
        if let Self::Wrong(value) = self { value } else { right }
    }
}

/// The place of an array, and the length that it claims.
#[derive(Arbitrary, Clone, Copy, Debug)]
enum Place {
    /// At the end of its own slot.
    Slot,
    SlotToo,
    /// Anywhere, at an offset in bytes.
    Anywhere(u16),
    /// Like `Anywhere`, at a multiple of 8.
    Aligned(u16),
    /// At the end of the memory.
    End,
    Absent,
    Null,
    Wild(usize),
}

#[derive(Arbitrary, Clone, Copy, Debug)]
struct Layout {
    place: Place,
    len: Tweak<usize>,
}

#[derive(Arbitrary, Debug)]
struct Input {
    extents: [u8; 3],
    extent: [Tweak<usize>; 3],
    element: Tweak<i32>,
    isa: Tweak<i32>,
    threads: Tweak<i32>,
    thread_count: Tweak<u8>,
    has_parallel_for: bool,
    reserved: Tweak<i32>,
    eps: Tweak<f64>,
    activation: Tweak<i32>,
    slope: Tweak<f64>,
    sizes: [Tweak<usize>; 4],
    nulls: u8,
    fill: f64,
    count: Tweak<f64>,
    /// The plan's own memory, or as much of the caller's as it needs, or this much.
    scratch: Option<Tweak<u16>>,
    arrays: [Layout; ARRAYS],
    running: bool,
    variance: Tweak<i32>,
    average: Tweak<i32>,
    momentum: Tweak<f64>,
    call: u8,
}

unsafe extern "C" fn parallel_for(_: *mut c_void, n: usize, task: bn_task, arg: *mut c_void) {
    for i in (0..n).rev() {
        // SAFETY: the library guarantees that `task` may be called with `arg` and every index below n.
        unsafe { task(arg, i) };
    }
}

/// An array of `len` elements of `size` bytes. One that claims the right length lies in the memory; another may lie
/// anywhere, since the library must not touch it.
fn array(k: usize, layout: Layout, len: usize, size: usize) -> (*mut c_void, usize) {
    let (claimed, bytes) = (layout.len.or(len), len * size);
    let room = BYTES - bytes;
    let offset = match layout.place {
        Place::Absent => return (null_mut(), 0),
        Place::Null => return (null_mut(), claimed),
        Place::Wild(address) if claimed != len => return (with_exposed_provenance_mut(address), claimed),
        Place::Slot | Place::SlotToo | Place::Wild(_) => {
            ((k + 1) * (BYTES / ARRAYS) - bytes).next_multiple_of(8).min(room)
        }
        Place::Anywhere(offset) => usize::from(offset) % (room + 1),
        Place::Aligned(offset) => usize::from(offset) % (room + 1) / 8 * 8,
        Place::End => room,
    };
    (with_exposed_provenance_mut(*MEMORY + offset), claimed)
}

fuzz_target!(|input: Input| {
    let element = input.element.or(i32::from(input.call / 32 % 4));
    let (e, p) = match element {
        BN_ELEMENT_F64 => (8, 8),
        BN_ELEMENT_F32 => (4, 4),
        _ => (2, 4),
    };
    let activation = input.activation.or(i32::from(input.nulls / 8 % 4));
    let slope = input.slope.or(if activation == BN_ACTIVATION_LEAKY_RELU { 0.25 } else { 0.0 });
    // Small enough for all arrays to fit in their slots. An arbitrary extent gives no plan, or one with empty arrays.
    let [outer, channels, inner] = [0, 1, 2].map(|k| input.extent[k].or(usize::from(input.extents[k] % 5)));
    // Otherwise a large number of channels might fit in the machine's memory, and take it.
    let channels = if channels > 1 << 16 { channels | 1 << 60 } else { channels };
    let threads = input.threads.or(BN_THREADS_SEQUENTIAL);
    let caller = threads == BN_THREADS_CALLER;
    let mut desc = bn_plan_desc {
        struct_size: input.sizes[0].or(size_of::<bn_plan_desc>()),
        outer,
        channels,
        inner,
        eps: input.eps.or(1e-5),
        slope,
        element,
        isa: input.isa.or(BN_ISA_BEST),
        threads,
        activation,
        thread_count: usize::from(input.thread_count.or(u8::from(caller)) % 4),
        parallel_for: (caller != input.has_parallel_for).then_some(parallel_for),
        parallel_for_ctx: null_mut(),
        pool: null(),
        scratch: null_mut(),
        scratch_bytes: 0,
    };
    let mut scratch = Vec::<u8>::new();
    let mut needed = 0;
    // SAFETY: pointers to a descriptor and to room for a number.
    let bytes_status = unsafe { bn_scratch_bytes(&desc, 1, &mut needed) };
    assert_ne!(bytes_status, BN_ERROR_INTERNAL);
    let given = input.scratch.filter(|_| bytes_status == BN_OK && needed < 1 << 24);
    if let Some(tweak) = given {
        scratch.resize(tweak.map(usize::from).or(needed), 0xff);
        (desc.scratch, desc.scratch_bytes) = (scratch.as_mut_ptr().cast(), scratch.len());
    }
    let mut plan = null_mut();
    // SAFETY: pointers to a descriptor and to room for a plan.
    let status = unsafe { bn_plan_create(&desc, &mut plan) };
    if status == BN_OK || status == BN_ERROR_OUT_OF_MEMORY {
        assert_eq!(bytes_status, BN_OK);
    } else if bytes_status == BN_OK {
        assert!(status == BN_ERROR_LENGTH && given.is_some() && scratch.len() < needed);
    }
    assert_ne!(status, BN_ERROR_INTERNAL);
    assert_eq!(status == BN_OK, !plan.is_null());
    let len = outer.saturating_mul(channels).saturating_mul(inner);
    let positions = outer.saturating_mul(inner);
    if status != BN_OK || len.max(channels).max(positions) > 125 {
        // SAFETY: the plan was made above, or is null.
        assert_eq!(unsafe { bn_plan_destroy(plan) }, BN_OK);
        return;
    }

    let memory: *mut u8 = with_exposed_provenance_mut(*MEMORY);
    // SAFETY: nothing else uses the memory here.
    let bytes = || unsafe { std::slice::from_raw_parts(memory, BYTES) };
    for k in 0..BYTES / 8 {
        // SAFETY: within the memory, which is aligned to pages.
        unsafe { memory.cast::<f64>().add(k).write(input.fill + (k % 7) as f64) };
    }
    let before = bytes().to_vec();
    // Running statistics of float take the place of those of double.
    let floats = input.nulls & 32 != 0 && matches!(input.call % 16, 2 | 6 | 15);
    let d8 = if floats { 4 } else { 8 };
    // The first 6 and the last 6 are of elements or parameters; each call below names those that it may write.
    let n = channels;
    let lens = [len, len, len, n, n, n, n, n, n, n, len, len, len, positions, n, len];
    let sizes = [e, e, e, p, p, p, 8, 8, d8, d8, e, e, e, p, p, e];
    let arrays: [_; ARRAYS] = std::array::from_fn(|k| array(k, input.arrays[k], lens[k], sizes[k]));
    let inputs = [0, 1, 3, 10, 11, 13, 14].map(|k| bn_slice { data: arrays[k].0, len: arrays[k].1 });
    let [x, dy, gamma, residual, output, weights, beta] = inputs;
    let outputs = [2, 4, 5, 12, 15].map(|k| bn_slice_mut { data: arrays[k].0, len: arrays[k].1 });
    let [y, dgamma, dbeta, dresidual, dy_gradient] = outputs;
    let [a, b, c, d] = [6, 7, 8, 9].map(|k| bn_doubles { data: arrays[k].0.cast(), len: arrays[k].1 });
    // SAFETY: zero is a valid value of all structs of the header: every pointer in them may be null.
    let mut statistics: bn_statistics = unsafe { zeroed() };
    let (mut running, mut sums): (bn_running_statistics, bn_gradient_sums) =
        // SAFETY: as above.
        unsafe { (zeroed(), zeroed()) };
    statistics.struct_size = input.sizes[1].or(size_of_val(&statistics));
    (statistics.count, statistics.mean, statistics.var) = (input.count.or(5.0), a, b);
    running.struct_size = input.sizes[2].or(size_of_val(&running));
    if floats {
        let [c, d] = [8, 9].map(|k| bn_floats { data: arrays[k].0.cast(), len: arrays[k].1 });
        (running.float_mean, running.float_var) = (c, d);
    } else {
        (running.mean, running.var) = (c, d);
    }
    running.variance = input.variance.or(BN_VARIANCE_BIASED);
    running.reserved = input.reserved.or(0);
    sums.struct_size = input.sizes[1].or(size_of_val(&sums));
    (sums.g, sums.gx) = (c, d);
    // SAFETY: as above.
    let mut scale_shift: bn_scale_shift = unsafe { zeroed() };
    scale_shift.struct_size = input.sizes[1].or(size_of_val(&scale_shift));
    (scale_shift.scale, scale_shift.shift) = (c, d);
    let given = |bit: u8| input.nulls & bit == 0;
    let statistics_mut = if given(1) { &raw mut statistics } else { null_mut() };
    let sums_mut = if given(2) { &raw mut sums } else { null_mut() };
    let scale_shift_mut = if given(2) { &raw mut scale_shift } else { null_mut() };
    let running_mut = if given(4) { &raw mut running } else { null_mut() };
    let source = if input.running { (null_mut(), running_mut) } else { (statistics_mut, null_mut()) };
    let (source, averages) = (source.0.cast_const(), source.1.cast_const());
    let counts = (statistics.count.to_bits(), running.batches);

    macro_rules! args {
        ($t:ident { $($field:ident $(: $value:expr)?),* }) => {
            $t { struct_size: input.sizes[3].or(size_of::<$t>()), $($field $(: $value)?),* }
        };
    }
    // The call, and which of the arrays it may write.
    // SAFETY: an array that claims the length that the plan expects lies in the memory; structs have the size that they
    // claim, or claim another one, which the library rejects.
    let (status, outputs): (i32, &[usize]) = unsafe {
        match input.call % 16 {
            0 => {
                let args = args!(bn_statistics_args { x, weights, statistics: statistics_mut });
                (bn_compute_statistics(plan, &args), &[6, 7])
            }
            1 => {
                let args = args!(bn_forward_training_args {
                    x,
                    gamma,
                    beta,
                    residual,
                    weights,
                    y,
                    statistics: statistics_mut
                });
                (bn_forward_training(plan, &args), &[2, 6, 7])
            }
            2 => {
                let args = args!(bn_normalize_args {
                    x,
                    statistics: source,
                    running: averages,
                    gamma,
                    beta,
                    residual,
                    weights,
                    y
                });
                (bn_normalize(plan, &args), &[2])
            }
            3 => {
                let args = args!(bn_gradient_sums_args {
                    x,
                    dy,
                    statistics: source,
                    running: averages,
                    gamma,
                    beta,
                    residual,
                    output,
                    weights,
                    sums: sums_mut
                });
                (bn_compute_gradient_sums(plan, &args), &[8, 9])
            }
            4 => {
                let args = args!(bn_input_gradient_args {
                    x,
                    dy,
                    statistics: source,
                    sums: sums_mut,
                    gamma,
                    beta,
                    residual,
                    output,
                    weights,
                    dx: y,
                    dresidual
                });
                (bn_input_gradient(plan, &args), &[2, 12])
            }
            5 => {
                let args = args!(bn_parameter_gradients_args {
                    statistics: source,
                    running: averages,
                    sums: sums_mut,
                    dgamma,
                    dbeta
                });
                (bn_parameter_gradients(plan, &args), &[4, 5])
            }
            6 => {
                let args = args!(bn_backward_args {
                    x,
                    dy,
                    statistics: source,
                    running: averages,
                    gamma,
                    beta,
                    residual,
                    output,
                    weights,
                    dx: y,
                    dresidual,
                    dgamma,
                    dbeta
                });
                (bn_backward(plan, &args), &[2, 4, 5, 12])
            }
            // Calls without a plan take the number of channels from an array, whose length must be right.
            7 if a.len == channels => {
                let mut other = statistics;
                (other.mean, other.var) = (c, d);
                (bn_merge_statistics(statistics_mut, &other), &[6, 7])
            }
            8 if c.len == channels => {
                let mut other = sums;
                (other.g, other.gx) = (a, b);
                (bn_merge_gradient_sums(sums_mut, &other), &[8, 9])
            }
            9 => {
                let args = args!(bn_fold_args {
                    statistics: source,
                    running: averages,
                    gamma,
                    beta,
                    scale_shift: scale_shift_mut
                });
                (bn_fold(plan, &args), &[8, 9])
            }
            12 => {
                let args = args!(bn_forward_training_invertible_args { x: y, gamma, beta, statistics: statistics_mut });
                (bn_forward_training_invertible(plan, &args), &[2, 6, 7])
            }
            13 => {
                let args = args!(bn_backward_from_output_args {
                    y: x,
                    dy,
                    statistics: source,
                    gamma,
                    beta,
                    dx: y,
                    dgamma,
                    dbeta
                });
                (bn_backward_from_output(plan, &args), &[2, 4, 5])
            }
            14 => {
                let args = args!(bn_double_backward_args {
                    x,
                    dy,
                    statistics: source,
                    running: averages,
                    gamma,
                    dx_cotangent: residual,
                    dgamma_cotangent: beta,
                    dbeta_cotangent: beta,
                    x_gradient: y,
                    dy_gradient,
                    gamma_gradient: dgamma
                });
                (bn_double_backward(plan, &args), &[2, 4, 15])
            }
            // The weights of a layer may have any number of rows, so the claimed length must be right: they take the
            // place of an activation, if elements are as large as parameters.
            call @ (10 | 11) if e == p && arrays[2].1 == len && arrays[4].1 == channels => {
                let args = args!(bn_fold_layer_args { scale_shift: scale_shift_mut, weight: y, bias: dgamma });
                let transposed = args!(bn_fold_transposed_args {
                    scale_shift: scale_shift_mut,
                    weight: y,
                    bias: dgamma,
                    inputs: outer,
                    groups: usize::from(input.extents[0])
                });
                let status = match (call, input.running) {
                    (10, false) => bn_fold_preceding(plan, &args),
                    (10, true) => bn_fold_preceding_transposed(plan, &transposed),
                    (_, false) => bn_fold_following(plan, &args),
                    (_, true) => bn_fold_following_transposed(plan, &args),
                };
                (status, &[2, 4])
            }
            _ if a.len == channels => {
                let (average, momentum) = (input.average.or(0), input.momentum.or(0.1));
                (bn_update_running_statistics(running_mut, statistics_mut, average, momentum), &[8, 9])
            }
            _ => (BN_OK, &[]),
        }
    };
    assert_ne!(status, BN_ERROR_INTERNAL);
    let written: Vec<Range<usize>> = match status {
        BN_OK => outputs
            .iter()
            .filter(|&&k| arrays[k].1 > 0)
            .map(|&k| (arrays[k].0.addr() - *MEMORY, arrays[k].1 * sizes[k]))
            .map(|(start, bytes)| start..start + bytes)
            .collect(),
        _ => {
            assert_eq!((statistics.count.to_bits(), running.batches), counts);
            Vec::new()
        }
    };
    for (i, a) in written.iter().enumerate() {
        assert!(written[..i].iter().all(|b| a.end <= b.start || b.end <= a.start), "outputs overlap");
    }
    for (i, (now, then)) in bytes().iter().zip(&before).enumerate() {
        assert!(now == then || written.iter().any(|w| w.contains(&i)), "byte {i} was written");
    }
    // SAFETY: the plan was made above.
    assert_eq!(unsafe { bn_plan_destroy(plan) }, BN_OK);
});
