//! Tensors: views of shared buffers.

use crate::error::{Error, Result};
use std::mem::MaybeUninit;
use std::sync::Arc;

/// A view of a shared buffer: element `[i, j, ..]` is at `start + i·strides[0] + j·strides[1] + ..`.
#[derive(Clone, Debug)]
pub struct Tensor<T> {
    buffer: Arc<Vec<T>>,
    start: usize,
    dims: Vec<usize>,
    strides: Vec<usize>,
}

impl<T: Copy> Tensor<T> {
    /// A tensor of the values in row-major order.
    ///
    /// # Errors
    /// [`Error::Dims`] if their number is another one, or exceeds `usize`.
    pub fn new(dims: &[usize], values: Vec<T>) -> Result<Self> {
        let wrong = || Error::Dims { expected: "as many elements as there are values", actual: dims.to_vec() };
        let mut strides = vec![0; dims.len()];
        let mut len = 1usize;
        for (stride, dim) in strides.iter_mut().zip(dims).rev() {
            *stride = len;
            len = len.checked_mul(*dim.max(&1)).ok_or_else(wrong)?;
        }
        let len = if dims.contains(&0) { 0 } else { len };
        if len != values.len() {
            return Err(wrong());
        }
        Ok(Self { buffer: Arc::new(values), start: 0, dims: dims.to_vec(), strides })
    }

    /// The extent of each axis.
    pub fn dims(&self) -> &[usize] {
        &self.dims
    }

    /// The distance of neighbours along each axis, in elements.
    pub fn strides(&self) -> &[usize] {
        &self.strides
    }

    /// The number of elements.
    pub fn len(&self) -> usize {
        self.dims.iter().product()
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The buffer from the first element on: of a dense tensor, its first [`len`](Self::len) values are the elements,
    /// in the order of memory.
    pub fn memory(&self) -> &[T] {
        self.buffer.get(self.start..).unwrap_or_default()
    }

    /// The same buffer with the axes in another order: an image that is stored as `[n, h, w, c]` becomes `[n, c, h, w]`
    /// by the axes `[0, 3, 1, 2]`.
    ///
    /// # Errors
    /// [`Error::Dims`] if an axis is missing.
    pub fn permuted(&self, axes: &[usize]) -> Result<Self> {
        if axes.len() != self.dims.len() || (0..axes.len()).any(|axis| !axes.contains(&axis)) {
            return Err(Error::Dims { expected: "an order of all axes", actual: self.dims.clone() });
        }
        let permute = |values: &[usize]| axes.iter().map(|&axis| values[axis]).collect();
        Ok(Self { dims: permute(&self.dims), strides: permute(&self.strides), ..self.clone() })
    }

    /// The part of the tensor whose index on an axis is within `from..from + len`.
    ///
    /// # Errors
    /// [`Error::Dims`] if there is no such axis, or if it is shorter.
    pub fn narrowed(&self, axis: usize, from: usize, len: usize) -> Result<Self> {
        let mut narrowed = self.clone();
        match narrowed.dims.get_mut(axis) {
            Some(dim) if from < *dim && len <= *dim - from => *dim = len,
            _ => return Err(Error::Dims { expected: "a longer axis", actual: self.dims.clone() }),
        }
        narrowed.start += from * self.strides[axis];
        Ok(narrowed)
    }

    /// The elements in row-major order.
    pub fn to_vec(&self) -> Vec<T> {
        let memory = self.memory();
        offsets(&self.dims, &self.strides).map(|at| memory[at]).collect()
    }

    /// The same elements in the layout of another tensor of the same dimensions, which is dense: a copy, unless they
    /// are in that layout.
    ///
    /// # Errors
    /// [`Error::Dims`] if the dimensions differ.
    pub fn in_layout_of<U>(&self, other: &Tensor<U>) -> Result<Self> {
        if self.dims != other.dims {
            return Err(Error::Dims { expected: "the dimensions of the other tensor", actual: self.dims.clone() });
        }
        if self.strides == other.strides {
            return Ok(self.clone());
        }
        let mut values = self.to_vec();
        for (at, value) in offsets(&self.dims, &other.strides).zip(self.to_vec()) {
            values[at] = value;
        }
        Ok(Self { buffer: Arc::new(values), start: 0, strides: other.strides.clone(), dims: self.dims.clone() })
    }
}

/// The offset of each element, in row-major order.
fn offsets(dims: &[usize], strides: &[usize]) -> impl Iterator<Item = usize> {
    (0..dims.iter().product()).map(move |mut index| {
        let mut offset = 0;
        for (dim, stride) in dims.iter().zip(strides).rev() {
            offset += index % dim * stride;
            index /= dim;
        }
        offset
    })
}

/// A dense tensor that has memory, but no values yet: filling it with zeros first would cost a sweep.
pub struct Unwritten<T> {
    buffer: Box<[MaybeUninit<T>]>,
    dims: Vec<usize>,
    strides: Vec<usize>,
}

impl<T: Copy> Unwritten<T> {
    /// Memory for the result of an elementwise operation, in the layout of its dense operand.
    pub fn like(operand: &Tensor<T>) -> Self {
        let (dims, strides) = (operand.dims.clone(), operand.strides.clone());
        Self { buffer: Box::new_uninit_slice(operand.len()), dims, strides }
    }

    /// The memory, for an operation to write.
    pub fn memory(&mut self) -> &mut [MaybeUninit<T>] {
        &mut self.buffer
    }

    /// The tensor.
    ///
    /// # Safety
    /// All of the memory has been written.
    pub unsafe fn written(self) -> Tensor<T> {
        // SAFETY: the caller's promise.
        let buffer = unsafe { self.buffer.assume_init() };
        Tensor { buffer: Arc::new(buffer.into()), start: 0, dims: self.dims, strides: self.strides }
    }
}
