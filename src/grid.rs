//! How a pass is cut into tiles, and the order in which they are walked.
//!
//! Positions are cut into *segments*, whose partial results are merged: where the cuts lie decides bits, so they
//! follow from the shape alone. Channels are cut into *groups*, which are independent of each other.

use crate::Shape;
use crate::kernels::{MAX_GROUP, Tile};
use crate::parallel::{Order, Threads};
use std::ops::Range;

/// Elements that a tile should have at least, to be worth a task of its own.
const TILE: usize = 1 << 17;
/// Rows that a segment of rows should have at least: what each channel costs once a segment takes as long as some tens of
/// values.
const SMALLEST_ROW_SEGMENT: usize = 256;
/// A segment of a channel's plane may be smaller where there are few channels: enough to keep many cores busy.
const SMALLEST_PLANE_SEGMENT: usize = 1 << 14;
/// Tasks that keep the cores of large machines busy.
const TASKS: usize = 256;
/// Bytes of a group of planes that is swept twice: the second sweep finds it in L2, as much as the prefetch for the next
/// group leaves there, or in L3. Passes that sweep once take larger groups, as neighbouring planes make longer runs for
/// the hardware to foresee.
const GROUP_BYTES: usize = 1 << 20;
/// As these, where the next group is summed beside the map: L2 has two, and what is written.
const BESIDE_BYTES: usize = 1 << 18;
/// Groups of planes that there should be, for threads to share.
const GROUPS: usize = 32;
/// Channels whose coefficients are one task, where they are not computed by the task that uses them.
const FINISH: usize = 512;

/// A step of a pass over a tile, given with the number of its segment.
pub(crate) type Reduce<'a> = dyn Fn(usize, Tile) + Sync + 'a;
/// A step of a pass over a range of channels.
pub(crate) type Finish<'a> = dyn Fn(Range<usize>) + Sync + 'a;
/// A tile, with how many elements after it the same thread's next work lies, if it is near.
pub(crate) type Mapped = (Tile, Option<usize>);
/// A step of a pass over a tile.
pub(crate) type MapTile<'a> = dyn Fn(Mapped) + Sync + 'a;
/// As [`Reduce`], and the map of a tile of as many channels beside it.
pub(crate) type Both<'a> = dyn Fn(usize, Tile, Mapped) + Sync + 'a;

#[derive(Clone, Copy, Debug)]
pub(crate) struct Grid {
    channels: usize,
    inner: usize,
    /// Positions in all.
    values: usize,
    /// Positions in a segment; the last may have fewer.
    segment: usize,
    /// Channels in a group; the last may have fewer.
    group: usize,
}

impl Grid {
    /// The cuts of a shape that has elements, for passes that sum. `again` is how many bytes at each element are read a
    /// second time, by a map, which is beside the sum of the next group or else after it.
    pub(crate) fn new(shape: Shape, again: usize, beside: bool) -> Self {
        let (channels, inner, values) = (shape.channels(), shape.inner(), shape.values_per_channel());
        let (segment, group) = if inner == 1 {
            let segments = values.div_ceil((TILE / channels).max(SMALLEST_ROW_SEGMENT)).min(TASKS);
            let segment = values.div_ceil(segments).next_multiple_of(8);
            // Whole rows, but where there are few and they are long.
            let group = (4 * TILE / segment).next_multiple_of(64).max(64);
            (segment, if group >= channels { channels } else { group })
        } else {
            let segments = TASKS.div_ceil(channels).min(values.div_ceil(SMALLEST_PLANE_SEGMENT)).max(1);
            let segment = values.div_ceil(segments);
            let segment = segment.next_multiple_of(if inner <= segment { inner } else { 128 });
            let bytes = if beside { BESIDE_BYTES } else { GROUP_BYTES };
            let group = bytes.checked_div(values * again).unwrap_or(MAX_GROUP);
            let group = group.min((channels / GROUPS).max(TILE / values));
            (segment, group.clamp(1, MAX_GROUP))
        };
        Self { channels, inner, values, segment, group }
    }

    /// The cuts for passes that only map: no sums are kept, so a tile may have any number of channels. It is contiguous:
    /// whole blocks of channels or, where one is too large to be a task, neighbouring planes or a part of a plane.
    pub(crate) fn for_map(shape: Shape) -> Self {
        let (channels, inner, values) = (shape.channels(), shape.inner(), shape.values_per_channel());
        let (segment, group) = match TILE / (channels * inner) {
            0 => (inner.min(TILE), (TILE / inner).clamp(1, channels)),
            blocks => (blocks * inner, channels),
        };
        Self { channels, inner, values, segment, group }
    }

    pub(crate) fn segments(&self) -> usize {
        self.values.div_ceil(self.segment)
    }

    pub(crate) fn tiles(&self) -> usize {
        self.groups() * self.segments()
    }

    fn groups(&self) -> usize {
        self.channels.div_ceil(self.group)
    }

    fn channels(&self, group: usize) -> Range<usize> {
        group * self.group..((group + 1) * self.group).min(self.channels)
    }

    pub(crate) fn positions(&self, segment: usize) -> Range<usize> {
        segment * self.segment..((segment + 1) * self.segment).min(self.values)
    }

    fn tile(&self, group: usize, segment: usize) -> Tile {
        Tile { channels: self.channels(group), positions: self.positions(segment) }
    }

    /// A pass: `reduce` every tile, given with the number of its segment, `finish` every channel, `map` every tile.
    ///
    /// Where there are enough groups for all threads, a task takes a group through all three, the map in the opposite
    /// direction, so that it finds in cache what the reduction left there. Where there is a step that does `both`, it reduces
    /// a group beside the map of the one before. Elsewhere each of the three is a parallel step.
    pub(crate) fn walk(
        &self,
        threads: (&Threads, usize),
        reduce: Option<&Reduce>,
        finish: &Finish,
        map: Option<&MapTile>,
        both: Option<&Both>,
    ) {
        let (threads, count) = threads;
        let (groups, segments) = (self.groups(), self.segments());
        if count == 1 || groups >= count.saturating_mul(4) {
            // Blocks of neighbours: while one group is mapped, memory is asked for the next.
            let block = (groups / count.saturating_mul(4)).max(1);
            threads.run(count, groups.div_ceil(block), Order::FirstFirst, &|b| {
                let last = ((b + 1) * block).min(groups) - 1;
                let mut reduced = false;
                for g in b * block..=last {
                    if let Some(reduce) = reduce.filter(|_| !reduced) {
                        (0..segments).for_each(|s| reduce(s, self.tile(g, s)));
                    }
                    finish(self.channels(g));
                    let next = (reduce.is_some() && g < last).then_some(self.group * self.inner);
                    reduced = both.is_some() && g < last && self.channels(g).len() == self.channels(g + 1).len();
                    if let Some(both) = both.filter(|_| reduced) {
                        (0..segments).for_each(|s| both(s, self.tile(g + 1, s), (self.tile(g, s), next)));
                    } else if let Some(map) = map {
                        (0..segments).rev().for_each(|s| map((self.tile(g, s), next)));
                    }
                }
            });
            return;
        }
        let tiles = self.tiles();
        if let Some(reduce) = reduce {
            threads.run(count, tiles, Order::FirstFirst, &|t| {
                reduce(t % segments, self.tile(t / segments, t % segments));
            });
        }
        let chunks = self.channels.div_ceil(FINISH);
        threads.run(count, chunks, Order::FirstFirst, &|k| finish(k * FINISH..((k + 1) * FINISH).min(self.channels)));
        if let Some(map) = map {
            threads.run(count, tiles, Order::LastFirst, &|t| {
                map((self.tile(t / segments, t % segments), None));
            });
        }
    }
}
