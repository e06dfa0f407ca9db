//! Once a plan's scratch memory is warm, no call allocates, be it right or wrong.

#[allow(dead_code, unreachable_pub)]
#[path = "../src/lib.rs"]
mod capi;

use capi::descriptors::*;
use capi::passes::*;
use capi::plan::*;
use capi::statistics::*;
use capi::status::*;
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::ffi::c_void;
use std::mem::{size_of_val, zeroed};
use std::ptr::null_mut;

struct Counting;

thread_local! {
    /// Of this thread, on which `in_order` keeps all tasks.
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

unsafe extern "C" fn in_order(_: *mut c_void, n: usize, task: bn_task, arg: *mut c_void) {
    for i in 0..n {
        // SAFETY: as the library asks for.
        unsafe { task(arg, i) };
    }
}

/// A struct with its size set and the rest zero.
fn sized<T: Copy>(set: impl FnOnce(&mut T, usize)) -> T {
    // SAFETY: the structs of the header are zero by design: no pointer in them must not be null.
    let mut object: T = unsafe { zeroed() };
    let size = size_of_val(&object);
    set(&mut object, size);
    object
}

#[test]
fn calls_do_not_allocate() {
    let (outer, channels, inner) = (16, 24, 1000);
    let len = outer * channels * inner;
    for element in [BN_ELEMENT_F32, BN_ELEMENT_F64] {
        for threads in [BN_THREADS_SEQUENTIAL, BN_THREADS_CALLER] {
            let caller = threads == BN_THREADS_CALLER;
            let desc = sized(|d: &mut bn_plan_desc, size| {
                (d.struct_size, d.outer, d.channels, d.inner) = (size, outer, channels, inner);
                (d.element, d.threads) = (element, threads);
                if caller {
                    d.thread_count = 4;
                    d.parallel_for = Some(in_order);
                }
            });
            let mut plan = null_mut();
            // SAFETY: pointers to a descriptor and to room for a plan.
            assert_eq!(unsafe { bn_plan_create(&desc, &mut plan) }, BN_OK);

            // Room for either element type.
            let mut large: [Vec<f64>; 4] = std::array::from_fn(|k| (0..len).map(|i| (i % (k + 7)) as f64).collect());
            let mut small: [Vec<f64>; 10] = std::array::from_fn(|_| vec![1.0; channels]);
            let [x, dy, y, dx] = large.each_mut().map(|v| bn_slice_mut { data: v.as_mut_ptr().cast(), len });
            let [x, dy] = [x, dy].map(|a| bn_slice { data: a.data, len });
            let [mean, var, other_mean, other_var, running_mean, running_var, g, gx, other_g, other_gx] =
                small.each_mut().map(|v| bn_doubles { data: v.as_mut_ptr(), len: channels });
            let parts = |mean, var| {
                sized(|s: &mut bn_statistics, size| (s.struct_size, s.count, s.mean, s.var) = (size, 9.0, mean, var))
            };
            let (mut statistics, other) = (parts(mean, var), parts(other_mean, other_var));
            let both = |g, gx| sized(|s: &mut bn_gradient_sums, size| (s.struct_size, s.g, s.gx) = (size, g, gx));
            let (mut sums, other_sums) = (both(g, gx), both(other_g, other_gx));
            let mut running = sized(|r: &mut bn_running_statistics, size| {
                (r.struct_size, r.mean, r.var) = (size, running_mean, running_var);
            });
            let (statistics, sums) = (&raw mut statistics, &raw mut sums);

            let only = sized(|a: &mut bn_statistics_args, size| {
                (a.struct_size, a.x, a.statistics) = (size, x, statistics);
            });
            let training = sized(|a: &mut bn_forward_training_args, size| {
                (a.struct_size, a.x, a.y, a.statistics) = (size, x, y, statistics);
            });
            let normalize = sized(|a: &mut bn_normalize_args, size| {
                (a.struct_size, a.x, a.y, a.statistics) = (size, x, y, statistics);
            });
            let first = sized(|a: &mut bn_gradient_sums_args, size| {
                (a.struct_size, a.x, a.dy, a.statistics, a.sums) = (size, x, dy, statistics, sums);
            });
            let second = sized(|a: &mut bn_input_gradient_args, size| {
                (a.struct_size, a.x, a.dy, a.statistics, a.sums, a.dx) = (size, x, dy, statistics, sums, dx);
            });
            let parameters = sized(|a: &mut bn_parameter_gradients_args, size| {
                (a.struct_size, a.statistics, a.sums) = (size, statistics, sums);
            });
            let backward = sized(|a: &mut bn_backward_args, size| {
                (a.struct_size, a.x, a.dy, a.statistics, a.dx) = (size, x, dy, statistics, dx);
            });
            let mut wrong = normalize;
            wrong.x.len -= 1;

            let mut round = || {
                // SAFETY: the arrays and structs above live, and have the lengths that the descriptors give.
                unsafe {
                    assert_eq!(bn_compute_statistics(plan, &only), BN_OK);
                    assert_eq!(bn_forward_training(plan, &training), BN_OK);
                    assert_eq!(bn_normalize(plan, &normalize), BN_OK);
                    assert_eq!(bn_compute_gradient_sums(plan, &first), BN_OK);
                    assert_eq!(bn_input_gradient(plan, &second), BN_OK);
                    assert_eq!(bn_parameter_gradients(plan, &parameters), BN_OK);
                    assert_eq!(bn_backward(plan, &backward), BN_OK);
                    assert_eq!(bn_update_running_statistics(plan, &mut running, statistics, 0, 0.1), BN_OK);
                    assert_eq!(bn_merge_statistics(plan, statistics, &other), BN_OK);
                    assert_eq!(bn_merge_gradient_sums(plan, sums, &other_sums), BN_OK);
                    assert_eq!(bn_normalize(plan, &wrong), BN_ERROR_LENGTH);
                }
            };
            round();
            round();
            let before = ALLOCATIONS.get();
            round();
            assert_eq!(ALLOCATIONS.get(), before, "element {element}, threads {threads}");
            // SAFETY: the plan was made above.
            assert_eq!(unsafe { bn_plan_destroy(plan) }, BN_OK);
        }
    }
}
