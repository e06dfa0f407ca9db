//! The images.

use burn::tensor::{Device, Int, Tensor, TensorData};
use flate2::read::GzDecoder;
use std::io::Read;

/// 1797 images of handwritten digits; the file's folder has a README with their source. A line is an image: 64 pixels
/// from 0 to 16 and the digit, separated by commas.
const DIGITS: &[u8] = include_bytes!("../../../../examples/digits/data/digits.csv.gz");
/// Pixels per row and column.
const SIDE: usize = 8;
/// The value of a black pixel in the file.
const INK: f32 = 16.0;

/// Images and the digits that they show.
pub(crate) struct Images {
    pixels: Vec<f32>,
    labels: Vec<i32>,
}

/// `[batch, 1, 8, 8]`, and a label for each image.
pub(crate) struct Batch {
    pub(crate) images: Tensor<4>,
    pub(crate) labels: Tensor<1, Int>,
}

impl Images {
    /// All images.
    pub(crate) fn load() -> Result<Self, Box<dyn std::error::Error>> {
        let mut table = String::new();
        GzDecoder::new(DIGITS).read_to_string(&mut table)?;
        let (mut pixels, mut labels) = (Vec::new(), Vec::new());
        for line in table.lines() {
            let (image, label) = line.rsplit_once(',').ok_or_else(|| format!("expected an image, got {line}"))?;
            for pixel in image.split(',') {
                pixels.push(pixel.parse::<f32>()? / INK);
            }
            labels.push(label.parse()?);
        }
        Ok(Self { pixels, labels })
    }

    /// The indices for training and for testing: the last fifth of the file, which other people wrote.
    pub(crate) fn split(&self) -> [Vec<usize>; 2] {
        let images = self.labels.len();
        let train = images * 4 / 5;
        [(0..train).collect(), (train..images).collect()]
    }

    /// The images with these indices, in this order.
    pub(crate) fn batch(&self, picks: &[usize], device: &Device) -> Batch {
        const PIXELS: usize = SIDE * SIDE;
        let pixels: Vec<f32> = picks.iter().flat_map(|i| &self.pixels[i * PIXELS..(i + 1) * PIXELS]).copied().collect();
        let labels: Vec<i32> = picks.iter().map(|&i| self.labels[i]).collect();
        let images = TensorData::new(pixels, [picks.len(), 1, SIDE, SIDE]);
        let labels = TensorData::new(labels, [picks.len()]);
        Batch { images: Tensor::from_data(images, device), labels: Tensor::from_data(labels, device) }
    }
}
