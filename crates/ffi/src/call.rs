//! From a call of C to a function that is generic over the element type.

use crate::plan::{ELEMENTS, bn_plan, plan};
use crate::read::{Descriptor, read};
use crate::status::{Status, guard};

/// # Safety
/// The arguments' pointers are as the header asks for.
pub(crate) type Pass<A> = unsafe fn(&bn_plan, A) -> Result<(), Status>;

/// A pass for each of `BN_ELEMENT_`.
macro_rules! by_element {
    ($pass:ident) => {
        [$pass::<f32>, $pass::<f64>, $pass::<bf16>, $pass::<f16>]
    };
}

/// What has no activations, for the type of parameters of each of `BN_ELEMENT_`.
macro_rules! by_parameter {
    ($pass:ident) => {
        [$pass::<f32>, $pass::<f64>, $pass::<f32>, $pass::<f32>]
    };
}
pub(crate) use {by_element, by_parameter};

/// # Safety
/// As [`Pass`], and as the header asks for the plan.
pub(crate) unsafe fn call<A: Descriptor>(handle: *const bn_plan, args: *const A, passes: [Pass<A>; ELEMENTS]) -> i32 {
    // SAFETY: the caller's promise.
    guard(|| unsafe {
        let plan = plan(handle)?;
        passes[plan.element](plan, read("args", args)?)
    })
}
