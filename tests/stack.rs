//! How much of a thread's stack passes take: with optimization, and without, as a program gets that is built by plain
//! `cargo run`.
//!
//! Its limits follow from the profile: `cargo test --profile unoptimized --test stack` has debug assertions and no
//! optimization, `cargo test --release --test stack` the reverse. Run with `-- --nocapture` it prints what each pass
//! takes.
#![cfg(all(unix, not(miri)))]

use batchnorm::{
    Activation, Affine, BatchNorm, Cotangents, Element, Extras, Gradients, Isa, SecondGradients, Shape, Statistics,
    Threads,
};

/// Bytes of stack that a pass may take. Without optimization, what a thread with 512 KB has left when it starts.
const LIMIT: usize = if cfg!(debug_assertions) { 504 << 10 } else { 32 << 10 };

/// Bytes of stack below this call that `f` writes to, up to what is painted.
#[inline(never)]
fn stack_used(f: &mut dyn FnMut()) -> usize {
    const PAINTED: usize = 2 * LIMIT;
    const PAINT: u8 = 0xa5;
    // Below this frame and those that paint and scan.
    let here = 0u8;
    let top = (&raw const here).addr() - 2048;
    let low = (top - PAINTED) as *mut u8;
    // SAFETY: the thread has more stack than this, below all frames in use.
    unsafe { low.write_bytes(PAINT, PAINTED) };
    f();
    // SAFETY: as above; the memory was written.
    let painted = unsafe { std::slice::from_raw_parts(low, PAINTED) };
    let unused = painted.iter().position(|&byte| byte != PAINT).unwrap_or(PAINTED);
    PAINTED - unused + 2048
}

/// Every pass over planes and rows, plain and with all that can be fused, of ordinary values and of values that overflow.
fn passes<E: Element>(name: &str) {
    let mut worst = (0, String::new());
    for &isa in Isa::available() {
        for (shape, huge) in [(Shape::nchw(2, 3, 15, 15), false), (Shape::nc(40, 37), false), (Shape::nc(40, 37), true)]
        {
            let shape = shape.expect("a small shape");
            let (n, c, m) = (shape.len(), shape.channels(), shape.values_per_channel());
            let scale = if huge { 60000.0 } else { 1.0 };
            let x: Vec<E> = (0..n).map(|k| E::from_f32((k * 7 % 19) as f32 * scale / 19.0)).collect();
            let dy: Vec<E> = (0..n).map(|k| E::from_f32((k * 5 % 17) as f32 - 8.0)).collect();
            let parameters: Vec<E::Param> = (0..c).map(|_| E::Param::from_f32(1.5)).collect();
            let weights: Vec<E::Param> = (0..m).map(|k| E::Param::from_f32((k % 3) as f32)).collect();
            let affine = Affine::new(&parameters, &parameters);
            let (mut y, mut dx, mut dresidual) = (x.clone(), x.clone(), x.clone());
            let (mut dgamma, mut dbeta) = (parameters.clone(), parameters.clone());
            let mut statistics = Statistics::new(c);
            for fused in [false, true] {
                let mut plan = BatchNorm::new(shape).isa(isa).expect("an available one").threads(Threads::Sequential);
                let mut extras = Extras::default();
                if fused {
                    plan = plan.activation(Activation::Silu).expect("no slope");
                    extras = Extras { residual: Some(&dy), output: None, weights: Some(&weights) };
                }
                let plan = plan.with(extras);
                let mut measure = |pass: &str, f: &mut dyn FnMut()| {
                    let used = stack_used(f);
                    println!("{name} {isa:?} {pass}, fused {fused}, huge {huge}: {used} bytes");
                    if used > worst.0 {
                        worst = (used, format!("{name} {isa:?} {pass}, fused {fused}"));
                    }
                };
                measure("statistics", &mut || plan.statistics(&x, &mut statistics).expect("valid arguments"));
                measure("forward_training", &mut || {
                    plan.forward_training(&x, affine, &mut y, &mut statistics).expect("valid arguments");
                });
                measure("normalize", &mut || {
                    plan.normalize(&x, &statistics, affine, &mut y).expect("valid arguments");
                });
                measure("backward", &mut || {
                    let gradients = Gradients {
                        dx: Some(&mut dx),
                        dresidual: Some(&mut dresidual),
                        dgamma: Some(&mut dgamma),
                        dbeta: Some(&mut dbeta),
                    };
                    plan.backward(&x, &dy, &statistics, affine, gradients).expect("valid arguments");
                });
                measure("backward, dx alone", &mut || {
                    let gradients = Gradients { dx: Some(&mut dx), ..Gradients::default() };
                    plan.backward(&x, &dy, &statistics, affine, gradients).expect("valid arguments");
                });
            }
            let plan = BatchNorm::new(shape).isa(isa).expect("an available one").threads(Threads::Sequential);
            let used = stack_used(&mut || {
                let cotangents = Cotangents { dx: &dy, dgamma: None, dbeta: None };
                let out = SecondGradients { x: Some(&mut dx), dy: Some(&mut y), gamma: None };
                plan.double_backward(&x, &dy, &statistics, affine, cotangents, out).expect("valid arguments");
            });
            println!("{name} {isa:?} double_backward, huge {huge}: {used} bytes");
            worst = worst.max((used, format!("{name} {isa:?} double_backward")));
        }
    }
    let (used, what) = worst;
    println!("most of {name}: {used} bytes, {what}");
    assert!(used <= LIMIT, "{what} takes {used} bytes of stack: expected at most {LIMIT}");
}

#[test]
fn passes_take_no_more_stack_than_documented() {
    let measured = std::thread::Builder::new().stack_size(16 << 20).spawn(|| {
        passes::<f32>("f32");
        passes::<f64>("f64");
        #[cfg(feature = "half")]
        {
            passes::<half::bf16>("bf16");
            passes::<half::f16>("f16");
        }
    });
    measured.expect("a thread").join().expect("every pass within the limit");
}
