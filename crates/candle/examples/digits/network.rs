//! The digits, and a small convolutional network for them that takes any batch normalization module.

use candle_core::{DType, Device, Error, Result, Tensor};
use candle_nn::{Conv2d, Conv2dConfig, Linear, Module, ModuleT, Optimizer, VarBuilder, VarMap};
use std::io::Read;

/// Images of a class, as `[n, 1, 8, 8]` and `[n]`.
pub(crate) struct Digits {
    pub(crate) images: Tensor,
    pub(crate) labels: Tensor,
}

impl Digits {
    /// The images for training, and those for testing: the last fifth of the file, which other people wrote.
    pub(crate) fn split(dtype: DType) -> Result<[Self; 2]> {
        let file = include_bytes!("../../../../examples/digits/data/digits.csv.gz");
        let mut table = String::new();
        flate2::read::GzDecoder::new(&file[..]).read_to_string(&mut table)?;
        // A line is an image: 64 pixels from 0 to 16 and the digit.
        let values = table.lines().flat_map(|line| line.split(','));
        let values: Vec<u8> = values.map(|value| Ok(value.parse()?)).collect::<Result<_>>()?;
        let table = Tensor::new(values, &Device::Cpu)?.reshape(((), 65))?;
        let count = table.dim(0)?;
        let part = |start, len| -> Result<Self> {
            let lines = table.narrow(0, start, len)?;
            let images = (lines.narrow(1, 0, 64)?.to_dtype(dtype)? / 16.0)?.reshape((len, 1, 8, 8))?;
            Ok(Self { images, labels: lines.narrow(1, 64, 1)?.squeeze(1)?.to_dtype(DType::U32)? })
        };
        Ok([part(0, count - count / 5)?, part(count - count / 5, count / 5)?])
    }

    pub(crate) fn len(&self) -> usize {
        self.labels.elem_count()
    }

    /// The images with these indices.
    pub(crate) fn select(&self, picks: &[u32]) -> Result<Self> {
        let picks = Tensor::new(picks, &Device::Cpu)?;
        let [images, labels] = [&self.images, &self.labels].map(|tensor| tensor.index_select(&picks, 0));
        Ok(Self { images: images?, labels: labels? })
    }
}

/// Two convolutions, each followed by normalization and ReLU, and a linear layer on the means of the planes.
pub(crate) struct Network {
    convolutions: [Conv2d; 2],
    norms: [Box<dyn ModuleT>; 2],
    linear: Linear,
}

impl Network {
    /// `norm` makes a batch normalization module for so many channels.
    pub(crate) fn new(vb: VarBuilder, norm: impl Fn(usize, VarBuilder) -> Result<Box<dyn ModuleT>>) -> Result<Self> {
        let config = Conv2dConfig { padding: 1, ..Conv2dConfig::default() };
        let convolution = |inputs, outputs, name| candle_nn::conv2d_no_bias(inputs, outputs, 3, config, vb.pp(name));
        Ok(Self {
            convolutions: [convolution(1, 32, "conv1")?, convolution(32, 32, "conv2")?],
            norms: [norm(32, vb.pp("norm1"))?, norm(32, vb.pp("norm2"))?],
            linear: candle_nn::linear(32, 10, vb.pp("linear"))?,
        })
    }

    pub(crate) fn forward(&self, images: &Tensor, train: bool) -> Result<Tensor> {
        let mut x = images.clone();
        for (convolution, norm) in self.convolutions.iter().zip(&self.norms) {
            x = norm.forward_t(&convolution.forward(&x)?, train)?.relu()?;
        }
        self.linear.forward(&x.flatten_from(2)?.mean(2)?)
    }

    /// A step of training. Returns the loss before it.
    pub(crate) fn step(&self, batch: &Digits, optimizer: &mut impl Optimizer) -> Result<f64> {
        let loss = candle_nn::loss::cross_entropy(&self.forward(&batch.images, true)?, &batch.labels)?;
        optimizer.backward_step(&loss)?;
        loss.to_dtype(DType::F64)?.to_scalar()
    }

    /// The share of images whose digit the network finds.
    pub(crate) fn accuracy(&self, test: &Digits) -> Result<f64> {
        let found = self.forward(&test.images, false)?.argmax(1)?.eq(&test.labels)?;
        Ok(f64::from(found.to_dtype(DType::F32)?.mean_all()?.to_scalar::<f32>()?))
    }
}

/// Gives variables the values that others of the same names have.
pub(crate) fn copy(from: &VarMap, to: &VarMap) -> Result<()> {
    let from = from.data().lock().map_err(|_| Error::msg("a thread with the variables has panicked"))?;
    to.clone().set(from.iter().map(|(name, var)| (name.clone(), var.as_tensor().clone())))
}
