//! What a call through C costs on top of the Rust call: on an empty batch, where nothing else takes time, and on real
//! ones.
//!
//!     cargo bench -p batchnorm-capi

use batchnorm::{Affine, BatchNorm, Shape, Statistics, Threads};
use batchnorm_ffi::*;
use std::hint::black_box;
use std::ptr::null_mut;
use std::time::Instant;

/// The least time of a call in ns, over `rounds` rounds of `calls` calls each, for two functions in turn.
fn least(rounds: usize, calls: u32, f: [&mut dyn FnMut(); 2]) -> [f64; 2] {
    let mut least = [f64::INFINITY; 2];
    for _ in 0..rounds {
        for k in 0..2 {
            let start = Instant::now();
            for _ in 0..calls {
                f[k]();
            }
            least[k] = least[k].min(start.elapsed().as_nanos() as f64 / f64::from(calls));
        }
    }
    least
}

fn compare(shape: Shape, rounds: usize, calls: u32) {
    let channels = shape.channels();
    let x: Vec<f32> = (0..shape.len()).map(|i| (i % 17) as f32).collect();
    let (mut y, parameters) = (vec![0.0f32; shape.len()], vec![1.0f32; channels]);
    let (mut mean, mut var) = (vec![0.0; channels], vec![0.0; channels]);

    let rust = BatchNorm::new(shape).threads(Threads::Sequential);
    let mut statistics = Statistics::new(channels);
    let desc = bn_plan_desc { outer: shape.outer(), channels, inner: shape.inner(), eps: 1e-5, ..sized() };
    let mut plan: *mut bn_plan = null_mut();
    // SAFETY: pointers to a descriptor and to room for a plan.
    assert_eq!(unsafe { bn_plan_create(&desc, &mut plan) }, BN_OK);
    let y_data = y.as_mut_ptr();
    let per_channel = bn_slice { data: parameters.as_ptr().cast(), len: channels };
    let mut c_statistics = bn_statistics {
        mean: bn_doubles { data: mean.as_mut_ptr(), len: channels },
        var: bn_doubles { data: var.as_mut_ptr(), len: channels },
        ..sized()
    };
    let args = bn_forward_training_args {
        x: bn_slice { data: x.as_ptr().cast(), len: x.len() },
        gamma: per_channel,
        beta: per_channel,
        y: bn_slice_mut { data: y_data.cast(), len: shape.len() },
        statistics: &mut c_statistics,
        ..sized()
    };
    // Called through a pointer that the compiler does not know, as from C.
    let c: unsafe extern "C" fn(*const bn_plan, *const bn_forward_training_args) -> i32 =
        black_box(bn_forward_training);

    let affine = Affine::new(&parameters, &parameters);
    let mut through_rust = || {
        // SAFETY: y lives, and nothing else uses it during the call.
        let y = unsafe { std::slice::from_raw_parts_mut(y_data, shape.len()) };
        black_box(&rust).forward_training(black_box(&x), affine, y, &mut statistics).unwrap();
    };
    // SAFETY: the arrays that the arguments point to live, and have the lengths that they state.
    let mut through_c = || assert_eq!(unsafe { c(black_box(plan), black_box(&args)) }, BN_OK);
    let [rust_ns, c_ns] = least(rounds, calls, [&mut through_rust, &mut through_c]);
    println!(
        "forward_training of {:>4} x {channels} x {:>4} f32: Rust {rust_ns:>10.1} ns, C {c_ns:>10.1} ns, C - Rust {:>8.1} ns",
        shape.outer(),
        shape.inner(),
        c_ns - rust_ns
    );
    // SAFETY: the plan was made above.
    assert_eq!(unsafe { bn_plan_destroy(plan) }, BN_OK);
}

fn main() -> Result<(), batchnorm::Error> {
    compare(Shape::nc(0, 1)?, 200, 10_000);
    compare(Shape::nc(0, 64)?, 200, 10_000);
    compare(Shape::nc(0, 1024)?, 200, 10_000);
    compare(Shape::nc(16, 64)?, 200, 1_000);
    compare(Shape::nchw(8, 64, 28, 28)?, 500, 1);
    Ok(())
}
