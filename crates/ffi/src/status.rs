//! The status that a call returns, with its name and message, and the boundary that no panic crosses.

use batchnorm::Error;
use std::any::Any;
use std::cell::RefCell;
use std::ffi::c_char;
use std::fmt::{self, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// The call succeeded.
pub const BN_OK: i32 = 0;
/// A required pointer is NULL.
pub const BN_ERROR_NULL: i32 = 1;
/// A struct_size differs from the size of its struct.
pub const BN_ERROR_STRUCT_SIZE: i32 = 2;
/// An integer is not a value of its enum, or a reserved field is not 0.
pub const BN_ERROR_ENUM: i32 = 3;
/// A pointer is not aligned for its type.
pub const BN_ERROR_ALIGNMENT: i32 = 4;
/// An output overlaps another array.
pub const BN_ERROR_OVERLAP: i32 = 5;
/// An array has the wrong length, scratch memory is too small, or one of them extends past the end of the address
/// space.
pub const BN_ERROR_LENGTH: i32 = 6;
/// The shape is too large to address.
pub const BN_ERROR_SHAPE: i32 = 7;
/// eps is negative or not finite.
pub const BN_ERROR_EPS: i32 = 8;
/// The slope is negative or not finite, or it is not 0 although the activation is not a leaky ReLU.
pub const BN_ERROR_SLOPE: i32 = 9;
/// A weight is negative or not finite.
pub const BN_ERROR_WEIGHT: i32 = 10;
/// The momentum is outside [0, 1].
pub const BN_ERROR_MOMENTUM: i32 = 11;
/// The count of statistics is negative or not finite.
pub const BN_ERROR_COUNT: i32 = 12;
/// A variance is negative, or NaN in running statistics.
pub const BN_ERROR_VARIANCE: i32 = 13;
/// An unbiased variance needs more than one value per channel.
pub const BN_ERROR_TOO_FEW_VALUES: i32 = 14;
/// The statistics are over no values, but the batch is not empty.
pub const BN_ERROR_EMPTY_STATISTICS: i32 = 15;
/// The pass does not support the plan's activation: it needs one with an inverse, or none.
pub const BN_ERROR_ACTIVATION: i32 = 16;
/// With the gamma and beta of some channel, x cannot be rebuilt from y within the stated bound.
pub const BN_ERROR_NOT_INVERTIBLE: i32 = 17;
/// Exactly one of statistics and running statistics must be given, but neither or both were.
pub const BN_ERROR_SOURCE: i32 = 18;
/// This CPU lacks the requested instruction set.
pub const BN_ERROR_UNSUPPORTED_ISA: i32 = 19;
/// thread_count, parallel_for or pool does not match the kind of threads, or threads could not be started.
pub const BN_ERROR_THREADS: i32 = 20;
/// There is not enough memory for the plan.
pub const BN_ERROR_OUT_OF_MEMORY: i32 = 21;
/// An error in the library itself. Outputs may have been written.
pub const BN_ERROR_INTERNAL: i32 = 22;

/// A code other than [`BN_OK`]. The message of this thread describes it.
#[derive(Debug, PartialEq)]
pub(crate) struct Status(i32);

/// The message of the last call, as C reads it. It has a fixed size and no destructor: writing it never allocates, and
/// a thread that ends has nothing to run in a library that may already be unloaded.
struct Message {
    bytes: [u8; 256],
    len: usize,
}

thread_local! {
    static MESSAGE: RefCell<Message> = const { RefCell::new(Message { bytes: [0; 256], len: 0 }) };
}

impl Message {
    fn clear(&mut self) {
        self.bytes[0] = 0;
        self.len = 0;
    }
}

impl Write for Message {
    /// Drops what does not fit in.
    fn write_str(&mut self, s: &str) -> fmt::Result {
        let mut end = s.len().min(self.bytes.len() - 1 - self.len);
        while !s.is_char_boundary(end) {
            end -= 1;
        }
        self.bytes[self.len..self.len + end].copy_from_slice(&s.as_bytes()[..end]);
        self.len += end;
        self.bytes[self.len] = 0;
        Ok(())
    }
}

/// Stores the message for this thread.
pub(crate) fn fail(code: i32, message: fmt::Arguments<'_>) -> Status {
    MESSAGE.with_borrow_mut(|m| {
        m.clear();
        // Writing to a message cannot fail; if a Display does, the message is cut short.
        let _ = m.write_fmt(message);
    });
    Status(code)
}

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        let code = match error {
            Error::Length { .. } | Error::Multiple { .. } | Error::Scratch { .. } => BN_ERROR_LENGTH,
            Error::ShapeOverflow { .. } => BN_ERROR_SHAPE,
            Error::Eps(_) => BN_ERROR_EPS,
            Error::Slope(_) => BN_ERROR_SLOPE,
            Error::Weight { .. } => BN_ERROR_WEIGHT,
            Error::Momentum(_) => BN_ERROR_MOMENTUM,
            Error::Count(_) => BN_ERROR_COUNT,
            Error::Variance { .. } => BN_ERROR_VARIANCE,
            Error::TooFewValues { .. } => BN_ERROR_TOO_FEW_VALUES,
            Error::EmptyStatistics => BN_ERROR_EMPTY_STATISTICS,
            Error::Activation { .. } => BN_ERROR_ACTIVATION,
            Error::NotInvertible { .. } => BN_ERROR_NOT_INVERTIBLE,
            Error::UnsupportedIsa { .. } => BN_ERROR_UNSUPPORTED_ISA,
            _ => BN_ERROR_INTERNAL,
        };
        fail(code, format_args!("{error}"))
    }
}

/// Runs the body of a call and returns its result as a code; a panic is [`BN_ERROR_INTERNAL`].
pub(crate) fn guard(body: impl FnOnce() -> Result<(), Status>) -> i32 {
    // After a panic nothing is promised about the caller's outputs, and what a plan shares between calls is atomic.
    match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(())) => {
            MESSAGE.with_borrow_mut(Message::clear);
            BN_OK
        }
        Ok(Err(Status(code))) => code,
        Err(payload) => fail(BN_ERROR_INTERNAL, format_args!("internal error: {}", panic_message(&*payload))).0,
    }
}

fn panic_message(payload: &(dyn Any + Send)) -> &str {
    let string = || payload.downcast_ref::<String>().map(String::as_str);
    payload.downcast_ref::<&str>().copied().or_else(string).unwrap_or("panic without a message")
}

macro_rules! names {
    ($status:expr; $($code:ident)*) => {
        match $status {
            $($code => concat!(stringify!($code), "\0"),)*
            _ => "unknown status\0",
        }
    };
}

/// The name of a status, such as "BN_ERROR_NULL", or "unknown status" for any other integer.
#[unsafe(no_mangle)]
pub extern "C" fn bn_status_name(status: i32) -> *const c_char {
    let name = names!(status; BN_OK BN_ERROR_NULL BN_ERROR_STRUCT_SIZE BN_ERROR_ENUM BN_ERROR_ALIGNMENT
        BN_ERROR_OVERLAP BN_ERROR_LENGTH BN_ERROR_SHAPE BN_ERROR_EPS BN_ERROR_SLOPE BN_ERROR_WEIGHT
        BN_ERROR_MOMENTUM BN_ERROR_COUNT BN_ERROR_VARIANCE BN_ERROR_TOO_FEW_VALUES BN_ERROR_EMPTY_STATISTICS
        BN_ERROR_ACTIVATION BN_ERROR_NOT_INVERTIBLE BN_ERROR_SOURCE BN_ERROR_UNSUPPORTED_ISA BN_ERROR_THREADS
        BN_ERROR_OUT_OF_MEMORY BN_ERROR_INTERNAL);
    name.as_ptr().cast()
}

/// Describes the error of this thread's last call, with the expected and the actual value; "" after BN_OK. The string
/// is valid until this thread's next call.
#[unsafe(no_mangle)]
pub extern "C" fn bn_last_error_message() -> *const c_char {
    MESSAGE.with_borrow(|m| m.bytes.as_ptr().cast())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::CStr;

    fn last_message() -> String {
        // SAFETY: it points to the message of this thread, which ends with a 0.
        unsafe { CStr::from_ptr(bn_last_error_message()) }.to_str().unwrap().to_owned()
    }

    #[test]
    fn a_panic_is_a_status() {
        assert_eq!(guard(|| panic!("kaputt")), BN_ERROR_INTERNAL);
        assert_eq!(last_message(), "internal error: kaputt");
        assert_eq!(guard(|| panic!("number {}", 7)), BN_ERROR_INTERNAL);
        assert_eq!(last_message(), "internal error: number 7");
        assert_eq!(guard(|| Ok(())), BN_OK);
        assert_eq!(last_message(), "");
    }

    #[test]
    fn a_long_message_is_cut_between_characters() {
        let status = fail(BN_ERROR_NULL, format_args!("{}{}", "a", "é".repeat(200)));
        assert_eq!(status, Status(BN_ERROR_NULL));
        assert_eq!(last_message(), format!("a{}", "é".repeat(127)));
    }
}
