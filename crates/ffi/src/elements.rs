//! A function for each element type.

/// The number of values of `BN_ELEMENT_`.
pub(crate) const ELEMENTS: usize = 4;

/// A function, for each `BN_ELEMENT_`.
macro_rules! by_element {
    ($function:ident) => {
        [$function::<f32>, $function::<f64>, $function::<bf16>, $function::<f16>]
    };
}

/// A function that works on parameters only, for the parameter type of each `BN_ELEMENT_`.
macro_rules! by_parameter {
    ($function:ident) => {
        [$function::<f32>, $function::<f64>, $function::<f32>, $function::<f32>]
    };
}
pub(crate) use {by_element, by_parameter};
