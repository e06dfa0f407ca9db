//! Is the result of all ranks that of one process on the joined batch?
//!
//! Every rank makes the joined batch, takes its own part of it, and checks its own results.

use crate::group::{Exchange, Group};
use crate::layer::{Gradients, Layer};
use crate::{Error, max_of_all};
use batchnorm as bn;
use batchnorm::reference::indices;
use batchnorm_testing::oracle::{self, Double, inv_std};
use batchnorm_testing::{Bounds, Factors, Random, WORST_KAPPA, bits_of, kappa, normal};
use mpi::topology::SimpleCommunicator;
use mpi::traits::{Communicator, Root};
use std::ops::Range;

/// The channels' means, in standard deviations; one channel more is constant.
const MEANS: [f64; 9] = [0.0, 1.0, -10.0, 1e2, -1e3, 1e4, 1e5, -0.99e6, 3.0];
const CHANNELS: usize = MEANS.len() + 1;
/// As a new plan has it.
const EPS: f64 = 1e-5;

/// What is compared, each with the largest error seen, as a multiple of its bound.
const QUANTITIES: [&str; 8] = ["mean", "var", "y", "dbeta", "dgamma", "dx", "y to one process", "dx to one process"];
struct Worst([f64; QUANTITIES.len()]);

impl Worst {
    fn note(&mut self, quantity: &str, error: f64, bound: f64) {
        let multiple = if error == 0.0 { 0.0 } else { error / bound };
        let multiple = if multiple.is_nan() { f64::INFINITY } else { multiple };
        for (name, worst) in QUANTITIES.iter().zip(&mut self.0) {
            if *name == quantity {
                *worst = worst.max(multiple);
            }
        }
    }
}

/// A joined batch of blocks that the ranks share out among them.
struct Problem {
    block: bn::Shape,
    joined: bn::Shape,
    x: Vec<f32>,
    dy: Vec<f32>,
    gamma: Vec<f32>,
    beta: Vec<f32>,
    /// This rank's part.
    own: Range<usize>,
}

impl Problem {
    /// Values of channel c and block b by `value`.
    fn new(
        block: bn::Shape,
        blocks: &[usize],
        rank: usize,
        mut value: impl FnMut(usize, usize, &mut Random) -> [f64; 2],
    ) -> Result<Self, Error> {
        let [before, all] = [&blocks[..rank], blocks].map(|blocks| blocks.iter().sum::<usize>());
        let joined = bn::Shape::new(all * block.outer(), block.channels(), block.inner())?;
        let (mut x, mut dy, mut random) = (vec![0.0; joined.len()], vec![0.0; joined.len()], Random(1));
        for c in 0..joined.channels() {
            for k in indices(joined, c) {
                [x[k], dy[k]] = value(c, k / block.len(), &mut random).map(|v| v as f32);
            }
        }
        let (gamma, beta) = (normal(&mut random, joined.channels()), normal(&mut random, joined.channels()));
        let own = before * block.len()..(before + blocks[rank]) * block.len();
        Ok(Self { block, joined, x, dy, gamma, beta, own })
    }

    /// Normal values, whose mean differs from block to block.
    fn random(block: bn::Shape, blocks: &[usize], rank: usize) -> Result<Self, Error> {
        Self::new(block, blocks, rank, |c, b, random| {
            let x = MEANS.get(c).map_or(0.7, |mean| mean + 0.5 * (b % 3) as f64 + random.normal());
            [x, 0.1 + random.normal()]
        })
    }

    /// Integers of which each block has the same mean, so that all sums and means are exact.
    fn integers(block: bn::Shape, blocks: &[usize], rank: usize) -> Result<Self, Error> {
        let mut value = 0;
        Self::new(block, blocks, rank, |c, _, random| {
            value = if value > 0 { -value } else { 1 + random.below(7) as i64 };
            [c as f64 + value as f64, random.below(5) as f64 - 2.0]
        })
    }

    fn affine(&self) -> bn::Affine<'_, f32> {
        bn::Affine::new(&self.gamma, &self.beta)
    }

    /// A training step of this part of the batch, by all of the group.
    fn step(&self, group: &Group, part: &Range<usize>) -> Result<Step, Error> {
        let (x, dy) = (&self.x[part.clone()], &self.dy[part.clone()]);
        let mut layer = Layer::new(group, self.block, self.affine());
        let (y, batch) = layer.forward_training(x)?;
        let gradients = layer.backward(x, dy, &batch)?;
        Ok(Step { y, batch, running: layer.running().clone(), gradients })
    }

    /// y and dx of the joined batch by the passes of one process, and the statistics.
    fn one_process(&self) -> Result<(Vec<f32>, Vec<f32>, bn::Statistics), Error> {
        let (plan, n) = (bn::BatchNorm::new(self.joined), self.joined.len());
        let (mut y, mut dx, mut batch) = (vec![0.0; n], vec![0.0; n], bn::Statistics::new(CHANNELS));
        plan.forward_training(&self.x, self.affine(), &mut y, &mut batch)?;
        let gradients = bn::Gradients { dx: Some(&mut dx), ..bn::Gradients::default() };
        plan.backward(&self.x, &self.dy, &batch, self.affine(), gradients)?;
        Ok((y, dx, batch))
    }
}

struct Step {
    y: Vec<f32>,
    batch: bn::Statistics,
    running: bn::RunningStatistics,
    gradients: Gradients,
}

impl Step {
    /// What all ranks have in common.
    fn shared_bits(&self) -> Vec<u64> {
        let count = [self.batch.count()];
        let arrays = [&count, self.batch.mean(), self.batch.var(), self.running.mean(), self.running.var()];
        bits_of(&arrays.concat())
    }

    fn bits(&self) -> Vec<u64> {
        let Gradients { dx, dgamma, dbeta } = &self.gradients;
        [self.shared_bits(), bits_of(&[&self.y[..], dx, dgamma, dbeta].concat())].concat()
    }
}

/// Runs all checks; rank 0 prints what they found.
pub(crate) fn run(world: &SimpleCommunicator) -> Result<(), Error> {
    let (rank, ranks) = (world.rank() as usize, world.size() as usize);
    let groups = [Exchange::AllGather, Exchange::Tree].map(|e| Group::new(SimpleCommunicator::world(), e));
    let blocks =
        [bn::Shape::nchw(1, CHANNELS, 5, 7)?, bn::Shape::nhwc(1, 6, 7, CHANNELS)?, bn::Shape::nc(9, CHANNELS)?];

    for pattern in [[5, 9, 0, 2], [0, 5, 9, 2]] {
        let shares: Vec<usize> = (0..ranks).map(|r| pattern[r % 4]).collect();
        let mut worst = Worst([0.0; QUANTITIES.len()]);
        for block in blocks {
            let problem = Problem::random(block, &shares, rank)?;
            let step = problem.step(&groups[0], &problem.own)?;
            ensure(step.bits() == problem.step(&groups[1], &problem.own)?.bits(), "the tree gives other bits")?;
            let mut of_first = step.shared_bits();
            world.process_at_rank(0).broadcast_into(&mut of_first[..]);
            ensure(of_first == step.shared_bits(), "ranks have statistics with other bits")?;
            check_bounds(&problem, &step, ranks, &mut worst)?;
        }
        let worst = max_of_all(world, worst.0);
        if rank == 0 {
            println!("blocks per rank {shares:?}: worst errors as multiples of their bounds");
            for (quantity, multiple) in QUANTITIES.iter().zip(worst) {
                println!("    {quantity:18} {multiple:.3}");
            }
        }
        ensure(worst.iter().all(|multiple| *multiple <= 1.0), "an error is over its bound")?;
    }

    let alone = Group::new(SimpleCommunicator::self_comm(), Exchange::AllGather);
    let lined_up: Vec<usize> = (0..ranks).map(|r| if r + 1 < ranks { 4 } else { 3 }).collect();
    for block in blocks {
        let problem = Problem::random(block, &lined_up, rank)?;
        let (step, joined) = (problem.step(&groups[0], &problem.own)?, problem.step(&alone, &(0..problem.x.len()))?);
        ensure(step.shared_bits() == joined.shared_bits(), "statistics have other bits than those of one rank")?;
        same_part("y", &problem, &step.y, &joined.y)?;
        same_part("dx", &problem, &step.gradients.dx, &joined.gradients.dx)?;
    }

    // Divisions by the number of values are exact if it is a power of two: as many ranks have blocks, the others none.
    let sharing = 1 << ranks.ilog2();
    let exact: Vec<usize> = (0..ranks).map(|r| if r < sharing { 4 } else { 0 }).collect();
    for block in [bn::Shape::nchw(1, CHANNELS, 4, 8)?, bn::Shape::nhwc(1, 4, 8, CHANNELS)?] {
        let problem = Problem::integers(block, &exact, rank)?;
        let (step, (y, dx, batch)) = (problem.step(&groups[0], &problem.own)?, problem.one_process()?);
        ensure(step.batch == batch, "statistics of integers differ from those of one pass")?;
        same_part("y", &problem, &step.y, &y)?;
        same_part("dx", &problem, &step.gradients.dx, &dx)?;
    }
    if rank == 0 {
        println!("blocks per rank {lined_up:?}: the bits that one rank with all blocks gives");
        println!("blocks per rank {exact:?}: of integers, the bits of forward_training and backward\n");
    }
    Ok(())
}

fn ensure(condition: bool, otherwise: &str) -> Result<(), Error> {
    if condition { Ok(()) } else { Err(otherwise.into()) }
}

/// Compares this rank's part of an output with that of the joined batch.
fn same_part(name: &str, problem: &Problem, part: &[f32], joined: &[f32]) -> Result<(), Error> {
    ensure(
        bits_of(part) == bits_of(&joined[problem.own.clone()]),
        &format!("{name} has other bits than in one process"),
    )
}

/// Compares with exact arithmetic, and with one process, whose own errors are as large.
fn check_bounds(problem: &Problem, step: &Step, ranks: usize, worst: &mut Worst) -> Result<(), Error> {
    let (shape, m) = (problem.joined, problem.joined.values_per_channel() as f64);
    let (one_y, one_dx, _) = problem.one_process()?;
    // Of the tree over the blocks of a rank, and of that over the ranks.
    let levels = [shape.outer().max(1), ranks].map(|parts| (parts as f64).log2().ceil()).iter().sum::<f64>();
    for (c, (mean, var)) in oracle::statistics(shape, &problem.x).into_iter().enumerate() {
        if m == 0.0 {
            continue;
        }
        let (gamma, beta) = (f64::from(problem.gamma[c]), f64::from(problem.beta[c]));
        let own = indices(shape, c).filter(|k| problem.own.contains(k));
        let at = |k: usize| k - problem.own.start;
        let (own_mean, own_var) = (step.batch.mean()[c], step.batch.var()[c]);
        if var.0 == 0.0 {
            worst.note("var", own_var, 0.0);
            own.for_each(|k| worst.note("y", f64::from(step.y[at(k)]) - beta, 0.0));
            continue;
        }
        let kappa = kappa(mean.0, var.0);
        ensure(kappa <= WORST_KAPPA, "no bounds are stated for the data of this check")?;
        // Each level of the tree rounds a mean twice in f64, which is relative to the mean.
        let rounding = (2.0 * levels + 1.0) * f64::EPSILON / 2.0 * kappa;
        let f = Factors::new::<f32>(kappa).plus(rounding);
        let mean_bound = f.mean + rounding;
        // The variance gets, from the errors of the parts' means, as much again times the root of the product of the
        // shares that lie within and between the parts. Both together are at most (1 + √2)/2 times what one part has.
        let var_bound = f64::midpoint(1.0, std::f64::consts::SQRT_2) * f.var + 2.0 * rounding;
        worst.note("mean", (Double::from(own_mean) - mean).abs().0, mean_bound * var.0.sqrt());
        worst.note("var", (Double::from(own_var) - var).abs().0, var_bound * var.0);
        let s = inv_std(var, EPS);
        let bounds = Bounds::new::<f32>(f, var.0, EPS, (gamma, beta), true);
        for k in own.clone() {
            let x_hat = (Double::from(f64::from(problem.x[k])) - mean) * s;
            let exact = Double::from(gamma) * x_hat + beta.into();
            let bound = promised(bounds.y::<f32>(x_hat.0))? + gamma.abs() * (var_bound - f.var) / 2.0 * x_hat.0.abs();
            let y = f64::from(step.y[at(k)]);
            worst.note("y", (Double::from(y) - exact).abs().0, bound);
            worst.note("y to one process", (y - f64::from(one_y[k])).abs(), 2.0 * bound);
        }

        // The backward pass takes the merged statistics as exact, and so does the one of one process its own.
        let s = inv_std(own_var.into(), EPS);
        let bounds = Bounds::new::<f32>(f, own_var, EPS, (gamma, beta), true);
        let term = |k: usize| (f64::from(problem.dy[k]), Double::from(f64::from(problem.x[k])) - own_mean.into());
        let sums = |ks: &mut dyn Iterator<Item = usize>| {
            ks.map(term).fold([Double::from(0.0); 2], |[g_sum, gx_sum], (g, d)| {
                [g_sum + g.into(), gx_sum + Double::from(g) * d * s]
            })
        };
        let errors = |ks: &mut dyn Iterator<Item = usize>| bounds.sums::<f32>(ks.map(term).map(|(g, d)| (g, d.0)));
        let ([dbeta, dgamma], [dbeta_bound, dgamma_bound]) =
            (sums(&mut own.clone()), promised(errors(&mut own.clone()))?);
        let shares = [step.gradients.dbeta[c], step.gradients.dgamma[c]].map(|v| Double::from(f64::from(v)));
        worst.note("dbeta", (shares[0] - dbeta).abs().0, dbeta_bound);
        worst.note("dgamma", (shares[1] - dgamma).abs().0, dgamma_bound);

        let all = || indices(shape, c);
        let means = sums(&mut all()).map(|sum| sum / m.into());
        let sum_errors = promised(errors(&mut all()))?.map(|error| error / m);
        for k in own {
            let (g, d) = term(k);
            let x_hat = d * s;
            let exact = Double::from(gamma) * s * (Double::from(g) - means[0] - x_hat * means[1]);
            let of_sums = (gamma * s.0).abs() * (sum_errors[0] + x_hat.0.abs() * sum_errors[1]);
            let bound = promised(bounds.dx::<f32>(g, d.0, 1.0, Some(means.map(|mean| mean.0))))? + of_sums;
            let dx = f64::from(step.gradients.dx[at(k)]);
            worst.note("dx", (Double::from(dx) - exact).abs().0, bound);
            // dx moves with the statistics, too: with 1/std, with its mean and with x̂ in all three terms.
            let of_mean =
                2.0 * mean_bound * (gamma * s.0).abs() * (means[1].0.abs() + x_hat.0.abs() * means[0].0.abs());
            let of_var =
                var_bound * (gamma * s.0).abs() * (g.abs() + means[0].0.abs() + 3.0 * (x_hat * means[1]).0.abs());
            worst.note("dx to one process", (dx - f64::from(one_dx[k])).abs(), 2.0 * bound + of_mean + of_var);
        }
    }
    Ok(())
}

/// A bound of docs/numerics.md, which promises none where lanes leave their range.
fn promised<T>(bound: Option<T>) -> Result<T, Error> {
    bound.ok_or_else(|| "no bounds are stated for the data of this check".into())
}
