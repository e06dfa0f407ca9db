//! A 1×1 convolution, which can take the statistics of its output while it writes it.

use crate::error::{Error, Result};
use crate::threads::ThreadPool;
use batchnorm as bn;
use std::sync::{Mutex, PoisonError};

/// The elements of a tile: 512 KB, half of an L2 of 1 MB, so that the epilogue finds them there. With a quarter of that
/// it takes up to 1.2 times as long, as it merges more tiles.
const TILE: usize = 1 << 17;

/// The extents of a convolution of images whose channels come last.
#[derive(Clone, Copy, Debug)]
pub struct Pointwise {
    /// The number of images.
    pub images: usize,
    /// The number of pixels of an image.
    pub pixels: usize,
    /// The channels of x.
    pub inputs: usize,
    /// The channels of y.
    pub outputs: usize,
}

impl Pointwise {
    /// `y[p, o] = Σ weight[o, i]·x[p, i]` for each pixel.
    ///
    /// # Errors
    /// If an extent is 0, or a slice does not fit the extents.
    pub fn run(&self, x: &[f32], weight: &[f32], y: &mut [f32], pool: &ThreadPool) -> Result<()> {
        self.tiles(x, weight, y, pool, |_, _| Ok(())).map(drop)
    }

    /// [`run`](Self::run) with an epilogue that also returns the mean and variance of each channel of y.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub fn run_with_statistics(
        &self,
        x: &[f32],
        weight: &[f32],
        y: &mut [f32],
        pool: &ThreadPool,
    ) -> Result<bn::Statistics> {
        // The last tile of an image may be shorter. The convolution's tasks already use all threads.
        let plan = |pixels| -> Result<_> {
            Ok(bn::BatchNorm::new(bn::Shape::nc(pixels, self.outputs)?).threads(bn::Threads::Sequential))
        };
        let plans = [plan(self.tile())?, plan(self.pixels % self.tile())?];
        let images = self.tiles(x, weight, y, pool, |tile, image| {
            let mut statistics = bn::Statistics::new(self.outputs);
            let shorter = tile.len() < plans[0].shape().len();
            plans[usize::from(shorter)].statistics(tile, &mut statistics)?;
            Ok(image.merge(&statistics)?)
        })?;
        // In the order of the images, so that bits do not depend on the threads.
        let mut batch = bn::Statistics::new(self.outputs);
        for image in &images {
            batch.merge(image)?;
        }
        Ok(batch)
    }

    /// The pixels of a tile.
    fn tile(&self) -> usize {
        (TILE / self.outputs.max(1)).clamp(1, self.pixels.max(1))
    }

    /// Writes y tile by tile, and has the epilogue add each tile to what it returns for the image.
    fn tiles(
        &self,
        x: &[f32],
        weight: &[f32],
        y: &mut [f32],
        pool: &ThreadPool,
        epilogue: impl Fn(&[f32], &mut bn::Statistics) -> Result<()> + Sync,
    ) -> Result<Vec<bn::Statistics>> {
        let &Self { images, pixels, inputs, outputs } = self;
        let fits = |len: usize, extents: &[usize]| {
            len > 0 && extents.iter().try_fold(1usize, |product, &extent| product.checked_mul(extent)) == Some(len)
        };
        if !fits(x.len(), &[images, pixels, inputs])
            || !fits(weight.len(), &[outputs, inputs])
            || !fits(y.len(), &[images, pixels, outputs])
        {
            return Err(Error::Dims {
                expected: "slices of these extents",
                actual: vec![images, pixels, inputs, outputs],
            });
        }
        let convolve = |x: &[f32], y: &mut [f32]| {
            let mut statistics = bn::Statistics::new(outputs);
            for (x, y) in x.chunks(self.tile() * inputs).zip(y.chunks_mut(self.tile() * outputs)) {
                product(inputs, outputs, x, weight, y);
                epilogue(y, &mut statistics)?;
            }
            Ok(statistics)
        };
        let part = |(x, y)| Mutex::new((x, y, Ok(bn::Statistics::new(outputs))));
        let parts: Vec<_> =
            x.chunks_exact(pixels * inputs).zip(y.chunks_exact_mut(pixels * outputs)).map(part).collect();
        pool.for_each(images, &|image| {
            let (x, y, statistics) = &mut *parts[image].lock().unwrap_or_else(PoisonError::into_inner);
            *statistics = convolve(x, y);
        });
        parts.into_iter().map(|part| part.into_inner().unwrap_or_else(PoisonError::into_inner).2).collect()
    }
}

/// `y[p, o] = Σ weight[o, i]·x[p, i]`.
fn product(inputs: usize, outputs: usize, x: &[f32], weight: &[f32], y: &mut [f32]) {
    let pixels = x.len() / inputs;
    assert!(weight.len() == outputs * inputs && y.len() == pixels * outputs, "slices of these extents");
    let [row, inputs_stride, outputs_stride] = [1, inputs as isize, outputs as isize];
    // SAFETY: by the strides, x is [pixels, inputs], the transposed weight [inputs, outputs], and y [pixels, outputs]:
    // their lengths are checked above. y is borrowed mutably, so it overlaps neither.
    unsafe {
        let (x, weight, y) = (x.as_ptr(), weight.as_ptr(), y.as_mut_ptr());
        matrixmultiply::sgemm(
            pixels,
            inputs,
            outputs,
            1.0,
            x,
            inputs_stride,
            row,
            weight,
            row,
            inputs_stride,
            0.0,
            y,
            outputs_stride,
            row,
        );
    }
}
