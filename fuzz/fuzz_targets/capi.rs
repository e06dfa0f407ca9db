//! The C interface with arbitrary descriptors, lengths and pointers, in memory between two pages that nothing may touch:
//! no call crashes or panics, one that fails has written nothing, and one that succeeds has written its outputs only,
//! which do not overlap.
#![no_main]

#[allow(dead_code, unreachable_pub)]
#[path = "../../crates/capi/src/lib.rs"]
mod capi;

use arbitrary::Arbitrary;
use capi::descriptors::*;
use capi::fold::*;
use capi::passes::*;
use capi::plan::*;
use capi::statistics::*;
use capi::status::*;
use libfuzzer_sys::fuzz_target;
use std::ffi::c_void;
use std::mem::zeroed;
use std::ops::Range;
use std::ptr::{null_mut, with_exposed_provenance_mut};
use std::sync::LazyLock;

const PAGE: usize = 4096;
const BYTES: usize = 4 * PAGE;

/// Where `BYTES` of memory lie between two pages without access.
static MEMORY: LazyLock<usize> = LazyLock::new(|| {
    let (access, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    // SAFETY: a new mapping, of which the inner part is made accessible.
    unsafe {
        let first = libc::mmap(null_mut(), BYTES + 2 * PAGE, libc::PROT_NONE, flags, -1, 0);
        assert_ne!(first, libc::MAP_FAILED);
        let start = first.byte_add(PAGE);
        assert_eq!(libc::mprotect(start, BYTES, access), 0);
        start.expose_provenance()
    }
});

/// An integer that is right most of the time.
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

/// An array: where it lies, and what it says of its length.
#[derive(Arbitrary, Clone, Copy, Debug)]
enum Place {
    /// In the slot of its own, exactly at its end.
    Slot,
    SlotToo,
    /// Anywhere, at an offset in bytes.
    Anywhere(u16),
    /// As `Anywhere`, at a multiple of 8.
    Aligned(u16),
    /// Ending where the memory ends.
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
    reserved: [Tweak<i32>; 2],
    eps: Tweak<f64>,
    sizes: [Tweak<usize>; 4],
    nulls: u8,
    fill: f64,
    count: Tweak<f64>,
    /// The plan's own, or of the caller's as much as it takes, or so much.
    scratch: Option<Tweak<u16>>,
    arrays: [Layout; 10],
    running: bool,
    variance: Tweak<i32>,
    average: Tweak<i32>,
    momentum: Tweak<f64>,
    call: u8,
}

unsafe extern "C" fn parallel_for(_: *mut c_void, n: usize, task: bn_task, arg: *mut c_void) {
    for i in (0..n).rev() {
        // SAFETY: as the library asks for.
        unsafe { task(arg, i) };
    }
}

/// An array of `len` elements of `size` bytes. One of the right length lies in the memory; another may lie anywhere, since
/// the library must not touch it.
fn array(k: usize, layout: Layout, len: usize, size: usize) -> (*mut c_void, usize) {
    let (claimed, bytes) = (layout.len.or(len), len * size);
    let room = BYTES - bytes;
    let offset = match layout.place {
        Place::Absent => return (null_mut(), 0),
        Place::Null => return (null_mut(), claimed),
        Place::Wild(address) if claimed != len => return (with_exposed_provenance_mut(address), claimed),
        Place::Slot | Place::SlotToo | Place::Wild(_) => ((k + 1) * (BYTES / 10) - bytes).next_multiple_of(8).min(room),
        Place::Anywhere(offset) => usize::from(offset) % (room + 1),
        Place::Aligned(offset) => usize::from(offset) % (room + 1) / 8 * 8,
        Place::End => room,
    };
    (with_exposed_provenance_mut(*MEMORY + offset), claimed)
}

fuzz_target!(|input: Input| {
    let element = input.element.or(i32::from(input.fill < 0.0));
    let size = if element == BN_ELEMENT_F64 { 8 } else { 4 };
    // Small enough for ten arrays in ten slots; an extent without bounds makes no plan, or one whose arrays are empty.
    let [outer, channels, inner] = [0, 1, 2].map(|k| input.extent[k].or(usize::from(input.extents[k] % 5)));
    // A number of channels for which there may be memory would take it.
    let channels = if channels > 1 << 16 { channels | 1 << 60 } else { channels };
    let threads = input.threads.or(BN_THREADS_SEQUENTIAL);
    let caller = threads == BN_THREADS_CALLER;
    let mut desc = bn_plan_desc {
        struct_size: input.sizes[0].or(size_of::<bn_plan_desc>()),
        outer,
        channels,
        inner,
        eps: input.eps.or(1e-5),
        element,
        isa: input.isa.or(BN_ISA_BEST),
        threads,
        reserved: input.reserved[0].or(0),
        thread_count: usize::from(input.thread_count.or(u8::from(caller)) % 4),
        parallel_for: (caller != input.has_parallel_for).then_some(parallel_for),
        parallel_for_ctx: null_mut(),
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
    if status != BN_OK || len > 125 || channels > 125 {
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
    let lens = [len, len, len, channels, channels, channels, channels, channels, channels, channels];
    let sizes = [size, size, size, size, size, size, 8, 8, 8, 8];
    let arrays: [_; 10] = std::array::from_fn(|k| array(k, input.arrays[k], lens[k], sizes[k]));
    let [x, dy, _, gamma, _, _, ..] = arrays.map(|(data, len)| bn_slice { data, len });
    let [_, _, y, _, dgamma, dbeta, ..] = arrays.map(|(data, len)| bn_slice_mut { data, len });
    let [.., a, b, c, d] = arrays.map(|(data, len)| bn_doubles { data: data.cast(), len });
    // SAFETY: the structs of the header are zero by design: no pointer in them must not be null.
    let mut statistics: bn_statistics = unsafe { zeroed() };
    let (mut running, mut sums): (bn_running_statistics, bn_gradient_sums) =
        // SAFETY: as above.
        unsafe { (zeroed(), zeroed()) };
    statistics.struct_size = input.sizes[1].or(size_of_val(&statistics));
    (statistics.count, statistics.mean, statistics.var) = (input.count.or(5.0), a, b);
    running.struct_size = input.sizes[2].or(size_of_val(&running));
    (running.mean, running.var, running.variance) = (c, d, input.variance.or(BN_VARIANCE_BIASED));
    running.reserved = input.reserved[1].or(0);
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
        ($t:ident { $($field:ident: $value:expr),* }) => {
            $t { struct_size: input.sizes[3].or(size_of::<$t>()), $($field: $value),* }
        };
    }
    // The call, and which of the arrays it may write.
    // SAFETY: an array of the length that the plan asks for lies in the memory; structs are the size they say, or another.
    let (status, outputs): (i32, &[usize]) = unsafe {
        match input.call % 13 {
            0 => {
                let args = args!(bn_statistics_args { x: x, statistics: statistics_mut });
                (bn_compute_statistics(plan, &args), &[6, 7])
            }
            1 => {
                let (beta, statistics) = (gamma, statistics_mut);
                let args =
                    args!(bn_forward_training_args { x: x, gamma: gamma, beta: beta, y: y, statistics: statistics });
                (bn_forward_training(plan, &args), &[2, 6, 7])
            }
            2 => {
                let args = args!(bn_normalize_args {
                    x: x,
                    statistics: source,
                    running: averages,
                    gamma: gamma,
                    beta: gamma,
                    y: y
                });
                (bn_normalize(plan, &args), &[2])
            }
            3 => {
                let args = args!(bn_gradient_sums_args {
                    x: x,
                    dy: dy,
                    statistics: source,
                    running: averages,
                    sums: sums_mut
                });
                (bn_compute_gradient_sums(plan, &args), &[8, 9])
            }
            4 => {
                let args = args!(bn_input_gradient_args {
                    x: x,
                    dy: dy,
                    statistics: source,
                    sums: sums_mut,
                    gamma: gamma,
                    dx: y
                });
                (bn_input_gradient(plan, &args), &[2])
            }
            5 => {
                let args = args!(bn_parameter_gradients_args {
                    statistics: source,
                    running: averages,
                    sums: sums_mut,
                    dgamma: dgamma,
                    dbeta: dbeta
                });
                (bn_parameter_gradients(plan, &args), &[4, 5])
            }
            6 => {
                let args = args!(bn_backward_args {
                    x: x,
                    dy: dy,
                    statistics: source,
                    running: averages,
                    gamma: gamma,
                    dx: y,
                    dgamma: dgamma,
                    dbeta: dbeta
                });
                (bn_backward(plan, &args), &[2, 4, 5])
            }
            7 => {
                let mut other = statistics;
                (other.mean, other.var) = (c, d);
                (bn_merge_statistics(plan, statistics_mut, &other), &[6, 7])
            }
            8 => {
                let mut other = sums;
                (other.g, other.gx) = (a, b);
                (bn_merge_gradient_sums(plan, sums_mut, &other), &[8, 9])
            }
            9 => {
                let args = args!(bn_fold_args {
                    statistics: source,
                    running: averages,
                    gamma: gamma,
                    beta: gamma,
                    scale_shift: scale_shift_mut
                });
                (bn_fold(plan, &args), &[8, 9])
            }
            // Weights may have any number of rows, so theirs must be there.
            call @ (10 | 11) if arrays[2].1 == len && arrays[4].1 == channels => {
                let args = args!(bn_fold_layer_args { scale_shift: scale_shift_mut, weight: y, bias: dgamma });
                let fold = if call == 10 { bn_fold_preceding } else { bn_fold_following };
                (fold(plan, &args), &[2, 4])
            }
            _ => {
                let (average, momentum) = (input.average.or(0), input.momentum.or(0.1));
                (bn_update_running_statistics(plan, running_mut, statistics_mut, average, momentum), &[8, 9])
            }
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
