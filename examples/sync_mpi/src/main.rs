//! Batch normalization over the processes of an MPI program: `mpirun -n 4 target/release/sync_mpi` checks it against one
//! process, and measures what it costs. `docs/distributed.md` explains the design.
//!
//! Start with `layer.rs`, the layer, then read `group.rs`, which merges what the ranks know.

mod cancellation;
mod check;
mod cost;
mod group;
mod layer;

use group::{Exchange, Group};
use mpi::collective::SystemOperation;
use mpi::datatype::Equivalence;
use mpi::topology::SimpleCommunicator;
use mpi::traits::{Communicator, CommunicatorCollectives};
use std::panic::{AssertUnwindSafe, catch_unwind};

type Error = Box<dyn std::error::Error + Send + Sync>;

fn main() {
    let universe = mpi::initialize().expect("no other part of this program initializes MPI");
    let world = universe.world();
    let outcome = catch_unwind(AssertUnwindSafe(|| run(&world)));
    // The other ranks would wait for the messages of one that returned or unwound, as would MPI_Finalize.
    match outcome {
        Ok(Ok(())) => {}
        Ok(Err(error)) => {
            eprintln!("error on rank {}: {error}", world.rank());
            world.abort(1)
        }
        Err(_) => world.abort(2),
    }
}

fn run(world: &SimpleCommunicator) -> Result<(), Error> {
    if let Some(failure) = std::env::args().nth(1) {
        return fail(world, &failure);
    }
    if world.rank() == 0 {
        println!("ranks: {}", world.size());
    }
    check::run(world)?;
    cancellation::run(&Group::new(SimpleCommunicator::world(), Exchange::AllGather))?;
    cost::run(world)?;
    if world.rank() == 0 {
        println!("all checks passed on {} ranks", world.size());
    }
    Ok(())
}

/// Has the last rank fail where the others wait for it, so that the checks of this repository can see how that ends.
fn fail(world: &SimpleCommunicator, failure: &str) -> Result<(), Error> {
    let group = Group::new(SimpleCommunicator::world(), Exchange::AllGather);
    let mut layer = layer::Layer::new(&group, batchnorm::Shape::nc(2, 3)?, batchnorm::Affine::default());
    let last = world.rank() == world.size() - 1;
    match failure {
        "error" => layer.forward_training(&[1.0; 12][..if last { 5 } else { 12 }]).map(drop)?,
        "panic" if last => panic!("as requested"),
        "panic" => layer.forward_training(&[1.0; 12]).map(drop)?,
        _ => return Err(format!("expected no argument, `error` or `panic`, got `{failure}`").into()),
    }
    Ok(())
}

/// The largest of all ranks' values, one by one.
fn max_of_all<const N: usize>(world: &SimpleCommunicator, own: [f64; N]) -> [f64; N] {
    let mut all = [0.0; N];
    world.all_reduce_into(&own[..], &mut all[..], SystemOperation::max());
    all
}

/// The sum of all ranks' values, one by one, in an order that MPI chooses.
fn sum_of_all<T: Equivalence + Copy + Default, const N: usize>(world: &SimpleCommunicator, own: [T; N]) -> [T; N] {
    let mut all = [T::default(); N];
    world.all_reduce_into(&own[..], &mut all[..], SystemOperation::sum());
    all
}
