//! The limits of the machine's memory: sweeps that only move data, on as many threads as the kernels use.

#![allow(dead_code)] // each bench uses only some of the sweeps

use rayon::prelude::*;
use std::hint::black_box;

/// Elements per task: large enough to hide the cost of a task, small enough to balance the load.
const TASK: usize = 1 << 16;

/// Reads `x` once.
pub(crate) fn read(x: &[f32]) {
    let sum = x.par_chunks(TASK).map(sum).reduce(|| 0.0, |a, b| a + b);
    black_box(sum);
}

/// One read and one write, which bypasses the caches on x86-64.
pub(crate) fn streaming_copy(x: &[f32], y: &mut [f32]) {
    y.par_chunks_mut(TASK).zip(x.par_chunks(TASK)).for_each(|(y, x)| stream(y, x, x));
}

/// Two reads and one write, which bypasses the caches on x86-64.
pub(crate) fn streaming_add(a: &[f32], b: &[f32], y: &mut [f32]) {
    let inputs = a.par_chunks(TASK).zip(b.par_chunks(TASK));
    y.par_chunks_mut(TASK).zip(inputs).for_each(|(y, (a, b))| stream(y, a, b));
}

/// 128 independent sums: with a single one, each addition would wait for the one before.
fn sum(x: &[f32]) -> f32 {
    let mut sums = [0.0f32; 128];
    for chunk in x.chunks_exact(128) {
        for (s, v) in sums.iter_mut().zip(chunk) {
            *s += v;
        }
    }
    sums.iter().sum()
}

/// `y = a` if `b` is the same slice, otherwise `y = a + b`.
fn stream(y: &mut [f32], a: &[f32], b: &[f32]) {
    assert_eq!((a.len(), b.len()), (y.len(), y.len()), "slices of equal lengths");
    let one = std::ptr::eq(a, b);
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::*;
        // SAFETY: every x86-64 CPU has SSE; the vectors of `middle` are aligned, and `at + 4` is at most the length of
        // `y`, which is that of `a` and `b`.
        unsafe {
            let (head, middle, _) = y.align_to_mut::<__m128>();
            let head = head.len();
            for (i, y) in middle.iter_mut().enumerate() {
                let at = head + 4 * i;
                let v = _mm_loadu_ps(a.as_ptr().add(at));
                let v = if one { v } else { _mm_add_ps(v, _mm_loadu_ps(b.as_ptr().add(at))) };
                _mm_stream_ps(std::ptr::from_mut(y).cast(), v);
            }
            let done = head + 4 * middle.len();
            for at in (0..head).chain(done..y.len()) {
                y[at] = if one { a[at] } else { a[at] + b[at] };
            }
            _mm_sfence();
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    for ((y, a), b) in y.iter_mut().zip(a).zip(b) {
        *y = if one { *a } else { a + b };
    }
}
