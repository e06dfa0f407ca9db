//! A layer whose batch is spread over the processes of a group.
//!
//! A rank may have any number of blocks, also none. It merges the statistics of its blocks in the tree that then goes on
//! over the ranks. So if blocks line up, the number of ranks does not change a bit: every rank has the same power of two
//! of blocks, but the last one that has any may have fewer.

use crate::group::{Group, Part, merge_tree};
use batchnorm as bn;

/// The weight of a new batch in the running statistics.
const MOMENTUM: bn::Momentum = bn::Momentum::Exponential(0.1);

pub(crate) struct Layer<'a> {
    group: &'a Group,
    block: bn::BatchNorm,
    affine: bn::Affine<'a, f32>,
    /// The same on every rank.
    running: bn::RunningStatistics,
}

/// What a backward pass gives.
pub(crate) struct Gradients {
    pub(crate) dx: Vec<f32>,
    /// This rank's share, like that of any other parameter: an engine adds these gradients over all ranks anyway. One
    /// that does not would pass the merged sums to `parameter_gradients`, without another exchange.
    pub(crate) dgamma: Vec<f32>,
    pub(crate) dbeta: Vec<f32>,
}

impl<'a> Layer<'a> {
    /// A layer for batches that consist of blocks of this shape.
    pub(crate) fn new(group: &'a Group, block: bn::Shape, affine: bn::Affine<'a, f32>) -> Self {
        let running = bn::RunningStatistics::new(block.channels());
        Self { group, block: bn::BatchNorm::new(block), affine, running }
    }

    pub(crate) fn running(&self) -> &bn::RunningStatistics {
        &self.running
    }

    /// y and the statistics of the whole batch, from this rank's part of x.
    ///
    /// All that can be wrong with x is found before the exchange. A rank that fails must end the others, which wait for
    /// its message.
    pub(crate) fn forward_training(&mut self, x: &[f32]) -> Result<(Vec<f32>, bn::Statistics), bn::Error> {
        let plan = self.plan("x", x)?;
        let own =
            self.merge_blocks(x.chunks(self.block_len()), bn::Statistics::new, |x, own| self.block.statistics(x, own))?;
        let batch = self.group.merge(&own)?;
        // Of a batch with one value per channel no unbiased variance can be taken: all ranks fail together.
        self.running.update(&batch, MOMENTUM)?;
        let mut y = vec![0.0; x.len()];
        plan.normalize(x, &batch, self.affine, &mut y)?;
        Ok((y, batch))
    }

    /// The gradients of this rank's part, from its parts of x and dy and the statistics of the whole batch.
    pub(crate) fn backward(&self, x: &[f32], dy: &[f32], batch: &bn::Statistics) -> Result<Gradients, bn::Error> {
        let plan = self.plan("x", x)?;
        if dy.len() != x.len() {
            return Err(bn::Error::Length { argument: "dy", expected: x.len(), actual: dy.len() });
        }
        let blocks = x.chunks(self.block_len()).zip(dy.chunks(self.block_len()));
        let own = self.merge_blocks(blocks, bn::GradientSums::new, |(x, dy), own| {
            self.block.gradient_sums(x, dy, batch, self.affine, own)
        })?;
        let channels = self.block.shape().channels();
        let (mut dx, mut dgamma, mut dbeta) = (vec![0.0; x.len()], vec![0.0; channels], vec![0.0; channels]);
        plan.parameter_gradients(batch, &own, Some(&mut dgamma), Some(&mut dbeta))?;
        plan.input_gradient(x, dy, batch, &self.group.merge(&own)?, self.affine, &mut dx)?;
        Ok(Gradients { dx, dgamma, dbeta })
    }

    /// Elements of a block, and 1 if it has none, as nothing can be cut into parts of nothing.
    fn block_len(&self) -> usize {
        self.block.shape().len().max(1)
    }

    /// A plan for all blocks of this rank.
    fn plan(&self, argument: &'static str, x: &[f32]) -> Result<bn::BatchNorm, bn::Error> {
        let (shape, of) = (self.block.shape(), self.block_len());
        if !x.len().is_multiple_of(of) {
            return Err(bn::Error::Multiple { argument, of, actual: x.len() });
        }
        let outer = x.len() / of * shape.outer();
        Ok(self.block.reshape(bn::Shape::new(outer, shape.channels(), shape.inner())?))
    }

    /// Merges what `of_block` finds out about each block.
    fn merge_blocks<B, P: Part>(
        &self,
        blocks: impl Iterator<Item = B>,
        none: impl Fn(usize) -> P,
        of_block: impl Fn(B, &mut P) -> Result<(), bn::Error>,
    ) -> Result<P, bn::Error> {
        let none = || none(self.block.shape().channels());
        let len = none().pack().len();
        let mut messages = vec![];
        for block in blocks {
            let mut own = none();
            of_block(block, &mut own)?;
            messages.extend(own.pack());
        }
        if messages.is_empty() {
            return Ok(none());
        }
        merge_tree::<P>(&mut messages, len)?;
        P::unpack(&messages[..len])
    }
}
