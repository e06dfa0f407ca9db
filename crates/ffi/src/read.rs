//! How the caller's structs are read, and the checks of single fields.

use crate::args::{
    bn_backward_args, bn_backward_from_output_args, bn_double_backward_args, bn_fold_args, bn_fold_layer_args,
    bn_fold_transposed_args, bn_forward_training_args, bn_forward_training_invertible_args, bn_gradient_sums_args,
    bn_input_gradient_args, bn_normalize_args, bn_parameter_gradients_args, bn_statistics_args,
};
use crate::status::{BN_ERROR_ALIGNMENT, BN_ERROR_ENUM, BN_ERROR_NULL, BN_ERROR_STRUCT_SIZE, Status, fail};
use crate::structs::{bn_gradient_sums, bn_plan_desc, bn_running_statistics, bn_scale_shift, bn_statistics};
use std::mem::zeroed;

/// A struct of the header that begins with its struct_size.
///
/// # Safety
/// It is `repr(C)`, its first field is a usize, and zeros and any other bits are valid in all of its fields.
pub unsafe trait Descriptor: Copy {}

macro_rules! descriptors {
    ($($t:ident)*) => {$(
        // SAFETY: the struct is repr(C) and begins with struct_size; its fields are integers, floats, raw pointers and
        // nullable function pointers.
        unsafe impl Descriptor for $t {}
    )*};
}
descriptors!(bn_plan_desc bn_statistics bn_gradient_sums bn_running_statistics bn_statistics_args
    bn_forward_training_args bn_normalize_args bn_gradient_sums_args bn_input_gradient_args bn_parameter_gradients_args
    bn_backward_args bn_forward_training_invertible_args bn_backward_from_output_args bn_double_backward_args
    bn_scale_shift bn_fold_args bn_fold_layer_args bn_fold_transposed_args);

/// A struct whose struct_size is set and whose other fields are zero, to start from as in C.
pub fn sized<T: Descriptor>() -> T {
    // SAFETY: zeros are valid in a descriptor.
    let mut descriptor: T = unsafe { zeroed() };
    // SAFETY: a descriptor begins with a usize.
    unsafe { (&raw mut descriptor).cast::<usize>().write(size_of::<T>()) };
    descriptor
}

/// Checks that a pointer is not NULL and is aligned.
pub(crate) fn check_pointer<T>(name: &str, p: *const T) -> Result<(), Status> {
    if p.is_null() {
        return Err(fail(BN_ERROR_NULL, format_args!("{name} is NULL")));
    }
    check_alignment(name, p)
}

/// Checks that a pointer is aligned for its type.
pub(crate) fn check_alignment<T>(name: &str, p: *const T) -> Result<(), Status> {
    if p.is_aligned() {
        return Ok(());
    }
    let align = align_of::<T>();
    let message = format_args!("{name} is misaligned: expected an address that is a multiple of {align}, got {p:p}");
    Err(fail(BN_ERROR_ALIGNMENT, message))
}

/// Copies a struct, if its struct_size is the size that this library knows.
///
/// # Safety
/// If `p` is not NULL and is aligned, a usize can be read from it and, if that is the size of the struct, the struct
/// too.
pub(crate) unsafe fn read<T: Descriptor>(name: &str, p: *const T) -> Result<T, Status> {
    check_pointer(name, p)?;
    // SAFETY: the caller's promise; a descriptor begins with a usize.
    let size = unsafe { p.cast::<usize>().read() };
    let expected = size_of::<T>();
    if size != expected {
        let message = format_args!("{name} has the wrong struct_size: expected {expected} bytes, got {size}");
        return Err(fail(BN_ERROR_STRUCT_SIZE, message));
    }
    // SAFETY: the caller's promise, with the expected size.
    Ok(unsafe { p.read() })
}

/// Checks that a reserved field is 0.
pub(crate) fn check_reserved(name: &str, value: i32) -> Result<(), Status> {
    if value == 0 {
        Ok(())
    } else {
        Err(fail(BN_ERROR_ENUM, format_args!("{name} is reserved: expected 0, got {value}")))
    }
}

/// The prefix of the values that a field of this name can have.
fn prefix(name: &str) -> &'static str {
    match name {
        "desc.element" => "BN_ELEMENT_",
        "desc.isa" => "BN_ISA_",
        "desc.threads" => "BN_THREADS_",
        "desc.activation" => "BN_ACTIVATION_",
        "running.variance" => "BN_VARIANCE_",
        _ => "BN_AVERAGE_",
    }
}

/// The element of `values` that an enum's value is the index of.
pub(crate) fn choose<T: Copy>(name: &str, value: i32, values: &[T]) -> Result<T, Status> {
    usize::try_from(value).ok().and_then(|i| values.get(i)).copied().ok_or_else(|| {
        let (prefix, last) = (prefix(name), values.len() - 1);
        let message = format_args!("{name} is out of range: expected one of {prefix}, 0 to {last}, got {value}");
        fail(BN_ERROR_ENUM, message)
    })
}
