//! How a pass is cut into tiles, and the order in which they are walked.
//!
//! Positions are cut into *segments*, whose partial results are merged: the cuts decide bits, so they follow from the
//! shape alone. Channels are cut into *groups*, which are independent of each other.

use super::arrays::Window;
use super::scratch::Scratch;
use super::walked::MAX_COLUMNS;
use crate::kernels::tile::{MAX_GROUP, Tile};
use crate::parallel::{Order, Threads};
use crate::shape::Shape;
use std::ops::Range;

/// Elements that a tile should have at least, to be worth a task of its own.
const TILE_ELEMENTS: usize = 1 << 17;
/// Rows that a segment of rows should have at least: the cost of each channel per segment is that of some tens of
/// values.
const SMALLEST_ROW_SEGMENT: usize = 256;
/// Positions of a segment of planes, which may be smaller if there are few channels: enough to keep many cores busy.
const SMALLEST_PLANE_SEGMENT: usize = 1 << 14;
/// Tasks that keep the cores of large machines busy.
const TASKS: usize = 256;
/// The most segments of a channel.
pub(super) const MOST_SEGMENTS: usize = TASKS;
/// Into how many groups like it L2 is divided if the next group is reduced while one is mapped: it holds both and the
/// output. A group that is swept twice on its own may fill L2: the second sweep finds as much of it there as
/// prefetching for the next group leaves, and the rest in L3. Passes that sweep once take larger groups, as
/// neighbouring planes make longer runs for the hardware prefetcher.
const INTERLEAVED_SHARE: usize = 4;
/// Groups of planes that there should be, for threads to share.
const GROUPS: usize = 32;
/// Channels of a group that is mapped if they have few values, of which their coefficients would be a tenth.
const FEW_VALUES: usize = 400;
const FEW_VALUES_GROUP: usize = 256;
/// Channels whose coefficients are one task, unless the task that uses them computes them.
const FINISH_CHANNELS: usize = 512;

/// A tile to map.
pub(super) struct MapTile {
    pub(super) tile: Tile,
    /// How many elements after it the same thread's next work lies, if that is near.
    pub(super) prefetch_distance: Option<usize>,
}

/// The steps of a pass. `reduce` and `map` work on a tile each; `prepare` makes the coefficients of the reduction, and
/// `finish` those of the map, from what the segments of a range of columns were reduced to. A pass that only maps has the
/// last two. What a step leaves for the next one is in a window: memory for the columns of a group, or for all.
pub(super) trait Steps: Sync {
    /// Whether the pass reduces.
    fn reduces(&self) -> bool {
        false
    }
    /// Whether it maps.
    fn maps(&self) -> bool {
        true
    }
    /// Whether it can reduce one tile while it maps another of as many channels.
    fn interleaves(&self) -> bool {
        false
    }
    /// The length of a window of memory for so many columns.
    fn window(&self, columns: usize) -> usize;
    fn prepare(&self, _columns: Range<usize>, _window: &Window) {}
    fn reduce(&self, _segment: usize, _tile: Tile, _window: &Window) {}
    /// The two tiles have windows of their own.
    fn reduce_and_map(&self, _segment: usize, _reduce: (Tile, &Window), _map: (MapTile, &Window)) {}
    fn finish(&self, columns: Range<usize>, window: &Window);
    fn map(&self, tile: MapTile, window: &Window);
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Grid {
    channels: usize,
    inner: usize,
    /// Positions in total.
    values: usize,
    /// Positions in a segment; the last may have fewer.
    segment: usize,
    /// Channels in a group; the last may have fewer.
    group: usize,
    /// Whether the pass only maps, so that no cut decides bits.
    only_maps: bool,
}

impl Grid {
    /// The cuts of a shape that has elements, for passes that reduce. `read_again` is how many bytes per element the
    /// map reads a second time; it is interleaved with the reduction of the next group, or runs after that of its
    /// own. L2 has so many bytes.
    pub(super) fn new(shape: Shape, read_again: usize, interleaved: bool, l2: usize) -> Self {
        let (channels, inner, values) = (shape.channels(), shape.inner(), shape.values_per_channel());
        let (segment, group) = if inner == 1 {
            let segments = values.div_ceil((TILE_ELEMENTS / channels).max(SMALLEST_ROW_SEGMENT)).min(TASKS);
            let halves = values >= SMALLEST_ROW_SEGMENT && values * channels >= TILE_ELEMENTS / 2;
            let segments = segments.max(if halves { 2 } else { 1 });
            let segment = values.div_ceil(segments).next_multiple_of(8);
            // Whole rows, unless there are few and they are long, which those of narrow rows that are walked together
            // are not.
            let group = (4 * TILE_ELEMENTS / segment).next_multiple_of(64).max(MAX_COLUMNS.next_multiple_of(64));
            (segment, if group >= channels { channels } else { group })
        } else {
            let segments = TASKS.div_ceil(channels).min(values.div_ceil(SMALLEST_PLANE_SEGMENT)).max(1);
            let segment = values.div_ceil(segments);
            let segment = segment.next_multiple_of(if inner <= segment { inner } else { 128 });
            let bytes = if interleaved { l2 / INTERLEAVED_SHARE } else { l2 };
            let group = bytes.checked_div(values * read_again).unwrap_or(MAX_GROUP);
            let group = group.min((channels / GROUPS).max(TILE_ELEMENTS / values));
            (segment, group.clamp(1, MAX_GROUP))
        };
        Self { channels, inner, values, segment, group, only_maps: false }
    }

    /// The cuts for passes that only map: no sums are kept, so a tile may have any number of channels. It is
    /// contiguous: whole blocks of channels or, if one is too large to be a task, neighbouring planes or a part of
    /// a plane.
    pub(super) fn for_map(shape: Shape) -> Self {
        let (channels, inner, values) = (shape.channels(), shape.inner(), shape.values_per_channel());
        let (segment, group) = match TILE_ELEMENTS / (channels * inner) {
            0 => (inner.min(TILE_ELEMENTS), (TILE_ELEMENTS / inner).clamp(1, channels)),
            blocks => (blocks * inner, channels),
        };
        let group = if inner > 1 && values < FEW_VALUES { group.min(FEW_VALUES_GROUP) } else { group };
        Self { channels, inner, values, segment, group, only_maps: true }
    }

    /// With enough tiles for so many threads, if that can be done without changing bits.
    pub(super) fn for_threads(mut self, count: usize) -> Self {
        let tasks = count.saturating_mul(2);
        if count == 1 || self.tiles() >= tasks {
            return self;
        }
        if self.only_maps && self.group == self.channels {
            let blocks = self.values / self.inner;
            self.segment = blocks.div_ceil(tasks) * self.inner;
        } else if self.inner > 1 {
            let groups = tasks.div_ceil(self.segments());
            self.group = self.channels.div_ceil(groups).min(self.group);
        }
        self
    }

    pub(super) fn segments(&self) -> usize {
        self.values.div_ceil(self.segment)
    }

    pub(super) fn tiles(&self) -> usize {
        self.groups() * self.segments()
    }

    fn groups(&self) -> usize {
        self.channels.div_ceil(self.group)
    }

    fn channels(&self, group: usize) -> Range<usize> {
        group * self.group..((group + 1) * self.group).min(self.channels)
    }

    pub(super) fn positions(&self, segment: usize) -> Range<usize> {
        segment * self.segment..((segment + 1) * self.segment).min(self.values)
    }

    fn tile(&self, group: usize, segment: usize) -> Tile {
        Tile { channels: self.channels(group), positions: self.positions(segment) }
    }

    /// Whether groups are walked one after the other, by so many threads.
    fn walks_groups(&self, count: usize) -> bool {
        count == 1 || self.groups() >= count.saturating_mul(4)
    }

    /// Columns of a window, and how many windows a pass on so many threads has.
    pub(super) fn windows(&self, count: usize, interleaves: bool) -> [usize; 2] {
        if self.walks_groups(count) {
            // Blocks of groups are tasks of threads.
            let tasks = count.min(self.groups());
            [self.group.min(self.channels), tasks * if interleaves { 2 } else { 1 }]
        } else {
            [self.channels, 1]
        }
    }

    /// Runs a pass: reduces every tile, given with the number of its segment, finishes every channel, maps every tile.
    ///
    /// If there are enough groups for all threads, a task takes a group through all three, the map in the opposite
    /// direction, so that it finds in cache what the reduction left there. If the pass interleaves, the task reduces a
    /// group while it maps the one before. Otherwise each of the three is a parallel step.
    pub(super) fn walk(&self, threads: &Threads, scratch: &Scratch, count: usize, steps: &dyn Steps) {
        let (groups, segments) = (self.groups(), self.segments());
        let [columns, _] = self.windows(count, steps.interleaves());
        let len = steps.window(columns);
        if self.walks_groups(count) {
            // Blocks of neighbours: while one group is mapped, the next is prefetched.
            let block = (groups / count.saturating_mul(4)).max(1);
            let blocks = groups.div_ceil(block);
            threads.pass(count.min(blocks), &mut |crew| {
                crew.run(blocks, Order::FirstFirst, &|b| {
                    let mut buffers = [Some(scratch.window(len)), steps.interleaves().then(|| scratch.window(len))];
                    let [memory, second] = buffers.each_mut().map(|b| b.as_mut().map(|b| b.take(len)));
                    let memory = [memory, second.or(memory)].map(|p| p.unwrap_or_default());
                    self.walk_groups(b * block..((b + 1) * block).min(groups), memory, steps);
                });
            });
            return;
        }
        let tiles = self.tiles();
        let tile = |t: usize| self.tile(t / segments, t % segments);
        let chunks = self.channels.div_ceil(FINISH_CHANNELS);
        let mut buffer = scratch.window(len);
        let window = Window::new(buffer.take(len), 0, self.channels);
        threads.pass(count.min(tiles), &mut |crew| {
            if steps.reduces() {
                steps.prepare(0..self.channels, &window);
                crew.run(tiles, Order::FirstFirst, &|t| steps.reduce(t % segments, tile(t), &window));
            }
            crew.run(chunks, Order::FirstFirst, &|k| {
                steps.finish(k * FINISH_CHANNELS..((k + 1) * FINISH_CHANNELS).min(self.channels), &window);
            });
            if steps.maps() {
                crew.run(tiles, Order::LastFirst, &|t| {
                    steps.map(MapTile { tile: tile(t), prefetch_distance: None }, &window);
                });
            }
        });
    }

    /// Takes neighbouring groups through all steps, each with one of two windows in turn, which may be the same.
    fn walk_groups(&self, groups: Range<usize>, memory: [*mut f64; 2], steps: &dyn Steps) {
        let segments = self.segments();
        let last = groups.end - 1;
        let window = |g: usize| Window::new(memory[g % 2], g * self.group, self.group.min(self.channels));
        let mut reduced = false;
        for g in groups {
            let own = window(g);
            if steps.reduces() && !reduced {
                steps.prepare(self.channels(g), &own);
                (0..segments).for_each(|s| steps.reduce(s, self.tile(g, s), &own));
            }
            steps.finish(self.channels(g), &own);
            let prefetch_distance = (steps.reduces() && g < last).then_some(self.group * self.inner);
            let map_tile = |s| MapTile { tile: self.tile(g, s), prefetch_distance };
            reduced = steps.interleaves() && g < last && self.channels(g).len() == self.channels(g + 1).len();
            if reduced {
                let next = window(g + 1);
                for s in 0..segments {
                    steps.reduce_and_map(s, (self.tile(g + 1, s), &next), (map_tile(s), &own));
                }
            } else if steps.maps() {
                (0..segments).rev().for_each(|s| steps.map(map_tile(s), &own));
            }
        }
    }
}
