//! From pointers and lengths to slices: first each array of a call is checked on its own, then all together for
//! overlap, and only then are they made slices.

use crate::plan::bn_plan;
use crate::read::check_alignment;
use crate::status::{BN_ERROR_LENGTH, BN_ERROR_NULL, BN_ERROR_OVERLAP, Status, fail};
use crate::structs::{bn_doubles, bn_floats, bn_slice, bn_slice_mut};

/// Whether a call writes an array.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Access {
    Read,
    Write,
}

/// An array that has been checked on its own.
#[derive(Clone, Copy)]
pub(crate) struct Array<T> {
    data: *mut T,
    len: usize,
}

impl<T> Array<T> {
    /// # Safety
    /// The array has `len` elements, and nothing writes them while the slice lives. [`Arrays::check_overlap`] has found
    /// no error.
    pub(crate) unsafe fn slice<'a>(self) -> &'a [T] {
        // SAFETY: the pointer is not null and is aligned, and the array ends within the address space, as `add` has
        // checked; the rest is the caller's promise.
        if self.len == 0 { &[] } else { unsafe { std::slice::from_raw_parts(self.data, self.len) } }
    }

    /// # Safety
    /// As [`slice`](Self::slice), and nothing else reads the elements either.
    pub(crate) unsafe fn slice_mut<'a>(self) -> &'a mut [T] {
        // SAFETY: as in `slice`.
        if self.len == 0 { &mut [] } else { unsafe { std::slice::from_raw_parts_mut(self.data, self.len) } }
    }
}

/// The addresses of an array.
#[derive(Clone, Copy)]
struct Span {
    name: &'static str,
    start: usize,
    end: usize,
    access: Access,
}

/// The largest number of arrays and written structs in a call, with the plan's scratch memory.
const MOST: usize = 14;

/// The arrays of one call that have been checked.
pub(crate) struct Arrays {
    spans: [Span; MOST],
    len: usize,
}

impl Arrays {
    /// For a call without a plan.
    pub(crate) fn none() -> Self {
        let none = Span { name: "", start: 0, end: 0, access: Access::Read };
        Self { spans: [none; MOST], len: 0 }
    }

    /// Starts with the plan's scratch memory if the caller gave it, since no array may overlap it.
    pub(crate) fn new(plan: &bn_plan) -> Self {
        let mut arrays = Self::none();
        if let Some((start, end)) = plan.given_scratch {
            arrays.push(Span { name: "the plan's scratch memory", start, end, access: Access::Write });
        }
        arrays
    }

    fn push(&mut self, span: Span) {
        self.spans[self.len] = span;
        self.len += 1;
    }

    pub(crate) fn input<T>(&mut self, name: &'static str, array: bn_slice, len: usize) -> Result<Array<T>, Status> {
        self.add(name, array.data.cast_mut().cast(), array.len, len, Access::Read)
    }

    pub(crate) fn output<T>(
        &mut self,
        name: &'static str,
        array: bn_slice_mut,
        len: usize,
    ) -> Result<Array<T>, Status> {
        self.add(name, array.data.cast(), array.len, len, Access::Write)
    }

    /// None if the array is `{NULL, 0}`.
    pub(crate) fn input_or_absent<T>(
        &mut self,
        name: &'static str,
        array: bn_slice,
        len: usize,
    ) -> Result<Option<Array<T>>, Status> {
        let absent = array.data.is_null() && array.len == 0;
        (!absent).then(|| self.input(name, array, len)).transpose()
    }

    /// None if the array is `{NULL, 0}`.
    pub(crate) fn output_or_absent<T>(
        &mut self,
        name: &'static str,
        array: bn_slice_mut,
        len: usize,
    ) -> Result<Option<Array<T>>, Status> {
        let absent = array.data.is_null() && array.len == 0;
        (!absent).then(|| self.output(name, array, len)).transpose()
    }

    pub(crate) fn doubles(
        &mut self,
        name: &'static str,
        array: bn_doubles,
        len: usize,
        access: Access,
    ) -> Result<Array<f64>, Status> {
        self.add(name, array.data, array.len, len, access)
    }

    pub(crate) fn floats(
        &mut self,
        name: &'static str,
        array: bn_floats,
        len: usize,
        access: Access,
    ) -> Result<Array<f32>, Status> {
        self.add(name, array.data, array.len, len, access)
    }

    /// A struct that a call writes to, and that [`read`](crate::read::read) has checked.
    pub(crate) fn written_struct<T>(&mut self, name: &'static str, p: *mut T) -> Result<(), Status> {
        self.add(name, p, 1, 1, Access::Write).map(|_| ())
    }

    fn add<T>(
        &mut self,
        name: &'static str,
        data: *mut T,
        len: usize,
        expected: usize,
        access: Access,
    ) -> Result<Array<T>, Status> {
        if data.is_null() && expected > 0 {
            return Err(fail(BN_ERROR_NULL, format_args!("{name} is NULL: expected {expected} elements")));
        }
        check_alignment(name, data)?;
        if len != expected {
            let message = format_args!("{name} has the wrong length: expected {expected} elements, got {len}");
            return Err(fail(BN_ERROR_LENGTH, message));
        }
        let start = data.addr();
        let bytes = len.checked_mul(size_of::<T>()).filter(|&bytes| bytes <= isize::MAX as usize);
        let end = bytes.and_then(|bytes| start.checked_add(bytes));
        let Some(end) = end else {
            let message = format_args!("{name} extends past the end of the address space: {len} elements at {data:p}");
            return Err(fail(BN_ERROR_LENGTH, message));
        };
        if start < end {
            self.push(Span { name, start, end, access });
        }
        Ok(Array { data, len })
    }

    /// Checks that no array that is written overlaps another. The exception is `replaceable`, an input and the output
    /// that may be exactly the same array: the result says whether they are.
    pub(crate) fn check_overlap(&self, replaceable: Option<[&str; 2]>) -> Result<bool, Status> {
        let mut in_place = false;
        let spans = &self.spans[..self.len];
        for (i, b) in spans.iter().enumerate() {
            for a in &spans[..i] {
                let written = a.access == Access::Write || b.access == Access::Write;
                if !written || a.end <= b.start || b.end <= a.start {
                    continue;
                }
                if (a.start, a.end) == (b.start, b.end) && replaceable == Some([a.name, b.name]) {
                    in_place = true;
                    continue;
                }
                let (a, b, bytes) = (a.name, b.name, a.end.min(b.end) - a.start.max(b.start));
                return Err(fail(BN_ERROR_OVERLAP, format_args!("{a} and {b} overlap by {bytes} bytes")));
            }
        }
        Ok(in_place)
    }
}

/// # Safety
/// As [`Array::slice`].
pub(crate) unsafe fn slice<'a, T>(array: Option<Array<T>>) -> Option<&'a [T]> {
    // SAFETY: the caller's promise.
    array.map(|array| unsafe { array.slice() })
}

/// # Safety
/// As [`Array::slice_mut`].
pub(crate) unsafe fn slice_mut<'a, T>(array: Option<Array<T>>) -> Option<&'a mut [T]> {
    // SAFETY: the caller's promise.
    array.map(|array| unsafe { array.slice_mut() })
}
