//! The gradients, through the statistics of the batch and with constant ones: compared with the reference, and with the
//! same bits however they are run.
#![no_main]

use arbitrary::Arbitrary;
use batchnorm::{RunningStatistics, Source, Statistics, reference};
use batchnorm_fuzz::{Case, Channel, Place, Scalar, baseline, channels, subnormal};
use batchnorm_testing::{BackwardOutputs, Float, Ledger, Problem, Way, assert_same, backward, to_f64};
use libfuzzer_sys::fuzz_target;

#[derive(Arbitrary, Debug)]
struct Input {
    case: Case,
    place: Place,
    frozen: bool,
    /// Which gradients are wanted: dx, dgamma, dbeta.
    wanted: [bool; 3],
    /// Mean and variance that are not those of x.
    given: Option<[(Scalar, Scalar); 3]>,
}

fuzz_target!(|input: Input| if input.case.double { run::<f64>(&input) } else { run::<f32>(&input) });

fn run<E: Float>(input: &Input) {
    let p = input.case.problem::<E>();
    let plan = baseline(p.shape, p.eps);
    let mut batch = Statistics::new(p.shape.channels());
    plan.statistics(&p.x, &mut batch).expect("valid arguments");
    if let Some(given) = input.given {
        let each = |v: fn((Scalar, Scalar)) -> f64| (0..p.shape.channels()).map(|c| v(given[c % 3])).collect();
        let [mean, var] = [each(|given| given.0.finite::<f64>()), each(|given| given.1.finite::<f64>().abs())];
        batch = Statistics::from_parts(batch.count(), mean, var).expect("equal lengths");
    }
    // Running averages must not be NaN.
    let known = |v: &[f64]| v.iter().map(|&v| if v.is_nan() { 1.0 } else { v }).collect::<Vec<_>>();
    let running = RunningStatistics::from_parts(known(batch.mean()), known(batch.var()), 1).expect("equal lengths");
    let source: Source = if input.frozen { (&running).into() } else { (&batch).into() };

    let expected = backward(&plan, &p, source, Way::Fused, [true; 3], 0);
    check(&p, source, input.given.is_some(), &expected);

    let way = input.place.way();
    input.place.each_isa(&plan, |plan, isa| {
        let own = backward(plan, &p, source, way, input.wanted, input.place.offset());
        assert_same("Σg", expected.0.g(), own.0.g(), &isa);
        assert_same("Σg·(x − mean)", expected.0.gx(), own.0.gx(), &isa);
        let wanted = [way.in_place() || input.wanted[0], input.wanted[1], input.wanted[2]];
        let outputs = [(&expected.1, own.1), (&expected.2, own.2), (&expected.3, own.3)];
        for ((name, (expected, own)), wanted) in ["dx", "dgamma", "dbeta"].iter().zip(outputs).zip(wanted) {
            if wanted {
                assert_same(name, expected, &own, &isa);
            } else {
                assert!(own.iter().all(|v| v.to_f64().is_nan()), "{name} was written on {isa:?}");
            }
        }
    });
}

/// Compares gradients with the reference for the same statistics, and dx for the same sums as well, since the inputs of
/// a pass count as exact.
fn check<E: Float>(p: &Problem<E>, source: Source<'_>, given: bool, (sums, dx, dgamma, dbeta): &BackwardOutputs<E>) {
    let (x, dy, gamma, shape) = (to_f64(&p.x), to_f64(&p.dy), p.gamma_f64(), p.shape);
    let (statistics, frozen) = match &source {
        Source::Batch(s) => ((s.mean(), s.var()), false),
        Source::Running(r) => ((r.mean(), r.var()), true),
    };
    // The means of dy and dy·x̂ are those of the given sums, and nothing flows through constant statistics.
    let (mut means, mut centred) = (vec![[0.0; 2]; shape.channels()], dy.clone());
    for (c, means) in means.iter_mut().enumerate().filter(|_| !frozen) {
        let (m, inv_std) = (shape.values_per_channel() as f64, reference::inv_std(statistics.1[c], p.eps));
        *means = [sums.g()[c] / m, sums.gx()[c] / m * inv_std];
        for k in reference::indices(shape, c) {
            centred[k] -= means[0] + (x[k] - statistics.0[c]) * inv_std * means[1];
        }
    }
    let (_, dgamma_expected, dbeta_expected) = reference::backward_frozen(shape, &x, &dy, statistics, p.eps, &gamma);
    let (dx_expected, ..) = reference::backward_frozen(shape, &x, &centred, statistics, p.eps, &gamma);
    let mut ledger = Ledger::default();
    for (c, channel) in channels(shape, &p.x).iter().enumerate() {
        let (mean, var) = (statistics.0[c], statistics.1[c]);
        let channel = &if given { channel.given::<E>(mean, var, p.eps) } else { Channel { mean, var, ..*channel } };
        let Some(terms) = Terms::new(p, c, channel, gamma[c], given, means[c]).filter(|_| channel.promised) else {
            continue;
        };
        let context = &(c, gamma[c], channel);
        let [dbeta_bound, dgamma_bound] = terms.sums::<E>(channel);
        ledger.note::<E>("dbeta", (dbeta[c].to_f64() - dbeta_expected[c]).abs(), dbeta_bound, context);
        ledger.note::<E>("dgamma", (dgamma[c].to_f64() - dgamma_expected[c]).abs(), dgamma_bound, context);
        for k in reference::indices(shape, c) {
            let (expected, bound) = (dx_expected[k], terms.dx_bound::<E>(channel, x[k], dy[k], frozen));
            if expected.abs() + bound <= E::LARGEST && terms.largest(x[k], dy[k]) <= E::LARGEST {
                ledger.note::<E>("dx", (dx[k].to_f64() - expected).abs(), bound, &(context, k, x[k], dy[k]));
            }
        }
    }
    ledger.close_silently();
}

/// The terms of the bounds of a channel's gradients.
struct Terms {
    mean: f64,
    inv_std: f64,
    gamma: f64,
    /// The factor that lanes multiply deviations from a given mean by. Those from the batch's own mean stay in range.
    prescale: f64,
    /// Σ|g| and Σ|g·x̂|.
    g: f64,
    gx: f64,
    /// The means of g and of g·x̂ by the sums that the pass was given; 0 if statistics are constants.
    g_mean: f64,
    gx_mean: f64,
}

impl Terms {
    /// Nothing if a sum, a product or a coefficient leaves the range of the element type.
    fn new<E: Float>(
        p: &Problem<E>,
        c: usize,
        channel: &Channel,
        gamma: f64,
        given: bool,
        [g_mean, gx_mean]: [f64; 2],
    ) -> Option<Self> {
        let (mean, inv_std) = (channel.mean, reference::inv_std(channel.var, p.eps));
        // 2^100, and 2^500 for f64.
        let limit = E::LARGEST_FACTOR / f64::from(1 << 26);
        let tiny = if channel.var > 0.0 { 1.0 / (limit * channel.var.sqrt()) } else { 0.0 };
        let prescale = if given { inv_std.max(tiny).max(1.0) } else { 0.0 };
        let (mut g_sum, mut gx_sum, mut largest) = (0.0, 0.0, 0.0f64);
        for k in reference::indices(p.shape, c) {
            let (g, d) = (p.dy[k].to_f64(), p.x[k].to_f64() - mean);
            g_sum += g.abs();
            gx_sum += (g * d * inv_std).abs();
            largest += g.abs().max((g * d).abs()).max((d * prescale).abs()).max((g * d * prescale).abs());
        }
        // The product itself may be beyond f64.
        let scale = gamma.abs() / E::LARGEST_FACTOR * inv_std;
        let fits = largest <= E::LARGEST && gx_sum <= E::LARGEST && (mean * inv_std).is_finite() && scale <= E::LARGEST;
        fits.then_some(Self { mean, inv_std, gamma, prescale, g: g_sum, gx: gx_sum, g_mean, gx_mean })
    }

    /// The error of x̂ that is not relative to it: of the mean in lanes, and of subnormal deviations.
    fn x_hat<E: Float>(&self, channel: &Channel) -> f64 {
        channel.allowance::<E>(self.inv_std).x_hat + subnormal::<E>() * (1.0 + self.inv_std)
    }

    /// The errors of dbeta and dgamma. That of dgamma has a part that is not relative to its terms: of x̂, and of
    /// products that are subnormal.
    fn sums<E: Float>(&self, channel: &Channel) -> [f64; 2] {
        let relative = channel.factors::<E>().sums + channel.allowance::<E>(self.inv_std).reference;
        let products = self.x_hat::<E>(channel) * self.g + channel.values * subnormal::<E>() * (self.inv_std + 2.0);
        [relative * self.g + subnormal::<E>(), relative * self.gx + products + subnormal::<E>()]
    }

    /// The sum of the absolute values of dx's terms, without its scale.
    fn size(&self, x: f64, g: f64) -> f64 {
        g.abs() + self.g_mean.abs() + ((x - self.mean) * self.inv_std * self.gx_mean).abs()
    }

    /// The largest value that lanes need for dx: the sum of its terms, or the slope of x − mean.
    fn largest(&self, x: f64, g: f64) -> f64 {
        self.size(x, g).max((self.gx_mean * self.inv_std).abs())
    }

    /// The error of dx at a value. The mean of g and the slope of x − mean may be subnormal in lanes.
    fn dx_bound<E: Float>(&self, channel: &Channel, x: f64, g: f64, frozen: bool) -> f64 {
        // The product of the two factors may be out of the range of f64 although the result is not.
        let scaled = |v: f64| self.gamma.abs() * (self.inv_std * v);
        let relative = channel.factors::<E>().dx + channel.allowance::<E>(self.inv_std).reference;
        let (size, distance) = (self.size(x, g), (x - self.mean).abs());
        let of_means = if frozen {
            0.0
        } else {
            let subnormals = 1.0 + distance * (1.0 + self.prescale) + 2.0 * distance * self.inv_std;
            subnormal::<E>() * subnormals + self.x_hat::<E>(channel) * self.gx_mean.abs()
        };
        // The rounding of the result, and of a product that the reference computes before it.
        let tiny = self.gamma.abs() < E::SMALLEST_NORMAL / self.inv_std / E::LARGEST_FACTOR;
        let of_scale = if tiny { 1.0 + size / E::LARGEST_FACTOR } else { 1.0 };
        relative * scaled(size) + scaled(of_means) + subnormal::<E>() * of_scale + self.gamma.abs() * f64::from_bits(1)
    }
}
