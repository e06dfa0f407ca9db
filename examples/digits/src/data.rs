//! The images: reading, splitting and changing them.

use crate::Result;
use flate2::read::GzDecoder;
use std::io::Read;

/// Pixels per image, in 8 rows of 8.
pub(crate) const PIXELS: usize = 64;
/// Classes: the ten digits.
pub(crate) const CLASSES: usize = 10;
/// The fewest images to accept: with fewer, accuracies mean little.
const LEAST: usize = 1000;
/// The value of a black pixel in the file.
const INK: f32 = 16.0;

/// The 1797 digits that are built into this program; `data/README.md` states their source.
const DIGITS: &[u8] = include_bytes!("../data/digits.csv.gz");

/// Images and their labels.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Images {
    /// `PIXELS` values per image, one image after the other, from 0 for paper to 1 for ink.
    pub(crate) pixels: Vec<f32>,
    /// The digit that each image shows.
    pub(crate) labels: Vec<u8>,
}

impl Images {
    /// The built-in images.
    pub(crate) fn built_in() -> Result<Self> {
        Self::parse(DIGITS)
    }

    /// Parses a gzip-compressed table. A line is an image: 64 pixels from 0 to 16 and the digit, separated by commas.
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
            return Err(format!(
                "expected at least {LEAST} images and all 10 digits, got {images} images and {digits} digits"
            )
            .into());
        }
        Ok(images)
    }

    pub(crate) fn len(&self) -> usize {
        self.labels.len()
    }

    /// The images with these indices, in this order.
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

/// Images for training and for testing.
#[derive(Clone, Debug)]
pub(crate) struct Split {
    pub(crate) train: Images,
    pub(crate) test: Images,
}

impl Split {
    /// Holds out a random fifth for testing.
    pub(crate) fn random(images: &Images, seed: u64) -> Self {
        let mut order: Vec<usize> = (0..images.len()).collect();
        fastrand::Rng::with_seed(seed).shuffle(&mut order);
        Self::at_fifth(images, &order)
    }

    /// Holds out the last fifth of the file, which was written by other people.
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
    fn corrupted_data_is_an_error_that_names_the_line() {
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
        assert_eq!(error(&compress("")), "expected at least 1000 images and all 10 digits, got 0 images and 0 digits");
        let sevens = format!("{good}\n").repeat(1000);
        assert_eq!(
            error(&compress(&sevens)),
            "expected at least 1000 images and all 10 digits, got 1000 images and 1 digits"
        );
    }
}
