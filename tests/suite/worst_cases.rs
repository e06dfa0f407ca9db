//! How close do errors come to the bounds of docs/numerics.md? A search for the worst cases, in every element type and
//! for every quantity: random settings first, then small changes to the worst of them, as long as they make it worse.
//!
//! A search follows from its number, which is printed. `WORST_CASES=123..124 cargo test --test suite worst_cases --
//! --nocapture` repeats one, and a larger range finds worse cases.

use crate::common::*;
use crate::invertible;
use batchnorm::{Activation, RunningStatistics, Threads, reference};
use std::fmt::Debug;
use std::ops::Range;

/// The searches of an ordinary run.
const SEARCHES: Range<u64> = 0..64;
/// The random settings that a search starts from, and the changes that it tries.
const STARTS: usize = 10;
const CHANGES: usize = 1000;

/// What a search makes as large as it can.
const QUANTITIES: [&str; 8] = ["mean", "var", "y", "dbeta", "dgamma", "dx", "dresidual", "x̂"];

/// How the values of an array are distributed, before they are multiplied by its size.
#[derive(Clone, Copy, Debug)]
enum Pattern {
    Normal,
    Uniform,
    Signs,
    HeavyTails,
    /// 0 for most values.
    Sparse,
    /// Of dy: 0 unless x is next to the mean.
    Near,
}

const PATTERNS: [Pattern; 6] =
    [Pattern::Normal, Pattern::Uniform, Pattern::Signs, Pattern::HeavyTails, Pattern::Sparse, Pattern::Near];

impl Pattern {
    fn value(self, random: &mut Random) -> f64 {
        match self {
            Self::Normal | Self::Near => random.normal(),
            Self::Uniform => random.uniform(),
            Self::Signs => [1.0, -1.0][random.below(2)],
            Self::HeavyTails => random.normal() / random.normal(),
            Self::Sparse => random.normal() * [1.0, 0.0, 0.0, 0.0][random.below(4)],
        }
    }
}

/// The inputs of a step, each with a size of its own.
const ARRAYS: usize = 5;
const X: usize = 0;
const DY: usize = 1;
const RESIDUAL: usize = 2;
const GAMMA: usize = 3;
const BETA: usize = 4;

/// What is printed of a case.
#[derive(Clone, Copy, Debug)]
struct Settings {
    seed: u64,
    extents: (usize, usize, usize),
    activation: Activation,
    residual: bool,
    weighting: Weighting,
    /// Whether statistics are constants.
    running: bool,
    eps: f64,
    /// The binary exponents of the arrays' sizes. That of x is its standard deviation.
    sizes: [f64; ARRAYS],
    /// The binary exponent of mean/std.
    offset: f64,
    /// Those of x and dy.
    patterns: [Pattern; 2],
}

/// A factor for one element of an array, which it does not make much smaller than the array's size.
#[derive(Clone, Copy)]
struct Change {
    array: usize,
    at: usize,
    factor: f64,
}

/// Settings, of which the inputs follow, and changes to these.
#[derive(Clone)]
struct Case {
    settings: Settings,
    changes: Vec<Change>,
}

/// Which settings a search may choose.
#[derive(Clone, Copy, Debug)]
struct Scope {
    fused: bool,
    /// Values, parameters and eps near the ends of the range.
    ends: bool,
}

impl Scope {
    fn title(self) -> &'static str {
        match (self.fused, self.ends) {
            (false, false) => "plain",
            (true, false) => "fused",
            (false, true) => "plain, near the ends of the range",
            (true, true) => "fused, near the ends of the range",
        }
    }

    /// The exponent of an array's size: anything in this range, or next to one end. Squares of f64 must not leave its
    /// range.
    fn sizes<T: Number>(self, array: usize) -> [f64; 2] {
        match array {
            _ if !self.ends => [-6.0, 6.0],
            _ if size_of::<T>() == 8 => [-450.0, 450.0],
            GAMMA | BETA => [-149.0, 127.0],
            _ => [T::SMALLEST_SUBNORMAL.log2(), T::LARGEST.log2() - 1.0],
        }
    }

    fn size<T: Number>(self, random: &mut Random, array: usize) -> f64 {
        let [smallest, largest] = self.sizes::<T>(array);
        let part = random.uniform();
        match random.below(4) {
            0 => 12.0 * part - 6.0,
            1 => smallest + 8.0 * part,
            2 => largest - 8.0 * part,
            _ => smallest + (largest - smallest) * part,
        }
    }

    fn eps(self, random: &mut Random) -> f64 {
        let any = 2f64.powf(random.uniform() * 300.0 - 280.0);
        [0.0, 1e-5, 1.0, if self.ends { any } else { 1e-3 }][random.below(4)]
    }

    fn activation(self, random: &mut Random) -> Activation {
        let slope = Activation::LeakyRelu(2f64.powf(16.0 * random.uniform() - 8.0));
        if self.fused {
            [ACTIVATIONS[0], ACTIVATIONS[1], slope, ACTIVATIONS[3]][random.below(4)]
        } else {
            ACTIVATIONS[0]
        }
    }

    fn settings<T: Number>(self, random: &mut Random) -> Settings {
        let mut sizes = [0.0; ARRAYS];
        (0..ARRAYS).for_each(|array| sizes[array] = self.size::<T>(random, array));
        Settings {
            seed: random.next_u64(),
            extents: extents(random),
            activation: self.activation(random),
            residual: self.fused && random.below(2) == 0,
            weighting: if self.fused { WEIGHTINGS[random.below(3)] } else { Weighting::Absent },
            running: random.below(4) == 0,
            eps: self.eps(random),
            sizes,
            offset: offset(random),
            patterns: [PATTERNS[random.below(5)], PATTERNS[random.below(6)]],
        }
    }
}

/// Mostly few values, of which a change reaches each more often.
fn extents(random: &mut Random) -> (usize, usize, usize) {
    let values = 2f64.powf(1.0 + 7.0 * random.uniform().powi(2)) as usize;
    let channels = 1 + random.below(3);
    match random.below(3) {
        0 => (values, channels, 1),
        1 => (1, channels, values),
        _ => (1 + random.below(4), channels, 1 + values / 2),
    }
}

fn offset(random: &mut Random) -> f64 {
    [-2.0, -2.0, 19.9, 19.9 * random.uniform()][random.below(4)]
}

impl Case {
    fn new<T: Number>(scope: Scope, random: &mut Random) -> Self {
        Self { settings: scope.settings::<T>(random), changes: vec![] }
    }

    /// A case next to this one.
    fn changed<T: Number>(&self, scope: Scope, random: &mut Random) -> Self {
        let mut case = self.clone();
        let (settings, other) = (&mut case.settings, scope.settings::<T>(random));
        match random.below(16) {
            0 => settings.seed = other.seed,
            1 => settings.extents = other.extents,
            2 => (settings.activation, settings.eps) = (other.activation, other.eps),
            3 => (settings.residual, settings.weighting) = (other.residual, other.weighting),
            4 => settings.patterns = other.patterns,
            5 => settings.running = other.running,
            6 => settings.offset = other.offset,
            7 => {
                let array = random.below(ARRAYS);
                let [smallest, largest] = scope.sizes::<T>(array);
                settings.sizes[array] = (settings.sizes[array] + random.normal()).clamp(smallest, largest);
            }
            8 => {
                let array = random.below(ARRAYS);
                settings.sizes[array] = other.sizes[array];
            }
            9 => case.changes.truncate(random.below(1 + self.changes.len())),
            _ => {
                let ulps = (random.below(17) as f64 - 8.0) * 2.0 * T::U;
                let factor = [1.0 + ulps, 1.0 + ulps, 1.0 + 0.1 * random.normal(), random.normal()][random.below(4)];
                let any = random.next_u64() as usize;
                // Often at the element of the last change, which made it worse.
                let at = self.changes.last().filter(|_| random.below(3) > 0).map_or(any, |last| last.at);
                case.changes.push(Change { array: random.below(ARRAYS), at, factor });
            }
        }
        case
    }

    fn fusion<T: Number>(&self) -> Fusion<T> {
        let s = &self.settings;
        let shape = shape(s.extents);
        let mut fusion = Fusion::<T>::random(shape, s.seed, s.activation, s.residual, s.weighting);
        let p = &mut fusion.problem;
        p.eps = s.eps;
        let size = s.sizes.map(f64::exp2);
        let mut random = Random(s.seed);
        for c in 0..shape.channels() {
            for k in reference::indices(shape, c) {
                p.x[k] = finite(size[X] * (s.offset.exp2() + s.patterns[0].value(&mut random)));
                p.dy[k] = finite(size[DY] * s.patterns[1].value(&mut random));
            }
        }
        fusion.residual.iter_mut().flatten().for_each(|r| *r = finite(size[RESIDUAL] * r.to_f64()));
        p.gamma.iter_mut().flatten().for_each(|v| *v = finite(size[GAMMA] * v.to_f64()));
        p.beta.iter_mut().flatten().for_each(|v| *v = finite(size[BETA] * v.to_f64()));
        for change in &self.changes {
            match change.array {
                X => change.apply(&mut p.x, size[X]),
                DY => change.apply(&mut p.dy, size[DY]),
                RESIDUAL => change.apply(fusion.residual.as_deref_mut().unwrap_or_default(), size[RESIDUAL]),
                GAMMA => change.apply(p.gamma.as_deref_mut().unwrap_or_default(), size[GAMMA]),
                _ => change.apply(p.beta.as_deref_mut().unwrap_or_default(), size[BETA]),
            }
        }
        if matches!(s.patterns[1], Pattern::Near) {
            let own = || reference::statistics(shape, &to_f64(&p.x)).0;
            let mean = if s.running { self.running().mean().to_vec() } else { own() };
            for (c, mean) in mean.iter().enumerate() {
                let far = reference::indices(shape, c).filter(|&k| (p.x[k].to_f64() - mean).abs() > 0.05 * size[X]);
                far.collect::<Vec<_>>().into_iter().for_each(|k| p.dy[k] = T::of(0.0));
            }
        }
        fusion
    }

    /// Constant statistics, which are about those of x.
    fn running(&self) -> RunningStatistics {
        let (s, mut random) = (&self.settings, Random(!self.settings.seed));
        let std = s.sizes[X].exp2();
        let of_channel = |_| (std * (s.offset.exp2() + random.normal()), std * std * random.uniform());
        let (mean, var): (Vec<f64>, Vec<f64>) = (0..s.extents.1).map(of_channel).unzip();
        RunningStatistics::from_parts(mean, var, 1).unwrap()
    }

    /// Notes the errors of the case: all but that of a rebuilt x̂, or only this one.
    fn note<T: Number>(&self, ledger: &mut Ledger, rebuilds: bool, context: &dyn Debug) {
        if rebuilds { self.note_rebuilt::<T>(ledger, context) } else { self.note_step::<T>(ledger, context) }
    }

    fn note_step<T: Number>(&self, ledger: &mut Ledger, context: &dyn Debug) {
        let (fusion, running) = (self.fusion::<T>(), self.settings.running.then(|| self.running()));
        let plan = fusion.plan().threads(Threads::Sequential);
        let step = fusion.run(&plan, running.as_ref(), Way::Fused, false, 0);
        fusion.check(ledger, running.as_ref(), &step, context);
    }

    fn note_rebuilt<T: Number>(&self, ledger: &mut Ledger, context: &dyn Debug) {
        let (fusion, s) = (self.fusion::<T>(), &self.settings);
        let activation = match s.activation {
            Activation::LeakyRelu(slope) => Activation::LeakyRelu(slope),
            _ => Activation::Identity,
        };
        let x = fusion.problem.x;
        let gammas = [s.sizes[GAMMA].exp2()];
        let mut p = Problem { x, eps: s.eps, ..invertible::problem(shape(s.extents), s.seed, activation, &gammas) };
        let position = Random(s.seed).below(p.shape.values_per_channel());
        invertible::rebuilt_x_hat::<T>(ledger, &mut p, activation, position, context);
    }
}

fn finite<T: Value>(v: f64) -> T {
    T::of(v.clamp(-T::LARGEST, T::LARGEST))
}

impl Change {
    fn apply<T: Value>(self, values: &mut [T], size: f64) {
        if !values.is_empty() {
            let value = &mut values[self.at % values.len()];
            let v = self.factor * value.number();
            *value = finite(if v.abs() > 2f64.powi(-10) * size { v } else { self.factor * size });
        }
    }
}

/// One search, whose errors are noted in the ledger.
fn search<T: Number>(number: u64, scope: Scope, quantity: &'static str, worst: &mut Ledger) {
    let mut random = Random(mix(number));
    let mut best: Option<(f64, Case)> = None;
    for step in 0..STARTS + CHANGES {
        let case = match &best {
            Some((_, best)) if step >= STARTS => best.changed::<T>(scope, &mut random),
            _ => Case::new::<T>(scope, &mut random),
        };
        case.note::<T>(worst, quantity == "x̂", &("search", number, case.settings));
        let multiple = worst.take_latest(T::NAME, quantity);
        if best.as_ref().is_none_or(|(most, _)| multiple >= *most) {
            best = Some((multiple, case));
        }
    }
}

#[test]
fn worst_cases() {
    let searches = std::env::var("WORST_CASES").map_or(SEARCHES, |range| {
        let bounds = range.split_once("..").map(|(first, end)| (first.parse(), end.parse()));
        let Some((Ok(first), Ok(end))) = bounds else {
            panic!("WORST_CASES: expected a range such as 0..1000, got {range:?}");
        };
        first..end
    });
    let mut ledgers = [(); 4].map(|()| Ledger::default());
    let scope = |k: usize| Scope { fused: k % 2 == 1, ends: k >= 2 };
    for number in searches {
        // Every quantity in every element type, and then again with other settings.
        let (k, quantity) = ((number as usize / 4 + number as usize / 32) % 4, QUANTITIES[number as usize / 4 % 8]);
        let (scope, worst) = (scope(k), &mut ledgers[k]);
        match number % 4 {
            0 => search::<f32>(number, scope, quantity, worst),
            1 => search::<f64>(number, scope, quantity, worst),
            #[cfg(feature = "half")]
            2 => search::<half::bf16>(number, scope, quantity, worst),
            #[cfg(feature = "half")]
            3 => search::<half::f16>(number, scope, quantity, worst),
            _ => {}
        }
    }
    ledgers.iter().enumerate().for_each(|(k, ledger)| ledger.print(scope(k).title()));
    ledgers.into_iter().for_each(Ledger::close_silently);
}
