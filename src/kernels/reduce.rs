//! The walks of passes that sum: two sums a channel, in lanes, then in f64.
//!
//! A chunk of [`CHUNK`] vectors is summed pairwise in lanes of the element's type (three roundings), then added to
//! f64 accumulators; squares of f32, which f64 holds, are added to these at once. In planes the vectors of a chunk follow each other; in rows they are a stride apart, one a row,
//! and each lane is a channel. Chunks are counted from the start of the run or block of rows, so the order of all
//! additions follows from the shape alone.

use crate::element::Load;
use crate::simd::Vector;

/// Vectors that are summed in the element's precision before they are added to f64 accumulators. 8 keeps widening
/// at a fifth of the arithmetic; 16 would cost a fourth rounding.
pub(crate) const CHUNK: usize = 8;

/// The body of a summing pass: two terms an element, from the inputs and the channel's coefficients.
pub(crate) trait Reduce {
    /// How many input arrays are read.
    const INPUTS: usize;
    /// How many coefficients a channel has.
    const COEFS: usize;
    /// Whether the second term is the square of the first.
    const SQUARES: bool;
    fn terms<V: Vector>(coefs: [V; 3], x: [V; 2]) -> [V; 2];
}

/// Bytes of a cache line.
const LINE: usize = 64;

pub(crate) type Inputs<E> = [*const E; 2];

/// Moves all inputs on by `n` elements. Wrapping: an input that the pass does not use is a null pointer.
#[inline(always)]
pub(crate) fn advance<E>(x: Inputs<E>, n: usize) -> Inputs<E> {
    x.map(|p| p.wrapping_add(n))
}

#[inline(always)]
fn add<V: Vector>(a: [V; 2], b: [V; 2]) -> [V; 2] {
    [a[0].add(b[0]), a[1].add(b[1])]
}

/// The terms of one vector; of its first `n` lanes, zero in the others, where `PARTIAL`.
///
/// # Safety
/// The lanes can be read at every input used.
#[inline(always)]
unsafe fn terms<R: Reduce, L: Load, const PARTIAL: bool>(
    coefs: [L::V; 3],
    x: Inputs<L::Element>,
    at: usize,
    n: usize,
) -> [L::V; 2] {
    let mut v = [L::V::splat(crate::simd::Real::from_f64(0.0)); 2];
    for (v, p) in v.iter_mut().zip(x).take(R::INPUTS) {
        // SAFETY: the caller's promise.
        *v = unsafe { if PARTIAL { L::load_first(p.wrapping_add(at), n) } else { L::load(p.add(at)) } };
    }
    let t = R::terms(coefs, v);
    if PARTIAL { [t[0].first(n), t[1].first(n)] } else { t }
}

/// The sums of four vectors at a distance of `stride` elements, pairwise.
///
/// # Safety
/// Their lanes can be read at every input used.
#[inline(always)]
unsafe fn four<R: Reduce, L: Load, const PARTIAL: bool>(
    coefs: [L::V; 3],
    x: Inputs<L::Element>,
    stride: usize,
    n: usize,
) -> [L::V; 2] {
    // SAFETY: the caller's promise.
    unsafe {
        let a = add(terms::<R, L, PARTIAL>(coefs, x, 0, n), terms::<R, L, PARTIAL>(coefs, x, stride, n));
        let b = add(terms::<R, L, PARTIAL>(coefs, x, 2 * stride, n), terms::<R, L, PARTIAL>(coefs, x, 3 * stride, n));
        add(a, b)
    }
}

/// The sums of `count` vectors, 1 to `CHUNK`, at a distance of `stride` elements.
///
/// # Safety
/// Their lanes can be read at every input used.
#[inline(always)]
unsafe fn chunk<R: Reduce, L: Load, const PARTIAL: bool>(
    coefs: [L::V; 3],
    x: Inputs<L::Element>,
    stride: usize,
    count: usize,
    n: usize,
) -> [L::V; 2] {
    // SAFETY: the caller's promise.
    unsafe {
        if count == CHUNK {
            let a = four::<R, L, PARTIAL>(coefs, x, stride, n);
            return add(a, four::<R, L, PARTIAL>(coefs, advance(x, 4 * stride), stride, n));
        }
        let mut sums = terms::<R, L, PARTIAL>(coefs, x, 0, n);
        for j in 1..count {
            sums = add(sums, terms::<R, L, PARTIAL>(coefs, x, j * stride, n));
        }
        sums
    }
}

/// Adds the terms of `count` vectors, 1 to `CHUNK`, to the accumulators, those of squares without a rounding in lanes.
/// It takes a quarter longer where x is in L2, and nothing where it comes from memory.
///
/// # Safety
/// As [`chunk`].
#[inline(always)]
unsafe fn add_chunk<R: Reduce, L: Load, const PARTIAL: bool>(
    coefs: [L::V; 3],
    x: Inputs<L::Element>,
    stride: usize,
    count: usize,
    n: usize,
    mut acc: [<L::V as Vector>::Wide; 2],
) -> [<L::V as Vector>::Wide; 2] {
    // SAFETY: the caller's promise.
    unsafe {
        if R::SQUARES && L::V::EXACT_SQUARES {
            for j in 0..count {
                acc = terms::<R, L, PARTIAL>(coefs, x, j * stride, n)[0].accumulate_squares(acc);
            }
            return acc;
        }
        let t = chunk::<R, L, PARTIAL>(coefs, x, stride, count, n);
        [t[0].accumulate(acc[0]), t[1].accumulate(acc[1])]
    }
}

/// Adds the terms of `len` contiguous elements of one channel to its accumulators.
///
/// Asking for lines ahead, also across the jump to the next plane, made no difference here that stood out from the
/// noise: planes are walked in the order of memory, which hardware foresees.
///
/// # Safety
/// `len` elements can be read at every input used.
#[inline(always)]
pub(crate) unsafe fn run<R: Reduce, L: Load>(
    coefs: [L::V; 3],
    x: Inputs<L::Element>,
    len: usize,
    mut acc: [<L::V as Vector>::Wide; 2],
) -> [<L::V as Vector>::Wide; 2] {
    let lanes = L::V::LANES;
    let mut at = 0;
    // SAFETY: every chunk lies within `len`.
    unsafe {
        while len - at >= CHUNK * lanes {
            acc = add_chunk::<R, L, false>(coefs, advance(x, at), lanes, CHUNK, lanes, acc);
            at += CHUNK * lanes;
        }
        let count = (len - at) / lanes;
        if count > 0 {
            acc = add_chunk::<R, L, false>(coefs, advance(x, at), lanes, count, lanes, acc);
            at += count * lanes;
        }
        if at < len {
            acc = add_chunk::<R, L, true>(coefs, advance(x, at), lanes, 1, len - at, acc);
        }
    }
    acc
}

/// Asks for the cache lines of `n` elements.
#[inline(always)]
fn prefetch<L: Load>(p: *const L::Element, n: usize) {
    for line in 0..(n * size_of::<L::Element>()).div_ceil(LINE) {
        L::V::prefetch(p.cast::<u8>().wrapping_add(line * LINE));
    }
}

/// The sums of a block of rows, one pair a column, with the columns' coefficients.
pub(crate) struct Rows<S> {
    /// `COEFS` arrays of coefficients, each `padded` long.
    pub(crate) coefs: *const S,
    /// Two arrays of sums, each `padded` long.
    pub(crate) sums: [*mut f64; 2],
    /// Columns rounded up to whole vectors.
    pub(crate) padded: usize,
    /// Columns to sum.
    pub(crate) columns: usize,
    /// Elements from one row to the next.
    pub(crate) stride: usize,
}

/// Bytes of an input that are walked panel by panel before going on: large enough to keep a column's accumulators in
/// registers for a while, small enough for L1 to have all of it before the second panel.
const BLOCK_BYTES: usize = 2048;

/// Adds the terms of `rows` rows to their columns' sums.
///
/// # Safety
/// `rows` rows of `columns` elements, a stride apart, can be read at every input used; coefficients and sums have the
/// lengths that [`Rows`] states.
#[inline(always)]
pub(crate) unsafe fn rows<R: Reduce, L: Load>(r: &Rows<<L::V as Vector>::Scalar>, x: Inputs<L::Element>, rows: usize) {
    let row_bytes = r.stride * size_of::<L::Element>();
    // While the accumulators of a column are in registers, as many chunks of rows as fit are added to them.
    let block = (BLOCK_BYTES / row_bytes.max(1)).next_multiple_of(CHUNK).clamp(CHUNK, 8 * CHUNK);
    let mut row = 0;
    while row < rows {
        let block_rows = block.min(rows - row);
        let x = advance(x, row * r.stride);
        // The block after this is asked for in the order of memory, whatever the order of the panels.
        let mut next = advance(x, block_rows * r.stride);
        let mut column = 0;
        while column < r.columns {
            let n = r.columns - column;
            // SAFETY: the rows of this block and the lanes below `n` are within the caller's promise.
            unsafe {
                if n >= L::V::LANES {
                    column_panel::<R, L, false>(r, advance(x, column), column, block_rows, n, &mut next);
                } else {
                    column_panel::<R, L, true>(r, advance(x, column), column, block_rows, n, &mut next);
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
unsafe fn column_panel<R: Reduce, L: Load, const PARTIAL: bool>(
    r: &Rows<<L::V as Vector>::Scalar>,
    x: Inputs<L::Element>,
    column: usize,
    rows: usize,
    n: usize,
    next: &mut Inputs<L::Element>,
) {
    let mut coefs = [L::V::splat(crate::simd::Real::from_f64(0.0)); 3];
    // SAFETY: `column` plus a vector lies within the padded arrays; rows are the caller's promise.
    unsafe {
        for (k, c) in coefs.iter_mut().enumerate().take(R::COEFS) {
            *c = L::V::load(r.coefs.add(k * r.padded + column));
        }
        let [s, t] = r.sums.map(|p| p.add(column));
        let mut acc = [L::V::wide_load(s), L::V::wide_load(t)];
        let mut row = 0;
        while row < rows {
            let count = CHUNK.min(rows - row);
            for next in next.iter_mut().take(R::INPUTS) {
                prefetch::<L>(*next, CHUNK * L::V::LANES);
                *next = next.wrapping_add(CHUNK * L::V::LANES);
            }
            acc = add_chunk::<R, L, PARTIAL>(coefs, advance(x, row * r.stride), r.stride, count, n, acc);
            row += count;
        }
        L::V::wide_store(acc[0], s);
        L::V::wide_store(acc[1], t);
    }
}
