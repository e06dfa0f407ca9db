//! Code shared by the tests, besides [`batchnorm_testing`]: whole training steps, and the shapes and instruction sets
//! to run them on.

pub(crate) use batchnorm::Element;
use batchnorm::{BatchNorm, Isa, RunningStatistics, Shape, Source, Statistics};
pub(crate) use batchnorm_testing::*;

/// A training step. Buffers start at different offsets, which follow from `offset`.
pub(crate) fn train<T: Number>(plan: &BatchNorm, p: &Problem<T>, way: Way, offset: usize) -> Outputs<T> {
    let (y, statistics) = forward(plan, p, way, offset);
    let (sums, dx, dgamma, dbeta) = backward(plan, p, (&statistics).into(), way, [true; 3], offset);
    Outputs { statistics, sums, y, dx, dgamma, dbeta }
}

/// A step with constant statistics; `Outputs::statistics` stays empty.
pub(crate) fn train_frozen<T: Number>(
    plan: &BatchNorm,
    p: &Problem<T>,
    running: &RunningStatistics,
    way: Way,
    offset: usize,
) -> Outputs<T> {
    let source = Source::from(running);
    let y = normalize(plan, p, source, way, offset);
    let (sums, dx, dgamma, dbeta) = backward(plan, p, source, way, [true; 3], offset);
    Outputs { statistics: Statistics::new(p.shape.channels()), sums, y, dx, dgamma, dbeta }
}

/// The shape of these extents: outer, channels and inner.
pub(crate) fn shape((outer, channels, inner): (usize, usize, usize)) -> Shape {
    Shape::new(outer, channels, inner).unwrap()
}

/// Shapes whose lengths are around every boundary (vectors, chunks, blocks, groups of channels, segments) or prime, and
/// small enough to be run with all settings.
pub(crate) fn boundary_shapes(lanes: usize) -> Vec<Shape> {
    let chunk = 8 * lanes;
    let around = |n: usize| [n - 1, n, n + 1];
    let lengths = [vec![1, 2, 3], around(lanes).into(), around(chunk).into(), around(2 * chunk).into(), vec![61, 509]];
    let mut shapes = vec![];
    for n in lengths.concat() {
        shapes.push((1, 1, n)); // one plane
        shapes.push((3, 2, n)); // runs that start anywhere in a block
        shapes.push((n, 3, 1)); // a narrow row
        shapes.push((5, n, 1)); // rows of any width
    }
    // Narrow rows, which are walked several at a time, with and without rows that are left over.
    for channels in 1..18 {
        shapes.extend([(64, channels, 1), (16 * 9 + channels, channels, 1)]);
    }
    for rows in [around(8), around(64), around(128), around(256)].concat() {
        shapes.push((rows, lanes + 1, 1));
    }
    // Rows of whole vectors: one vector, a panel, more than a panel, and so many that coefficients fill a cache.
    for vectors in [1, 3, 4, 5, 41] {
        shapes.push((19, vectors * lanes, 1));
    }
    shapes.extend([(2, 15, 5), (2, 16, 5), (2, 17, 5), (7, 33, 3), (4, 1, 2), (1, 509, 2), (4100, 2, 1)]);
    shapes.into_iter().map(shape).collect()
}

/// Shapes of more than one segment: planes that are cut inside an image and between images, narrow and wide rows.
pub(crate) fn segmented_shapes() -> Vec<Shape> {
    [(1, 2, 3 * 16384 + 1), (9, 3, 4999), (131_072 + 65, 1, 1), (2 * 131_072 + 77, 3, 1), (2 * 512 + 1, 257, 1)]
        .map(shape)
        .into()
}

/// Runs `f` for every instruction set of this machine.
pub(crate) fn every_isa(mut f: impl FnMut(Isa)) {
    for &isa in Isa::available() {
        f(isa);
    }
}
