//! The handle.

use crate::constants::BN_ISA_PORTABLE;
use crate::read::{check_pointer, choose, read};
use crate::status::{BN_ERROR_LENGTH, BN_ERROR_NULL, BN_ERROR_OUT_OF_MEMORY, BN_ERROR_SLOPE, Status, fail, guard};
use crate::structs::bn_plan_desc;
use crate::threads::{Start, threads};
use batchnorm::{Activation, BatchNorm, Isa, Shape};
use std::mem::MaybeUninit;

/// A plan: a shape, how to normalize it and where to run. It does not change once it is made.
pub struct bn_plan {
    pub(crate) batch_norm: BatchNorm,
    /// The `BN_ELEMENT_`.
    pub(crate) element: usize,
    /// Where the caller's scratch memory starts and ends, if it is the caller's.
    pub(crate) given_scratch: Option<(usize, usize)>,
    /// Else that of the plan. It goes after `batch_norm`, which uses it.
    _scratch: Vec<u8>,
}

/// How many there are of `BN_ELEMENT_`.
pub(crate) const ELEMENTS: usize = 4;

impl bn_plan {
    pub(crate) fn channels(&self) -> usize {
        self.batch_norm.shape().channels()
    }
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

/// What a descriptor says, but for scratch memory.
fn describe(desc: &bn_plan_desc, start: Start) -> Result<(BatchNorm, usize), Status> {
    let element = choose("desc.element", desc.element, &std::array::from_fn::<_, ELEMENTS, _>(|element| element))?;
    let isas = [Isa::best(), Isa::Portable, Isa::Avx2, Isa::Avx512];
    let isa = choose("desc.isa", desc.isa, &isas)?;
    let leaky_relu = Activation::LeakyRelu(desc.slope);
    let activations = [Activation::Identity, Activation::Relu, leaky_relu, Activation::Silu];
    let activation = choose("desc.activation", desc.activation, &activations)?;
    if desc.slope != 0.0 && !matches!(activation, Activation::LeakyRelu(_)) {
        let message = format_args!("desc.slope is not that of a leaky ReLU: expected 0, got {}", desc.slope);
        return Err(fail(BN_ERROR_SLOPE, message));
    }
    let shape = Shape::new(desc.outer, desc.channels, desc.inner)?;
    let batch_norm = BatchNorm::new(shape).eps(desc.eps)?.activation(activation)?.isa(isa)?;
    Ok((batch_norm.threads(threads(desc, start)?), element))
}

/// Makes a plan, and where desc is wrong leaves *plan as it is.
///
/// desc and what it points to are not needed any more once this has returned, but for scratch, parallel_for and its ctx.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bn_plan_create(desc: *const bn_plan_desc, plan: *mut *mut bn_plan) -> i32 {
    guard(|| {
        // SAFETY: the caller has a descriptor there.
        let desc = unsafe { read("desc", desc)? };
        check_pointer("plan", plan)?;
        let (data, bytes) = (desc.scratch.cast::<MaybeUninit<u8>>(), desc.scratch_bytes);
        if data.is_null() && bytes > 0 {
            return Err(fail(BN_ERROR_NULL, format_args!("desc.scratch is NULL: expected {bytes} bytes")));
        }
        let end = Some(bytes).filter(|&bytes| bytes <= isize::MAX as usize).and_then(|b| data.addr().checked_add(b));
        let Some(end) = end else {
            let message = format_args!("desc.scratch passes the end of the address space: {bytes} bytes at {data:p}");
            return Err(fail(BN_ERROR_LENGTH, message));
        };
        let (batch_norm, element) = describe(&desc, Start::Now)?;
        let mut scratch = Vec::new();
        let given_scratch = (!data.is_null()).then_some((data.addr(), end));
        let memory = if given_scratch.is_some() {
            // SAFETY: the caller leaves the memory to the plan, which is what uses the slice.
            unsafe { std::slice::from_raw_parts_mut(data, bytes) }
        } else {
            let bytes = batch_norm.scratch_bytes(1);
            scratch.try_reserve_exact(bytes).map_err(|e| {
                let message = format_args!("no memory for {} channels: {e}", desc.channels);
                fail(BN_ERROR_OUT_OF_MEMORY, message)
            })?;
            let room: *mut [MaybeUninit<u8>] = scratch.spare_capacity_mut();
            // SAFETY: the vector lives as long as the plan, is not touched, and keeps its memory where it is.
            unsafe { &mut *room }
        };
        let batch_norm = batch_norm.scratch(memory)?;
        let made = Box::new(bn_plan { batch_norm, element, given_scratch, _scratch: scratch });
        // SAFETY: the caller has room for a pointer there, which is not null and is aligned.
        unsafe { plan.write(Box::into_raw(made)) };
        Ok(())
    })
}

/// The bytes of scratch memory with which so many calls at once, at least 1, can use a plan made from desc and never
/// allocate. What desc says of scratch memory is not looked at.
///
/// A call too many is right too, but takes memory from the heap, as it does where parallel_for runs tasks on more than
/// thread_count threads.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bn_scratch_bytes(desc: *const bn_plan_desc, calls: usize, bytes: *mut usize) -> i32 {
    guard(|| {
        // SAFETY: the caller has a descriptor there.
        let desc = unsafe { read("desc", desc)? };
        check_pointer("bytes", bytes)?;
        let (batch_norm, _) = describe(&desc, Start::Never)?;
        // SAFETY: the caller has room for a size_t there, which is not null and is aligned.
        unsafe { bytes.write(batch_norm.scratch_bytes(calls)) };
        Ok(())
    })
}

/// Ends a plan and the threads that it owns. NULL is fine.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bn_plan_destroy(plan: *mut bn_plan) -> i32 {
    guard(|| {
        if !plan.is_null() {
            check_pointer("plan", plan)?;
            // SAFETY: the caller has it from `bn_plan_create`, and uses it no more.
            drop(unsafe { Box::from_raw(plan) });
        }
        Ok(())
    })
}

/// The fastest instruction set of this CPU, one of BN_ISA_. It can run those with smaller numbers too.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bn_best_isa(isa: *mut i32) -> i32 {
    guard(|| {
        check_pointer("isa", isa)?;
        let best = BN_ISA_PORTABLE + Isa::best() as i32;
        // SAFETY: the caller has room for an int32_t there, which is not null and is aligned.
        unsafe { isa.write(best) };
        Ok(())
    })
}
