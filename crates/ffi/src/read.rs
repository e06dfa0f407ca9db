//! How a struct of a caller is read, and what is checked of single fields.

use crate::args::{
    bn_backward_args, bn_backward_from_output_args, bn_double_backward_args, bn_fold_args, bn_fold_layer_args,
    bn_forward_training_args, bn_forward_training_invertible_args, bn_gradient_sums_args, bn_input_gradient_args,
    bn_normalize_args, bn_parameter_gradients_args, bn_statistics_args,
};
use crate::status::{BN_ERROR_ALIGNMENT, BN_ERROR_ENUM, BN_ERROR_NULL, BN_ERROR_STRUCT_SIZE, Status, fail};
use crate::structs::{bn_gradient_sums, bn_plan_desc, bn_running_statistics, bn_scale_shift, bn_statistics};

/// A `repr(C)` struct of plain fields that begins with its struct_size.
///
/// # Safety
/// It is that, and every bit pattern is a value of it.
pub(crate) unsafe trait Descriptor: Copy {}

macro_rules! descriptors {
    ($($t:ident)*) => {$(
        // SAFETY: the struct is repr(C), begins with struct_size, and has integers, floats and raw or nullable pointers.
        unsafe impl Descriptor for $t {}
    )*};
}
descriptors!(bn_plan_desc bn_statistics bn_gradient_sums bn_running_statistics bn_statistics_args
    bn_forward_training_args bn_normalize_args bn_gradient_sums_args bn_input_gradient_args bn_parameter_gradients_args
    bn_backward_args bn_forward_training_invertible_args bn_backward_from_output_args bn_double_backward_args
    bn_scale_shift bn_fold_args bn_fold_layer_args);

/// That a pointer is neither NULL nor misaligned.
pub(crate) fn check_pointer<T>(name: &str, p: *const T) -> Result<(), Status> {
    if p.is_null() {
        return Err(fail(BN_ERROR_NULL, format_args!("{name} is NULL")));
    }
    if !p.is_aligned() {
        let expected = align_of::<T>();
        return Err(fail(
            BN_ERROR_ALIGNMENT,
            format_args!("{name} is misaligned: expected {expected} bytes, got {p:p}"),
        ));
    }
    Ok(())
}

/// A copy of a struct, if its size is that of the library's.
///
/// # Safety
/// Where `p` is not NULL and aligned, a usize can be read from it and, if that is the struct's size, the struct.
pub(crate) unsafe fn read<T: Descriptor>(name: &str, p: *const T) -> Result<T, Status> {
    check_pointer(name, p)?;
    // SAFETY: the caller's promise; a descriptor begins with a usize.
    let size = unsafe { p.cast::<usize>().read() };
    if size != size_of::<T>() {
        let expected = size_of::<T>();
        return Err(fail(
            BN_ERROR_STRUCT_SIZE,
            format_args!("{name} has the wrong struct_size: expected {expected} bytes, got {size}"),
        ));
    }
    // SAFETY: the caller's promise, with the size that was expected.
    Ok(unsafe { p.read() })
}

/// That a reserved field is 0.
pub(crate) fn check_reserved(name: &str, value: i32) -> Result<(), Status> {
    if value == 0 {
        Ok(())
    } else {
        Err(fail(BN_ERROR_ENUM, format_args!("{name} is reserved: expected 0, got {value}")))
    }
}

/// One of an enum's values.
pub(crate) fn choose<T: Copy>(name: &str, value: i32, values: &[T]) -> Result<T, Status> {
    usize::try_from(value).ok().and_then(|i| values.get(i)).copied().ok_or_else(|| {
        let last = values.len() - 1;
        fail(BN_ERROR_ENUM, format_args!("{name} is out of range: expected 0 to {last}, got {value}"))
    })
}
