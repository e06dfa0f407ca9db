//! Normalization with constant statistics as a scale and a shift, folded into an adjacent layer.

use crate::arguments::{Affine, to_f64};
use crate::element::Element;
use crate::error::{Error, check_len};
use crate::kernels::scale::inv_std;
use crate::statistics::{Source, Values, ValuesMut};

/// One scale and one shift per channel, in f64: `y = scale·x + shift`, to which
/// [`normalize`](crate::BatchNorm::normalize) amounts once its statistics are constants.
///
/// ```text
/// scale = gamma / sqrt(var + eps)     shift = beta − mean·scale
/// ```
///
/// Both can be folded into the weights and bias of an adjacent linear or convolution layer; the normalization then
/// costs nothing in inference. In training it cannot be folded, but the layer before it needs no bias: the batch's mean
/// contains that bias and x − mean does not, so its gradient is 0, and beta replaces it. [`Fold::apply_to_preceding`]
/// makes a bias.
///
/// # What it costs in precision
/// `(x − mean)·scale + beta`, as passes compute it, has an error that does not grow with the data's offset. The error
/// of `scale·x + shift` does: if |mean| is much larger than the standard deviation, two large numbers nearly cancel. A
/// folded layer that sums K products in f32 is off by at most
///
/// ```text
/// (K + 2)·u·(Σ|w·x| + |b|)     u = 2⁻²⁴     |b| ≈ |gamma|·κ     κ = sqrt(1 + mean²/var)
/// ```
///
/// with its folded weights w and bias b: one rounding of each, one of a product, K of the sum. If x is the output of a
/// layer in f32, its rounding alone already costs uκ, and little is lost. If x is exact, such as the input of a
/// network, this is a reason to normalize instead.
///
/// A folded weight or bias that is subnormal keeps fewer bits: it is off by up to 2⁻¹⁵⁰ in f32, which adds
/// 2⁻¹⁵⁰·(1 + Σ|x|) to the bound. This happens if gamma·inv_std is tiny. An inference engine that flushes subnormals to
/// zero takes such a weight for 0; then 2⁻¹²⁶ replaces 2⁻¹⁵⁰, which still matters only for huge x. In f64 these numbers
/// are 2⁻¹⁰⁷⁵ and 2⁻¹⁰²², and a scale that is itself subnormal is off by as much, which is multiplied by w·x.
///
/// ```
/// use batchnorm::{Affine, BatchNorm, Fold, RunningStatistics, Shape};
///
/// let plan = BatchNorm::new(Shape::nc(1, 2)?).eps(0.0)?;
/// let running = RunningStatistics::from_parts(vec![1.0, 2.0], vec![4.0, 0.25], 1)?;
/// let mut fold = Fold::new(2);
/// plan.fold(&running, Affine::new(&[2.0f32, 1.0], &[0.5, 0.0]), &mut fold)?;
/// assert_eq!((fold.scale(), fold.shift()), (&[1.0, 2.0][..], &[-0.5, -4.0][..]));
///
/// // Two outputs of three inputs each, and no bias until now.
/// let (mut weight, mut bias) = ([1.0f32, 2.0, 3.0, 4.0, 5.0, 6.0], [0.0; 2]);
/// fold.apply_to_preceding(&mut weight, &mut bias)?;
/// assert_eq!((weight, bias), ([1.0, 2.0, 3.0, 8.0, 10.0, 12.0], [-0.5, -4.0]));
/// # Ok::<(), batchnorm::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Fold<V = Vec<f64>> {
    scale: V,
    shift: V,
}

impl Fold {
    /// Scale 1 and shift 0, for `channels` channels.
    pub fn new(channels: usize) -> Self {
        Self { scale: vec![1.0; channels], shift: vec![0.0; channels] }
    }
}

impl<V: Values<Value = f64>> Fold<V> {
    /// A scale and a shift that were computed elsewhere, or memory for them, one of each per channel.
    ///
    /// # Errors
    /// [`Error::Length`] if the lengths differ.
    pub fn from_parts(scale: V, shift: V) -> Result<Self, Error> {
        check_len("shift", scale.as_ref().len(), shift.as_ref().len())?;
        Ok(Self { scale, shift })
    }

    /// The factor of x.
    pub fn scale(&self) -> &[f64] {
        self.scale.as_ref()
    }

    /// The shift, added after scaling.
    pub fn shift(&self) -> &[f64] {
        self.shift.as_ref()
    }

    /// The number of channels.
    pub fn channels(&self) -> usize {
        self.scale().len()
    }

    /// Folds into the linear or convolution layer whose output is normalized: `w ← scale·w`, `b ← scale·b + shift`.
    ///
    /// `weight` is scaled along its first axis. It is `[channels, k]`, a row for each output of the layer with all
    /// weights of its sum: for a convolution `[channels, inputs, height, width]`, for a grouped one `[channels, inputs
    /// / groups, ..]`, for a depthwise one `[channels, 1, ..]`. `bias` has one value per channel; for a layer without a
    /// bias pass zeros, and give it this one.
    ///
    /// # Errors
    /// [`Error::Length`] for a bias that does not fit, [`Error::Multiple`] for weights that are not whole rows. Nothing
    /// is then written.
    pub fn apply_to_preceding<P: Element<Param = P>>(&self, weight: &mut [P], bias: &mut [P]) -> Result<(), Error> {
        self.apply_to_preceding_transposed(weight, bias, 1, 1)
    }

    /// [`apply_to_preceding`](Self::apply_to_preceding) for weights that have the layer's inputs as their first axis:
    /// those of a transposed convolution, with any stride, padding and dilation, and of layouts that store `[inputs,
    /// outputs]`.
    ///
    /// `weight` is scaled along its second axis. It is `[inputs, channels / groups, k]`, for a transposed convolution
    /// `[inputs, channels / groups, height, width]`; the inputs of a group follow each other, and so do its channels.
    /// Linear layers that store `[inputs, channels]` have one group, and so have convolutions that store `[height,
    /// width, inputs, channels]`, with `height·width·inputs` inputs. `bias` has one value per channel, zeros for a layer
    /// without a bias.
    ///
    /// ```
    /// use batchnorm::Fold;
    ///
    /// // Two groups, each with one input, one output and a kernel of two.
    /// let fold = Fold::from_parts(vec![2.0, 10.0], vec![0.5, -1.0])?;
    /// let (mut weight, mut bias) = ([1.0f32, 2.0, 3.0, 4.0], [1.0, 1.0]);
    /// fold.apply_to_preceding_transposed(&mut weight, &mut bias, 2, 2)?;
    /// assert_eq!((weight, bias), ([2.0, 4.0, 30.0, 40.0], [2.5, 9.0]));
    /// # Ok::<(), batchnorm::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Groups`] if `groups` does not divide the inputs and the channels, [`Error::Length`] for a bias that does
    /// not fit, [`Error::Multiple`] for weights that are not whole blocks of `[inputs, channels / groups]`. Nothing is
    /// then written.
    pub fn apply_to_preceding_transposed<P: Element<Param = P>>(
        &self,
        weight: &mut [P],
        bias: &mut [P],
        inputs: usize,
        groups: usize,
    ) -> Result<(), Error> {
        let channels = self.channels();
        if groups == 0 || !inputs.is_multiple_of(groups) || !channels.is_multiple_of(groups) {
            return Err(Error::Groups { inputs, outputs: channels, groups });
        }
        let (of_group, inputs_of_group) = (channels / groups, inputs / groups);
        check_len("bias", channels, bias.len())?;
        let k = check_multiple("weight", inputs.saturating_mul(of_group), weight.len())?;
        for (input, weight) in weight.chunks_exact_mut(k * of_group.max(1)).enumerate() {
            let scales = &self.scale()[input / inputs_of_group * of_group..];
            for (weight, scale) in weight.chunks_exact_mut(k).zip(scales) {
                for weight in weight {
                    *weight = from_f64::<P>(scale * to_f64::<P>(*weight));
                }
            }
        }
        for (bias, (scale, shift)) in bias.iter_mut().zip(self.scale().iter().zip(self.shift())) {
            *bias = from_f64::<P>(scale * to_f64::<P>(*bias) + shift);
        }
        Ok(())
    }

    /// Folds into the linear or convolution layer whose input is normalized: `w ← scale·w`, `b ← b + Σ w·shift`.
    ///
    /// `weight` is scaled along its second axis. It is `[outputs, channels, k]`, for a convolution `[outputs, channels,
    /// height, width]`; `bias` has one value per output, zeros for a layer without a bias. A grouped convolution is
    /// several layers: fold each with its channels' part of the scale and the shift.
    ///
    /// A convolution must not pad its input with zeros, unless shift is 0: these zeros stand for normalized values, and
    /// the folded layer would add the shift to them. It may pad channel c with `−shift/scale`, for which `scale·x +
    /// shift` is 0.
    ///
    /// # Errors
    /// [`Error::Multiple`] for weights that are not whole blocks of `[outputs, channels]`. Nothing is then written.
    pub fn apply_to_following<P: Element<Param = P>>(&self, weight: &mut [P], bias: &mut [P]) -> Result<(), Error> {
        let blocks = self.channels().saturating_mul(bias.len());
        let k = check_multiple("weight", blocks, weight.len())?;
        for (weight, bias) in weight.chunks_exact_mut(k * self.channels().max(1)).zip(bias) {
            self.fold_output(weight.chunks_exact_mut(k), bias);
        }
        Ok(())
    }

    /// [`apply_to_following`](Self::apply_to_following) for weights that have the layer's inputs as their first axis:
    /// those of linear layers that store `[inputs, outputs]`, and of transposed convolutions with a kernel of 1, stride
    /// 1 and one group.
    ///
    /// `weight` is scaled along its first axis. It is `[channels, outputs]`; `bias` has one value per output, zeros for
    /// a layer without a bias.
    ///
    /// Other transposed convolutions cannot absorb a shift. The bias is the same at all positions of an output, but
    /// `Σ w·shift` is not: with a stride, neighbouring positions sum different taps of the kernel, and near the borders
    /// some taps have no input. The scale alone can be folded, by multiplying the weights of input c by scale c, which
    /// suffices where shift is 0.
    ///
    /// # Errors
    /// [`Error::Length`] for weights that are not `[channels, outputs]`. Nothing is then written.
    pub fn apply_to_following_transposed<P: Element<Param = P>>(
        &self,
        weight: &mut [P],
        bias: &mut [P],
    ) -> Result<(), Error> {
        let outputs = bias.len();
        check_len("weight", self.channels().saturating_mul(outputs), weight.len())?;
        for (output, bias) in bias.iter_mut().enumerate() {
            let column = weight.iter_mut().skip(output).step_by(outputs);
            self.fold_output(column.map(std::slice::from_mut), bias);
        }
        Ok(())
    }

    /// Folds into one output of the layer whose input is normalized; `weights` are those of each channel.
    fn fold_output<'w, P: Element<Param = P>>(&self, weights: impl Iterator<Item = &'w mut [P]>, bias: &mut P) {
        let mut sum = to_f64::<P>(*bias);
        for (weights, (scale, shift)) in weights.zip(self.scale().iter().zip(self.shift())) {
            for weight in weights {
                sum += to_f64::<P>(*weight) * shift;
                *weight = from_f64::<P>(scale * to_f64::<P>(*weight));
            }
        }
        *bias = from_f64::<P>(sum);
    }
}

impl<V: ValuesMut<Value = f64>> Fold<V> {
    /// Sets scale and shift from checked statistics and parameters.
    pub(crate) fn set<P: Element<Param = P>>(&mut self, source: Source<'_>, affine: Affine<'_, P>, eps: f64) {
        let scale = self.scale.as_mut().iter_mut();
        for (c, (scale, shift)) in scale.zip(self.shift.as_mut()).enumerate() {
            let [mean, var] = source.channel(c);
            let inv_std = inv_std(var, eps);
            *scale = affine.gamma.map_or(inv_std, |gamma| to_f64::<P>(gamma[c]) * inv_std);
            *shift = affine.beta.map_or(0.0, |beta| to_f64::<P>(beta[c])) - mean * *scale;
        }
    }
}

/// Rounds to nearest.
fn from_f64<E: Element>(v: f64) -> E::Param {
    E::Param::from_f64(v)
}

/// The length of an argument as a multiple of `of`, which is at least 1.
fn check_multiple(argument: &'static str, of: usize, actual: usize) -> Result<usize, Error> {
    match actual.checked_div(of) {
        Some(times) if times > 0 && times * of == actual => Ok(times),
        None if actual == 0 => Ok(1),
        _ => Err(Error::Multiple { argument, of, actual }),
    }
}
