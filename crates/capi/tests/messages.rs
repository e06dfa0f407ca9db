//! What messages say: each kind of error, in the words of the header.

use batchnorm_ffi::*;
use std::ffi::CStr;
use std::ptr::{null, null_mut};

const CHANNELS: usize = 3;
const LEN: usize = 2 * CHANNELS;

/// Everything that the calls below need.
struct World {
    plan: *mut bn_plan,
    values: [f32; LEN + 1],
    y: [f32; LEN],
    weights: [f32; 2],
    parameters: [f32; CHANNELS],
    doubles: [[f64; CHANNELS]; 8],
    statistics: bn_statistics,
    other: bn_statistics,
    running: bn_running_statistics,
    sums: bn_gradient_sums,
    scale_shift: bn_scale_shift,
}

fn desc() -> bn_plan_desc {
    bn_plan_desc { outer: 2, channels: CHANNELS, inner: 1, eps: 1e-5, ..sized() }
}

impl World {
    /// On the heap, since its structs point to its arrays.
    fn new(desc: bn_plan_desc) -> Box<Self> {
        let mut plan = null_mut();
        // SAFETY: pointers to a descriptor, which has no scratch memory and no function, and to room for a plan.
        assert_eq!(unsafe { bn_plan_create(&desc, &mut plan) }, BN_OK);
        let mut world = Box::new(World {
            plan,
            values: [1.0; LEN + 1],
            y: [0.0; LEN],
            weights: [1.0; 2],
            parameters: [1.0; CHANNELS],
            doubles: [[1.0; CHANNELS]; 8],
            statistics: sized(),
            other: sized(),
            running: sized(),
            sums: sized(),
            scale_shift: sized(),
        });
        let [mean, var, other_mean, other_var, a, b, c, d] =
            world.doubles.each_mut().map(|array| bn_doubles { data: array.as_mut_ptr(), len: CHANNELS });
        world.statistics = bn_statistics { count: 2.0, mean, var, ..sized() };
        world.other = bn_statistics { count: 2.0, mean: other_mean, var: other_var, ..sized() };
        world.running = bn_running_statistics { mean: a, var: b, ..sized() };
        world.sums = bn_gradient_sums { g: c, gx: d, ..sized() };
        world.scale_shift = bn_scale_shift { scale: c, shift: d, ..sized() };
        world
    }

    fn normalize(&mut self, change: impl FnOnce(&mut bn_normalize_args)) -> i32 {
        let mut args = bn_normalize_args {
            x: bn_slice { data: self.values.as_ptr().cast(), len: LEN },
            statistics: &self.statistics,
            y: bn_slice_mut { data: self.y.as_mut_ptr().cast(), len: LEN },
            ..sized()
        };
        change(&mut args);
        // SAFETY: the arrays live; those that the tests replace are rejected, or live as well.
        unsafe { bn_normalize(self.plan, &args) }
    }

    fn update(&mut self, average: i32, momentum: f64) -> i32 {
        // SAFETY: the structs and their arrays live.
        unsafe { bn_update_running_statistics(&mut self.running, &self.statistics, average, momentum) }
    }

    fn invertible(&mut self) -> i32 {
        let args = bn_forward_training_invertible_args {
            x: bn_slice_mut { data: self.y.as_mut_ptr().cast(), len: LEN },
            gamma: bn_slice { data: self.parameters.as_ptr().cast(), len: CHANNELS },
            statistics: &mut self.statistics,
            ..sized()
        };
        // SAFETY: the arrays live.
        unsafe { bn_forward_training_invertible(self.plan, &args) }
    }

    fn double_backward(&mut self) -> i32 {
        let x = bn_slice { data: self.values.as_ptr().cast(), len: LEN };
        let statistics = &raw const self.statistics;
        let args = bn_double_backward_args { x, dy: x, dx_cotangent: x, statistics, ..sized() };
        // SAFETY: the arrays live.
        unsafe { bn_double_backward(self.plan, &args) }
    }

    fn fold_transposed(&mut self, weights: usize, inputs: usize, groups: usize) -> i32 {
        let args = bn_fold_transposed_args {
            scale_shift: &self.scale_shift,
            weight: bn_slice_mut { data: self.y.as_mut_ptr().cast(), len: weights },
            bias: bn_slice_mut { data: self.parameters.as_mut_ptr().cast(), len: CHANNELS },
            inputs,
            groups,
            ..sized()
        };
        // SAFETY: the arrays live.
        unsafe { bn_fold_preceding_transposed(self.plan, &args) }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // SAFETY: the plan was made in `new`, and is not used any more.
        assert_eq!(unsafe { bn_plan_destroy(self.plan) }, BN_OK);
    }
}

/// Checks a status and the message of the call that returned it.
#[track_caller]
fn says(status: i32, expected: i32, message: &str) {
    // SAFETY: the message of this thread, which ends with a 0.
    let actual = unsafe { CStr::from_ptr(bn_last_error_message()) }.to_str().expect("messages are UTF-8");
    assert_eq!((status, actual), (expected, message));
}

/// As [`says`], of a message that has an address or the like at its end.
#[track_caller]
fn begins(status: i32, expected: i32, message: &str) {
    // SAFETY: as in `says`.
    let actual = unsafe { CStr::from_ptr(bn_last_error_message()) }.to_str().expect("messages are UTF-8");
    assert!(status == expected && actual.starts_with(message), "{status}: {actual}");
}

#[test]
fn of_descriptors() {
    let create = |change: fn(&mut bn_plan_desc)| {
        let (mut desc, mut plan) = (desc(), null_mut());
        change(&mut desc);
        // SAFETY: pointers to a descriptor that is refused, and to room for a plan.
        unsafe { bn_plan_create(&desc, &mut plan) }
    };
    let status = create(|desc| desc.element = 4);
    says(status, BN_ERROR_ENUM, "desc.element is out of range: expected one of BN_ELEMENT_, 0 to 3, got 4");
    let status = create(|desc| desc.isa = -1);
    says(status, BN_ERROR_ENUM, "desc.isa is out of range: expected one of BN_ISA_, 0 to 3, got -1");
    let status = create(|desc| desc.threads = 9);
    says(status, BN_ERROR_ENUM, "desc.threads is out of range: expected one of BN_THREADS_, 0 to 2, got 9");
    let status = create(|desc| desc.activation = 4);
    says(status, BN_ERROR_ENUM, "desc.activation is out of range: expected one of BN_ACTIVATION_, 0 to 3, got 4");
    let status = create(|desc| desc.eps = -1.0);
    says(status, BN_ERROR_EPS, "desc.eps is out of range: expected a finite number >= 0, got -1");
    let status = create(|desc| (desc.activation, desc.slope) = (BN_ACTIVATION_LEAKY_RELU, f64::INFINITY));
    says(status, BN_ERROR_SLOPE, "desc.slope is out of range: expected a finite number >= 0, got inf");
    let status = create(|desc| desc.slope = 0.5);
    says(status, BN_ERROR_SLOPE, "desc.slope is only for BN_ACTIVATION_LEAKY_RELU: expected 0, got 0.5");
    let status = create(|desc| desc.outer = usize::MAX / 4);
    let message = format!(
        "desc.outer, desc.channels and desc.inner are too large: expected products of at most {}, got [{}, 3, 1]",
        isize::MAX as usize / 8,
        usize::MAX / 4,
    );
    says(status, BN_ERROR_SHAPE, &message);
    const CHANNELS: usize = 1 << 59;
    let status = create(|desc| (desc.outer, desc.channels, desc.inner) = (1, CHANNELS, 1));
    begins(status, BN_ERROR_OUT_OF_MEMORY, &format!("not enough memory for a plan with {CHANNELS} channels: "));
    let status = create(|desc| desc.thread_count = 1);
    let message = "desc.thread_count is out of range: expected 0 for BN_THREADS_SEQUENTIAL, got 1";
    says(status, BN_ERROR_THREADS, message);
    let status = create(|desc| (desc.threads, desc.thread_count) = (BN_THREADS_CALLER, 2));
    says(status, BN_ERROR_NULL, "desc.parallel_for is NULL: BN_THREADS_CALLER needs a function");
    let status = create(|desc| desc.scratch_bytes = 1);
    says(status, BN_ERROR_NULL, "desc.scratch is NULL: expected the 1 bytes of desc.scratch_bytes");
    let status = create(|desc| desc.scratch = (&raw mut *desc).cast());
    begins(status, BN_ERROR_LENGTH, "desc.scratch_bytes is too small: expected at least ");
    let status = create(|desc| desc.struct_size += 8);
    let (size, actual) = (size_of::<bn_plan_desc>(), size_of::<bn_plan_desc>() + 8);
    let message = format!("desc has the wrong struct_size: expected {size} bytes, got {actual}");
    says(status, BN_ERROR_STRUCT_SIZE, &message);
}

#[test]
fn of_arrays() {
    let mut world = World::new(desc());
    let data = world.values.as_ptr();
    // SAFETY: a plan is missing, which is found first.
    let status = unsafe { bn_normalize(null(), null()) };
    says(status, BN_ERROR_NULL, "plan is NULL");
    // SAFETY: a plan, and no arguments.
    let status = unsafe { bn_normalize(world.plan, null()) };
    says(status, BN_ERROR_NULL, "args is NULL");
    let status = world.normalize(|args| args.x.data = null());
    says(status, BN_ERROR_NULL, "x is NULL: expected 6 elements");
    let status = world.normalize(|args| args.y.len = 5);
    says(status, BN_ERROR_LENGTH, "y has the wrong length: expected 6 elements, got 5");
    let status = world.normalize(|args| args.x.data = data.wrapping_byte_add(1).cast());
    begins(status, BN_ERROR_ALIGNMENT, "x is misaligned: expected an address that is a multiple of 4, got 0x");
    let status = world.normalize(|args| args.x.data = std::ptr::without_provenance(usize::MAX - 3));
    begins(status, BN_ERROR_LENGTH, "x extends past the end of the address space: 6 elements at 0xf");
    let status = world.normalize(|args| args.x.data = args.y.data.wrapping_byte_add(4));
    says(status, BN_ERROR_OVERLAP, "x and y overlap by 20 bytes");
    world.weights[1] = -2.0;
    let weights = bn_slice { data: world.weights.as_ptr().cast(), len: 2 };
    let status = world.normalize(|args| args.weights = weights);
    says(status, BN_ERROR_WEIGHT, "weights[1] is invalid: expected a finite number >= 0, got -2");
    let status = world.fold_transposed(5, 2, 1);
    says(status, BN_ERROR_LENGTH, "weight has the wrong length: expected a positive multiple of 6 elements, got 5");
    let status = world.fold_transposed(6, 4, 3);
    says(status, BN_ERROR_GROUPS, "groups is invalid: expected a divisor of 4 inputs and 3 outputs, got 3");
}

#[test]
fn of_statistics() {
    let mut world = World::new(desc());
    let running = &raw const world.running;
    let status = world.normalize(|args| args.statistics = null());
    let one_of = "expected exactly one of statistics and running, the other NULL; got";
    says(status, BN_ERROR_SOURCE, &format!("{one_of} neither"));
    let status = world.normalize(|args| args.running = running);
    says(status, BN_ERROR_SOURCE, &format!("{one_of} both"));
    let with_running = |args: &mut bn_normalize_args| (args.statistics, args.running) = (null(), running);
    world.running.variance = 2;
    let status = world.normalize(with_running);
    says(status, BN_ERROR_ENUM, "running.variance is out of range: expected one of BN_VARIANCE_, 0 to 1, got 2");
    (world.running.variance, world.running.reserved) = (0, 1);
    let status = world.normalize(with_running);
    says(status, BN_ERROR_ENUM, "running.reserved is reserved: expected 0, got 1");
    (world.running.reserved, world.running.float_var.len) = (0, CHANNELS);
    let status = world.normalize(with_running);
    let message = "expected running.mean and running.var, or running.float_mean and running.float_var, the others \
                   absent; got some of both";
    says(status, BN_ERROR_SOURCE, message);
    let empty = bn_doubles { data: null_mut(), len: 0 };
    let (mean, var) = (world.running.mean, world.running.var);
    (world.running.mean, world.running.var) = (empty, empty);
    let status = world.normalize(with_running);
    says(status, BN_ERROR_NULL, "running.float_mean is NULL: expected 3 elements");
    world.running.float_var.len = 0;
    (world.running.mean, world.running.var) = (mean, var);
    world.doubles[5][2] = -1.0;
    let status = world.normalize(with_running);
    says(status, BN_ERROR_VARIANCE, "running variance of channel 2 is invalid: expected a number >= 0, got -1");

    world.statistics.count = f64::NAN;
    let status = world.normalize(|_| ());
    says(status, BN_ERROR_COUNT, "statistics.count is out of range: expected a finite number >= 0, got NaN");
    world.statistics.count = 0.0;
    let status = world.normalize(|_| ());
    let message = "statistics.count is too small: expected a positive count for a batch with values, got 0";
    says(status, BN_ERROR_EMPTY_STATISTICS, message);
    (world.statistics.count, world.doubles[1][1]) = (2.0, -0.5);
    let status = world.normalize(|_| ());
    says(status, BN_ERROR_VARIANCE, "statistics.var[1] is invalid: expected a number >= 0 or NaN, got -0.5");
    world.doubles[1][1] = 1.0;

    let status = world.update(2, 0.1);
    says(status, BN_ERROR_ENUM, "average is out of range: expected one of BN_AVERAGE_, 0 to 1, got 2");
    let status = world.update(BN_AVERAGE_EXPONENTIAL, 1.5);
    says(status, BN_ERROR_MOMENTUM, "momentum is out of range: expected a number in [0, 1], got 1.5");
    world.statistics.count = 1.0;
    let status = world.update(BN_AVERAGE_EXPONENTIAL, 0.1);
    let message = "statistics.count is too small for BN_VARIANCE_UNBIASED: expected more than 1, got 1";
    says(status, BN_ERROR_TOO_FEW_VALUES, message);

    let mut merge = |count: f64, other: f64| {
        (world.statistics.count, world.other.count) = (count, other);
        // SAFETY: the structs and their arrays live.
        unsafe { bn_merge_statistics(&mut world.statistics, &world.other) }
    };
    let status = merge(1.0, -1.0);
    says(status, BN_ERROR_COUNT, "other.count is out of range: expected a finite number >= 0, got -1");
    let status = merge(f64::MAX, f64::MAX);
    says(status, BN_ERROR_COUNT, "into.count + other.count is out of range: expected a finite number, got inf");
    world.statistics.count = 2.0;
    world.sums.gx.len = 2;
    let sums = &raw mut world.sums;
    // SAFETY: the struct and its arrays live; it is refused before anything is written.
    let status = unsafe { bn_merge_gradient_sums(sums, sums) };
    says(status, BN_ERROR_LENGTH, "into.gx has the wrong length: expected 3 elements, got 2");
}

#[test]
fn of_activations() {
    let not_allowed = "the plan's activation does not allow this call: expected BN_ACTIVATION_IDENTITY";
    for (activation, name) in [
        (BN_ACTIVATION_RELU, "BN_ACTIVATION_RELU"),
        (BN_ACTIVATION_LEAKY_RELU, "BN_ACTIVATION_LEAKY_RELU with slope 0"),
        (BN_ACTIVATION_SILU, "BN_ACTIVATION_SILU"),
    ] {
        let mut world = World::new(bn_plan_desc { activation, ..desc() });
        let status = world.invertible();
        let or_leaky = ", or BN_ACTIVATION_LEAKY_RELU with a slope > 0";
        says(status, BN_ERROR_ACTIVATION, &format!("{not_allowed}{or_leaky}, got {name}"));
        let status = world.double_backward();
        says(status, BN_ERROR_ACTIVATION, &format!("{not_allowed}, got {name}"));
    }
    let mut world = World::new(bn_plan_desc { activation: BN_ACTIVATION_LEAKY_RELU, slope: 0.5, ..desc() });
    let status = world.double_backward();
    says(status, BN_ERROR_ACTIVATION, &format!("{not_allowed}, got BN_ACTIVATION_LEAKY_RELU"));
    world.parameters[1] = 0.0;
    let status = world.invertible();
    let message = "channel 1 cannot be rebuilt from its output: expected |beta| <= 64*|gamma| and |output| from";
    begins(status, BN_ERROR_NOT_INVERTIBLE, message);
}
