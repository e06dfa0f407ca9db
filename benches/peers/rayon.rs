//! This crate on rayon's pool, as programs in Rust use it: a contestant of `contestant.h`, which says what its types and
//! functions are.

use batchnorm::{Affine, BatchNorm, Gradients, Isa, RunningStatistics, Shape, Statistics};
use std::slice::{from_raw_parts, from_raw_parts_mut};

/// `Case` of `contestant.h`.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Case {
    n: i64,
    c: i64,
    h: i64,
    w: i64,
    channels_last: i32,
    threads: i32,
    own_threads: i32,
    isa: i32,
    eps: f64,
    x: *const f32,
    dy: *const f32,
    out: *mut f32,
    gamma: *const f32,
    beta: *const f32,
    dgamma: *mut f32,
    dbeta: *mut f32,
    mean: *const f32,
    var: *const f32,
}

/// A plan, the buffers that it works on, and statistics of the last forward pass.
pub struct Contestant {
    case: Case,
    plan: BatchNorm,
    batch: Statistics,
    running: RunningStatistics,
}

/// Makes a contestant, and starts the threads of rayon's global pool.
///
/// # Safety
///
/// `case` points to a valid `Case`. Its buffers have the lengths that its shape says, and until the contestant is freed
/// nothing else uses them while a pass runs.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn rayon_new(case: *const Case) -> Box<Contestant> {
    // SAFETY: promised by the caller.
    let case = unsafe { *case };
    let [n, c, h, w] = [case.n, case.c, case.h, case.w].map(|len| usize::try_from(len).expect("a length"));
    let shape = if case.channels_last != 0 { Shape::nhwc(n, h, w, c) } else { Shape::nchw(n, c, h, w) };
    let isa = match case.isa {
        1 => Isa::Portable,
        2 => Isa::Avx2,
        3 => Isa::Avx512,
        _ => Isa::best(),
    };
    let plan = BatchNorm::new(shape.expect("a shape that fits in memory"));
    let plan = plan.eps(case.eps).expect("an eps >= 0").isa(isa).expect("an instruction set of this CPU");
    // SAFETY: promised by the caller.
    let [mean, var] = [case.mean, case.var]
        .map(|values| unsafe { from_raw_parts(values, c) }.iter().map(|v| f64::from(*v)).collect());
    let running = RunningStatistics::from_parts(mean, var, 1).expect("running statistics");
    assert_eq!(rayon::current_num_threads(), case.threads as usize, "threads of rayon's pool");
    Box::new(Contestant { case, plan, batch: Statistics::new(c), running })
}

/// Runs a pass: 0 is forward in training, 1 inference, and 2 backward, with the statistics of the last forward pass.
///
/// # Safety
///
/// What `rayon_new` asks for.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn contestant_run(contestant: &mut Contestant, pass: i32) {
    let Contestant { case, plan, batch, running } = contestant;
    let (len, c) = (plan.shape().len(), plan.shape().channels());
    // SAFETY: promised by the caller of `rayon_new`; the buffers that are written overlap no other.
    let (x, dy, out) =
        unsafe { (from_raw_parts(case.x, len), from_raw_parts(case.dy, len), from_raw_parts_mut(case.out, len)) };
    // SAFETY: as above.
    let affine = unsafe { Affine::new(from_raw_parts(case.gamma, c), from_raw_parts(case.beta, c)) };
    match pass {
        0 => plan.forward_training(x, affine, out, batch),
        1 => plan.normalize(x, &*running, affine, out),
        _ => {
            // SAFETY: as above.
            let (dgamma, dbeta) = unsafe { (from_raw_parts_mut(case.dgamma, c), from_raw_parts_mut(case.dbeta, c)) };
            let gradients =
                Gradients { dx: Some(out), dgamma: Some(dgamma), dbeta: Some(dbeta), ..Gradients::default() };
            plan.backward(x, dy, &*batch, affine, gradients)
        }
    }
    .expect("valid arguments");
}

/// Frees a contestant.
#[unsafe(no_mangle)]
pub extern "C" fn contestant_free(contestant: Box<Contestant>) {
    drop(contestant);
}
