//! The passes of a plan over arrays of the crate `ndarray`, in any order of axes, without copies.

use crate::arguments::{Affine, Extras, Gradients};
use crate::batch_norm::BatchNorm;
use crate::element::Element;
use crate::error::Error;
use crate::shape::Shape;
use crate::statistics::{GradientSums, Source, Statistics, Values, ValuesMut};
use crate::with::With;
use ndarray::{ArrayRef, ArrayRef1, Axis, Dimension};
use std::mem::MaybeUninit;
use std::slice;

/// The passes of a plan over arrays of the crate `ndarray`, owned or views, made by
/// [`BatchNorm::arrays`]. Its methods are those of [`With`].
///
/// x can have its axes in any order in memory: standard layout, or images with channels last that are viewed as
/// `[n, c, h, w]`. Its elements must follow each other in memory, and all other arrays must have the dims and strides of
/// x (`x.clone()` has them): nothing is copied, and the memory of all arrays is walked in the same order. So a slice of a
/// larger array, a reversed or a broadcast one is an error: use `as_standard_layout()` to copy it.
///
/// ```
/// use batchnorm::{Affine, ArrayGradients, BatchNorm, Statistics};
/// use ndarray::{Array1, Array4, Axis};
///
/// // 2 images with channels last, viewed as [n, c, h, w].
/// let x = Array4::from_shape_fn((2, 4, 4, 3), |(n, h, w, c)| (n + h * w + c) as f32).permuted_axes([0, 3, 1, 2]);
/// let plan = BatchNorm::for_array(&x, Axis(1))?.eps(1e-3)?;
/// assert_eq!((plan.shape().channels(), plan.shape().inner()), (3, 1));
///
/// let (gamma, beta) = (Array1::ones(3), Array1::zeros(3));
/// let affine = Affine::of_arrays(Some(&gamma), Some(&beta))?;
/// let (mut y, mut statistics) = (x.clone(), Statistics::new(3));
/// plan.arrays(Axis(1)).forward_training(&x, affine, &mut y, &mut statistics)?;
///
/// let (dy, mut dx, mut dgamma) = (y.clone(), y.clone(), Array1::zeros(3));
/// let gradients = ArrayGradients { dx: Some(&mut dx), dgamma: Some(&mut dgamma), ..ArrayGradients::default() };
/// plan.arrays(Axis(1)).backward(&x, &dy, &statistics, affine, gradients)?;
///
/// // Another order of axes is an error, which says what it expected.
/// let error = plan.arrays(Axis(1)).normalize(&x, &statistics, affine, &mut Array4::zeros((2, 3, 4, 4))).unwrap_err();
/// assert_eq!(
///     error.to_string(),
///     "y has the wrong strides: expected those of x, [48, 1, 12, 3], got [48, 16, 4, 1]"
/// );
/// # Ok::<(), batchnorm::Error>(())
/// ```
///
/// # Errors
/// All passes return the errors of [`With`], and these for an array: [`Error::NotDense`] and [`Error::ChannelAxis`] as
/// [`Shape::from_strides`]; [`Error::Layout`] if x does not have the plan's shape; [`Error::Dims`] and
/// [`Error::Strides`] if another array differs from x. They check all arguments before they write anything.
#[derive(Clone, Copy, Debug)]
pub struct Arrays<'a, E: Element, D: Dimension> {
    plan: &'a BatchNorm,
    channel_axis: Axis,
    extras: ArrayExtras<'a, E, D>,
}

/// [`Extras`] as arrays, each absent or given.
#[derive(Clone, Copy, Debug)]
pub struct ArrayExtras<'a, E: Element, D: Dimension> {
    /// Added before the activation: see [`Extras::residual`].
    pub residual: Option<&'a ArrayRef<E, D>>,
    /// y as the forward pass wrote it: see [`Extras::output`].
    pub output: Option<&'a ArrayRef<E, D>>,
    /// A weight for each position, in the order of memory: see [`Extras::weights`] and [`Shape::from_strides`].
    pub weights: Option<&'a [E::Param]>,
}

/// [`Gradients`] as arrays. Those that are `None` are not computed; one that is given is written, or is an error.
#[derive(Debug)]
pub struct ArrayGradients<'a, E, D: Dimension, P = E> {
    /// The gradient of x, with its dims and strides.
    pub dx: Option<&'a mut ArrayRef<E, D>>,
    /// The gradient of the residual, with the dims and strides of x: `dy·act'`.
    pub dresidual: Option<&'a mut ArrayRef<E, D>>,
    /// The gradient of gamma, one value per channel.
    pub dgamma: Option<&'a mut ArrayRef1<P>>,
    /// The gradient of beta, one value per channel.
    pub dbeta: Option<&'a mut ArrayRef1<P>>,
}

/// No further arguments.
impl<E: Element, D: Dimension> Default for ArrayExtras<'_, E, D> {
    fn default() -> Self {
        Self { residual: None, output: None, weights: None }
    }
}

/// None is wanted.
impl<E, D: Dimension, P> Default for ArrayGradients<'_, E, D, P> {
    fn default() -> Self {
        Self { dx: None, dresidual: None, dgamma: None, dbeta: None }
    }
}

impl<'a, P> Affine<'a, P> {
    /// gamma and beta as arrays, each absent or one value per channel.
    ///
    /// # Errors
    /// [`Error::NotDense`] if the values of one do not follow each other in memory.
    pub fn of_arrays(gamma: Option<&'a ArrayRef1<P>>, beta: Option<&'a ArrayRef1<P>>) -> Result<Self, Error> {
        let gamma = gamma.map(|gamma| memory("gamma", gamma)).transpose()?;
        let beta = beta.map(|beta| memory("beta", beta)).transpose()?;
        Ok(Self { gamma, beta })
    }
}

impl BatchNorm {
    /// [`new`](Self::new) for arrays with the dims and strides of `x`, whose channels are along `channel_axis`.
    ///
    /// # Errors
    /// Same as [`Shape::from_strides`].
    pub fn for_array<E, D: Dimension>(x: &ArrayRef<E, D>, channel_axis: Axis) -> Result<Self, Error> {
        shape_of("x", x, channel_axis).map(Self::new)
    }

    /// The passes over arrays whose channels are along `channel_axis`. Any that map onto the plan's shape fit.
    pub fn arrays<E: Element, D: Dimension>(&self, channel_axis: Axis) -> Arrays<'_, E, D> {
        Arrays { plan: self, channel_axis, extras: ArrayExtras::default() }
    }
}

impl<'a, E: Element, D: Dimension> Arrays<'a, E, D> {
    /// The passes with further arguments: see [`BatchNorm::with`].
    #[must_use]
    pub fn with(self, extras: ArrayExtras<'a, E, D>) -> Self {
        Self { extras, ..self }
    }

    /// Same as [`BatchNorm::statistics`].
    ///
    /// # Errors
    /// See [`Arrays`].
    pub fn statistics(&self, x: &ArrayRef<E, D>, statistics: &mut Statistics<impl ValuesMut>) -> Result<(), Error> {
        self.passes(x)?.statistics(memory("x", x)?, statistics)
    }

    /// Same as [`BatchNorm::forward_training`].
    ///
    /// # Errors
    /// See [`Arrays`].
    pub fn forward_training(
        &self,
        x: &ArrayRef<E, D>,
        affine: Affine<'_, E::Param>,
        y: &mut ArrayRef<E, D>,
        statistics: &mut Statistics<impl ValuesMut>,
    ) -> Result<(), Error> {
        self.passes(x)?.forward_training(memory("x", x)?, affine, like_mut("y", y, x)?, statistics)
    }

    /// [`forward_training`](Self::forward_training) with a y that need not be initialized: see [`Uninit`](crate::Uninit).
    ///
    /// # Errors
    /// See [`Arrays`].
    pub fn forward_training_uninit(
        &self,
        x: &ArrayRef<E, D>,
        affine: Affine<'_, E::Param>,
        y: &mut ArrayRef<MaybeUninit<E>, D>,
        statistics: &mut Statistics<impl ValuesMut>,
    ) -> Result<(), Error> {
        self.passes(x)?.uninit().forward_training(memory("x", x)?, affine, like_mut("y", y, x)?, statistics)
    }

    /// Same as [`BatchNorm::forward_training_in_place`].
    ///
    /// # Errors
    /// See [`Arrays`].
    pub fn forward_training_in_place(
        &self,
        x: &mut ArrayRef<E, D>,
        affine: Affine<'_, E::Param>,
        statistics: &mut Statistics<impl ValuesMut>,
    ) -> Result<(), Error> {
        self.passes(x)?.forward_training_in_place(memory_mut("x", x)?, affine, statistics)
    }

    /// Same as [`BatchNorm::normalize`].
    ///
    /// # Errors
    /// See [`Arrays`].
    pub fn normalize<'s>(
        &self,
        x: &ArrayRef<E, D>,
        source: impl Into<Source<'s>>,
        affine: Affine<'_, E::Param>,
        y: &mut ArrayRef<E, D>,
    ) -> Result<(), Error> {
        self.passes(x)?.normalize(memory("x", x)?, source, affine, like_mut("y", y, x)?)
    }

    /// [`normalize`](Self::normalize) with a y that need not be initialized: see [`Uninit`](crate::Uninit).
    ///
    /// ```
    /// use batchnorm::{Affine, BatchNorm, RunningStatistics};
    /// use ndarray::{Array, Axis, array};
    ///
    /// let (x, running) = (array![[1.0f32, 2.0], [3.0, 4.0]], RunningStatistics::new(2));
    /// let mut y = Array::uninit(x.raw_dim());
    /// let plan = BatchNorm::for_array(&x, Axis(1))?.eps(0.0)?;
    /// plan.arrays(Axis(1)).normalize_uninit(&x, &running, Affine::default(), &mut y)?;
    /// // SAFETY: the pass has written all of it.
    /// assert_eq!(unsafe { y.assume_init() }, x);
    /// # Ok::<(), batchnorm::Error>(())
    /// ```
    ///
    /// # Errors
    /// See [`Arrays`].
    pub fn normalize_uninit<'s>(
        &self,
        x: &ArrayRef<E, D>,
        source: impl Into<Source<'s>>,
        affine: Affine<'_, E::Param>,
        y: &mut ArrayRef<MaybeUninit<E>, D>,
    ) -> Result<(), Error> {
        self.passes(x)?.uninit().normalize(memory("x", x)?, source, affine, like_mut("y", y, x)?)
    }

    /// Same as [`BatchNorm::normalize_in_place`].
    ///
    /// # Errors
    /// See [`Arrays`].
    pub fn normalize_in_place<'s>(
        &self,
        x: &mut ArrayRef<E, D>,
        source: impl Into<Source<'s>>,
        affine: Affine<'_, E::Param>,
    ) -> Result<(), Error> {
        self.passes(x)?.normalize_in_place(memory_mut("x", x)?, source, affine)
    }

    /// Same as [`BatchNorm::gradient_sums`].
    ///
    /// # Errors
    /// See [`Arrays`].
    pub fn gradient_sums<'s>(
        &self,
        x: &ArrayRef<E, D>,
        dy: &ArrayRef<E, D>,
        source: impl Into<Source<'s>>,
        affine: Affine<'_, E::Param>,
        sums: &mut GradientSums<impl ValuesMut<Value = f64>>,
    ) -> Result<(), Error> {
        self.passes(x)?.gradient_sums(memory("x", x)?, like("dy", dy, x)?, source, affine, sums)
    }

    /// Same as [`With::input_gradient`].
    ///
    /// # Errors
    /// See [`Arrays`].
    pub fn input_gradient(
        &self,
        x: &ArrayRef<E, D>,
        dy: &ArrayRef<E, D>,
        statistics: &Statistics<impl Values>,
        sums: &GradientSums<impl Values<Value = f64>>,
        affine: Affine<'_, E::Param>,
        gradients: ArrayGradients<'_, E, D, E::Param>,
    ) -> Result<(), Error> {
        let (passes, gradients) = (self.passes(x)?, gradients.like(x)?);
        passes.input_gradient(memory("x", x)?, like("dy", dy, x)?, statistics, sums, affine, gradients)
    }

    /// Same as [`With::input_gradient_in_place`].
    ///
    /// # Errors
    /// See [`Arrays`].
    pub fn input_gradient_in_place(
        &self,
        x: &ArrayRef<E, D>,
        dy: &mut ArrayRef<E, D>,
        statistics: &Statistics<impl Values>,
        sums: &GradientSums<impl Values<Value = f64>>,
        affine: Affine<'_, E::Param>,
        gradients: ArrayGradients<'_, E, D, E::Param>,
    ) -> Result<(), Error> {
        let (passes, gradients) = (self.passes(x)?, gradients.like(x)?);
        let dy = like_mut("dy", dy, x)?;
        passes.input_gradient_in_place(memory("x", x)?, dy, statistics, sums, affine, gradients)
    }

    /// Same as [`BatchNorm::backward`].
    ///
    /// # Errors
    /// See [`Arrays`].
    pub fn backward<'s>(
        &self,
        x: &ArrayRef<E, D>,
        dy: &ArrayRef<E, D>,
        source: impl Into<Source<'s>>,
        affine: Affine<'_, E::Param>,
        gradients: ArrayGradients<'_, E, D, E::Param>,
    ) -> Result<(), Error> {
        let (passes, gradients) = (self.passes(x)?, gradients.like(x)?);
        passes.backward(memory("x", x)?, like("dy", dy, x)?, source, affine, gradients)
    }

    /// [`backward`](Self::backward) with gradients that need not be initialized: see [`Uninit`](crate::Uninit).
    ///
    /// # Errors
    /// See [`Arrays`].
    pub fn backward_uninit<'s>(
        &self,
        x: &ArrayRef<E, D>,
        dy: &ArrayRef<E, D>,
        source: impl Into<Source<'s>>,
        affine: Affine<'_, E::Param>,
        gradients: ArrayGradients<'_, MaybeUninit<E>, D, MaybeUninit<E::Param>>,
    ) -> Result<(), Error> {
        let (passes, gradients) = (self.passes(x)?.uninit(), gradients.like(x)?);
        passes.backward(memory("x", x)?, like("dy", dy, x)?, source, affine, gradients)
    }

    /// Same as [`With::backward_in_place`].
    ///
    /// # Errors
    /// See [`Arrays`].
    pub fn backward_in_place<'s>(
        &self,
        x: &ArrayRef<E, D>,
        dy: &mut ArrayRef<E, D>,
        source: impl Into<Source<'s>>,
        affine: Affine<'_, E::Param>,
        gradients: ArrayGradients<'_, E, D, E::Param>,
    ) -> Result<(), Error> {
        let (passes, gradients) = (self.passes(x)?, gradients.like(x)?);
        passes.backward_in_place(memory("x", x)?, like_mut("dy", dy, x)?, source, affine, gradients)
    }

    /// The passes over slices, with the memory of the extras, for an x that has the plan's shape.
    fn passes(&self, x: &ArrayRef<E, D>) -> Result<With<'a, E>, Error> {
        let (expected, actual) = (self.plan.shape(), shape_of("x", x, self.channel_axis)?);
        if actual != expected {
            return Err(Error::Layout { argument: "x", expected, actual });
        }
        let ArrayExtras { residual, output, weights } = self.extras;
        let residual = residual.map(|residual| like("residual", residual, x)).transpose()?;
        let output = output.map(|output| like("output", output, x)).transpose()?;
        Ok(self.plan.with(Extras { residual, output, weights }))
    }
}

impl<'a, E, D: Dimension, P> ArrayGradients<'a, E, D, P> {
    /// Their memory, for arrays with the dims and strides of x.
    fn like<T>(self, x: &ArrayRef<T, D>) -> Result<Gradients<'a, E, P>, Error> {
        Ok(Gradients {
            dx: self.dx.map(|dx| like_mut("dx", dx, x)).transpose()?,
            dresidual: self.dresidual.map(|dresidual| like_mut("dresidual", dresidual, x)).transpose()?,
            dgamma: self.dgamma.map(|dgamma| memory_mut("dgamma", dgamma)).transpose()?,
            dbeta: self.dbeta.map(|dbeta| memory_mut("dbeta", dbeta)).transpose()?,
        })
    }
}

/// The shape of a dense array.
fn shape_of<T, D: Dimension>(
    argument: &'static str,
    array: &ArrayRef<T, D>,
    channel_axis: Axis,
) -> Result<Shape, Error> {
    Shape::of_tensor(argument, array.shape(), array.strides(), channel_axis.index())
}

/// The elements of a dense array in the order of memory.
fn memory<'s, T, D: Dimension>(argument: &'static str, array: &'s ArrayRef<T, D>) -> Result<&'s [T], Error> {
    shape_of(argument, array, Axis(0))?;
    // SAFETY: an array with a shape is dense, and none of its strides is negative: its elements are the `len` ones from
    // the first.
    Ok(unsafe { slice::from_raw_parts(array.as_ptr(), array.len()) })
}

/// The same.
fn memory_mut<'s, T, D: Dimension>(
    argument: &'static str,
    array: &'s mut ArrayRef<T, D>,
) -> Result<&'s mut [T], Error> {
    shape_of(argument, array, Axis(0))?;
    // SAFETY: as in `memory`; the array is borrowed for as long as the slice.
    Ok(unsafe { slice::from_raw_parts_mut(array.as_mut_ptr(), array.len()) })
}

/// [`memory`] of an array that must have the dims and strides of x.
fn like<'s, T, U, D: Dimension>(
    argument: &'static str,
    array: &'s ArrayRef<T, D>,
    x: &ArrayRef<U, D>,
) -> Result<&'s [T], Error> {
    check_like(argument, array, x)?;
    memory(argument, array)
}

/// The same.
fn like_mut<'s, T, U, D: Dimension>(
    argument: &'static str,
    array: &'s mut ArrayRef<T, D>,
    x: &ArrayRef<U, D>,
) -> Result<&'s mut [T], Error> {
    check_like(argument, array, x)?;
    memory_mut(argument, array)
}

fn check_like<T, U, D: Dimension>(
    argument: &'static str,
    array: &ArrayRef<T, D>,
    x: &ArrayRef<U, D>,
) -> Result<(), Error> {
    let (expected, actual) = (x.shape(), array.shape());
    if actual != expected {
        return Err(Error::Dims { argument, expected: expected.to_vec(), actual: actual.to_vec() });
    }
    // The stride of an axis with at most one element says nothing, nor does any if there are no elements.
    let matter = |axis: usize| expected[axis] > 1 && !x.is_empty();
    let (expected, actual) = (x.strides(), array.strides());
    if (0..actual.len()).any(|axis| matter(axis) && actual[axis] != expected[axis]) {
        return Err(Error::Strides { argument, expected: expected.to_vec(), actual: actual.to_vec() });
    }
    Ok(())
}
