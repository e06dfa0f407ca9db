//! The pictures: reading them, splitting them, and changing them.

use crate::Result;
use flate2::read::GzDecoder;
use std::io::Read;

/// Pixels of a picture, 8 rows of 8.
pub(crate) const PIXELS: usize = 64;
/// Digits to tell apart.
pub(crate) const CLASSES: usize = 10;
/// Pictures below which there is no telling what a network has learned.
const LEAST: usize = 1000;
/// What a pixel full of ink has.
const INK: f32 = 16.0;

/// The 1797 UCI digits that are part of this program; `data/README.md` says where they come from.
const DIGITS: &[u8] = include_bytes!("../data/digits.csv.gz");

/// Pictures and what they show.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Pictures {
    /// `PIXELS` values a picture, one picture after the other, 0 for paper to 1 for ink.
    pub(crate) pixels: Vec<f32>,
    /// The digit on each picture.
    pub(crate) labels: Vec<u8>,
}

impl Pictures {
    /// The built-in pictures.
    pub(crate) fn built_in() -> Result<Self> {
        Self::parse(DIGITS)
    }

    /// From a gzip-compressed table: a line a picture, 64 pixels from 0 to 16 and the digit, separated by commas.
    pub(crate) fn parse(compressed: &[u8]) -> Result<Self> {
        let mut table = String::new();
        GzDecoder::new(compressed)
            .read_to_string(&mut table)
            .map_err(|e| format!("expected gzip-compressed lines of 64 pixels and a digit: {e}"))?;
        let mut pictures = Self::default();
        for (i, line) in table.lines().enumerate() {
            let values: Option<Vec<u8>> = line.split(',').map(|v| v.parse().ok()).collect();
            match values.as_deref() {
                Some([pixels @ .., label])
                    if pixels.len() == PIXELS
                        && pixels.iter().all(|&p| f32::from(p) <= INK)
                        && usize::from(*label) < CLASSES =>
                {
                    pictures.pixels.extend(pixels.iter().map(|&p| f32::from(p) / INK));
                    pictures.labels.push(*label);
                }
                _ => {
                    let line: String = line.chars().take(40).collect();
                    return Err(
                        format!("line {}: expected 64 pixels from 0 to 16 and a digit, got {line:?}", i + 1).into()
                    );
                }
            }
        }
        let digits = (0..CLASSES).filter(|&digit| pictures.labels.contains(&(digit as u8))).count();
        if pictures.len() < LEAST || digits < CLASSES {
            let pictures = pictures.len();
            return Err(
                format!("expected at least {LEAST} pictures of all 10 digits, got {pictures} of {digits}").into()
            );
        }
        Ok(pictures)
    }

    pub(crate) fn len(&self) -> usize {
        self.labels.len()
    }

    /// The pictures with these numbers, in this order.
    pub(crate) fn select(&self, picks: &[usize]) -> Self {
        let mut chosen = Self::default();
        for &i in picks {
            chosen.pixels.extend(&self.pixels[i * PIXELS..(i + 1) * PIXELS]);
            chosen.labels.push(self.labels[i]);
        }
        chosen
    }

    /// The same pictures with every pixel changed by `f`.
    pub(crate) fn map(&self, f: impl Fn(f32) -> f32) -> Self {
        Self { pixels: self.pixels.iter().map(|&p| f(p)).collect(), labels: self.labels.clone() }
    }
}

/// What to train on and what to test on.
#[derive(Clone, Debug)]
pub(crate) struct Split {
    pub(crate) train: Pictures,
    pub(crate) test: Pictures,
}

impl Split {
    /// A random fifth is for testing.
    pub(crate) fn random(pictures: &Pictures, seed: u64) -> Self {
        let mut order: Vec<usize> = (0..pictures.len()).collect();
        fastrand::Rng::with_seed(seed).shuffle(&mut order);
        Self::at_fifth(pictures, &order)
    }

    /// The last fifth of the file is for testing: other people wrote it.
    pub(crate) fn by_writer(pictures: &Pictures) -> Self {
        Self::at_fifth(pictures, &(0..pictures.len()).collect::<Vec<_>>())
    }

    fn at_fifth(pictures: &Pictures, order: &[usize]) -> Self {
        let (train, test) = order.split_at(pictures.len() * 4 / 5);
        Self { train: pictures.select(train), test: pictures.select(test) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::Compression;
    use flate2::write::GzEncoder;
    use std::io::Write;

    fn error(compressed: &[u8]) -> String {
        Pictures::parse(compressed).unwrap_err().to_string()
    }

    fn compress(table: &str) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(table.as_bytes()).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn built_in_pictures() {
        let pictures = Pictures::built_in().unwrap();
        assert_eq!((pictures.len(), pictures.pixels.len()), (1797, 1797 * PIXELS));
        // Counts as published with the data.
        let count = |digit| pictures.labels.iter().filter(|&&label| label == digit).count();
        assert_eq!([0, 1, 2, 3, 4, 5, 6, 7, 8, 9].map(count), [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]);
    }

    #[test]
    fn splits_have_every_picture_once() {
        let pictures = Pictures::built_in().unwrap();
        for split in [Split::random(&pictures, 5), Split::by_writer(&pictures)] {
            assert_eq!((split.train.len(), split.test.len()), (1437, 360));
            let sum = |pictures: &Pictures| pictures.pixels.iter().map(|&p| f64::from(p)).sum::<f64>();
            assert_eq!(sum(&split.train) + sum(&split.test), sum(&pictures));
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
        assert_eq!(error(&compress("")), "expected at least 1000 pictures of all 10 digits, got 0 of 0");
        let sevens = format!("{good}\n").repeat(1000);
        assert_eq!(error(&compress(&sevens)), "expected at least 1000 pictures of all 10 digits, got 1000 of 1");
    }
}
