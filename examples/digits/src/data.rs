//! The images: reading them, splitting them, and changing them.

use crate::Result;
use flate2::read::GzDecoder;
use std::io::Read;

/// Pixels of a image, 8 rows of 8.
pub(crate) const PIXELS: usize = 64;
/// Digits to tell apart.
pub(crate) const CLASSES: usize = 10;
/// Images below which there is no telling what a network has learned.
const LEAST: usize = 1000;
/// What a pixel full of ink has.
const INK: f32 = 16.0;

/// The 1797 UCI digits that are part of this program; `data/README.md` says where they come from.
const DIGITS: &[u8] = include_bytes!("../data/digits.csv.gz");

/// Images and what they show.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Images {
    /// `PIXELS` values a image, one image after the other, 0 for paper to 1 for ink.
    pub(crate) pixels: Vec<f32>,
    /// The digit on each image.
    pub(crate) labels: Vec<u8>,
}

impl Images {
    /// The built-in images.
    pub(crate) fn built_in() -> Result<Self> {
        Self::parse(DIGITS)
    }

    /// From a gzip-compressed table: a line a image, 64 pixels from 0 to 16 and the digit, separated by commas.
    pub(crate) fn parse(compressed: &[u8]) -> Result<Self> {
        let mut table = String::new();
        GzDecoder::new(compressed)
            .read_to_string(&mut table)
            .map_err(|e| format!("expected gzip-compressed lines of 64 pixels and a digit: {e}"))?;
        let mut images = Self::default();
        for (i, line) in table.lines().enumerate() {
            let values: Option<Vec<u8>> = line.split(',').map(|v| v.parse().ok()).collect();
            match values.as_deref() {
                Some([pixels @ .., label])
                    if pixels.len() == PIXELS
                        && pixels.iter().all(|&p| f32::from(p) <= INK)
                        && usize::from(*label) < CLASSES =>
                {
                    images.pixels.extend(pixels.iter().map(|&p| f32::from(p) / INK));
                    images.labels.push(*label);
                }
                _ => {
                    let line: String = line.chars().take(40).collect();
                    return Err(
                        format!("line {}: expected 64 pixels from 0 to 16 and a digit, got {line:?}", i + 1).into()
                    );
                }
            }
        }
        let digits = (0..CLASSES).filter(|&digit| images.labels.contains(&(digit as u8))).count();
        if images.len() < LEAST || digits < CLASSES {
            let images = images.len();
            return Err(format!("expected at least {LEAST} images of all 10 digits, got {images} of {digits}").into());
        }
        Ok(images)
    }

    pub(crate) fn len(&self) -> usize {
        self.labels.len()
    }

    /// The images with these numbers, in this order.
    pub(crate) fn select(&self, picks: &[usize]) -> Self {
        let mut chosen = Self::default();
        for &i in picks {
            chosen.pixels.extend(&self.pixels[i * PIXELS..(i + 1) * PIXELS]);
            chosen.labels.push(self.labels[i]);
        }
        chosen
    }

    /// The same images with every pixel changed by `f`.
    pub(crate) fn map(&self, f: impl Fn(f32) -> f32) -> Self {
        Self { pixels: self.pixels.iter().map(|&p| f(p)).collect(), labels: self.labels.clone() }
    }
}

/// What to train on and what to test on.
#[derive(Clone, Debug)]
pub(crate) struct Split {
    pub(crate) train: Images,
    pub(crate) test: Images,
}

impl Split {
    /// A random fifth is for testing.
    pub(crate) fn random(images: &Images, seed: u64) -> Self {
        let mut order: Vec<usize> = (0..images.len()).collect();
        fastrand::Rng::with_seed(seed).shuffle(&mut order);
        Self::at_fifth(images, &order)
    }

    /// The last fifth of the file is for testing: other people wrote it.
    pub(crate) fn by_writer(images: &Images) -> Self {
        Self::at_fifth(images, &(0..images.len()).collect::<Vec<_>>())
    }

    fn at_fifth(images: &Images, order: &[usize]) -> Self {
        let (train, test) = order.split_at(images.len() * 4 / 5);
        Self { train: images.select(train), test: images.select(test) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::Compression;
    use flate2::write::GzEncoder;
    use std::io::Write;

    fn error(compressed: &[u8]) -> String {
        Images::parse(compressed).unwrap_err().to_string()
    }

    fn compress(table: &str) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(table.as_bytes()).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn built_in_images() {
        let images = Images::built_in().unwrap();
        assert_eq!((images.len(), images.pixels.len()), (1797, 1797 * PIXELS));
        // Counts as published with the data.
        let count = |digit| images.labels.iter().filter(|&&label| label == digit).count();
        assert_eq!([0, 1, 2, 3, 4, 5, 6, 7, 8, 9].map(count), [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]);
    }

    #[test]
    fn splits_have_every_image_once() {
        let images = Images::built_in().unwrap();
        for split in [Split::random(&images, 5), Split::by_writer(&images)] {
            assert_eq!((split.train.len(), split.test.len()), (1437, 360));
            let sum = |images: &Images| images.pixels.iter().map(|&p| f64::from(p)).sum::<f64>();
            assert_eq!(sum(&split.train) + sum(&split.test), sum(&images));
        }
    }

    #[test]
    fn corrupted_data_is_an_error_that_says_where() {
        assert!(error(b"0,1,2").starts_with("expected gzip-compressed lines of 64 pixels and a digit: "));
        let mut cut = DIGITS.to_vec();
        cut.truncate(1000);
        assert!(error(&cut).starts_with("expected gzip-compressed lines of 64 pixels and a digit: "));
        let good = "0,".repeat(PIXELS) + "7";
        for bad in ["".to_string(), "1,2,3".into(), "17,".repeat(PIXELS) + "7", "0,".repeat(PIXELS) + "10"] {
            let message = error(&compress(&format!("{good}\n{bad}\n{good}")));
            assert!(message.starts_with("line 2: expected 64 pixels from 0 to 16 and a digit, got "), "{message}");
            assert!(!message.contains('\n'));
        }
        assert_eq!(error(&compress("")), "expected at least 1000 images of all 10 digits, got 0 of 0");
        let sevens = format!("{good}\n").repeat(1000);
        assert_eq!(error(&compress(&sevens)), "expected at least 1000 images of all 10 digits, got 1000 of 1");
    }
}
