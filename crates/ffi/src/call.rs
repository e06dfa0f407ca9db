//! Dispatches a call to the function for the plan's element type.

use crate::elements::ELEMENTS;
use crate::plan::{bn_plan, plan};
use crate::read::{Descriptor, read};
use crate::status::{Status, guard};

/// A pass for one element type.
///
/// # Safety
/// The pointers in its arguments are as the header demands.
pub(crate) type Pass<A> = unsafe fn(&bn_plan, A) -> Result<(), Status>;

/// Calls one of `passes`.
///
/// # Safety
/// As [`Pass`]; the plan and the arguments are as the header demands.
pub(crate) unsafe fn call<A: Descriptor>(handle: *const bn_plan, args: *const A, passes: [Pass<A>; ELEMENTS]) -> i32 {
    // SAFETY: the caller's promise.
    guard(|| unsafe {
        let plan = plan(handle)?;
        passes[plan.element](plan, read("args", args)?)
    })
}
