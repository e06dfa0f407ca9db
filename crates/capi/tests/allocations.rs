//! Once a plan is made no call but that of second derivatives allocates, be it right or wrong, not even the first, nor as
//! many at once as there is scratch memory for.

use batchnorm_ffi::*;
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::ffi::c_void;
use std::mem::{size_of_val, zeroed};
use std::ptr::{null_mut, with_exposed_provenance_mut};
use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering};

struct Counting;

thread_local! {
    /// Of this thread.
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: all is left to the system's allocator.
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

/// As many threads for each loop. What starting them allocates does not count.
unsafe extern "C" fn on_threads(_: *mut c_void, n: usize, task: bn_task, arg: *mut c_void) {
    let before = ALLOCATIONS.get();
    let (next, allocations, arg) = (AtomicUsize::new(0), AtomicUsize::new(0), arg.expose_provenance());
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                let before = ALLOCATIONS.get();
                let claims = std::iter::repeat_with(|| next.fetch_add(1, Ordering::Relaxed));
                for i in claims.take_while(|&i| i < n) {
                    // SAFETY: as the library asks for.
                    unsafe { task(with_exposed_provenance_mut(arg), i) };
                }
                allocations.fetch_add(ALLOCATIONS.get() - before, Ordering::Relaxed);
            });
        }
    });
    ALLOCATIONS.set(before + allocations.into_inner());
}

/// A struct with its size set and the rest zero.
fn sized<T: Copy>(set: impl FnOnce(&mut T, usize)) -> T {
    // SAFETY: the structs of the header are zero by design: no pointer in them must not be null.
    let mut object: T = unsafe { zeroed() };
    let size = size_of_val(&object);
    set(&mut object, size);
    object
}

fn desc(element: i32, (outer, channels, inner): (usize, usize, usize), threads: i32) -> bn_plan_desc {
    sized(|d: &mut bn_plan_desc, size| {
        (d.struct_size, d.outer, d.channels, d.inner) = (size, outer, channels, inner);
        (d.element, d.threads) = (element, threads);
        (d.activation, d.slope) = (BN_ACTIVATION_LEAKY_RELU, 0.5);
        if threads == BN_THREADS_CALLER {
            d.thread_count = THREADS;
            d.parallel_for = Some(on_threads);
        }
    })
}

fn make(desc: &bn_plan_desc) -> *mut bn_plan {
    let mut plan = null_mut();
    // SAFETY: pointers to a descriptor and to room for a plan.
    assert_eq!(unsafe { bn_plan_create(desc, &mut plan) }, BN_OK);
    plan
}

/// Planes and rows, both of several segments and large enough for several threads.
const SHAPES: [(usize, usize, usize); 2] = [(16, 24, 1000), (16000, 24, 1)];

/// All calls, in one round, with all that can be fused.
fn count_in_all_calls(plan: *mut bn_plan, (outer, channels, inner): (usize, usize, usize)) -> usize {
    let len = outer * channels * inner;
    // Room for any element type, and numbers in f32 and f64 that weights can be.
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
    let parts = |mean, var| {
        sized(|s: &mut bn_statistics, size| (s.struct_size, s.count, s.mean, s.var) = (size, 9.0, mean, var))
    };
    let (mut statistics, other) = (parts(mean, var), parts(other_mean, other_var));
    let both = |g, gx| sized(|s: &mut bn_gradient_sums, size| (s.struct_size, s.g, s.gx) = (size, g, gx));
    let (mut sums, other_sums) = (both(g, gx), both(other_g, other_gx));
    let mut running = sized(|r: &mut bn_running_statistics, size| {
        (r.struct_size, r.mean, r.var) = (size, running_mean, running_var);
    });
    let mut scale_shift =
        sized(|f: &mut bn_scale_shift, size| (f.struct_size, f.scale, f.shift) = (size, scale, shift));
    let (statistics, sums, scale_shift) = (&raw mut statistics, &raw mut sums, &raw mut scale_shift);

    let only = sized(|a: &mut bn_statistics_args, size| {
        (a.struct_size, a.x, a.statistics, a.weights) = (size, x, statistics, weights)
    });
    let training = sized(|a: &mut bn_forward_training_args, size| {
        (a.struct_size, a.x, a.y, a.statistics) = (size, x, y, statistics);
        (a.residual, a.weights) = (dy, weights);
    });
    let normalize = sized(|a: &mut bn_normalize_args, size| {
        (a.struct_size, a.x, a.y, a.statistics) = (size, x, y, statistics);
        (a.residual, a.weights) = (dy, weights);
    });
    let first = sized(|a: &mut bn_gradient_sums_args, size| {
        (a.struct_size, a.x, a.dy, a.statistics, a.sums) = (size, x, dy, statistics, sums);
        (a.residual, a.weights) = (dy, weights);
    });
    let second = sized(|a: &mut bn_input_gradient_args, size| {
        (a.struct_size, a.x, a.dy, a.statistics, a.sums, a.dx) = (size, x, dy, statistics, sums, dx);
        (a.residual, a.weights, a.dresidual) = (dy, weights, dresidual);
    });
    let parameters = sized(|a: &mut bn_parameter_gradients_args, size| {
        (a.struct_size, a.statistics, a.sums) = (size, statistics, sums);
    });
    let backward = sized(|a: &mut bn_backward_args, size| {
        (a.struct_size, a.x, a.dy, a.statistics, a.dx) = (size, x, dy, statistics, dx);
        (a.residual, a.weights, a.dresidual) = (dy, weights, dresidual);
    });
    let invertible = sized(|a: &mut bn_forward_training_invertible_args, size| {
        (a.struct_size, a.x, a.statistics) = (size, y, statistics);
    });
    let from_output = sized(|a: &mut bn_backward_from_output_args, size| {
        (a.struct_size, a.y, a.dy, a.statistics, a.dx) = (size, x, dy, statistics, dx);
    });
    let fold = sized(|a: &mut bn_fold_args, size| {
        (a.struct_size, a.statistics, a.scale_shift) = (size, statistics, scale_shift);
    });
    let layer = sized(|a: &mut bn_fold_layer_args, size| {
        (a.struct_size, a.scale_shift, a.weight, a.bias) = (size, scale_shift, weight, bias);
    });
    let mut following = layer;
    following.bias.len = 1;
    let mut wrong = normalize;
    wrong.x.len -= 1;

    let before = ALLOCATIONS.get();
    // SAFETY: the arrays and structs above live, and have the lengths that the descriptors give.
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
        assert_eq!(bn_update_running_statistics(plan, &mut running, statistics, 0, 0.1), BN_OK);
        assert_eq!(bn_merge_statistics(plan, statistics, &other), BN_OK);
        assert_eq!(bn_merge_gradient_sums(plan, sums, &other_sums), BN_OK);
        assert_eq!(bn_fold(plan, &fold), BN_OK);
        assert_eq!(bn_fold_preceding(plan, &layer), BN_OK);
        assert_eq!(bn_fold_following(plan, &following), BN_OK);
        assert_eq!(bn_normalize(plan, &wrong), BN_ERROR_LENGTH);
    }
    ALLOCATIONS.get() - before
}

#[test]
fn calls_do_not_allocate() {
    for shape in SHAPES {
        for (element, threads) in (BN_ELEMENT_F32..=BN_ELEMENT_F16)
            .flat_map(|element| [BN_THREADS_SEQUENTIAL, BN_THREADS_CALLER].map(|threads| (element, threads)))
        {
            let plan = make(&desc(element, shape, threads));
            assert_eq!(count_in_all_calls(plan, shape), 0, "{shape:?}, element {element}, threads {threads}");
            // SAFETY: the plan was made above.
            assert_eq!(unsafe { bn_plan_destroy(plan) }, BN_OK);
        }
    }
}

#[test]
fn calls_at_once_do_not_allocate_where_there_is_memory_for_them() {
    for shape in SHAPES {
        for threads in [BN_THREADS_SEQUENTIAL, BN_THREADS_CALLER] {
            const CALLS: usize = 3;
            let mut desc = desc(BN_ELEMENT_F32, shape, threads);
            let mut bytes = 0;
            // SAFETY: pointers to a descriptor and to room for a number.
            assert_eq!(unsafe { bn_scratch_bytes(&desc, CALLS, &mut bytes) }, BN_OK);
            let mut memory = vec![0u8; bytes];
            (desc.scratch, desc.scratch_bytes) = (memory.as_mut_ptr().cast(), bytes);
            let plan = make(&desc);
            let (start, address) = (Barrier::new(CALLS), plan.expose_provenance());
            std::thread::scope(|scope| {
                let count = || {
                    start.wait();
                    count_in_all_calls(with_exposed_provenance_mut(address), shape)
                };
                let counts = [(); CALLS].map(|()| scope.spawn(count)).map(|thread| thread.join().unwrap());
                assert_eq!(counts, [0; CALLS], "{shape:?}, threads {threads}");
            });
            // SAFETY: the plan was made above.
            assert_eq!(unsafe { bn_plan_destroy(plan) }, BN_OK);
        }
    }
}
