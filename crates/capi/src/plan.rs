//! The handle, and the memory in which calls keep statistics while the core works on them.

use super::descriptors::{BN_ISA_PORTABLE, bn_plan_desc, check_pointer, check_reserved, choose, read};
use super::status::{BN_ERROR_OUT_OF_MEMORY, Status, fail, guard};
use super::threads::threads;
use batchnorm::{BatchNorm, GradientSums, Isa, RunningStatistics, Shape, Statistics};
use std::sync::{Mutex, PoisonError};

/// A plan: a shape, how to normalize it and where to run. It does not change once it is made.
pub struct bn_plan {
    pub(crate) batch_norm: BatchNorm,
    pub(crate) element: Element,
    /// Boxed, so that a loan moves a pointer.
    #[allow(clippy::vec_box)]
    workspaces: Mutex<Vec<Box<Workspace>>>,
}

/// The element types of `BN_ELEMENT_`.
#[derive(Clone, Copy)]
pub(crate) enum Element {
    F32,
    F64,
}

/// What the core has for a call's per-channel arrays.
pub(crate) struct Workspace {
    pub(crate) statistics: Statistics,
    pub(crate) other_statistics: Statistics,
    pub(crate) running: RunningStatistics,
    pub(crate) sums: GradientSums,
    pub(crate) other_sums: GradientSums,
}

impl Workspace {
    fn new(channels: usize) -> Result<Box<Self>, Status> {
        let zeros = || {
            let mut zeros = Vec::new();
            zeros.try_reserve_exact(channels).map_err(|e| {
                fail(BN_ERROR_OUT_OF_MEMORY, format_args!("no memory for statistics of {channels} channels: {e}"))
            })?;
            zeros.resize(channels, 0.0);
            Ok::<_, Status>(zeros)
        };
        Ok(Box::new(Self {
            statistics: Statistics::from_parts(0.0, zeros()?, zeros()?)?,
            other_statistics: Statistics::from_parts(0.0, zeros()?, zeros()?)?,
            running: RunningStatistics::from_parts(zeros()?, zeros()?, 0)?,
            sums: GradientSums::from_parts(zeros()?, zeros()?)?,
            other_sums: GradientSums::from_parts(zeros()?, zeros()?)?,
        }))
    }
}

impl bn_plan {
    pub(crate) fn channels(&self) -> usize {
        self.batch_norm.shape().channels()
    }

    /// Runs a call with a workspace of its own: the plan's, or another one where several threads use the plan at once.
    pub(crate) fn with_workspace(&self, call: impl FnOnce(&mut Workspace) -> Result<(), Status>) -> Result<(), Status> {
        let workspaces = || self.workspaces.lock().unwrap_or_else(PoisonError::into_inner);
        let idle = workspaces().pop();
        let mut workspace = idle.map_or_else(|| Workspace::new(self.channels()), Ok)?;
        let result = call(&mut workspace);
        workspaces().push(workspace);
        result
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
        let workspaces = Mutex::new(vec![Workspace::new(desc.channels)?]);
        let batch_norm = batch_norm.threads(threads(&desc)?);
        let made = Box::new(bn_plan { batch_norm, element, workspaces });
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
