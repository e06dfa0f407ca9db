//! Where an element lives: three integers that describe every layout.

use crate::error::Error;

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
