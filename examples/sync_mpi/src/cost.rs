//! Bytes and time of an exchange: measured, and by a model that reaches to more ranks than this machine has cores.

use crate::group::{Exchange, Group, Part, merge_tree};
use crate::{Error, max_of_all};
use batchnorm as bn;
use mpi::topology::SimpleCommunicator;
use mpi::traits::{Communicator, CommunicatorCollectives, Destination, Source};
use std::time::Instant;

/// Channels of layers, as ResNet-50 has them.
const LAYERS: [usize; 4] = [64, 256, 512, 2048];
/// All layers of ResNet-50: how many, and their channels together.
const RESNET_50: (usize, usize) = (53, 26_560);

/// What it costs to bring a message from one rank to another.
#[derive(Clone, Copy)]
struct Link {
    /// Seconds of a message of few bytes.
    latency: f64,
    /// Seconds per byte.
    byte: f64,
}

impl Link {
    /// Seconds to exchange messages of `len` values of f64.
    ///
    /// An all-gather has ⌈log₂ R⌉ steps; each rank receives R − 1 messages and merges as many. The tree has twice as
    /// many steps, up and down, with one message each, of which it merges those on the way up.
    fn seconds(self, exchange: Exchange, ranks: usize, len: f64, work: Work) -> f64 {
        let (levels, others) = ((ranks as f64).log2().ceil(), (ranks - 1) as f64);
        let [transfer, merge, own] = [8.0 * self.byte, work.merge, work.own].map(|seconds| len * seconds);
        own + match exchange {
            Exchange::AllGather => levels * self.latency + others * (transfer + merge),
            Exchange::Tree => levels * (2.0 * (self.latency + transfer) + merge),
        }
    }
}

/// Seconds of a rank per value of a message.
#[derive(Clone, Copy)]
struct Work {
    /// To merge it with another.
    merge: f64,
    /// To pack the own message and to unpack the merged one.
    own: f64,
}

impl Work {
    fn measure<P: Part>(own: &P) -> Result<Self, Error> {
        let group = Group::new(SimpleCommunicator::self_comm(), Exchange::AllGather);
        let alone = median(&group.world, || group.merge(own).map(drop))?;
        Ok(Self { merge: merge_seconds(own)?, own: alone / own.pack().len() as f64 })
    }
}

/// Measures exchanges of all ranks, and compares them with the model.
pub(crate) fn run(world: &SimpleCommunicator) -> Result<(), Error> {
    let groups = [Exchange::AllGather, Exchange::Tree].map(|e| Group::new(SimpleCommunicator::world(), e));
    let (first, ranks) = (world.rank() == 0, groups[0].ranks());
    // The cost per value hardly depends on the number of parts, from 2 to 1000.
    let works = [Work::measure(&statistics(512)?)?, Work::measure(&bn::GradientSums::new(512))?];
    if first {
        let [forward, backward] = works.map(|work| 2e9 * work.merge);
        println!("merging takes {forward:.1} ns per channel and message forward, {backward:.1} ns backward");
    }
    if ranks > 1 {
        let (small, large) = (message_seconds(world, 1)?, message_seconds(world, 1 << 17)?);
        let link = Link { latency: small, byte: (large - small) / f64::from(1 << 20) };
        // Unless mpirun binds each rank to a core.
        let cores = std::thread::available_parallelism()?.get();
        let turns = (ranks as f64 / cores as f64).max(1.0);
        if first {
            println!(
                "a message of 8 bytes takes {:.2} µs, and 1 MB moves at {:.1} GB/s",
                1e6 * small,
                1e-9 / link.byte
            );
            println!(
                "one layer forward: most bytes that a rank sends and receives, median time, and the model on {cores} cores"
            );
            println!("    channels  way           sent  received  median µs  model µs");
        }
        for channels in LAYERS {
            let own = statistics(channels)?;
            for group in &groups {
                group.traffic.set([0; 2]);
                let seconds = median(world, || group.merge(&own).map(drop))?;
                let [sent, received] = group.traffic.get().map(|bytes| (bytes / REPEATS) as f64);
                let [sent, received, seconds] = max_of_all(world, [sent, received, seconds]);
                let model = turns * link.seconds(group.exchange, ranks, own.pack().len() as f64, works[0]);
                if first {
                    let way = format!("{:?}", group.exchange);
                    println!(
                        "    {channels:8}  {way:9} {sent:8} {received:9} {:10.1} {:9.1}",
                        1e6 * seconds,
                        1e6 * model
                    );
                }
            }
        }
    }
    if first {
        println!();
        predict(works);
    }
    Ok(())
}

/// Prints what the model says about ResNet-50 on other machines than this one, one core per rank.
fn predict(works: [Work; 2]) {
    let (layers, channels) = RESNET_50;
    println!("model: the {layers} layers of ResNet-50, {channels} channels, forward and backward, ms per step");
    println!("                          10 Gb/s, 20 µs         100 Gb/s, 2 µs");
    println!("    ranks  MB received  all-gather    tree      all-gather    tree");
    let links = [[20e-6, 1.0 / 1.25e9], [2e-6, 1.0 / 12.5e9]].map(|[latency, byte]| Link { latency, byte });
    // Of the mean layer: all terms of the model are linear in its size.
    let lens = [2 * channels + layers, 2 * channels].map(|values| values as f64 / layers as f64);
    for ranks in [2, 4, 8, 16, 32, 64, 128, 256, 512, 1000] {
        let step = |link: Link, exchange| -> f64 {
            let passes = lens.iter().zip(works);
            1e3 * layers as f64 * passes.map(|(&len, work)| link.seconds(exchange, ranks, len, work)).sum::<f64>()
        };
        let received = (ranks - 1) as f64 * 8e-6 * layers as f64 * lens.iter().sum::<f64>();
        let [slow, fast] = links.map(|link| [Exchange::AllGather, Exchange::Tree].map(|e| step(link, e)));
        println!("    {ranks:5} {received:12.1} {:11.1} {:7.1} {:15.1} {:7.1}", slow[0], slow[1], fast[0], fast[1]);
    }
}

fn statistics(channels: usize) -> Result<bn::Statistics, bn::Error> {
    bn::Statistics::from_parts(4.0, vec![0.5; channels], vec![2.0; channels])
}

const REPEATS: usize = 301;

/// The median time of `call`, which all ranks enter together.
fn median(world: &SimpleCommunicator, mut call: impl FnMut() -> Result<(), bn::Error>) -> Result<f64, bn::Error> {
    let mut times = [0.0; REPEATS];
    for time in &mut times {
        world.barrier();
        let start = Instant::now();
        call()?;
        *time = start.elapsed().as_secs_f64();
    }
    times.sort_by(f64::total_cmp);
    Ok(times[REPEATS / 2])
}

/// The time of a message of `len` values of f64 from rank 0 to rank 1: half of that there and back.
fn message_seconds(world: &SimpleCommunicator, len: usize) -> Result<f64, bn::Error> {
    let mut message = vec![0.0; len];
    let there_and_back = median(world, || {
        match world.rank() {
            0 => {
                world.process_at_rank(1).send(&message[..]);
                world.process_at_rank(1).receive_into(&mut message[..]);
            }
            1 => {
                world.process_at_rank(0).receive_into(&mut message[..]);
                world.process_at_rank(0).send(&message[..]);
            }
            _ => {}
        }
        Ok(())
    })?;
    Ok(max_of_all(world, [there_and_back / 2.0])[0])
}

/// The time to merge one value of a message, among 100 of them.
fn merge_seconds<P: Part>(own: &P) -> Result<f64, bn::Error> {
    let own = own.pack();
    let mut times = [0.0; 31];
    for time in &mut times {
        let mut messages = own.repeat(100);
        let start = Instant::now();
        merge_tree::<P>(&mut messages, own.len())?;
        *time = start.elapsed().as_secs_f64() / (99 * own.len()) as f64;
    }
    times.sort_by(f64::total_cmp);
    Ok(times[times.len() / 2])
}
