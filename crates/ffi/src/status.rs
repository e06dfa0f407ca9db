//! The status that a call returns, with its name and message, and the boundary that no panic crosses.

use batchnorm::{Activation, Error, Isa};
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
/// Exactly one of statistics and running statistics must be given, but neither or both were; or running statistics have
/// arrays of double and of float.
pub const BN_ERROR_SOURCE: i32 = 18;
/// This CPU lacks the requested instruction set.
pub const BN_ERROR_UNSUPPORTED_ISA: i32 = 19;
/// thread_count, parallel_for or pool does not match the kind of threads, or threads could not be started.
pub const BN_ERROR_THREADS: i32 = 20;
/// There is not enough memory for the plan.
pub const BN_ERROR_OUT_OF_MEMORY: i32 = 21;
/// An error in the library itself. Outputs may have been written.
pub const BN_ERROR_INTERNAL: i32 = 22;
/// The groups of a layer do not divide its inputs and its outputs.
pub const BN_ERROR_GROUPS: i32 = 23;

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

/// What an instruction set is called in the header.
fn isa_name(isa: Isa) -> &'static str {
    match isa {
        Isa::Avx2 => "BN_ISA_AVX2",
        Isa::Avx512 => "BN_ISA_AVX512",
        // Also an instruction set that the header has no number for.
        _ => "BN_ISA_PORTABLE",
    }
}

/// What an activation is called in the header.
fn activation_name(activation: Activation) -> &'static str {
    match activation {
        Activation::Identity => "BN_ACTIVATION_IDENTITY",
        Activation::Relu => "BN_ACTIVATION_RELU",
        Activation::LeakyRelu(_) => "BN_ACTIVATION_LEAKY_RELU",
        // Plans have no other.
        _ => "BN_ACTIVATION_SILU",
    }
}

/// With the words of the header instead of those of Rust.
impl From<Error> for Status {
    fn from(error: Error) -> Self {
        match error {
            Error::Length { .. } | Error::Multiple { .. } => fail(BN_ERROR_LENGTH, format_args!("{error}")),
            Error::Groups { .. } => fail(BN_ERROR_GROUPS, format_args!("{error}")),
            Error::Momentum(_) => fail(BN_ERROR_MOMENTUM, format_args!("{error}")),
            Error::NotInvertible { .. } => fail(BN_ERROR_NOT_INVERTIBLE, format_args!("{error}")),
            Error::Eps(_) => fail(BN_ERROR_EPS, format_args!("desc.{error}")),
            Error::Slope(_) => fail(BN_ERROR_SLOPE, format_args!("desc.{error}")),
            Error::Scratch { expected, actual } => fail(
                BN_ERROR_LENGTH,
                format_args!("desc.scratch_bytes is too small: expected at least {expected} bytes, got {actual}"),
            ),
            Error::ShapeOverflow { dims } => {
                let most = isize::MAX as usize / size_of::<f64>();
                let message = format_args!(
                    "desc.outer, desc.channels and desc.inner are too large: expected products of at most {most}, got \
                     {dims:?}"
                );
                fail(BN_ERROR_SHAPE, message)
            }
            Error::UnsupportedIsa { isa, best } => {
                let (isa, best) = (isa_name(isa), isa_name(best));
                fail(
                    BN_ERROR_UNSUPPORTED_ISA,
                    format_args!("this CPU does not support {isa}: its fastest instruction set is {best}"),
                )
            }
            Error::Weight { position, value } => fail(
                BN_ERROR_WEIGHT,
                format_args!("weights[{position}] is invalid: expected a finite number >= 0, got {value}"),
            ),
            // Those of given statistics have the name of their struct: see `StatisticsView`.
            Error::Count(sum) => fail(
                BN_ERROR_COUNT,
                format_args!("into.count + other.count is out of range: expected a finite number, got {sum}"),
            ),
            Error::Variance { channel, value } => fail(
                BN_ERROR_VARIANCE,
                format_args!("running variance of channel {channel} is invalid: expected a number >= 0, got {value}"),
            ),
            Error::TooFewValues { count } => fail(
                BN_ERROR_TOO_FEW_VALUES,
                format_args!(
                    "statistics.count is too small for BN_VARIANCE_UNBIASED: expected more than 1, got {count}"
                ),
            ),
            Error::EmptyStatistics => fail(
                BN_ERROR_EMPTY_STATISTICS,
                format_args!("statistics.count is too small: expected a positive count for a batch with values, got 0"),
            ),
            Error::Activation { pass, actual, .. } => {
                let or_leaky =
                    if pass == "double_backward" { "" } else { ", or BN_ACTIVATION_LEAKY_RELU with a slope > 0" };
                let (actual, slope) =
                    (activation_name(actual), if actual == Activation::LeakyRelu(0.0) { " with slope 0" } else { "" });
                let message = format_args!(
                    "the plan's activation does not allow this call: expected BN_ACTIVATION_IDENTITY{or_leaky}, got \
                     {actual}{slope}"
                );
                fail(BN_ERROR_ACTIVATION, message)
            }
            error => fail(BN_ERROR_INTERNAL, format_args!("{error}")),
        }
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
        BN_ERROR_OUT_OF_MEMORY BN_ERROR_INTERNAL BN_ERROR_GROUPS);
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
    fn instruction_sets_have_their_names_of_the_header() {
        let error = |isa, best| Status::from(Error::UnsupportedIsa { isa, best });
        assert_eq!(error(Isa::Avx512, Isa::Avx2), Status(BN_ERROR_UNSUPPORTED_ISA));
        assert_eq!(
            last_message(),
            "this CPU does not support BN_ISA_AVX512: its fastest instruction set is BN_ISA_AVX2"
        );
        assert_eq!(error(Isa::Avx2, Isa::Portable), Status(BN_ERROR_UNSUPPORTED_ISA));
        assert_eq!(
            last_message(),
            "this CPU does not support BN_ISA_AVX2: its fastest instruction set is BN_ISA_PORTABLE"
        );
    }

    #[test]
    fn a_long_message_is_cut_between_characters() {
        let status = fail(BN_ERROR_NULL, format_args!("{}{}", "a", "é".repeat(200)));
        assert_eq!(status, Status(BN_ERROR_NULL));
        assert_eq!(last_message(), format!("a{}", "é".repeat(127)));
    }
}
