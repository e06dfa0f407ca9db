//! The handle.

use super::descriptors::{BN_ISA_PORTABLE, bn_plan_desc, check_pointer, check_reserved, choose, read};
use super::status::guard;
use super::threads::threads;
use batchnorm::{BatchNorm, Isa, Shape};

/// A plan: a shape, how to normalize it and where to run. It does not change once it is made.
pub struct bn_plan {
    pub(crate) batch_norm: BatchNorm,
    pub(crate) element: Element,
}

/// The element types of `BN_ELEMENT_`.
#[derive(Clone, Copy)]
pub(crate) enum Element {
    F32,
    F64,
}

impl bn_plan {
    pub(crate) fn channels(&self) -> usize {
        self.batch_norm.shape().channels()
    }
}

/// Makes a plan, and where desc is wrong leaves *plan as it is.
///
/// desc and what it points to are not needed any more once this has returned, but for parallel_for and its ctx.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bn_plan_create(desc: *const bn_plan_desc, plan: *mut *mut bn_plan) -> i32 {
    guard(|| {
        // SAFETY: the caller has a descriptor there.
        let desc = unsafe { read("desc", desc)? };
        check_pointer("plan", plan)?;
        check_reserved("desc.reserved", desc.reserved)?;
        let element = choose("desc.element", desc.element, &[Element::F32, Element::F64])?;
        let isas = [Isa::best(), Isa::Portable, Isa::Avx2, Isa::Avx512];
        let isa = choose("desc.isa", desc.isa, &isas)?;
        let shape = Shape::new(desc.outer, desc.channels, desc.inner)?;
        let batch_norm = BatchNorm::new(shape).eps(desc.eps)?.isa(isa)?;
        let batch_norm = batch_norm.threads(threads(&desc)?);
        let made = Box::new(bn_plan { batch_norm, element });
        // SAFETY: the caller has room for a pointer there, which is not null and is aligned.
        unsafe { plan.write(Box::into_raw(made)) };
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
