//! Once a plan exists, no call allocates but bn_double_backward and those with running statistics in float: not the
//! first, not a failing one, not as many concurrent ones as there is scratch memory for.

use batchnorm_ffi::*;
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::ffi::c_void;
use std::ptr::{null_mut, with_exposed_provenance_mut};
use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering};

struct Counting;

thread_local! {
    /// The allocations of this thread.
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: every call is passed on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, p: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(p, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const THREADS: usize = 4;
/// Of a pool's threads only the calling one is counted; they run the same tasks as those of a `parallel_for`.
const KINDS: [i32; 3] = [BN_THREADS_SEQUENTIAL, BN_THREADS_POOL, BN_THREADS_CALLER];

/// Starts `THREADS` threads for each loop. What starting them allocates does not count.
unsafe extern "C" fn on_threads(_: *mut c_void, n: usize, task: bn_task, arg: *mut c_void) {
    let before = ALLOCATIONS.get();
    let (next, allocations, arg) = (AtomicUsize::new(0), AtomicUsize::new(0), arg.expose_provenance());
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                let before = ALLOCATIONS.get();
                let claims = std::iter::repeat_with(|| next.fetch_add(1, Ordering::Relaxed));
                for i in claims.take_while(|&i| i < n) {
                    // SAFETY: the arg that came with the task, before this function returns.
                    unsafe { task(with_exposed_provenance_mut(arg), i) };
                }
                allocations.fetch_add(ALLOCATIONS.get() - before, Ordering::Relaxed);
            });
        }
    });
    ALLOCATIONS.set(before + allocations.into_inner());
}

fn desc(element: i32, (outer, channels, inner): (usize, usize, usize), threads: i32) -> bn_plan_desc {
    let (activation, slope) = (BN_ACTIVATION_LEAKY_RELU, 0.5);
    let desc = bn_plan_desc { outer, channels, inner, element, threads, activation, slope, ..sized() };
    match threads {
        BN_THREADS_CALLER => bn_plan_desc { thread_count: THREADS, parallel_for: Some(on_threads), ..desc },
        BN_THREADS_POOL => bn_plan_desc { thread_count: THREADS, ..desc },
        _ => desc,
    }
}

/// # Safety
/// The scratch memory and the parallel_for of `desc` can be used until the plan is destroyed.
unsafe fn make(desc: &bn_plan_desc) -> *mut bn_plan {
    let mut plan = null_mut();
    // SAFETY: pointers to a descriptor and to room for a plan; the rest is the caller's promise.
    assert_eq!(unsafe { bn_plan_create(desc, &mut plan) }, BN_OK);
    plan
}

/// A shape of planes and one of rows, both with several segments and large enough for several threads.
const SHAPES: [(usize, usize, usize); 2] = [(16, 24, 1000), (16000, 24, 1)];

/// Makes each call once, with everything that can be fused, and counts the allocations.
///
/// # Safety
/// `plan` is a plan of this shape that is not destroyed during the call.
unsafe fn count_in_all_calls(plan: *mut bn_plan, (outer, channels, inner): (usize, usize, usize)) -> usize {
    let len = outer * channels * inner;
    // Room for any element type. The numbers are valid weights in f32 and in f64.
    let mut large: [Vec<f64>; 5] = std::array::from_fn(|k| (0..len).map(|i| (i % (k + 7)) as f64).collect());
    let mut small: [Vec<f64>; 14] = std::array::from_fn(|_| vec![1.0; channels]);
    let mut weights = vec![1.0; outer * inner];
    let weights = bn_slice { len: weights.len(), data: weights.as_mut_ptr().cast() };
    let [x, dy, y, dx, dresidual] = large.each_mut().map(|v| bn_slice_mut { data: v.as_mut_ptr().cast(), len });
    let [x, dy] = [x, dy].map(|a| bn_slice { data: a.data, len });
    let small = small.each_mut().map(|v| bn_doubles { data: v.as_mut_ptr(), len: channels });
    let [mean, var, other_mean, other_var, running_mean, running_var, g, gx, other_g, other_gx, ..] = small;
    let [.., scale, shift, weight, bias] = small;
    let [weight, bias] = [weight, bias].map(|a| bn_slice_mut { data: a.data.cast(), len: channels });
    let mut statistics = bn_statistics { count: 9.0, mean, var, ..sized() };
    let other = bn_statistics { count: 9.0, mean: other_mean, var: other_var, ..sized() };
    let mut sums = bn_gradient_sums { g, gx, ..sized() };
    let other_sums = bn_gradient_sums { g: other_g, gx: other_gx, ..sized() };
    let mut running = bn_running_statistics { mean: running_mean, var: running_var, ..sized() };
    let mut scale_shift = bn_scale_shift { scale, shift, ..sized() };
    let (statistics, sums, scale_shift) = (&raw mut statistics, &raw mut sums, &raw mut scale_shift);

    let only = bn_statistics_args { x, statistics, weights, ..sized() };
    let training = bn_forward_training_args { x, y, statistics, residual: dy, weights, ..sized() };
    let normalize = bn_normalize_args { x, y, statistics, residual: dy, weights, ..sized() };
    let first = bn_gradient_sums_args { x, dy, statistics, sums, residual: dy, weights, ..sized() };
    let second = bn_input_gradient_args { x, dy, statistics, sums, dx, residual: dy, weights, dresidual, ..sized() };
    let parameters = bn_parameter_gradients_args { statistics, sums, ..sized() };
    let backward = bn_backward_args { x, dy, statistics, dx, residual: dy, weights, dresidual, ..sized() };
    let invertible = bn_forward_training_invertible_args { x: y, statistics, ..sized() };
    let from_output = bn_backward_from_output_args { y: x, dy, statistics, dx, ..sized() };
    let fold = bn_fold_args { statistics, scale_shift, ..sized() };
    let layer = bn_fold_layer_args { scale_shift, weight, bias, ..sized() };
    let transposed = bn_fold_transposed_args { scale_shift, weight, bias, inputs: 1, groups: 1, ..sized() };
    let mut following = layer;
    following.bias.len = 1;
    let mut wrong = normalize;
    wrong.x.len -= 1;

    let before = ALLOCATIONS.get();
    // SAFETY: the arrays and structs above live, and have the lengths that they state; the plan is as promised.
    unsafe {
        assert_eq!(bn_backward(plan, &backward), BN_OK);
        assert_eq!(bn_compute_statistics(plan, &only), BN_OK);
        assert_eq!(bn_forward_training(plan, &training), BN_OK);
        assert_eq!(bn_normalize(plan, &normalize), BN_OK);
        assert_eq!(bn_compute_gradient_sums(plan, &first), BN_OK);
        assert_eq!(bn_input_gradient(plan, &second), BN_OK);
        assert_eq!(bn_parameter_gradients(plan, &parameters), BN_OK);
        assert_eq!(bn_forward_training_invertible(plan, &invertible), BN_OK);
        assert_eq!(bn_backward_from_output(plan, &from_output), BN_OK);
        assert_eq!(bn_update_running_statistics(&mut running, statistics, 0, 0.1), BN_OK);
        assert_eq!(bn_merge_statistics(statistics, &other), BN_OK);
        assert_eq!(bn_merge_gradient_sums(sums, &other_sums), BN_OK);
        assert_eq!(bn_fold(plan, &fold), BN_OK);
        assert_eq!(bn_fold_preceding(plan, &layer), BN_OK);
        assert_eq!(bn_fold_preceding_transposed(plan, &transposed), BN_OK);
        assert_eq!(bn_fold_following(plan, &following), BN_OK);
        assert_eq!(bn_fold_following_transposed(plan, &following), BN_OK);
        assert_eq!(bn_normalize(plan, &wrong), BN_ERROR_LENGTH);
    }
    ALLOCATIONS.get() - before
}

#[test]
fn calls_do_not_allocate() {
    for shape in SHAPES {
        for (element, threads) in
            (BN_ELEMENT_F32..=BN_ELEMENT_F16).flat_map(|element| KINDS.map(|threads| (element, threads)))
        {
            // SAFETY: `on_threads` runs its loop as the header demands; the plan has this shape until it is destroyed.
            unsafe {
                let plan = make(&desc(element, shape, threads));
                assert_eq!(count_in_all_calls(plan, shape), 0, "{shape:?}, element {element}, threads {threads}");
                assert_eq!(bn_plan_destroy(plan), BN_OK);
            }
        }
    }
}

#[test]
fn concurrent_calls_with_enough_memory_do_not_allocate() {
    for shape in SHAPES {
        for threads in KINDS {
            const CALLS: usize = 3;
            let mut desc = desc(BN_ELEMENT_F32, shape, threads);
            let mut bytes = 0;
            // SAFETY: pointers to a descriptor and to room for a number.
            assert_eq!(unsafe { bn_scratch_bytes(&desc, CALLS, &mut bytes) }, BN_OK);
            let mut memory = vec![0u8; bytes];
            (desc.scratch, desc.scratch_bytes) = (memory.as_mut_ptr().cast(), bytes);
            // SAFETY: the memory lives until the plan is destroyed; `on_threads` runs its loop as the header demands.
            let plan = unsafe { make(&desc) };
            let (start, address) = (Barrier::new(CALLS), plan.expose_provenance());
            std::thread::scope(|scope| {
                let count = || {
                    start.wait();
                    // SAFETY: the plan was made above, with this shape.
                    unsafe { count_in_all_calls(with_exposed_provenance_mut(address), shape) }
                };
                let counts = [(); CALLS].map(|()| scope.spawn(count)).map(|thread| thread.join().unwrap());
                assert_eq!(counts, [0; CALLS], "{shape:?}, threads {threads}");
            });
            // SAFETY: the plan was made above.
            assert_eq!(unsafe { bn_plan_destroy(plan) }, BN_OK);
        }
    }
}
