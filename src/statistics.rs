//! What passes learn about a batch, how those of parts are merged, and the averages kept for inference.

use crate::error::{Error, check_len};
use crate::kernels::merge::merge_statistics;
use crate::simd::Real;

/// Memory for one value per channel: a `Vec`, `&[]` or `&mut []` of f64 or, for statistics, of f32.
pub trait Values: sealed::Sealed + AsRef<[Self::Value]> {
    /// f64 or f32.
    type Value: Precision;
}
/// [`Values`] that can be written.
pub trait ValuesMut: Values + AsMut<[Self::Value]> {}

impl<P: Precision> Values for Vec<P> {
    type Value = P;
}
impl<P: Precision> ValuesMut for Vec<P> {}
impl<P: Precision> Values for &[P] {
    type Value = P;
}
impl<P: Precision> Values for &mut [P] {
    type Value = P;
}
impl<P: Precision> ValuesMut for &mut [P] {}

/// f64, in which statistics are computed, or f32, to which they are rounded when they are stored.
pub trait Precision: sealed::Sealed + Real {
    /// The same values if they are of f64.
    #[doc(hidden)]
    fn as_f64(values: &[Self]) -> Option<&[f64]>;
    /// The same.
    #[doc(hidden)]
    fn as_f64_mut(values: &mut [Self]) -> Option<&mut [f64]>;
    #[doc(hidden)]
    fn batch(statistics: Statistics<&[Self]>) -> Source<'_>;
    #[doc(hidden)]
    fn running(running: RunningStatistics<&[Self]>) -> Source<'_>;
}

macro_rules! precision {
    ($type:ty, $as_f64:expr, $as_f64_mut:expr, $batch:expr, $running:expr) => {
        impl Precision for $type {
            fn as_f64(values: &[Self]) -> Option<&[f64]> {
                $as_f64(values)
            }
            fn as_f64_mut(values: &mut [Self]) -> Option<&mut [f64]> {
                $as_f64_mut(values)
            }
            fn batch(statistics: Statistics<&[Self]>) -> Source<'_> {
                $batch(statistics)
            }
            fn running(running: RunningStatistics<&[Self]>) -> Source<'_> {
                $running(running)
            }
        }
    };
}

precision!(f64, Some, Some, Source::Batch, Source::Running);
precision!(f32, |_| None, |_| None, Source::BatchF32, Source::RunningF32);

mod sealed {
    pub trait Sealed {}
    impl Sealed for f64 {}
    impl Sealed for f32 {}
    impl<P: super::Precision> Sealed for Vec<P> {}
    impl<P: super::Precision> Sealed for &[P] {}
    impl<P: super::Precision> Sealed for &mut [P] {}
}

/// Mean and biased variance of each channel over `count` values, in f64.
///
/// They own their memory or, if made by [`from_parts`](Self::from_parts) of slices, borrow it; so do the other types of
/// this kind. Memory of f32 serves engines that have no f64: each value is rounded once when it is written. That costs
/// accuracy where |mean| is much larger than the standard deviation, as the mean is then off by u·|mean|, with u = 2⁻²⁴:
/// x̂ by u·κ, and dgamma by u·κ·|Σdy|. So keep f64 at least between the forward and the backward pass.
///
/// [`merge`](Self::merge) makes the statistics of a whole batch from those of its parts. An empty `Statistics` is where
/// merging starts.
///
/// ```
/// use batchnorm::{BatchNorm, Shape, Statistics};
///
/// let plan = BatchNorm::new(Shape::nc(2, 1)?);
/// let mut whole = Statistics::new(1);
/// for part in [[1.0f32, 3.0], [5.0, 7.0]] {
///     let mut statistics = Statistics::new(1);
///     plan.statistics(&part, &mut statistics)?;
///     whole.merge(&statistics)?;
/// }
/// assert_eq!((whole.count(), whole.mean(), whole.var()), (4.0, &[4.0][..], &[5.0][..]));
/// # Ok::<(), batchnorm::Error>(())
/// ```
///
/// Over a stream of mini-batches this gives the statistics of the whole population, whereas [`RunningStatistics`] are
/// averages over weights that changed during training. Use it to re-estimate statistics once the weights are final:
///
/// ```
/// use batchnorm::{Affine, BatchNorm, RunningStatistics, Shape, Statistics};
///
/// let mut population = Statistics::new(1);
/// let stream: [&[f32]; 3] = [&[1.0, 2.0, 3.0, 4.0], &[5.0], &[6.0, 7.0, 8.0]]; // of any lengths
/// for x in stream {
///     let mut batch = Statistics::new(1);
///     BatchNorm::new(Shape::nc(x.len(), 1)?).statistics(x, &mut batch)?;
///     population.merge(&batch)?;
/// }
/// assert_eq!((population.count(), population.mean(), population.var()), (8.0, &[4.5][..], &[5.25][..]));
///
/// // For inference, as constants. The variance is the biased one; times count/(count − 1) it is the unbiased one.
/// let constants = RunningStatistics::from_parts(population.mean(), population.var(), 3)?;
/// let mut y = [0.0];
/// BatchNorm::new(Shape::nc(1, 1)?).normalize(&[4.5f32], &constants, Affine::default(), &mut y)?;
/// assert_eq!(y, [0.0]);
/// # Ok::<(), batchnorm::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Statistics<V = Vec<f64>> {
    pub(crate) count: f64,
    pub(crate) mean: V,
    pub(crate) var: V,
}

/// Finds a variance that is negative, or NaN unless `nan` is allowed.
fn check_var<P: Precision>(var: &[P], nan: bool) -> Result<(), Error> {
    for (channel, value) in var.iter().map(|v| v.to_wide()).enumerate() {
        if value < 0.0 || (value.is_nan() && !nan) {
            return Err(Error::Variance { channel, value });
        }
    }
    Ok(())
}

pub(crate) fn check_count(count: f64) -> Result<(), Error> {
    if count >= 0.0 && count.is_finite() { Ok(()) } else { Err(Error::Count(count)) }
}

impl Statistics {
    /// Statistics over no values, for `channels` channels.
    pub fn new(channels: usize) -> Self {
        Self { count: 0.0, mean: vec![0.0; channels], var: vec![0.0; channels] }
    }
}

impl<V: Values> Statistics<V> {
    /// Statistics that were computed elsewhere: `count` values per channel, one mean and one biased variance per
    /// channel. Both may be NaN, as they are for a channel with NaN or Inf in its data.
    ///
    /// # Errors
    /// [`Error::Count`] if `count` is negative or not finite, [`Error::Length`] if the lengths differ,
    /// [`Error::Variance`] if a variance is negative.
    pub fn from_parts(count: f64, mean: V, var: V) -> Result<Self, Error> {
        check_count(count)?;
        check_len("var", mean.as_ref().len(), var.as_ref().len())?;
        check_var(var.as_ref(), true)?;
        Ok(Self { count, mean, var })
    }

    /// Statistics over no values, with memory into which a pass writes others; its contents are ignored.
    ///
    /// # Errors
    /// [`Error::Length`] if the lengths differ.
    pub fn empty(mean: V, var: V) -> Result<Self, Error> {
        check_len("var", mean.as_ref().len(), var.as_ref().len())?;
        Ok(Self { count: 0.0, mean, var })
    }

    /// Values per channel, or the sum of their weights.
    pub fn count(&self) -> f64 {
        self.count
    }

    /// The mean of each channel.
    pub fn mean(&self) -> &[V::Value] {
        self.mean.as_ref()
    }

    /// The biased variance of each channel: the mean squared deviation.
    pub fn var(&self) -> &[V::Value] {
        self.var.as_ref()
    }

    /// The number of channels.
    pub fn channels(&self) -> usize {
        self.mean().len()
    }
}

impl<V: Values> Statistics<V> {
    fn view(&self) -> Statistics<&[V::Value]> {
        Statistics { count: self.count, mean: self.mean(), var: self.var() }
    }
}

impl<V: ValuesMut> Statistics<V> {
    /// Count, means and variances, for a pass to write.
    pub(crate) fn parts_mut(&mut self) -> (&mut f64, &mut [V::Value], &mut [V::Value]) {
        (&mut self.count, self.mean.as_mut(), self.var.as_mut())
    }

    /// Makes these the statistics of their values and those of `other` together.
    ///
    /// Chan, Golub, LeVeque, "Algorithms for computing the sample variance" (1983), formula 1.5.
    ///
    /// # Errors
    /// [`Error::Length`] if the numbers of channels differ, [`Error::Count`] if the sum of the counts exceeds the range
    /// of f64.
    pub fn merge(&mut self, other: &Statistics<impl Values>) -> Result<(), Error> {
        check_len("other", self.channels(), other.channels())?;
        if other.count == 0.0 {
            return Ok(());
        }
        let (mean, var) = (self.mean.as_mut(), self.var.as_mut());
        if self.count == 0.0 {
            self.count = other.count;
            store(other.mean(), mean);
            store(other.var(), var);
            return Ok(());
        }
        let n = self.count + other.count;
        check_count(n)?;
        for (c, (mean, var)) in mean.iter_mut().zip(var).enumerate() {
            let (own, others) =
                ([mean.to_wide(), var.to_wide()], [other.mean()[c].to_wide(), other.var()[c].to_wide()]);
            let merged = merge_statistics([self.count, other.count], own, others);
            [*mean, *var] = merged.map(Real::from_wide);
        }
        self.count = n;
        Ok(())
    }
}

/// Σg and Σg·(x − mean) of each channel, in f64: what the backward pass needs to know about the whole batch.
///
/// [`merge`](Self::merge) adds the sums of parts of a batch, about the same mean.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GradientSums<V = Vec<f64>> {
    pub(crate) g: V,
    pub(crate) gx: V,
}

impl GradientSums {
    /// Sums over no values, for `channels` channels.
    pub fn new(channels: usize) -> Self {
        Self { g: vec![0.0; channels], gx: vec![0.0; channels] }
    }
}

impl<V: Values<Value = f64>> GradientSums<V> {
    /// Sums that were computed elsewhere, or memory for them: Σg and Σg·(x − mean), one of each per channel.
    ///
    /// # Errors
    /// [`Error::Length`] if the lengths differ.
    pub fn from_parts(g: V, gx: V) -> Result<Self, Error> {
        check_len("gx", g.as_ref().len(), gx.as_ref().len())?;
        Ok(Self { g, gx })
    }

    /// Σg of each channel, the gradient of beta.
    pub fn g(&self) -> &[f64] {
        self.g.as_ref()
    }

    /// Σg·(x − mean) of each channel; times inv_std, the gradient of gamma.
    pub fn gx(&self) -> &[f64] {
        self.gx.as_ref()
    }

    /// The number of channels.
    pub fn channels(&self) -> usize {
        self.g().len()
    }

    pub(crate) fn view(&self) -> GradientSums<&[f64]> {
        GradientSums { g: self.g(), gx: self.gx() }
    }
}

impl<V: ValuesMut<Value = f64>> GradientSums<V> {
    pub(crate) fn view_mut(&mut self) -> GradientSums<&mut [f64]> {
        GradientSums { g: self.g.as_mut(), gx: self.gx.as_mut() }
    }

    /// Makes these the sums over the values of both.
    ///
    /// # Errors
    /// [`Error::Length`] if the numbers of channels differ.
    pub fn merge(&mut self, other: &GradientSums<impl Values<Value = f64>>) -> Result<(), Error> {
        check_len("other", self.channels(), other.channels())?;
        let (g, gx) = (self.g.as_mut(), self.gx.as_mut());
        for (a, b) in g.iter_mut().zip(other.g()).chain(gx.iter_mut().zip(other.gx())) {
            *a += b;
        }
        Ok(())
    }
}

/// The weight of a new batch in [`RunningStatistics`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Momentum {
    /// `running = (1 − m)·running + m·new`: an exponentially weighted average. m weighs the *new* value, PyTorch's
    /// convention, and lies in [0, 1].
    Exponential(f64),
    /// The plain average over all batches so far.
    Cumulative,
}

impl Momentum {
    /// The momentum of ONNX, Keras and TensorFlow, which weighs the *old* value: `from_decay(0.9)` is
    /// `Exponential(1 − 0.9)`.
    pub fn from_decay(decay: f64) -> Self {
        Self::Exponential(1.0 - decay)
    }
}

/// Averages of mean and variance over the batches seen in training, with which inference normalizes, even a single
/// example.
///
/// ```
/// use batchnorm::{Momentum, RunningStatistics, Statistics};
///
/// let mut running = RunningStatistics::new(1);
/// let batch = Statistics::from_parts(5.0, vec![2.0], vec![4.0])?;
/// running.update(&batch, Momentum::Exponential(0.1))?;
/// assert!((running.mean()[0] - 0.2).abs() < 1e-15);
/// assert!((running.var()[0] - (0.9 + 0.1 * 4.0 * 5.0 / 4.0)).abs() < 1e-15); // unbiased
/// assert_eq!(running.batches(), 1);
/// # Ok::<(), batchnorm::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RunningStatistics<V = Vec<f64>> {
    pub(crate) mean: V,
    pub(crate) var: V,
    batches: u64,
    biased: bool,
}

impl RunningStatistics {
    /// Mean 0 and variance 1, no batches yet, for `channels` channels; variances are averaged unbiased.
    pub fn new(channels: usize) -> Self {
        Self { mean: vec![0.0; channels], var: vec![1.0; channels], batches: 0, biased: false }
    }
}

impl<V: Values> RunningStatistics<V> {
    /// Averages kept elsewhere. They are taken as they are; invalid values are reported on use.
    ///
    /// # Errors
    /// [`Error::Length`] if the lengths differ.
    pub fn from_parts(mean: V, var: V, batches: u64) -> Result<Self, Error> {
        check_len("var", mean.as_ref().len(), var.as_ref().len())?;
        Ok(Self { mean, var, batches, biased: false })
    }

    /// Sets whether variances are averaged as they normalize the batch (over M, biased), or as estimates of the
    /// variance of the population (over M − 1, unbiased, the default).
    #[must_use]
    pub fn biased(mut self, biased: bool) -> Self {
        self.biased = biased;
        self
    }

    /// The running mean of each channel.
    pub fn mean(&self) -> &[V::Value] {
        self.mean.as_ref()
    }

    /// The running variance of each channel.
    pub fn var(&self) -> &[V::Value] {
        self.var.as_ref()
    }

    /// The number of batches that were averaged.
    pub fn batches(&self) -> u64 {
        self.batches
    }

    /// The number of channels.
    pub fn channels(&self) -> usize {
        self.mean().len()
    }
}

impl<V: ValuesMut> RunningStatistics<V> {
    /// Updates the averages with a batch. An empty batch changes nothing.
    ///
    /// Every batch counts the same, however many values it has; its count n matters only for the unbiased variance,
    /// which is the biased one times n/(n − 1). With weights n is their sum, so that weights 0 and 1 give what the
    /// batch without the values of weight 0 gives. Weights that say how much a value matters, and not how often it
    /// was seen, have no such n: use [`biased`](Self::biased) variances with them.
    ///
    /// # Errors
    /// [`Error::Momentum`] if the momentum is outside [0, 1] or NaN, [`Error::Length`] if the numbers of channels
    /// differ, [`Error::TooFewValues`] if an unbiased variance is requested from at most one value per channel, or from
    /// weights whose sum is at most 1.
    pub fn update(&mut self, batch: &Statistics<impl Values>, momentum: Momentum) -> Result<(), Error> {
        if let Momentum::Exponential(m) = momentum
            && !(0.0..=1.0).contains(&m)
        {
            return Err(Error::Momentum(m));
        }
        check_len("batch", self.channels(), batch.channels())?;
        if batch.count == 0.0 {
            return Ok(());
        }
        if !self.biased && batch.count <= 1.0 {
            return Err(Error::TooFewValues { count: batch.count });
        }
        self.batches = self.batches.saturating_add(1);
        let m = match momentum {
            Momentum::Exponential(m) => m,
            Momentum::Cumulative => 1.0 / self.batches as f64,
        };
        // At the ends the other value must not count at all, not even if it is NaN.
        let average = |old: V::Value, new: f64| match m {
            0.0 => old,
            1.0 => Real::from_wide(new),
            _ => Real::from_wide((1.0 - m) * old.to_wide() + m * new),
        };
        let biased = self.biased;
        let bessel = |var: f64| if biased { var } else { var * batch.count / (batch.count - 1.0) };
        for (old, new) in self.mean.as_mut().iter_mut().zip(batch.mean()) {
            *old = average(*old, new.to_wide());
        }
        for (old, new) in self.var.as_mut().iter_mut().zip(batch.var()) {
            *old = average(*old, bessel(new.to_wide()));
        }
        Ok(())
    }
}

/// The mean and variance that a pass normalizes with: a batch's own, or averages from training.
///
/// In the backward pass the two differ: a batch's statistics depend on x and gradients flow through them, running ones
/// are constants. Both convert into a `Source` from a reference.
#[derive(Clone, Copy, Debug)]
pub enum Source<'a> {
    /// Statistics of the batch that x is, or is a part of.
    Batch(Statistics<&'a [f64]>),
    /// Frozen averages.
    Running(RunningStatistics<&'a [f64]>),
    /// As [`Batch`](Self::Batch), stored in f32.
    BatchF32(Statistics<&'a [f32]>),
    /// As [`Running`](Self::Running), stored in f32.
    RunningF32(RunningStatistics<&'a [f32]>),
}

impl<'a, V: Values> From<&'a Statistics<V>> for Source<'a> {
    fn from(statistics: &'a Statistics<V>) -> Self {
        Precision::batch(statistics.view())
    }
}

impl<'a, V: Values> From<&'a RunningStatistics<V>> for Source<'a> {
    fn from(running: &'a RunningStatistics<V>) -> Self {
        let &RunningStatistics { batches, biased, .. } = running;
        Precision::running(RunningStatistics { mean: running.mean(), var: running.var(), batches, biased })
    }
}

impl<'a> Source<'a> {
    /// The mean and the variance of a channel.
    pub(crate) fn channel(self, c: usize) -> [f64; 2] {
        match self {
            Self::Batch(s) => [s.mean[c], s.var[c]],
            Self::Running(r) => [r.mean[c], r.var[c]],
            Self::BatchF32(s) => [s.mean[c], s.var[c]].map(f64::from),
            Self::RunningF32(r) => [r.mean[c], r.var[c]].map(f64::from),
        }
    }

    /// In f64, with memory for those that are not.
    pub(crate) fn wide<'s>(self, room: impl FnOnce() -> [&'s mut [f64]; 2]) -> WideSource<'s>
    where
        'a: 's,
    {
        let (count, mean, var) = match self {
            Self::Batch(s) => return WideSource { count: Some(s.count), mean: s.mean, var: s.var },
            Self::Running(r) => return WideSource { count: None, mean: r.mean, var: r.var },
            Self::BatchF32(s) => (Some(s.count), s.mean, s.var),
            Self::RunningF32(r) => (None, r.mean, r.var),
        };
        let [wide_mean, wide_var] = room();
        store(mean, wide_mean);
        store(var, wide_var);
        WideSource { count, mean: wide_mean, var: wide_var }
    }

    /// Checks that it can normalize a batch of `channels` channels, which has no values if `empty`.
    pub(crate) fn check(self, channels: usize, empty: bool) -> Result<(), Error> {
        let not_empty = |count: f64| if count == 0.0 && !empty { Err(Error::EmptyStatistics) } else { Ok(()) };
        let (batch, running) = ("statistics", "running statistics");
        match self {
            Self::Batch(s) => check_len(batch, channels, s.channels()).and(not_empty(s.count)),
            Self::BatchF32(s) => check_len(batch, channels, s.channels()).and(not_empty(s.count)),
            Self::Running(r) => check_len(running, channels, r.channels()).and(check_var(r.var, false)),
            Self::RunningF32(r) => check_len(running, channels, r.channels()).and(check_var(r.var, false)),
        }
    }
}

/// A [`Source`] in f64.
#[derive(Clone, Copy)]
pub(crate) struct WideSource<'a> {
    /// Values per channel, or their weight; `None` if the statistics are constants.
    pub(crate) count: Option<f64>,
    pub(crate) mean: &'a [f64],
    pub(crate) var: &'a [f64],
}

/// Converts values, rounding each once.
pub(crate) fn store<A: Precision, B: Precision>(from: &[A], to: &mut [B]) {
    for (to, from) in to.iter_mut().zip(from) {
        *to = B::from_wide(from.to_wide());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_do_as_vectors_do() -> Result<(), Error> {
        let (a, b) = ([1.0, f64::NAN], [4.0, 5.0]);
        let (mut mean, mut var) = ([7.0; 2], [-7.0; 2]);
        let mut statistics = Statistics::empty(&mut mean[..], &mut var[..])?;
        statistics.merge(&Statistics::from_parts(3.0, &b[..], &a[..])?)?;
        assert_eq!((statistics.count(), statistics.mean(), statistics.var()[0]), (3.0, &b[..], 1.0));
        let mut running = RunningStatistics::from_parts(&mut mean[..], &mut var[..], 0)?.biased(true);
        running.update(&Statistics::from_parts(1.0, b.to_vec(), b.to_vec())?, Momentum::Exponential(1.0))?;
        assert_eq!((running.batches(), mean, var), (1, b, b));
        let mut sums = GradientSums::from_parts(&mut mean[..], &mut var[..])?;
        sums.merge(&GradientSums::from_parts(vec![1.0, 2.0], vec![3.0, 4.0])?)?;
        assert_eq!((mean, var), ([5.0, 7.0], [7.0, 9.0]));
        Ok(())
    }
}
