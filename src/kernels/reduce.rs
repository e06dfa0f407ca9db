//! The walks of passes that sum: two sums per channel, in lanes, then in f64.
//!
//! A chunk of [`CHUNK`] vectors is summed pairwise in lanes of the scalar type (three roundings), then added to f64
//! accumulators. In planes the vectors of a chunk follow each other; in rows they are a stride apart, one per row, and
//! each lane is a channel. Chunks are counted from the start of the run or block of rows, so the order of all additions
//! follows from the shape alone.

use super::operands::{INPUTS, Kind, Lanes, Operands, Sources, Variant, load};
use super::tile::PlaneRun;
use crate::simd::{Real, Vector};

/// Vectors that are summed in the scalar type before they are added to f64 accumulators. 8 keeps widening at a fifth of
/// the arithmetic; 16 would cost a fourth rounding.
pub(crate) const CHUNK: usize = 8;

/// Fewer vectors than a chunk are summed in turn, no more at once than three roundings allow.
const FEW: usize = 4;

/// The most coefficients of a channel.
pub(crate) const MAX_COEFS: usize = 6;

/// The body of a summing pass: two terms per element, from the inputs and the coefficients of the channel.
pub(crate) trait Reduce {
    /// How many inputs are read.
    const INPUTS: usize;
    /// How many coefficients a channel has, and how many of them, the last, serve only to recompute the argument of the
    /// activation.
    const COEFS: usize;
    const RECOMPUTE_COEFS: usize = 0;
    /// The variants that it serves.
    type Kind: Kind;
    /// Whether these are any variants, whose body is much code.
    const ANY: bool = <Self::Kind as Kind>::ANY;
    fn terms<V: Vector>(coefs: &[V; MAX_COEFS], x: &Operands<V>, variant: &Variant) -> [V; 2];
}

/// What a reduction over planes does between its chunks: the map of planes that were reduced before.
///
/// # Safety (of all functions)
/// Runs belong to the tile of the map, and whoever made this promised that they may be mapped. Each run begins, goes on
/// by chunks, and ends.
pub(crate) trait Interleave {
    /// The reduction is about to walk this run of its tile.
    unsafe fn begin(&mut self, run: &PlaneRun);
    /// A chunk has been summed.
    unsafe fn chunk(&mut self);
    /// The run has been summed.
    unsafe fn end(&mut self);
}

/// Nothing is mapped.
impl Interleave for () {
    #[inline(always)]
    unsafe fn begin(&mut self, _: &PlaneRun) {}
    #[inline(always)]
    unsafe fn chunk(&mut self) {}
    #[inline(always)]
    unsafe fn end(&mut self) {}
}

/// The accumulators of two sums.
pub(crate) type Accumulators<V> = [<V as Vector>::Wide; 2];

/// The step from one vector of a chunk to the next.
#[derive(Clone, Copy)]
struct Step {
    elements: usize,
    positions: usize,
}

#[inline(always)]
fn add<V: Vector>(a: [V; 2], b: [V; 2]) -> [V; 2] {
    [a[0].add(b[0]), a[1].add(b[1])]
}

/// The terms of the first `n` lanes of a vector, of all if `WHOLE`; zero in the others.
///
/// # Safety
/// The lanes can be read in every input used.
#[inline(always)]
unsafe fn terms<R: Reduce, L: Lanes, const WHOLE: bool>(
    coefs: &[L::V; MAX_COEFS],
    x: &Sources<L::E>,
    variant: &Variant,
    n: usize,
) -> [L::V; 2] {
    // SAFETY: the caller's promise.
    let operands = unsafe { load::<L, R::Kind, WHOLE>(x, R::INPUTS, variant, n) };
    let [a, b] = R::terms(coefs, &operands, variant);
    if WHOLE { [a, b] } else { [a.first(n), b.first(n)] }
}

/// The sum of a chunk's terms, pairwise.
#[inline(always)]
fn pairwise<V: Vector>(t: &[[V; 2]; CHUNK]) -> [V; 2] {
    add(add(add(t[0], t[1]), add(t[2], t[3])), add(add(t[4], t[5]), add(t[6], t[7])))
}

/// Adds the terms of a chunk to the accumulators, or of its first `n` lanes unless `WHOLE`.
///
/// # Safety
/// As [`terms`].
#[inline(always)]
unsafe fn add_chunk<R: Reduce, L: Lanes, const WHOLE: bool>(
    coefs: &[L::V; MAX_COEFS],
    x: &Sources<L::E>,
    variant: &Variant,
    step: Step,
    n: usize,
    acc: Accumulators<L::V>,
) -> Accumulators<L::V> {
    let mut t = [[L::V::splat(Real::from_wide(0.0)); 2]; CHUNK];
    let mut j = 0;
    while j < CHUNK {
        let x = x.advance(j * step.elements, j * step.positions);
        // SAFETY: the caller's promise.
        t[j] = unsafe { terms::<R, L, WHOLE>(coefs, &x, variant, n) };
        j += 1;
    }
    let [a, b] = pairwise(&t);
    [a.accumulate(acc[0]), b.accumulate(acc[1])]
}

/// Adds the terms of `count` vectors, as many as are summed at once, to the accumulators: the first `whole` have all
/// lanes, the others the first `n`. Loops, in which the terms of any variant, much code, exist once.
///
/// # Safety
/// As [`terms`].
#[inline(always)]
unsafe fn add_few<R: Reduce, L: Lanes>(
    coefs: &[L::V; MAX_COEFS],
    x: &Sources<L::E>,
    variant: &Variant,
    step: Step,
    [count, whole]: [usize; 2],
    n: usize,
    acc: Accumulators<L::V>,
) -> Accumulators<L::V> {
    let vector = |j: usize| x.advance(j * step.elements, j * step.positions);
    let mut t = [[L::V::splat(Real::from_wide(0.0)); 2]; CHUNK];
    let mut sums = t[0];
    let mut j = 0;
    // SAFETY: the caller's promise.
    unsafe {
        while j < whole {
            let v = terms::<R, L, true>(coefs, &vector(j), variant, n);
            if R::ANY && count == CHUNK {
                t[j] = v;
            } else {
                sums = add(sums, v);
            }
            j += 1;
        }
        while j < count {
            let v = terms::<R, L, false>(coefs, &vector(j), variant, n);
            if R::ANY && count == CHUNK {
                t[j] = v;
            } else {
                sums = add(sums, v);
            }
            j += 1;
        }
    }
    if R::ANY && count == CHUNK {
        sums = pairwise(&t);
    }
    [sums[0].accumulate(acc[0]), sums[1].accumulate(acc[1])]
}

/// Adds the terms of `len` contiguous elements of one channel to its accumulators.
///
/// # Safety
/// `len` elements can be read in every input used; a run of what is interleaved has begun.
#[inline(always)]
pub(crate) unsafe fn run<R: Reduce, L: Lanes, I: Interleave>(
    coefs: &[L::V; MAX_COEFS],
    x: &Sources<L::E>,
    variant: &Variant,
    len: usize,
    mut acc: Accumulators<L::V>,
    interleaved: &mut I,
) -> Accumulators<L::V> {
    let lanes = L::V::LANES;
    let step = Step { elements: lanes, positions: lanes };
    let mut at = 0;
    // SAFETY: every chunk lies within `len`; the caller's promise.
    unsafe {
        while !R::ANY && len - at >= CHUNK * lanes {
            acc = add_chunk::<R, L, true>(coefs, &x.advance(at, at), variant, step, lanes, acc);
            interleaved.chunk();
            at += CHUNK * lanes;
        }
        // The terms of any variant exist once, in a loop over all chunks. The last vector may have fewer lanes.
        while at < len {
            let (left, vectors) = (len - at, (len - at).div_ceil(lanes));
            let count = if left >= CHUNK * lanes { CHUNK } else { vectors.min(FEW) };
            let n = lanes.min(left - (count - 1) * lanes);
            let whole = if n < lanes { count - 1 } else { count };
            acc = add_few::<R, L>(coefs, &x.advance(at, at), variant, step, [count, whole], n, acc);
            at += (count - 1) * lanes + n;
        }
    }
    acc
}

/// Bytes of a cache line.
const LINE: usize = 64;

/// Prefetches the cache lines of `n` elements.
#[inline(always)]
fn prefetch<V: Vector, E>(p: *const E, n: usize) {
    let mut line = p.cast::<u8>();
    for _ in 0..(n * size_of::<E>()).div_ceil(LINE) {
        V::prefetch::<false>(line);
        line = line.wrapping_add(LINE);
    }
}

/// Bytes of a plane so short that the hardware prefetcher is late for the next one, a jump away. To prefetch the next
/// of longer planes takes up to 1.5 times as long as to leave it to the hardware, in cache as well.
const SHORT_PLANE: usize = 512;

/// Prefetches the next plane of a channel if planes are short: sums of 7×7 ones then take 60 to 80 % of the time.
#[inline(always)]
pub(crate) fn prefetch_plane<V: Vector, E>(p: *const E, n: usize) {
    if n * size_of::<E>() <= SHORT_PLANE {
        prefetch::<V, E>(p, n);
    }
}

/// The sums of a block of rows, one pair per column, with the coefficients of the columns.
pub(crate) struct Rows<S> {
    /// `COEFS` arrays of coefficients, a stride apart.
    pub(crate) coefs: *const S,
    pub(crate) coefs_stride: usize,
    /// Two arrays of sums and, for lanes of f64, of what their roundings have lost. All arrays are padded to whole
    /// vectors.
    pub(crate) sums: [*mut f64; 2],
    pub(crate) rests: [*mut f64; 2],
    /// Columns to sum.
    pub(crate) columns: usize,
    /// Elements from one row to the next.
    pub(crate) row_stride: usize,
}

/// Bytes of an input that are walked panel by panel before going on: large enough to keep the accumulators of a column
/// in registers for a while, small enough for L1 to have all of it before the second panel.
const BLOCK_BYTES: usize = 8192;

/// Adds the terms of `rows` rows to the sums of their columns.
///
/// # Safety
/// `rows` rows of `columns` elements, a stride apart, can be read in every input used; coefficients and sums have the
/// lengths that [`Rows`] states.
#[inline(always)]
pub(crate) unsafe fn rows<R: Reduce, L: Lanes>(
    r: &Rows<<L::V as Vector>::Scalar>,
    x: &Sources<L::E>,
    variant: &Variant,
    rows: usize,
) {
    let row_bytes = r.row_stride * size_of::<L::E>();
    // While the accumulators of a column are in registers, as many chunks of rows as fit are added to them.
    let block = (BLOCK_BYTES / row_bytes.max(1)).next_multiple_of(CHUNK).clamp(CHUNK, 8 * CHUNK);
    // If rows lie a multiple of 2048 bytes apart, the lines of a panel compete for few sets of L1. Those of aligned panels
    // are needed once only: sums of two inputs then take 0.6 to 0.9 of the time.
    let vector_bytes = L::V::LANES * size_of::<L::E>();
    let aligns = row_bytes.is_multiple_of(2048) && r.columns > L::V::LANES;
    let head = if aligns { x.inputs[0].addr().wrapping_neg() % vector_bytes / size_of::<L::E>() } else { 0 };
    let mut row = 0;
    while row < rows {
        let block_rows = block.min(rows - row);
        let x = x.advance(row * r.row_stride, row);
        // The next block is prefetched in the order of memory, whatever the order of the panels.
        let mut next = x.advance(block_rows * r.row_stride, 0);
        let (mut column, mut n) = (0, if head > 0 { head } else { L::V::LANES.min(r.columns) });
        while n > 0 {
            // SAFETY: the rows of this block and these columns are within the caller's promise.
            unsafe { column_panel::<R, L>(r, &x.advance(column, 0), variant, column, n, block_rows, &mut next) };
            column += n;
            n = L::V::LANES.min(r.columns - column);
        }
        row += block_rows;
    }
}

/// Adds `n` columns of a block of rows, no more than a vector has, to their sums.
///
/// # Safety
/// As [`rows`], for the columns from `column` on.
#[inline(always)]
unsafe fn column_panel<R: Reduce, L: Lanes>(
    r: &Rows<<L::V as Vector>::Scalar>,
    x: &Sources<L::E>,
    variant: &Variant,
    column: usize,
    n: usize,
    rows: usize,
    next: &mut Sources<L::E>,
) {
    let lanes = L::V::LANES;
    let step = Step { elements: r.row_stride, positions: 1 };
    let mut coefs = [L::V::splat(Real::from_wide(0.0)); MAX_COEFS];
    // SAFETY: `column` plus a vector lies within the padded arrays; rows are the caller's promise.
    unsafe {
        let mut k = 0;
        while k < R::COEFS {
            if k < R::COEFS - R::RECOMPUTE_COEFS || variant.recomputes() {
                coefs[k] = L::V::load(r.coefs.add(k * r.coefs_stride + column));
            }
            k += 1;
        }
        let (sums, rests) =
            ([r.sums[0].add(column), r.sums[1].add(column)], [r.rests[0].add(column), r.rests[1].add(column)]);
        let mut acc = [L::V::wide_load(sums[0], rests[0]), L::V::wide_load(sums[1], rests[1])];
        let mut row = 0;
        while row < rows {
            let count = if rows - row >= CHUNK { CHUNK } else { FEW.min(rows - row) };
            let mut k = 0;
            while k < INPUTS {
                if variant.reads::<R::Kind>(k, R::INPUTS) {
                    prefetch::<L::V, L::E>(next.inputs[k], CHUNK * lanes);
                }
                k += 1;
            }
            *next = next.advance(CHUNK * lanes, 0);
            let x = x.advance(row * r.row_stride, row);
            let whole = if n < lanes { 0 } else { count };
            acc = match (count == CHUNK, n == lanes) {
                _ if R::ANY => add_few::<R, L>(&coefs, &x, variant, step, [count, whole], n, acc),
                (true, true) => add_chunk::<R, L, true>(&coefs, &x, variant, step, n, acc),
                (true, false) => add_chunk::<R, L, false>(&coefs, &x, variant, step, n, acc),
                (false, _) => add_few::<R, L>(&coefs, &x, variant, step, [count, whole], n, acc),
            };
            row += count;
        }
        L::V::wide_store(acc[0], sums[0], rests[0]);
        L::V::wide_store(acc[1], sums[1], rests[1]);
    }
}
