//! The walks of passes that sum: two sums a channel, in lanes, then in f64.
//!
//! A chunk of [`CHUNK`] vectors is summed pairwise in lanes of the element's type (three roundings), then added to
//! f64 accumulators; squares of f32, which f64 holds, are added to these at once. In planes the vectors of a chunk
//! follow each other; in rows they are a stride apart, one a row, and each lane is a channel. Chunks are counted from
//! the start of the run or block of rows, so the order of all additions follows from the shape alone.

use super::operands::{Fused, INPUTS, Lanes, Operands, Sources, load};
use crate::simd::{Real, Simd, Vector};

/// Vectors that are summed in the element's precision before they are added to f64 accumulators. 8 keeps widening
/// at a fifth of the arithmetic; 16 would cost a fourth rounding.
pub(crate) const CHUNK: usize = 8;

/// The most coefficients a channel may have.
pub(crate) const MAX_COEFS: usize = 8;

/// The body of a summing pass: two terms an element, from the inputs and the channel's coefficients.
pub(crate) trait Reduce {
    /// How many inputs are read.
    const INPUTS: usize;
    /// How many coefficients a channel has, and how many of them are only needed where the activation's argument is
    /// computed again.
    const COEFS: usize;
    const RECOMPUTE_COEFS: usize = 0;
    /// Whether anything is fused.
    const FUSED: bool;
    /// Whether the second term is the square of the first.
    const SQUARES: bool;
    fn terms<V: Vector>(coefs: [V; MAX_COEFS], x: Operands<V>, fused: &Fused) -> [V; 2];
}

/// A sum over planes, that a map may be beside.
pub(crate) trait PlaneSums {
    /// # Safety
    /// The pointers cover the shape.
    unsafe fn planes<S: Simd, B: Beside>(&self, beside: &mut B);
}

/// Bytes of a cache line.
const LINE: usize = 64;

#[inline(always)]
fn add<V: Vector>(a: [V; 2], b: [V; 2]) -> [V; 2] {
    [a[0].add(b[0]), a[1].add(b[1])]
}

/// The terms of one vector; of its first `n` lanes, zero in the others, where `PARTIAL`.
///
/// # Safety
/// The lanes can be read in every input used.
#[inline(always)]
unsafe fn terms<R: Reduce, L: Lanes, const ROWS: bool, const PARTIAL: bool>(
    coefs: [L::V; MAX_COEFS],
    x: Sources<L::E>,
    fused: &Fused,
    n: usize,
) -> [L::V; 2] {
    // SAFETY: the caller's promise.
    let operands = unsafe { load::<L, ROWS, PARTIAL>(x, R::INPUTS, R::FUSED, fused, n) };
    let t = R::terms(coefs, operands, fused);
    if PARTIAL { [t[0].first(n), t[1].first(n)] } else { t }
}

/// A step from one vector of a chunk to the next: elements and positions.
type Step = (usize, usize);

/// The sums of four vectors, pairwise.
///
/// # Safety
/// Their lanes can be read in every input used.
#[inline(always)]
unsafe fn four<R: Reduce, L: Lanes, const ROWS: bool, const PARTIAL: bool>(
    coefs: [L::V; MAX_COEFS],
    x: Sources<L::E>,
    fused: &Fused,
    (elements, positions): Step,
    n: usize,
) -> [L::V; 2] {
    // SAFETY: the caller's promise.
    unsafe {
        let second = x.advance(elements, positions);
        let third = x.advance(2 * elements, 2 * positions);
        let fourth = x.advance(3 * elements, 3 * positions);
        let a = add(
            terms::<R, L, ROWS, PARTIAL>(coefs, x, fused, n),
            terms::<R, L, ROWS, PARTIAL>(coefs, second, fused, n),
        );
        let b = add(
            terms::<R, L, ROWS, PARTIAL>(coefs, third, fused, n),
            terms::<R, L, ROWS, PARTIAL>(coefs, fourth, fused, n),
        );
        add(a, b)
    }
}

/// The sums of `count` vectors, 1 to `CHUNK`.
///
/// # Safety
/// Their lanes can be read in every input used.
#[inline(always)]
unsafe fn chunk<R: Reduce, L: Lanes, const ROWS: bool, const PARTIAL: bool>(
    coefs: [L::V; MAX_COEFS],
    x: Sources<L::E>,
    fused: &Fused,
    step: Step,
    count: usize,
    n: usize,
) -> [L::V; 2] {
    let (elements, positions) = step;
    // SAFETY: the caller's promise.
    unsafe {
        if R::FUSED {
            // The same sums from a loop, since the terms are much code.
            let mut t = [[L::V::splat(Real::from_f64(0.0)); 2]; CHUNK];
            for (j, t) in t.iter_mut().enumerate().take(count) {
                *t = terms::<R, L, ROWS, PARTIAL>(coefs, x.advance(j * elements, j * positions), fused, n);
            }
            return if count == CHUNK {
                add(add(add(t[0], t[1]), add(t[2], t[3])), add(add(t[4], t[5]), add(t[6], t[7])))
            } else {
                t[1..count].iter().fold(t[0], |sums, t| add(sums, *t))
            };
        }
        if count == CHUNK {
            let a = four::<R, L, ROWS, PARTIAL>(coefs, x, fused, step, n);
            let rest = x.advance(4 * elements, 4 * positions);
            return add(a, four::<R, L, ROWS, PARTIAL>(coefs, rest, fused, step, n));
        }
        let mut sums = terms::<R, L, ROWS, PARTIAL>(coefs, x, fused, n);
        for j in 1..count {
            let x = x.advance(j * elements, j * positions);
            sums = add(sums, terms::<R, L, ROWS, PARTIAL>(coefs, x, fused, n));
        }
        sums
    }
}

/// The accumulators of two sums.
pub(crate) type Wide<V> = [<V as Vector>::Wide; 2];

/// Adds the terms of `count` vectors, 1 to `CHUNK`, to the accumulators, those of squares without a rounding in lanes.
/// It takes a quarter longer where x is in L2, and nothing where it comes from memory.
///
/// # Safety
/// As [`chunk`].
#[inline(always)]
unsafe fn add_chunk<R: Reduce, L: Lanes, const ROWS: bool, const PARTIAL: bool>(
    coefs: [L::V; MAX_COEFS],
    x: Sources<L::E>,
    fused: &Fused,
    step: Step,
    (count, n): (usize, usize),
    mut acc: Wide<L::V>,
) -> Wide<L::V> {
    // SAFETY: the caller's promise.
    unsafe {
        if R::SQUARES && L::V::EXACT_SQUARES {
            for j in 0..count {
                let x = x.advance(j * step.0, j * step.1);
                acc = terms::<R, L, ROWS, PARTIAL>(coefs, x, fused, n)[0].accumulate_squares(acc);
            }
            return acc;
        }
        let t = chunk::<R, L, ROWS, PARTIAL>(coefs, x, fused, step, count, n);
        [t[0].accumulate(acc[0]), t[1].accumulate(acc[1])]
    }
}

/// What a sum over planes does between its chunks: a map of planes that were summed before. Memory is busy then while
/// terms are added up.
pub(crate) trait Beside {
    /// The sum is about to walk `len` elements of the `k`-th channel of its tile, from `(o, i)` on.
    ///
    /// # Safety (of all functions)
    /// Runs are those of the map's tile, of which whoever made this promised that they may be mapped; each is begun, goes on
    /// by chunks, and is ended.
    unsafe fn begin(&mut self, k: usize, o: usize, i: usize, len: usize);
    /// A chunk has been summed.
    unsafe fn chunk(&mut self);
    /// The run has been.
    unsafe fn end(&mut self);
}

impl Beside for () {
    #[inline(always)]
    unsafe fn begin(&mut self, _: usize, _: usize, _: usize, _: usize) {}
    #[inline(always)]
    unsafe fn chunk(&mut self) {}
    #[inline(always)]
    unsafe fn end(&mut self) {}
}

/// Adds the terms of `len` contiguous elements of one channel to its accumulators.
///
/// # Safety
/// `len` elements can be read in every input used; a run of what is beside has begun.
#[inline(always)]
pub(crate) unsafe fn run<R: Reduce, L: Lanes, B: Beside>(
    coefs: [L::V; MAX_COEFS],
    x: Sources<L::E>,
    fused: &Fused,
    len: usize,
    mut acc: Wide<L::V>,
    beside: &mut B,
) -> Wide<L::V> {
    let lanes = L::V::LANES;
    let step = (lanes, lanes);
    let mut at = 0;
    // SAFETY: every chunk lies within `len`; the caller's promise.
    unsafe {
        while len - at >= CHUNK * lanes {
            acc = add_chunk::<R, L, false, false>(coefs, x.advance(at, at), fused, step, (CHUNK, lanes), acc);
            beside.chunk();
            at += CHUNK * lanes;
        }
        let count = (len - at) / lanes;
        if count > 0 {
            acc = add_chunk::<R, L, false, false>(coefs, x.advance(at, at), fused, step, (count, lanes), acc);
            at += count * lanes;
        }
        if at < len {
            acc = add_chunk::<R, L, false, true>(coefs, x.advance(at, at), fused, step, (1, len - at), acc);
        }
    }
    acc
}

/// Asks for the cache lines of `n` elements.
#[inline(always)]
fn prefetch<V: Vector, E>(p: *const E, n: usize) {
    for line in 0..(n * size_of::<E>()).div_ceil(LINE) {
        V::prefetch::<false>(p.cast::<u8>().wrapping_add(line * LINE));
    }
}

/// Bytes of a plane so short that the hardware does not foresee the next one, a jump away, in time. Asking for the next
/// of longer planes takes up to 1.5 times as long as leaving it to the hardware.
const SHORT_PLANE: usize = 4096;

/// Asks for a channel's next plane, where planes are short: sums of 7×7 ones take 0.7 of the time then.
#[inline(always)]
pub(crate) fn prefetch_plane<V: Vector, E>(p: *const E, n: usize) {
    if n * size_of::<E>() <= SHORT_PLANE {
        prefetch::<V, E>(p, n);
    }
}

/// The sums of a block of rows, one pair a column, with the columns' coefficients.
pub(crate) struct Rows<S> {
    /// `COEFS` arrays of coefficients, so many values apart.
    pub(crate) coefs: *const S,
    pub(crate) apart: usize,
    /// Two arrays of sums. All arrays are padded to whole vectors.
    pub(crate) sums: [*mut f64; 2],
    /// Columns to sum.
    pub(crate) columns: usize,
    /// Elements from one row to the next.
    pub(crate) stride: usize,
}

/// Bytes of an input that are walked panel by panel before going on: large enough to keep a column's accumulators in
/// registers for a while, small enough for L1 to have all of it before the second panel.
const BLOCK_BYTES: usize = 8192;

/// Adds the terms of `rows` rows to their columns' sums.
///
/// # Safety
/// `rows` rows of `columns` elements, a stride apart, can be read in every input used; coefficients and sums have the
/// lengths that [`Rows`] states.
#[inline(always)]
pub(crate) unsafe fn rows<R: Reduce, L: Lanes>(
    r: &Rows<<L::V as Vector>::Scalar>,
    x: Sources<L::E>,
    fused: &Fused,
    rows: usize,
) {
    let row_bytes = r.stride * size_of::<L::E>();
    // While the accumulators of a column are in registers, as many chunks of rows as fit are added to them.
    let block = (BLOCK_BYTES / row_bytes.max(1)).next_multiple_of(CHUNK).clamp(CHUNK, 8 * CHUNK);
    let mut row = 0;
    while row < rows {
        let block_rows = block.min(rows - row);
        let x = x.advance(row * r.stride, row);
        // The block after this is asked for in the order of memory, whatever the order of the panels.
        let mut next = x.advance(block_rows * r.stride, 0);
        let mut column = 0;
        while column < r.columns {
            let n = r.columns - column;
            let x = x.advance(column, 0);
            // SAFETY: the rows of this block and the lanes below `n` are within the caller's promise.
            unsafe {
                if n >= L::V::LANES {
                    column_panel::<R, L, false>(r, x, fused, column, block_rows, n, &mut next);
                } else {
                    column_panel::<R, L, true>(r, x, fused, column, block_rows, n, &mut next);
                }
            }
            column += L::V::LANES;
        }
        row += block_rows;
    }
}

/// Adds one vector's width of a block of rows to its columns' sums.
///
/// # Safety
/// As [`rows`], for the first `n` columns from `column` on.
#[inline(always)]
unsafe fn column_panel<R: Reduce, L: Lanes, const PARTIAL: bool>(
    r: &Rows<<L::V as Vector>::Scalar>,
    x: Sources<L::E>,
    fused: &Fused,
    column: usize,
    rows: usize,
    n: usize,
    next: &mut Sources<L::E>,
) {
    let mut coefs = [L::V::splat(Real::from_f64(0.0)); MAX_COEFS];
    // SAFETY: `column` plus a vector lies within the padded arrays; rows are the caller's promise.
    unsafe {
        for (k, v) in coefs.iter_mut().enumerate().take(R::COEFS) {
            if k < R::COEFS - R::RECOMPUTE_COEFS || fused.recomputes() {
                *v = L::V::load(r.coefs.add(k * r.apart + column));
            }
        }
        let [s, t] = r.sums.map(|p| p.add(column));
        let mut acc = [L::V::wide_load(s), L::V::wide_load(t)];
        let mut row = 0;
        while row < rows {
            let count = CHUNK.min(rows - row);
            for k in 0..INPUTS {
                if fused.reads(R::FUSED, k, R::INPUTS) {
                    prefetch::<L::V, L::E>(next.inputs[k], CHUNK * L::V::LANES);
                }
            }
            *next = next.advance(CHUNK * L::V::LANES, 0);
            let x = x.advance(row * r.stride, row);
            acc = add_chunk::<R, L, true, PARTIAL>(coefs, x, fused, (r.stride, 1), (count, n), acc);
            row += count;
        }
        L::V::wide_store(acc[0], s);
        L::V::wide_store(acc[1], t);
    }
}
