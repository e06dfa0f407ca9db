//! What ranks know about their parts of a batch becomes what they know about all of it.
//!
//! Parts are merged in a binary tree over the ranks, whose order is fixed: rank 0 with 1, 2 with 3, and so on, then the
//! pairs with each other. So all ranks get the same bits, in every run, and by whichever of the two ways.

use batchnorm as bn;
use mpi::topology::SimpleCommunicator;
use mpi::traits::{Communicator, CommunicatorCollectives, Destination, Root, Source};
use std::cell::Cell;

/// How messages travel. Both ways give the same bits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Exchange {
    /// One collective: everyone receives the messages of all and merges them on its own. Its time grows with the number
    /// of ranks.
    AllGather,
    /// Up the tree and back by a broadcast. Its time grows with the logarithm of the number of ranks.
    Tree,
}

/// What is known about a part of a batch, as a message of f64.
pub(crate) trait Part: Sized {
    fn pack(&self) -> Vec<f64>;
    /// Makes `message` that of its part and the other one together.
    fn merge_into(message: &mut [f64], other: &[f64]) -> Result<(), bn::Error>;
    fn unpack(message: &[f64]) -> Result<Self, bn::Error>;
}

/// 2C + 1 values: the count, and the mean and variance of each channel.
impl Part for bn::Statistics {
    fn pack(&self) -> Vec<f64> {
        [&[self.count()], self.mean(), self.var()].concat()
    }

    fn merge_into(message: &mut [f64], other: &[f64]) -> Result<(), bn::Error> {
        let (count, own) = message.split_at_mut(1);
        let (mean, var) = own.split_at_mut(own.len() / 2);
        let mut both = bn::Statistics::from_parts(count[0], mean, var)?;
        let (mean, var) = other[1..].split_at(other.len() / 2);
        both.merge(&bn::Statistics::from_parts(other[0], mean, var)?)?;
        count[0] = both.count();
        Ok(())
    }

    fn unpack(message: &[f64]) -> Result<Self, bn::Error> {
        let (mean, var) = message[1..].split_at(message.len() / 2);
        Self::from_parts(message[0], mean.to_vec(), var.to_vec())
    }
}

/// 2C values: Σg and Σg·(x − mean) of each channel.
impl Part for bn::GradientSums {
    fn pack(&self) -> Vec<f64> {
        [self.g(), self.gx()].concat()
    }

    fn merge_into(message: &mut [f64], other: &[f64]) -> Result<(), bn::Error> {
        let (g, gx) = message.split_at_mut(message.len() / 2);
        let (other_g, other_gx) = other.split_at(other.len() / 2);
        bn::GradientSums::from_parts(g, gx)?.merge(&bn::GradientSums::from_parts(other_g, other_gx)?)
    }

    fn unpack(message: &[f64]) -> Result<Self, bn::Error> {
        let (g, gx) = message.split_at(message.len() / 2);
        Self::from_parts(g.to_vec(), gx.to_vec())
    }
}

/// Merges messages of `len` values, which follow each other, into the first of them.
pub(crate) fn merge_tree<P: Part>(messages: &mut [f64], len: usize) -> Result<(), bn::Error> {
    let mut step = len;
    while step < messages.len() {
        for pair in messages.chunks_mut(2 * step).filter(|pair| pair.len() > step) {
            let (left, right) = pair.split_at_mut(step);
            P::merge_into(&mut left[..len], &right[..len])?;
        }
        step *= 2;
    }
    Ok(())
}

/// The processes that hold the parts of a batch.
pub(crate) struct Group {
    pub(crate) world: SimpleCommunicator,
    pub(crate) exchange: Exchange,
    /// Bytes that were sent and received, without what the library adds.
    pub(crate) traffic: Cell<[usize; 2]>,
}

impl Group {
    pub(crate) fn new(world: SimpleCommunicator, exchange: Exchange) -> Self {
        Self { world, exchange, traffic: Cell::default() }
    }

    pub(crate) fn rank(&self) -> usize {
        self.world.rank() as usize
    }

    pub(crate) fn ranks(&self) -> usize {
        self.world.size() as usize
    }

    /// Merges the parts of all ranks; each must call it, with as many channels.
    pub(crate) fn merge<P: Part>(&self, own: &P) -> Result<P, bn::Error> {
        let mut message = own.pack();
        match self.exchange {
            Exchange::AllGather => self.all_gather::<P>(&mut message)?,
            Exchange::Tree => self.tree::<P>(&mut message)?,
        }
        P::unpack(&message)
    }

    fn all_gather<P: Part>(&self, message: &mut [f64]) -> Result<(), bn::Error> {
        let mut all = vec![0.0; message.len() * self.ranks()];
        self.world.all_gather_into(message, &mut all[..]);
        self.count(message.len(), all.len() - message.len());
        merge_tree::<P>(&mut all, message.len())?;
        message.copy_from_slice(&all[..message.len()]);
        Ok(())
    }

    fn tree<P: Part>(&self, message: &mut [f64]) -> Result<(), bn::Error> {
        let (rank, ranks, len) = (self.rank(), self.ranks(), message.len());
        let mut other = vec![0.0; len];
        let mut step = 1;
        // A rank merges what its right neighbours on each level have, until it is a right neighbour itself.
        while step < ranks && rank % (2 * step) == 0 {
            if rank + step < ranks {
                self.world.process_at_rank((rank + step) as i32).receive_into(&mut other[..]);
                self.count(0, len);
                P::merge_into(message, &other)?;
            }
            step *= 2;
        }
        if rank > 0 {
            self.world.process_at_rank((rank - step) as i32).send(message);
            self.count(len, len);
        } else {
            self.count(len, 0);
        }
        self.world.process_at_rank(0).broadcast_into(message);
        Ok(())
    }

    fn count(&self, sent: usize, received: usize) {
        let [all_sent, all_received] = self.traffic.get();
        self.traffic.set([all_sent + 8 * sent, all_received + 8 * received]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Messages whose merge shows its order.
    struct Order;

    impl Part for Order {
        fn pack(&self) -> Vec<f64> {
            vec![]
        }
        fn merge_into(message: &mut [f64], other: &[f64]) -> Result<(), bn::Error> {
            message[0] = 10.0 * (message[0] - other[0]);
            Ok(())
        }
        fn unpack(_: &[f64]) -> Result<Self, bn::Error> {
            Ok(Self)
        }
    }

    #[test]
    fn neighbours_merge_first() -> Result<(), bn::Error> {
        let merged = |parts: &[f64]| {
            let mut messages: Vec<f64> = parts.iter().flat_map(|&part| [part, -1.0]).collect();
            merge_tree::<Order>(&mut messages, 2).map(|()| messages.first().copied())
        };
        assert_eq!(merged(&[])?, None);
        assert_eq!(merged(&[3.0])?, Some(3.0));
        assert_eq!(merged(&[3.0, 1.0])?, Some(20.0));
        assert_eq!(merged(&[3.0, 1.0, 5.0])?, Some(150.0));
        assert_eq!(merged(&[3.0, 1.0, 5.0, 4.0])?, Some(100.0));
        assert_eq!(merged(&[3.0, 1.0, 5.0, 4.0, 2.0])?, Some(980.0));
        Ok(())
    }

    #[test]
    fn messages_without_channels() -> Result<(), bn::Error> {
        let mut message = bn::Statistics::new(0).pack();
        assert_eq!(message, [0.0]);
        merge_tree::<bn::Statistics>(&mut message, 1)?;
        merge_tree::<bn::GradientSums>(&mut [], 0)?;
        assert_eq!(bn::GradientSums::unpack(&[])?.channels(), 0);
        Ok(())
    }

    #[test]
    fn invalid_messages_are_errors() {
        let mut message = [1.0, 2.0, 3.0];
        assert_eq!(
            bn::Statistics::merge_into(&mut message, &[1.0, 2.0, -3.0]),
            Err(bn::Error::Variance { channel: 0, value: -3.0 })
        );
        assert_eq!(bn::Statistics::unpack(&[-1.0, 2.0, 3.0]), Err(bn::Error::Count(-1.0)));
        assert_eq!(message, [1.0, 2.0, 3.0]);
    }
}
