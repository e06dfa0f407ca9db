//! The shape of a plan, as its passes walk it.

use crate::shape::Shape;
use crate::simd::MAX_LANES;
use std::ops::Range;

/// Channels below which rows are walked together.
const NARROW: usize = MAX_LANES;
/// Columns of rows that are walked together, at most: with that many channels less one, an odd number, so many rows are
/// a number of whole vectors.
pub(super) const MAX_COLUMNS: usize = (NARROW - 1) * MAX_LANES;

/// How passes walk a shape: usually as it is. Rows of a single channel are one plane. Rows of few channels would each be
/// a part of a vector, so that as many as make whole vectors are walked as one row. Each of its columns is a part of a
/// channel, and the parts are merged in the end; rows that are left over are walked as they are.
#[derive(Clone, Copy, Debug)]
pub(super) struct Walked {
    /// The shape that is walked.
    pub(super) shape: Shape,
    /// How many rows of the plan are one of this shape: a power of two.
    pub(super) rows: usize,
    /// Rows that are left over.
    pub(super) rest: Option<Shape>,
    channels: usize,
}

impl Walked {
    pub(super) fn as_it_is(shape: Shape) -> Self {
        Self { shape, rows: 1, rest: None, channels: shape.channels() }
    }

    /// Rows with weights, one for each, are walked as they are.
    pub(super) fn new(shape: Shape, weighted: bool) -> Self {
        let (channels, as_it_is) = (shape.channels(), Self::as_it_is(shape));
        if shape.is_empty() || shape.inner() > 1 || channels >= NARROW {
            return as_it_is;
        }
        if channels == 1 {
            return Self { shape: shape.with_extents(1, 1, shape.len()), ..as_it_is };
        }
        let rows = MAX_LANES >> channels.trailing_zeros();
        if weighted || shape.outer() < rows {
            return as_it_is;
        }
        let (whole, left) = (shape.outer() / rows, shape.outer() % rows);
        let rest = (left > 0).then(|| shape.with_extents(left, channels, 1));
        Self { shape: shape.with_extents(whole, rows * channels, 1), rows, rest, channels }
    }

    /// Values per channel that are left over.
    pub(super) fn rest_count(&self) -> f64 {
        self.rest.map_or(0, Shape::values_per_channel) as f64
    }

    /// Slots for the partial results of so many segments, and of what is left over.
    pub(super) fn slots(&self, segments: usize) -> usize {
        segments + usize::from(self.rest.is_some())
    }

    /// The channels of some columns, which are all of them if they are parts of channels.
    pub(super) fn channels(&self, columns: Range<usize>) -> Range<usize> {
        if self.rows == 1 { columns } else { 0..self.channels }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn walked(outer: usize, channels: usize, inner: usize) -> Walked {
        Walked::new(Shape::new(outer, channels, inner).unwrap(), false)
    }

    #[test]
    fn rows_make_whole_vectors_and_nothing_is_lost() {
        for channels in 1..40 {
            for outer in [1, 2, 15, 16, 17, 100, 1000] {
                let w = walked(outer, channels, 1);
                let left = w.rest.map_or(0, Shape::len);
                assert_eq!(w.shape.len() + left, outer * channels);
                assert!(
                    w.rows == 1 || (w.shape.channels().is_multiple_of(MAX_LANES) && w.shape.channels() <= MAX_COLUMNS)
                );
                assert_eq!(w.channels(0..w.shape.channels()), 0..channels);
            }
        }
    }

    #[test]
    fn rows_of_one_channel_are_a_plane() {
        assert_eq!(walked(30, 1, 1).shape, Shape::new(1, 1, 30).unwrap());
        for planes in [(30, 1, 7), (30, 2, 7)] {
            assert_eq!(walked(planes.0, planes.1, planes.2).shape, Shape::new(planes.0, planes.1, planes.2).unwrap());
        }
    }
}
