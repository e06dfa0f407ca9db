//! Do results keep every bit, whatever instruction set, threads, executor, alignment and way of calling?

use crate::common::*;
use batchnorm::{BatchNorm, Executor, Isa, Shape, Threads};
use std::sync::Arc;

/// Calls the tasks backwards, on two threads.
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

/// Breaks its contract: repeats some tasks, forgets others.
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

/// Claims more threads than there are tasks, and runs on none of them.
struct Idle;
impl Executor for Idle {
    fn threads(&self) -> usize {
        1000
    }
    fn parallel_for(&self, _: usize, _: &(dyn Fn(usize) + Sync)) {}
}

/// Calls `f` with plans for every kind of threads, in a context where they apply.
fn every_threads(plan: &BatchNorm, mut f: impl FnMut(&BatchNorm, &str) + Send) {
    f(&plan.clone().threads(Threads::Sequential), "sequential");
    let executors: [(&str, Arc<dyn Executor>); 3] =
        [("backwards", Arc::new(Backwards)), ("careless", Arc::new(Careless)), ("idle", Arc::new(Idle))];
    for (name, executor) in executors {
        f(&plan.clone().threads(Threads::Executor(executor)), name);
    }
    #[cfg(feature = "rayon")]
    for threads in [1, 2, 3, 7, 16] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| f(&plan.clone().threads(Threads::Rayon), &format!("{threads} threads of rayon")));
    }
}

/// Compares all settings with the portable code, sequential, fused, on aligned buffers.
fn compare_settings<T: Float>(shape: Shape) {
    let mut p = Problem::<T>::random(shape, 11);
    // A channel that is summed again in f64, between others that are not.
    for k in batchnorm::reference::indices(shape, shape.channels() / 2) {
        p.x[k] = T::of(p.x[k].to_f64() * 1e25);
    }
    let running = p.running();
    let plain = p.plan().isa(Isa::Portable).unwrap().threads(Threads::Sequential);
    let expected = train(&plain, &p, Way::Fused, 0);
    let expected_frozen = train_frozen(&plain, &p, &running, Way::Fused, 0);
    every_isa(|isa| {
        every_threads(&p.plan().isa(isa).unwrap(), |plan, threads| {
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

#[test]
fn shapes_worth_several_threads() {
    println!("instruction sets covered: {:?}", Isa::available());
    // Planes of many channels, planes of few that are cut into segments, small planes, rows narrow, wide and very wide.
    for (o, c, i) in
        [(2, 67, 641), (1, 2, 45_001), (9, 3, 4999), (3, 512, 49), (30_011, 3, 1), (601, 257, 1), (5, 20_011, 1)]
    {
        let shape = Shape::new(o, c, i).unwrap();
        compare_settings::<f32>(shape);
        compare_settings::<f64>(shape);
    }
}

/// Outputs large enough to be written past the caches.
#[test]
fn streamed_outputs() {
    for shape in [Shape::new(2, 21, 100_003).unwrap(), Shape::new(65_551, 64, 1).unwrap()] {
        let p = Problem::<f32>::random(shape, 12);
        let plain = p.plan().isa(Isa::Portable).unwrap().threads(Threads::Sequential);
        let expected = train(&plain, &p, Way::FusedInPlace, 0);
        every_isa(|isa| {
            let plan = p.plan().isa(isa).unwrap();
            for offset in [0, 1] {
                assert_same_bits(&expected, &train(&plan, &p, Way::Fused, offset), &(shape, isa, offset));
            }
        });
    }
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

/// A channel's results do not depend on its neighbours, nor on its place among them.
#[test]
fn channels_alone_or_together() {
    for (outer, inner) in [(5, 131), (300, 1)] {
        let together = Problem::<f32>::random(Shape::new(outer, 21, inner).unwrap(), 14);
        let out = train(&together.plan(), &together, Way::Fused, 0);
        for c in 0..21 {
            let pick = |v: &[f32]| batchnorm::reference::indices(together.shape, c).map(|k| v[k]).collect::<Vec<_>>();
            let alone = Problem {
                shape: Shape::new(outer, 1, inner).unwrap(),
                eps: together.eps,
                x: pick(&together.x),
                dy: pick(&together.dy),
                gamma: together.gamma.as_ref().map(|g| vec![g[c]]),
                beta: together.beta.as_ref().map(|b| vec![b[c]]),
            };
            let own = train(&alone.plan(), &alone, Way::Fused, 0);
            assert_eq!(own.statistics.mean()[0].bits(), out.statistics.mean()[c].bits(), "channel {c}, inner {inner}");
            assert_eq!(own.statistics.var()[0].bits(), out.statistics.var()[c].bits(), "channel {c}, inner {inner}");
            assert!(same(&own.y, &pick(&out.y)) && same(&own.dx, &pick(&out.dx)), "channel {c}, inner {inner}");
        }
    }
}

/// FNV-1a over the bytes of all outputs' bits.
fn hash<T: Float>(out: &Outputs<T>) -> u64 {
    let bits = out.bits();
    let bytes = bits.iter().flat_map(|(_, bits)| bits).flat_map(|b| b.to_le_bytes());
    bytes.fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0000_0100_0000_01b3))
}

/// Inputs made of integers, so that they are the same wherever the tests run. The scale of a channel follows from its
/// number; channel 2 is constant, channel 3 far beyond the range of squares, channel 4 subnormal where T is f32.
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

/// Shape, and the hash of a training step and of one with constant statistics, for f32 and for f64.
const GOLDEN: [((usize, usize, usize), [[u64; 2]; 2]); 8] = [
    ((1, 1, 1), [[0; 2]; 2]),
    ((3, 7, 37), [[0; 2]; 2]),
    ((2, 5, 1031), [[0; 2]; 2]),
    ((2, 2, 16_400), [[0; 2]; 2]),
    ((17, 7, 1), [[0; 2]; 2]),
    ((131, 37, 1), [[0; 2]; 2]),
    ((1031, 5, 1), [[0; 2]; 2]),
    ((1, 67, 1), [[0; 2]; 2]),
];

/// Fails where a machine, compiler or change of the code gives other bits than those committed. A change that is meant
/// is committed with the new table, which this prints.
#[test]
fn golden() {
    println!("instruction sets covered: {:?}", Isa::available());
    fn hashes<T: Float>(shape: Shape, isa: Isa) -> [u64; 2] {
        let p = golden_problem::<T>(shape);
        let plan = p.plan().isa(isa).unwrap();
        [hash(&train(&plan, &p, Way::Fused, 0)), hash(&train_frozen(&plan, &p, &p.running(), Way::Fused, 0))]
    }
    every_isa(|isa| {
        let found = GOLDEN.map(|((o, c, i), _)| {
            let shape = Shape::new(o, c, i).unwrap();
            ((o, c, i), [hashes::<f32>(shape, isa), hashes::<f64>(shape, isa)])
        });
        for (shape, hashes) in &found {
            println!("{isa:?} {shape:?}: {hashes:#018x?}");
        }
        assert!(found == GOLDEN, "{isa:?} gives other bits than the table; see what was printed");
    });
}
