//! From addresses and lengths to slices: each array of a call is checked on its own, then all together for overlap, and
//! only then are they made slices.

use crate::error::Failure;
use std::mem::MaybeUninit;

/// The address and the number of elements of an array of the caller.
pub(crate) type Raw = (usize, usize);
/// Two arrays that belong together.
pub(crate) type Two = (Raw, Raw);

/// An array that has been checked on its own.
pub(crate) struct Array<T> {
    data: *mut T,
    len: usize,
}

impl<T> Clone for Array<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Array<T> {}

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

    /// Memory that need not be initialized.
    ///
    /// # Safety
    /// As [`slice_mut`](Self::slice_mut), but for the contents of the elements.
    pub(crate) unsafe fn uninit<'a>(self) -> &'a mut [MaybeUninit<T>] {
        let array = Array { data: self.data.cast::<MaybeUninit<T>>(), len: self.len };
        // SAFETY: the caller's promise.
        unsafe { array.slice_mut() }
    }
}

/// The addresses of an array.
struct Span {
    name: &'static str,
    start: usize,
    end: usize,
    written: bool,
}

/// The arrays of one call that have been checked.
pub(crate) struct Arrays(Vec<Span>);

impl Arrays {
    pub(crate) fn new() -> Self {
        // The most that a call has.
        Self(Vec::with_capacity(16))
    }

    pub(crate) fn input<T>(&mut self, name: &'static str, raw: Raw) -> Result<Array<T>, Failure> {
        self.add(name, raw, false)
    }

    pub(crate) fn output<T>(&mut self, name: &'static str, raw: Raw) -> Result<Array<T>, Failure> {
        self.add(name, raw, true)
    }

    pub(crate) fn optional_input<T>(
        &mut self,
        name: &'static str,
        raw: Option<Raw>,
    ) -> Result<Option<Array<T>>, Failure> {
        raw.map(|raw| self.input(name, raw)).transpose()
    }

    pub(crate) fn optional_output<T>(
        &mut self,
        name: &'static str,
        raw: Option<Raw>,
    ) -> Result<Option<Array<T>>, Failure> {
        raw.map(|raw| self.output(name, raw)).transpose()
    }

    fn add<T>(&mut self, name: &'static str, (start, len): Raw, written: bool) -> Result<Array<T>, Failure> {
        let array = Array { data: std::ptr::with_exposed_provenance_mut(start), len };
        if len == 0 {
            return Ok(array);
        }
        if start == 0 {
            return Err(Failure::value(format!("{name} has no memory: expected {len} elements")));
        }
        if !array.data.is_aligned() {
            let align = align_of::<T>();
            let message =
                format!("{name} is misaligned: expected an address that is a multiple of {align}, got {start:#x}");
            return Err(Failure::value(message));
        }
        let bytes = len.checked_mul(size_of::<T>()).filter(|&bytes| isize::try_from(bytes).is_ok());
        let Some(end) = bytes.and_then(|bytes| start.checked_add(bytes)) else {
            return Err(Failure::value(format!("{name} extends past the end of the address space: {len} elements")));
        };
        self.0.push(Span { name, start, end, written });
        Ok(array)
    }

    /// Checks that nothing overlaps what is written, except that the second array of `replaces`, which is written, may
    /// be the first one exactly. Returns whether it is.
    pub(crate) fn check_overlap(&self, replaces: Option<[&'static str; 2]>) -> Result<bool, Failure> {
        let mut in_place = false;
        for (i, a) in self.0.iter().enumerate() {
            for b in &self.0[i + 1..] {
                let overlap = a.start < b.end && b.start < a.end;
                if !overlap || !(a.written || b.written) {
                    continue;
                }
                if replaces == Some([a.name, b.name]) && (a.start, a.end) == (b.start, b.end) {
                    in_place = true;
                    continue;
                }
                let (output, other) = if b.written { (b, a) } else { (a, b) };
                return Err(Failure::value(format!("{} overlaps {}", output.name, other.name)));
            }
        }
        Ok(in_place)
    }
}

/// The slice of an array that may be absent.
///
/// # Safety
/// As [`Array::slice`].
pub(crate) unsafe fn slice<'a, T>(array: Option<Array<T>>) -> Option<&'a [T]> {
    // SAFETY: the caller's promise.
    array.map(|array| unsafe { array.slice() })
}

/// The same, for memory that is written.
///
/// # Safety
/// As [`Array::uninit`].
pub(crate) unsafe fn uninit<'a, T>(array: Option<Array<T>>) -> Option<&'a mut [MaybeUninit<T>]> {
    // SAFETY: the caller's promise.
    array.map(|array| unsafe { array.uninit() })
}
