//! Do results have the same bits for every instruction set, number of threads, executor, alignment and way of calling?

use crate::common::*;
use batchnorm::{Activation, BatchNorm, Executor, Isa, Shape, ThreadPool, Threads};
use std::sync::Arc;

/// Runs the tasks backwards, on two threads.
struct Backwards;
impl Executor for Backwards {
    fn threads(&self) -> usize {
        2
    }
    fn parallel_for(&self, n: usize, task: &(dyn Fn(usize) + Sync)) {
        std::thread::scope(|scope| {
            scope.spawn(|| (0..n / 2).rev().for_each(task));
            (n / 2..n).rev().for_each(task);
        });
    }
}

/// Breaks its contract: it repeats some tasks and omits others.
struct Careless;
impl Executor for Careless {
    fn threads(&self) -> usize {
        5
    }
    fn parallel_for(&self, n: usize, task: &(dyn Fn(usize) + Sync)) {
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| (0..n).step_by(3).for_each(task));
            }
        });
    }
}

/// Breaks its contract: it claims more threads than there are tasks, and runs none of them.
struct Idle;
impl Executor for Idle {
    fn threads(&self) -> usize {
        1000
    }
    fn parallel_for(&self, _: usize, _: &(dyn Fn(usize) + Sync)) {}
}

/// Calls `f` with plans for every kind of threads: with rayon in pools of several sizes.
pub(crate) fn every_threads(plan: &BatchNorm, f: &mut (dyn FnMut(&BatchNorm, &str) + Send)) {
    f(&plan.clone().threads(Threads::Sequential), "sequential");
    let executors: [(&str, Arc<dyn Executor>); 3] =
        [("backwards", Arc::new(Backwards)), ("careless", Arc::new(Careless)), ("idle", Arc::new(Idle))];
    for (name, executor) in executors {
        f(&plan.clone().threads(Threads::Executor(executor)), name);
    }
    for threads in 1..=5 {
        let pool = Threads::Pool(Arc::new(ThreadPool::new(threads).unwrap()));
        f(&plan.clone().threads(pool), &format!("a pool of {threads} threads"));
    }
    #[cfg(feature = "rayon")]
    for threads in [1, 2, 3, 7, 16] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| f(&plan.clone().threads(Threads::Rayon), &format!("{threads} threads of rayon")));
    }
}

/// Compares all settings with the portable code: sequential, fused and with aligned buffers.
fn compare_settings<T: Float>(shape: Shape) {
    let mut p = Problem::<T>::random(shape, 11);
    // One channel that is summed again in f64, between others that are not.
    for k in batchnorm::reference::indices(shape, shape.channels() / 2) {
        p.x[k] = T::of(p.x[k].to_f64() * 1e25);
    }
    let running = p.running();
    let plain = p.plan().isa(Isa::Portable).unwrap().threads(Threads::Sequential);
    let expected = train(&plain, &p, Way::Fused, 0);
    let expected_frozen = train_frozen(&plain, &p, &running, Way::Fused, 0);
    every_isa(|isa| {
        every_threads(&p.plan().isa(isa).unwrap(), &mut |plan, threads| {
            for (offset, way) in WAYS.into_iter().enumerate() {
                let context = (T::NAME, shape, isa, threads, way, offset);
                assert_same_bits(&expected, &train(plan, &p, way, offset), &context);
                if offset % 2 == 0 {
                    assert_same_bits(&expected_frozen, &train_frozen(plan, &p, &running, way, offset), &context);
                }
            }
        });
    });
}

#[test]
fn small_shapes() {
    println!("instruction sets covered: {:?}", Isa::available());
    for (o, c, i) in [(3, 2, 37), (1, 5, 129), (2, 17, 7), (33, 17, 1), (65, 3, 1), (130, 1, 1), (1, 40, 1)] {
        let shape = Shape::new(o, c, i).unwrap();
        compare_settings::<f32>(shape);
        compare_settings::<f64>(shape);
    }
}

/// Their sums start at a place of a vector in the first input, wherever that is.
#[test]
fn rows_a_multiple_of_2048_bytes_apart() {
    fn check<T: Float>(channels: usize) {
        let p = Problem::<T>::random(Shape::nc(21, channels).unwrap(), 12);
        let expected = train(&p.plan().isa(Isa::Portable).unwrap(), &p, Way::Fused, 0);
        every_isa(|isa| {
            for offset in [0, 1, 3, 8, 15] {
                let out = train(&p.plan().isa(isa).unwrap(), &p, Way::Fused, offset);
                assert_same_bits(&expected, &out, &(T::NAME, channels, isa, offset));
            }
        });
    }
    check::<f32>(512);
    check::<f32>(1024);
    check::<f64>(256);
}

#[test]
fn shapes_worth_several_threads() {
    println!("instruction sets covered: {:?}", Isa::available());
    // Planes of many channels; planes of few channels, which are cut into segments; small planes; rows that are narrow,
    // wide and very wide.
    for (o, c, i) in
        [(2, 67, 641), (1, 2, 45_001), (9, 3, 4999), (3, 512, 49), (30_011, 3, 1), (601, 257, 1), (5, 20_011, 1)]
    {
        let shape = Shape::new(o, c, i).unwrap();
        compare_settings::<f32>(shape);
        compare_settings::<f64>(shape);
    }
}

/// Outputs large enough to be written past the caches: long and short planes; rows that are narrow, wide, and not of
/// whole vectors.
#[test]
fn streamed_outputs() {
    for extents in [(2, 21, 65_003), (3, 173, 5103), (55, 1000, 49), (42_001, 64, 1), (1301, 2048, 1), (26_011, 101, 1)]
    {
        let shape = Shape::new(extents.0, extents.1, extents.2).unwrap();
        let p = Problem::<f32>::random(shape, 12);
        let plain = p.plan().isa(Isa::Portable).unwrap().threads(Threads::Sequential);
        let expected = train(&plain, &p, Way::HalvesInPlace, 0);
        every_isa(|isa| {
            let plan = p.plan().isa(isa).unwrap();
            for offset in [0, 1, 6] {
                assert_same_bits(&expected, &train(&plan, &p, Way::Fused, offset), &(shape, isa, offset));
            }
        });
    }
}

/// The same for other types and with a second output, whose alignment differs from the first one's unless the offset is
/// 0.
#[test]
fn streamed_fused_outputs() {
    fn check<T: Number>(extents: (usize, usize, usize)) {
        let shape = Shape::new(extents.0, extents.1, extents.2).unwrap();
        let fusion = Fusion::<T>::random(shape, 14, Activation::Relu, true, Weighting::Absent);
        let plain = fusion.plan().isa(Isa::Portable).unwrap().threads(Threads::Sequential);
        let expected = fusion.run(&plain, None, Way::FusedInPlace, true, 0).bits();
        every_isa(|isa| {
            let plan = fusion.plan().isa(isa).unwrap();
            for offset in [0, 1] {
                assert!(
                    expected == fusion.run(&plan, None, Way::Fused, true, offset).bits(),
                    "{shape:?} {isa:?} {offset}"
                );
            }
        });
    }
    check::<f32>((11_003, 101, 1));
    check::<f32>((3, 3, 120_011));
    check::<f64>((5501, 100, 1));
    #[cfg(feature = "half")]
    {
        check::<half::bf16>((51_003, 48, 1));
        check::<half::f16>((3, 1000, 839));
    }
}

/// Planes that are mapped while the next group is summed have the same bits as planes that are not. The last group is
/// smaller than the others.
#[test]
fn maps_interleaved_with_sums() {
    let shape = Shape::new(3, 173, 1501).unwrap();
    let p = Problem::<f32>::random(shape, 15);
    let plan = p.plan().threads(Threads::Sequential);
    let expected = train(&plan.clone().isa(Isa::Portable).unwrap(), &p, Way::HalvesInPlace, 0);
    every_isa(|isa| {
        for (offset, way) in [Way::Fused, Way::FusedInPlace].into_iter().enumerate() {
            let out = train(&plan.clone().isa(isa).unwrap(), &p, way, offset);
            assert_same_bits(&expected, &out, &(isa, way));
        }
    });

    fn check_fused<T: Number>(shape: Shape) {
        let fusion = Fusion::<T>::random(shape, 16, Activation::Silu, true, Weighting::Absent);
        let plan = fusion.plan().threads(Threads::Sequential);
        let expected = fusion.run(&plan.clone().isa(Isa::Portable).unwrap(), None, Way::HalvesInPlace, true, 0).bits();
        every_isa(|isa| {
            let plan = plan.clone().isa(isa).unwrap();
            assert!(expected == fusion.run(&plan, None, Way::Fused, true, 1).bits(), "{isa:?}");
        });
    }
    check_fused::<f64>(Shape::new(3, 87, 1501).unwrap());
    #[cfg(feature = "half")]
    check_fused::<half::bf16>(Shape::new(3, 233, 1501).unwrap());
}

#[test]
fn run_after_run() {
    for shape in [Shape::new(2, 67, 641).unwrap(), Shape::new(30_011, 3, 1).unwrap()] {
        let p = Problem::<f32>::random(shape, 13);
        let plan = p.plan();
        let expected = train(&plan, &p, Way::Fused, 0);
        for run in 0..20 {
            assert_same_bits(&expected, &train(&plan, &p, Way::Fused, run), &(shape, run));
        }
    }
}

/// The results of a channel do not depend on its neighbours, or on its position among them. (Narrow rows are walked
/// several at a time, so that rows of other numbers of channels have other bits.)
#[test]
fn channels_alone_or_together() {
    for (outer, inner, few) in [(5, 131, 1), (300, 1, 16)] {
        let together = Problem::<f32>::random(Shape::new(outer, 21, inner).unwrap(), 14);
        let out = train(&together.plan(), &together, Way::Fused, 0);
        for c in 0..21 {
            let of =
                |p: Shape, c: usize, v: &[f32]| batchnorm::reference::indices(p, c).map(|k| v[k]).collect::<Vec<_>>();
            let pick = |v: &[f32]| of(together.shape, c, v);
            // The same channel over and over.
            let alone = |v: &[f32]| {
                let values = pick(v);
                (0..few * values.len()).map(|k| values[k / (few * inner) * inner + k % inner]).collect::<Vec<_>>()
            };
            let alone = Problem {
                shape: Shape::new(outer, few, inner).unwrap(),
                eps: together.eps,
                x: alone(&together.x),
                dy: alone(&together.dy),
                gamma: together.gamma.as_ref().map(|g| vec![g[c]; few]),
                beta: together.beta.as_ref().map(|b| vec![b[c]; few]),
            };
            let own = train(&alone.plan(), &alone, Way::Fused, 0);
            let (y, dx) = (of(alone.shape, 0, &own.y), of(alone.shape, 0, &own.dx));
            assert_eq!(own.statistics.mean()[0].bits(), out.statistics.mean()[c].bits(), "channel {c}, inner {inner}");
            assert_eq!(own.statistics.var()[0].bits(), out.statistics.var()[c].bits(), "channel {c}, inner {inner}");
            assert!(same(&y, &pick(&out.y)) && same(&dx, &pick(&out.dx)), "channel {c}, inner {inner}");
        }
    }
}

/// FNV-1a over the bits of all outputs.
fn hash(bits: &[(&'static str, Vec<u64>)]) -> u64 {
    let bytes = bits.iter().flat_map(|(_, bits)| bits).flat_map(|b| b.to_le_bytes());
    bytes.fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0000_0100_0000_01b3))
}

/// Inputs made from integers, so that they are the same on every machine. The scale of a channel follows from its
/// number; channel 2 is constant, the squares of channel 3 leave the range of f32, and channel 4 is subnormal in f32.
fn golden_problem<T: Float>(shape: Shape) -> Problem<T> {
    let mut random = Random(0x601d);
    let mut x = vec![T::default(); shape.len()];
    for c in 0..shape.channels() {
        let (offset, scale) = match c {
            2 => (3.25, 0.0),
            3 => (0.0, 1e37),
            4 => (0.0, 1e-40),
            _ => ((c * c * 100) as f64, 0.25 * (c + 1) as f64),
        };
        for k in batchnorm::reference::indices(shape, c) {
            x[k] = T::of(offset + scale * (random.below(1 << 20) as f64 / f64::from(1 << 18) - 2.0));
        }
    }
    let mut integers =
        |n: usize| (0..n).map(|_| T::of(random.below(1 << 16) as f64 / f64::from(1 << 15) - 1.0)).collect::<Vec<_>>();
    let (dy, gamma, beta) = (integers(shape.len()), integers(shape.channels()), integers(shape.channels()));
    Problem { shape, eps: 1e-5, x, dy, gamma: Some(gamma), beta: Some(beta) }
}

/// Outer, channels and inner of a shape.
type Extents = (usize, usize, usize);
/// For f32 and for f64: the hashes of a training step and of one with constant statistics.
type Hashes = [[u64; 2]; 2];

/// Shapes and their hashes.
const GOLDEN: [(Extents, Hashes); 8] = [
    ((1, 1, 1), [[0xfb5e_ee0b_d723_732a, 0x9f52_292e_ab8c_1d90], [0x1139_cc6b_8b66_21af, 0x3ddd_baeb_5f86_13f6]]),
    ((3, 7, 37), [[0x7ba8_39be_3285_b95c, 0x3a9e_cb45_8299_87a2], [0xd2de_3bc0_b59e_29b0, 0x40b9_b7e4_d40c_2c2d]]),
    ((2, 5, 1031), [[0x02c2_a654_c6bb_192a, 0xa70e_9185_38f4_e720], [0x28da_94f8_3497_77ea, 0xc156_8202_59c0_d0c5]]),
    ((2, 2, 16_400), [[0x6ff1_ff4e_6b2c_f2ab, 0x27f2_eee0_fc8c_4ae5], [0x0dd2_8143_e42d_955e, 0x55d6_49e2_7667_5c89]]),
    ((17, 7, 1), [[0x0f47_4ede_1111_6337, 0xcaec_fc88_70a7_e7bd], [0x0237_590f_a819_0093, 0x9d80_0b51_23a2_4f14]]),
    ((131, 37, 1), [[0x5335_27cb_e018_8bef, 0x3900_5139_0321_c296], [0x768e_e918_94ce_9ab6, 0x7368_ebfe_d946_095d]]),
    ((1031, 5, 1), [[0x86d4_9e4d_c174_ea6f, 0xb675_aed9_b45e_2a7f], [0xe0c2_09f5_a224_d87b, 0x30dc_c82b_571a_b3cc]]),
    ((1, 67, 1), [[0x38e6_4ee5_71cd_dfee, 0x1682_3c69_6250_b69a], [0x545c_fcf3_08ce_b613, 0x8d10_f2c9_c11f_053b]]),
];

/// Fails if a machine, a compiler or a change of the code gives other bits than the committed ones. An intended change
/// is committed with the new table, which the failure prints.
#[test]
fn golden() {
    println!("instruction sets covered: {:?}", Isa::available());
    fn hashes<T: Float>(shape: Shape, isa: Isa) -> [u64; 2] {
        let p = golden_problem::<T>(shape);
        let plan = p.plan().isa(isa).unwrap();
        let steps = [train(&plan, &p, Way::Fused, 0), train_frozen(&plan, &p, &p.running(), Way::Fused, 0)];
        steps.map(|step| hash(&step.bits()))
    }
    every_isa(|isa| {
        let found = GOLDEN.map(|((o, c, i), _)| {
            let shape = Shape::new(o, c, i).unwrap();
            ((o, c, i), [hashes::<f32>(shape, isa), hashes::<f64>(shape, isa)])
        });
        assert!(found == GOLDEN, "{isa:?} gives other bits than the table, which would be: {found:#x?}");
    });
}

/// Inputs made from integers of 8 bits, which are exact in every element type.
#[cfg(feature = "half")]
fn golden_fusion<T: Number>(shape: Shape, activation: Activation, weighted: bool) -> Fusion<T> {
    let mut random = Random(0xf05ed);
    let mut integers = |n: usize| (0..n).map(|_| random.below(256) as f64 / 64.0 - 2.0).collect::<Vec<_>>();
    let [x, dy, residual] = [(); 3].map(|()| integers(shape.len()).into_iter().map(T::of).collect::<Vec<_>>());
    let [gamma, beta] = [(); 2].map(|()| integers(shape.channels()).into_iter().map(Value::of).collect());
    let weights = weighted.then(|| integers(shape.values_per_channel()).into_iter().map(|w| Value::of(w.max(0.0))));
    let problem = Problem { shape, eps: 1e-5, x, dy, gamma: Some(gamma), beta: Some(beta) };
    Fusion { problem, activation, residual: Some(residual), weights: weights.map(Iterator::collect) }
}

/// Shapes, and the hashes for f32, f64, bf16 and f16 over steps with leaky ReLU, with SiLU, and with SiLU and weights,
/// each in training and with constant statistics.
#[cfg(feature = "half")]
const GOLDEN_FUSED: [(Extents, [u64; 4]); 6] = [
    ((1, 1, 1), [0x48d5_44b2_b09b_51ee, 0x7741_2681_7c39_b2fb, 0x045c_295b_3700_3ddc, 0x89d0_1d1a_e607_b5e7]),
    ((3, 7, 37), [0x2915_f7c3_58d7_6fd4, 0x5cb7_35f2_2710_3995, 0x92dc_743f_3c75_4e1c, 0xd892_64be_39bd_ba4a]),
    ((2, 2, 16_400), [0xde5c_19bb_c25c_7166, 0x2a60_ee8c_f027_176f, 0x1786_435e_179c_db2e, 0x116a_ec0b_b72b_8d74]),
    ((17, 7, 1), [0x7a9f_36de_63cb_352d, 0x7d09_dc2c_a0fd_a7f8, 0xa773_0ffe_7d13_55c5, 0xe2cd_4769_2abd_cb2c]),
    ((131, 37, 1), [0x2c5f_fb04_5dd5_cb97, 0xf417_79c1_de12_448b, 0x9b3d_99f2_49ae_2ae2, 0x58d0_4672_cc23_eaae]),
    ((1031, 5, 1), [0x092b_dffe_2a4e_db6f, 0xebe0_776e_74b5_3df7, 0xa08b_7ec1_6c93_4c1b, 0x1a36_edf7_2da2_d2dc]),
];

#[cfg(feature = "half")]
#[test]
fn golden_fused() {
    fn of_type<T: Number>(shape: Shape, isa: Isa) -> u64 {
        let mut bits = vec![];
        for (activation, weighted) in
            [(Activation::LeakyRelu(0.01), false), (Activation::Silu, false), (Activation::Silu, true)]
        {
            let fusion = golden_fusion::<T>(shape, activation, weighted);
            let plan = fusion.plan().isa(isa).unwrap();
            for running in [None, Some(&fusion.problem.running())] {
                bits.extend(fusion.run(&plan, running, Way::Fused, false, 0).bits());
            }
        }
        hash(&bits)
    }
    every_isa(|isa| {
        let found = GOLDEN_FUSED.map(|((o, c, i), _)| {
            let shape = Shape::new(o, c, i).unwrap();
            let of_types: [fn(Shape, Isa) -> u64; 4] =
                [of_type::<f32>, of_type::<f64>, of_type::<half::bf16>, of_type::<half::f16>];
            ((o, c, i), of_types.map(|of_type| of_type(shape, isa)))
        });
        assert!(found == GOLDEN_FUSED, "{isa:?} gives other bits than the table, which would be: {found:#x?}");
    });
}
