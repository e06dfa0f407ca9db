//! The element types by their numbers, and a function for each.

/// Calls a function that is generic over the types of activations and parameters, by their numbers: 0 is f32, 1 is f64,
/// 2 is bf16 and 3 is f16. Parameters have the type of the activations, or f32 beside 16-bit activations.
macro_rules! by_element {
    ($numbers:expr, $function:ident($($argument:expr),* $(,)?)) => {
        match $numbers {
            (0, 0) => $function::<f32, f32>($($argument),*),
            (1, 1) => $function::<f64, f64>($($argument),*),
            (2, 0) => $function::<bf16, f32>($($argument),*),
            (2, 2) => $function::<bf16, bf16>($($argument),*),
            (3, 0) => $function::<f16, f32>($($argument),*),
            (3, 3) => $function::<f16, f16>($($argument),*),
            (element, parameter) => Err($crate::elements::wrong_types(element, parameter)),
        }
    };
}

/// The same for functions whose parameters have the type that passes compute with.
macro_rules! by_wide_element {
    ($numbers:expr, $function:ident($($argument:expr),* $(,)?)) => {
        match $numbers {
            (0, 0) => $function::<f32>($($argument),*),
            (1, 1) => $function::<f64>($($argument),*),
            (2, 0) => $function::<bf16>($($argument),*),
            (3, 0) => $function::<f16>($($argument),*),
            (element, parameter) => Err($crate::elements::wrong_types(element, parameter)),
        }
    };
}

/// The same for functions that work on parameters only, of these types.
macro_rules! by_parameter {
    ($number:expr, $function:ident($($argument:expr),* $(,)?)) => {
        match $number {
            0 => $function::<f32>($($argument),*),
            1 => $function::<f64>($($argument),*),
            parameter => Err($crate::elements::wrong_types(0, parameter)),
        }
    };
}
pub(crate) use {by_element, by_parameter, by_wide_element};

use crate::error::Failure;

/// The names of the types.
const NAMES: [&str; 4] = ["float32", "float64", "bfloat16", "float16"];

#[cold]
pub(crate) fn wrong_types(element: usize, parameter: usize) -> Failure {
    let name = |number: usize| NAMES.get(number).map_or_else(|| format!("type {number}"), |&name| name.into());
    let (element, parameter) = (name(element), name(parameter));
    Failure::Type(format!(
        "parameters have the wrong type: expected {element}, or float32 beside 16-bit activations, got {parameter}"
    ))
}
