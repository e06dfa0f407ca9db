//! Passes into memory that is not initialized.

use crate::arguments::{Affine, Gradients};
use crate::element::Element;
use crate::error::{Error, check_len};
use crate::statistics::{GradientSums, Source, Statistics, Values, ValuesMut};
use crate::with::With;
use std::mem::MaybeUninit;

/// The passes of [`With`] into memory that need not be initialized, as an engine allocates it: to fill it with zeros
/// first takes up to as long again as a pass. Made by [`With::uninit`].
///
/// After `Ok` every output that was given is initialized, all of it; after an error none was touched. Outputs are never
/// read.
///
/// ```
/// use batchnorm::{Affine, BatchNorm, Extras, Shape, Statistics};
///
/// let plan = BatchNorm::new(Shape::nc(4, 1)?);
/// let (x, mut statistics) = ([1.0f32, 2.0, 3.0, 4.0], Statistics::new(1));
/// let mut y = Vec::with_capacity(x.len());
/// let room = y.spare_capacity_mut();
/// plan.with(Extras::default()).uninit().forward_training(&x, Affine::default(), room, &mut statistics)?;
/// // SAFETY: the pass has written all of them.
/// unsafe { y.set_len(x.len()) };
/// assert!(y[0] < 0.0 && y[3] > 0.0);
/// # Ok::<(), batchnorm::Error>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Uninit<'a, E: Element, P = <E as Element>::Param>(With<'a, E, P>);

impl<'a, E: Element, P: Element<Param = E::Param>> With<'a, E, P> {
    /// The same passes, with outputs that need not be initialized.
    pub fn uninit(self) -> Uninit<'a, E, P> {
        Uninit(self)
    }
}

impl<E: Element, P: Element<Param = E::Param>> Uninit<'_, E, P> {
    fn check(&self, argument: &'static str, len: usize) -> Result<(), Error> {
        check_len(argument, self.0.engine.shape.len(), len)
    }

    /// Same as [`BatchNorm::forward_training`](crate::BatchNorm::forward_training).
    ///
    /// # Errors
    /// See [`With`].
    pub fn forward_training(
        &self,
        x: &[E],
        affine: Affine<'_, P>,
        y: &mut [MaybeUninit<E>],
        statistics: &mut Statistics<impl ValuesMut>,
    ) -> Result<(), Error> {
        self.check("x", x.len())?;
        self.check("y", y.len())?;
        // SAFETY: x and y have the plan's shape and do not overlap.
        unsafe { self.0.forward_raw(x.as_ptr(), affine, y.as_mut_ptr().cast(), statistics) }
    }

    /// Same as [`BatchNorm::normalize`](crate::BatchNorm::normalize).
    ///
    /// # Errors
    /// See [`With`].
    pub fn normalize<'s>(
        &self,
        x: &[E],
        source: impl Into<Source<'s>>,
        affine: Affine<'_, P>,
        y: &mut [MaybeUninit<E>],
    ) -> Result<(), Error> {
        self.check("x", x.len())?;
        self.check("y", y.len())?;
        // SAFETY: x and y have the plan's shape and do not overlap.
        unsafe { self.0.normalize_raw(x.as_ptr(), source.into(), affine, y.as_mut_ptr().cast()) }
    }

    /// Same as [`BatchNorm::input_gradient`](crate::BatchNorm::input_gradient), with any of the gradients that follow
    /// from the sums.
    ///
    /// # Errors
    /// See [`With`].
    pub fn input_gradient(
        &self,
        x: &[E],
        dy: &[E],
        statistics: &Statistics<impl Values>,
        sums: &GradientSums<impl Values<Value = f64>>,
        affine: Affine<'_, P>,
        gradients: Gradients<'_, MaybeUninit<E>, MaybeUninit<P>>,
    ) -> Result<(), Error> {
        self.check("dy", dy.len())?;
        let source = Source::from(statistics);
        // SAFETY: dy has the plan's shape; slices do not overlap.
        unsafe { self.0.backward_raw(x, dy.as_ptr(), source, affine, Some(sums.view()), gradients, None) }
    }

    /// Same as [`BatchNorm::backward`](crate::BatchNorm::backward).
    ///
    /// # Errors
    /// See [`With`].
    pub fn backward<'s>(
        &self,
        x: &[E],
        dy: &[E],
        source: impl Into<Source<'s>>,
        affine: Affine<'_, P>,
        gradients: Gradients<'_, MaybeUninit<E>, MaybeUninit<P>>,
    ) -> Result<(), Error> {
        self.check("dy", dy.len())?;
        // SAFETY: dy has the plan's shape; slices do not overlap.
        unsafe { self.0.backward_raw(x, dy.as_ptr(), source.into(), affine, None, gradients, None) }
    }
}
