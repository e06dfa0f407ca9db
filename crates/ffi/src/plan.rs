//! The plan: what a handle of C points to.

use crate::constants::{BN_ISA_AVX2, BN_ISA_AVX512, BN_ISA_PORTABLE};
use crate::elements::{ELEMENTS, by_element};
use crate::read::{check_pointer, choose, read};
use crate::status::{BN_ERROR_LENGTH, BN_ERROR_NULL, BN_ERROR_OUT_OF_MEMORY, BN_ERROR_SLOPE, Status, fail, guard};
use crate::structs::bn_plan_desc;
use crate::threads::{Start, threads};
use batchnorm::{Activation, BatchNorm, Element, Error, Isa, Memory, Shape};
use half::{bf16, f16};
use std::mem::MaybeUninit;

/// A plan: a shape, how to normalize it and where to run. It never changes after its creation.
pub struct bn_plan {
    /// Not to be cloned: memory that the caller gave is this plan's until it is destroyed.
    pub(crate) batch_norm: BatchNorm,
    /// The `BN_ELEMENT_`.
    pub(crate) element: usize,
    /// The addresses at which the caller's scratch memory starts and ends, if the caller gave any.
    pub(crate) given_scratch: Option<(usize, usize)>,
}

impl bn_plan {
    pub(crate) fn channels(&self) -> usize {
        self.batch_norm.shape().channels()
    }
}

/// The plan behind a handle.
///
/// # Safety
/// If `handle` is not NULL and is aligned, it comes from `bn_plan_create`, and is not destroyed while the result lives.
pub(crate) unsafe fn plan<'a>(handle: *const bn_plan) -> Result<&'a bn_plan, Status> {
    check_pointer("plan", handle)?;
    // SAFETY: the caller's promise.
    Ok(unsafe { &*handle })
}

/// The plan that a descriptor describes, without scratch memory, and its `BN_ELEMENT_`.
///
/// # Safety
/// As [`threads`].
unsafe fn describe(desc: &bn_plan_desc, start: Start) -> Result<(BatchNorm, usize), Status> {
    let element = choose("desc.element", desc.element, &std::array::from_fn::<_, ELEMENTS, _>(|element| element))?;
    let isas = [Isa::best(), Isa::Portable, Isa::Avx2, Isa::Avx512];
    let isa = choose("desc.isa", desc.isa, &isas)?;
    let leaky_relu = Activation::LeakyRelu(desc.slope);
    let activations = [Activation::Identity, Activation::Relu, leaky_relu, Activation::Silu];
    let activation = choose("desc.activation", desc.activation, &activations)?;
    if desc.slope != 0.0 && !matches!(activation, Activation::LeakyRelu(_)) {
        let message = format_args!("desc.slope is only for BN_ACTIVATION_LEAKY_RELU: expected 0, got {}", desc.slope);
        return Err(fail(BN_ERROR_SLOPE, message));
    }
    let shape = Shape::new(desc.outer, desc.channels, desc.inner)?;
    let batch_norm = BatchNorm::new(shape).eps(desc.eps)?.activation(activation)?.isa(isa)?;
    // SAFETY: the caller's promise.
    let threads = unsafe { threads(desc, start)? };
    Ok((batch_norm.threads(threads), element))
}

/// Gives a plan its scratch memory.
type Give = fn(BatchNorm, Memory) -> Result<BatchNorm, Error>;

fn give<E: Element>(batch_norm: BatchNorm, memory: Memory) -> Result<BatchNorm, Error> {
    batch_norm.scratch::<E>(memory)
}

/// The bytes of scratch memory for `calls` calls with a `BN_ELEMENT_`.
fn scratch_bytes(batch_norm: &BatchNorm, element: usize, calls: usize) -> usize {
    fn of<E: Element>(batch_norm: &BatchNorm, calls: usize) -> usize {
        batch_norm.scratch_bytes::<E>(calls)
    }
    let of: [fn(&BatchNorm, usize) -> usize; ELEMENTS] = by_element!(of);
    of[element](batch_norm, calls)
}

/// Creates a plan. After an error *plan is unchanged.
///
/// desc and what it points to are not needed after this call has returned, except scratch, parallel_for and its ctx.
/// The plan has a reference of its own to the pool.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bn_plan_create(desc: *const bn_plan_desc, plan: *mut *mut bn_plan) -> i32 {
    guard(|| {
        // SAFETY: the header demands a pointer to a descriptor.
        let desc = unsafe { read("desc", desc)? };
        check_pointer("plan", plan)?;
        let (data, bytes) = (desc.scratch.cast::<MaybeUninit<u8>>(), desc.scratch_bytes);
        if data.is_null() && bytes > 0 {
            let message = format_args!("desc.scratch is NULL: expected the {bytes} bytes of desc.scratch_bytes");
            return Err(fail(BN_ERROR_NULL, message));
        }
        let end = Some(bytes).filter(|&bytes| bytes <= isize::MAX as usize).and_then(|b| data.addr().checked_add(b));
        let Some(end) = end else {
            let message =
                format_args!("desc.scratch extends past the end of the address space: {bytes} bytes at {data:p}");
            return Err(fail(BN_ERROR_LENGTH, message));
        };
        // SAFETY: the header demands such a parallel_for, until the plan is destroyed, and such a pool.
        let (batch_norm, element) = unsafe { describe(&desc, Start::Now)? };
        let given_scratch = (!data.is_null()).then_some((data.addr(), end));
        let memory = if given_scratch.is_some() {
            // SAFETY: the header demands so many bytes, for the plan alone until it is destroyed.
            unsafe { std::slice::from_raw_parts_mut(data, bytes) }.into()
        } else {
            let bytes = scratch_bytes(&batch_norm, element, 1);
            let mut memory = Vec::new();
            memory.try_reserve_exact(bytes).map_err(|e| {
                let message = format_args!("not enough memory for a plan with {} channels: {e}", desc.channels);
                fail(BN_ERROR_OUT_OF_MEMORY, message)
            })?;
            memory.resize(bytes, MaybeUninit::uninit());
            memory.into_boxed_slice().into()
        };
        let give: [Give; ELEMENTS] = by_element!(give);
        let batch_norm = give[element](batch_norm, memory)?;
        let made = Box::new(bn_plan { batch_norm, element, given_scratch });
        // SAFETY: the header demands a pointer to room for a pointer; it is not null and is aligned.
        unsafe { plan.write(Box::into_raw(made)) };
        Ok(())
    })
}

/// The bytes of scratch memory with which `calls` calls at once can use a plan made from desc without allocating; 0
/// calls count as 1. The scratch memory that desc gives is ignored.
///
/// An additional concurrent call is still correct, but allocates from the heap. So does a call for which parallel_for
/// runs tasks on more than thread_count threads.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bn_scratch_bytes(desc: *const bn_plan_desc, calls: usize, bytes: *mut usize) -> i32 {
    guard(|| {
        // SAFETY: the header demands a pointer to a descriptor.
        let desc = unsafe { read("desc", desc)? };
        check_pointer("bytes", bytes)?;
        // SAFETY: nothing runs on these threads; the header demands such a pool.
        let (batch_norm, element) = unsafe { describe(&desc, Start::Never)? };
        // SAFETY: the header demands a pointer to room for a size_t; it is not null and is aligned.
        unsafe { bytes.write(scratch_bytes(&batch_norm, element, calls)) };
        Ok(())
    })
}

/// Destroys a plan, and ends its threads, unless another plan or a bn_pool has them too. NULL is allowed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bn_plan_destroy(plan: *mut bn_plan) -> i32 {
    guard(|| {
        if !plan.is_null() {
            check_pointer("plan", plan)?;
            // SAFETY: the header demands a handle from `bn_plan_create` that is not used any more.
            drop(unsafe { Box::from_raw(plan) });
        }
        Ok(())
    })
}

/// The fastest instruction set of this CPU, one of BN_ISA_. bn_plan_create returns BN_ERROR_UNSUPPORTED_ISA for one
/// that this CPU lacks.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bn_best_isa(isa: *mut i32) -> i32 {
    guard(|| {
        check_pointer("isa", isa)?;
        let best = match Isa::best() {
            Isa::Avx2 => BN_ISA_AVX2,
            Isa::Avx512 => BN_ISA_AVX512,
            // Also an instruction set that the header has no number for.
            _ => BN_ISA_PORTABLE,
        };
        // SAFETY: the header demands a pointer to room for an int32_t; it is not null and is aligned.
        unsafe { isa.write(best) };
        Ok(())
    })
}
