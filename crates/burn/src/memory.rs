//! Flex's tensors as the slices that passes read and write.

use burn::backend::TensorMetadata;
use burn::backend::flex::{FlexTensor, Layout};
use burn::tensor::{Bytes, Element, Shape};
use bytemuck::Pod;
use std::cmp::Reverse;
use std::mem::MaybeUninit;
use std::ops::Range;

/// An element type of both crates.
pub(crate) trait Float: batchnorm::Element + Element + Pod {}
impl<E: batchnorm::Element + Element + Pod> Float for E {}

/// The axes of a tensor from the outermost to the innermost in memory.
#[derive(Clone, Debug)]
pub(crate) struct Order(Vec<usize>);

impl Order {
    pub(crate) fn of(x: &FlexTensor) -> Self {
        let strides = x.layout().strides();
        let mut axes: Vec<usize> = (0..strides.len()).collect();
        axes.sort_by_key(|&axis| Reverse(strides[axis]));
        Self(axes)
    }

    /// The tensor with its axes in this order. It is copied if it is not contiguous then.
    pub(crate) fn sort(&self, x: FlexTensor) -> FlexTensor {
        let layout = x.layout().permute(&self.0);
        contiguous(x.with_layout(layout))
    }

    /// The shape of a sorted tensor whose second axis, before it was sorted, is that of the channels.
    pub(crate) fn shape(&self, sorted: &FlexTensor) -> Result<batchnorm::Shape, batchnorm::Error> {
        let dims = sorted.shape();
        let channels = self.0.iter().position(|&axis| axis == 1).unwrap_or_default();
        batchnorm::Shape::new(dims[..channels].iter().product(), dims[channels], dims[channels + 1..].iter().product())
    }

    /// A sorted tensor with its axes in the order that they had before.
    pub(crate) fn restore(&self, sorted: FlexTensor) -> FlexTensor {
        let mut places = vec![0; self.0.len()];
        for (place, &axis) in self.0.iter().enumerate() {
            places[axis] = place;
        }
        let layout = sorted.layout().permute(&places);
        sorted.with_layout(layout)
    }
}

/// The tensor, or a contiguous copy.
pub(crate) fn contiguous(x: FlexTensor) -> FlexTensor {
    if x.is_contiguous() { x } else { x.to_contiguous() }
}

/// The elements of a contiguous tensor. Its storage may be that of a larger one, of which it is a part.
pub(crate) fn elements<E: Float>(x: &FlexTensor) -> &[E] {
    &x.storage()[range(x)]
}

/// The same, to be overwritten. None if another tensor shares the storage.
pub(crate) fn elements_mut<E: Float>(x: &mut FlexTensor) -> Option<&mut [E]> {
    let range = range(x);
    x.try_storage_mut().map(|storage| &mut storage[range])
}

fn range(x: &FlexTensor) -> Range<usize> {
    let start = x.layout().start_offset();
    start..start + x.layout().num_elements()
}

/// A contiguous tensor.
pub(crate) fn tensor<E: Float>(shape: Shape, elements: Vec<E>) -> FlexTensor {
    FlexTensor::new(Bytes::from_elems(elements), Layout::contiguous(shape), <E as Element>::dtype())
}

/// Memory for an output. It is not filled, which would be a sweep more.
pub(crate) struct Output<E>(Box<[MaybeUninit<E>]>);

impl<E> Output<E> {
    pub(crate) fn new(len: usize) -> Self {
        Self(Box::new_uninit_slice(len))
    }

    pub(crate) fn memory(&mut self) -> &mut [MaybeUninit<E>] {
        &mut self.0
    }

    /// # Safety
    /// All of the memory has been written.
    pub(crate) unsafe fn written(self) -> Vec<E> {
        // SAFETY: the caller's promise.
        unsafe { self.0.assume_init() }.into_vec()
    }
}
