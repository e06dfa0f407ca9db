//! Where an element lives: three integers that describe every layout.

use crate::error::{Error, check_len};
use std::cmp::Reverse;
use std::iter;

/// The extent of an activation: element `(o, c, i)` lives at `(o * channels + c) * inner + i`.
///
/// A channel is normalized over all its `outer * inner` values. Every usual layout is a case of this:
///
/// | constructor | outer | channels | inner |
/// |---|---|---|---|
/// | [`Shape::nc`] | n | c | 1 |
/// | [`Shape::ncl`] | n | c | l |
/// | [`Shape::nchw`] | n | c | h·w |
/// | [`Shape::ncdhw`] | n | c | d·h·w |
/// | [`Shape::nhwc`] | n·h·w | c | 1 |
/// | [`Shape::ndhwc`] | n·d·h·w | c | 1 |
///
/// [`Shape::from_strides`] finds the case of a tensor whose axes lie in any order.
///
/// ```
/// use batchnorm::Shape;
/// let shape = Shape::nchw(32, 64, 56, 56)?;
/// assert_eq!((shape.outer(), shape.channels(), shape.inner()), (32, 64, 3136));
/// assert_eq!(shape.len(), 32 * 64 * 56 * 56);
/// assert_eq!(shape.values_per_channel(), 32 * 56 * 56);
/// # Ok::<(), batchnorm::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Shape {
    outer: usize,
    channels: usize,
    inner: usize,
}

impl Shape {
    /// A shape from its three extents.
    ///
    /// # Errors
    /// [`Error::ShapeOverflow`] if a buffer of the largest element type (8 bytes) would exceed `isize::MAX` bytes.
    pub fn new(outer: usize, channels: usize, inner: usize) -> Result<Self, Error> {
        Self::from_dims(&[outer], channels, &[inner])
    }

    /// `n` examples of `c` features: fully connected layers.
    ///
    /// # Errors
    /// Same as [`Shape::new`].
    pub fn nc(n: usize, c: usize) -> Result<Self, Error> {
        Self::from_dims(&[n], c, &[])
    }

    /// `n` sequences of `c` channels of length `l`, channels first.
    ///
    /// # Errors
    /// Same as [`Shape::new`].
    pub fn ncl(n: usize, c: usize, l: usize) -> Result<Self, Error> {
        Self::from_dims(&[n], c, &[l])
    }

    /// `n` images of `c` channels of `h` × `w`, channels first.
    ///
    /// # Errors
    /// Same as [`Shape::new`].
    pub fn nchw(n: usize, c: usize, h: usize, w: usize) -> Result<Self, Error> {
        Self::from_dims(&[n], c, &[h, w])
    }

    /// `n` volumes of `c` channels of `d` × `h` × `w`, channels first.
    ///
    /// # Errors
    /// Same as [`Shape::new`].
    pub fn ncdhw(n: usize, c: usize, d: usize, h: usize, w: usize) -> Result<Self, Error> {
        Self::from_dims(&[n], c, &[d, h, w])
    }

    /// `n` images of `h` × `w`, channels last.
    ///
    /// # Errors
    /// Same as [`Shape::new`].
    pub fn nhwc(n: usize, h: usize, w: usize, c: usize) -> Result<Self, Error> {
        Self::from_dims(&[n, h, w], c, &[])
    }

    /// `n` volumes of `d` × `h` × `w`, channels last.
    ///
    /// # Errors
    /// Same as [`Shape::new`].
    pub fn ndhwc(n: usize, d: usize, h: usize, w: usize, c: usize) -> Result<Self, Error> {
        Self::from_dims(&[n, d, h, w], c, &[])
    }

    /// A tensor whose elements follow each other in memory, with its axes in any order: those outside the channel axis
    /// are `outer` together, those inside it `inner`. Strides count elements, not bytes.
    ///
    /// In memory this is one tensor with that shape, so positions, such as those of weights, count in the order of
    /// memory: `o * inner + i`, whatever the order of `dims`. An axis of extent 1 may have any stride, and so may all
    /// axes of a tensor without elements. If there are no elements or only one channel, the axes before the channel axis
    /// in `dims` are `outer` and those after it `inner`.
    ///
    /// ```
    /// use batchnorm::Shape;
    ///
    /// // [n, c, h, w] = [2, 3, 4, 5] in standard layout, with channels last, and with images last.
    /// let dims = [2, 3, 4, 5];
    /// assert_eq!(Shape::from_strides(&dims, &[60, 20, 5, 1], 1)?, Shape::nchw(2, 3, 4, 5)?);
    /// assert_eq!(Shape::from_strides(&dims, &[60, 1, 15, 3], 1)?, Shape::nhwc(2, 4, 5, 3)?);
    /// assert_eq!(Shape::from_strides(&dims, &[1, 40, 10, 2], 1)?, Shape::new(1, 3, 40)?);
    ///
    /// // Every second row of images with 8 rows.
    /// let error = Shape::from_strides(&dims, &[120, 40, 10, 1], 1).unwrap_err();
    /// assert_eq!(
    ///     error.to_string(),
    ///     "the tensor is not dense in memory: expected stride 5 for axis 2, got 10, which leaves gaps; by their strides \
    ///      its axes are in the order [0, 1, 2, 3], and a copy in standard layout has strides [60, 20, 5, 1]"
    /// );
    /// # Ok::<(), batchnorm::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Length`] if there are more or fewer strides than dims; [`Error::ChannelAxis`] if `channel_axis` is not
    /// less than their number; [`Error::NotDense`] for a stride that is negative or 0, or that leaves gaps or makes
    /// elements overlap; [`Error::ShapeOverflow`] as in [`Shape::new`].
    pub fn from_strides(dims: &[usize], strides: &[isize], channel_axis: usize) -> Result<Self, Error> {
        Self::of_tensor("the tensor", dims, strides, channel_axis)
    }

    /// The same, with a name of the tensor for errors.
    pub(crate) fn of_tensor(
        argument: &'static str,
        dims: &[usize],
        strides: &[isize],
        channel_axis: usize,
    ) -> Result<Self, Error> {
        check_len("strides", dims.len(), strides.len())?;
        let out_of_range = Error::ChannelAxis { axes: dims.len(), actual: channel_axis };
        let &channels = dims.get(channel_axis).ok_or(out_of_range)?;
        let in_order = Self::from_dims(&dims[..channel_axis], channels, &dims[channel_axis + 1..])?;
        if in_order.is_empty() {
            return Ok(in_order);
        }
        // The product of the extents inside each axis, which fits, as that of all does.
        let mut expected = 1;
        for axis in innermost_first(dims, strides) {
            if strides[axis] != expected {
                return Err(not_dense(argument, dims, strides, axis, expected));
            }
            expected *= dims[axis] as isize;
        }
        if channels == 1 {
            return Ok(in_order);
        }
        // Axes of extent 1, whose strides say nothing, are factors of 1.
        let outside = dims.iter().zip(strides).filter(|(_, stride)| **stride > strides[channel_axis]);
        let outer = outside.map(|(extent, _)| extent).product();
        Ok(Self { outer, channels, inner: in_order.len() / channels / outer })
    }

    fn from_dims(outer: &[usize], channels: usize, inner: &[usize]) -> Result<Self, Error> {
        // A zero extent makes the buffer empty however large the others are, but each group's own product must fit too:
        // it becomes a field.
        let product = |dims: &[usize]| dims.iter().try_fold(1usize, |a, &d| a.checked_mul(d));
        let fits = |o: usize, i: usize| {
            let bytes = o.checked_mul(channels)?.checked_mul(i)?.checked_mul(8)?;
            (bytes <= isize::MAX as usize).then_some(())
        };
        let checked = || {
            let (outer, inner) = (product(outer)?, product(inner)?);
            fits(outer, inner)?;
            outer.checked_mul(inner)?;
            Some(Self { outer, channels, inner })
        };
        checked().ok_or_else(|| Error::ShapeOverflow {
            dims: outer.iter().chain([&channels]).chain(inner).copied().collect(),
        })
    }

    /// The same number of elements or fewer, with other extents.
    pub(crate) fn with_extents(self, outer: usize, channels: usize, inner: usize) -> Self {
        debug_assert!(outer * channels * inner <= self.len(), "a larger shape might overflow");
        Self { outer, channels, inner }
    }

    /// How many blocks of channels there are: images, examples, or pixels where channels come last.
    #[inline]
    pub fn outer(self) -> usize {
        self.outer
    }

    /// How many channels (features) there are, each with statistics of its own.
    #[inline]
    pub fn channels(self) -> usize {
        self.channels
    }

    /// How many neighbouring elements belong to one channel: the size of a plane; 1 where channels come last.
    #[inline]
    pub fn inner(self) -> usize {
        self.inner
    }

    /// Elements of a buffer of this shape.
    #[inline]
    pub fn len(self) -> usize {
        self.outer * self.channels * self.inner
    }

    /// Whether a buffer of this shape has no elements.
    #[inline]
    pub fn is_empty(self) -> bool {
        self.len() == 0
    }

    /// M, the number of values over which a channel is normalized.
    #[inline]
    pub fn values_per_channel(self) -> usize {
        self.outer * self.inner
    }
}

/// The axes with more than one element, by the size of their strides. There are fewer than 64 if the number of elements
/// fits in an integer, so finding the next one each time is quick, and needs no memory.
fn innermost_first(dims: &[usize], strides: &[isize]) -> impl Iterator<Item = usize> {
    let key = |axis: usize| (strides[axis].unsigned_abs(), Reverse(axis));
    let next = move |last: Option<usize>| {
        let rest = (0..dims.len()).filter(|&axis| dims[axis] > 1 && last.is_none_or(|last| key(axis) > key(last)));
        rest.min_by_key(|&axis| key(axis))
    };
    iter::successors(next(None), move |&last| next(Some(last)))
}

#[cold]
fn not_dense(argument: &'static str, dims: &[usize], strides: &[isize], axis: usize, expected: isize) -> Error {
    let mut order: Vec<_> = innermost_first(dims, strides).collect();
    order.reverse();
    let standard = (0..dims.len()).map(|axis| dims[axis + 1..].iter().product::<usize>() as isize).collect();
    Error::NotDense { argument, axis, expected, actual: strides[axis], order, standard }
}
