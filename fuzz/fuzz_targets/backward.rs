//! The gradients, through the batch's statistics and with frozen ones: against the reference, and the same bits
//! however they are run.
#![no_main]

use arbitrary::Arbitrary;
use batchnorm::{BatchNorm, GradientSums, Gradients, RunningStatistics, Source, Statistics, reference};
use batchnorm_fuzz::{Case, Channel, Data, Float, Place, Value, baseline, channels, same, widen, within};
use libfuzzer_sys::fuzz_target;

#[derive(Arbitrary, Debug)]
struct Input {
    case: Case,
    place: Place,
    frozen: bool,
    /// Which gradients to ask for: dx, dgamma, dbeta.
    ask: [bool; 3],
    /// Mean and variance that are not those of x.
    given: Option<[(Value, Value); 3]>,
}

fuzz_target!(|input: Input| if input.case.double { run::<f64>(&input) } else { run::<f32>(&input) });

/// dx, dgamma and dbeta.
type All<E> = [Vec<E>; 3];

fn run<E: Float>(input: &Input) {
    let data = input.case.data::<E>();
    let plan = baseline(data.shape, data.eps);
    let mut batch = Statistics::new(data.shape.channels());
    plan.statistics(&data.x, &mut batch).expect("valid arguments");
    if let Some(given) = input.given {
        let each = |v: fn((Value, Value)) -> f64| (0..data.shape.channels()).map(|c| v(given[c % 3])).collect();
        let [mean, var] = [each(|given| given.0.finite::<f64>()), each(|given| given.1.finite::<f64>().abs())];
        batch = Statistics::from_parts(batch.count(), mean, var).expect("equal lengths");
    }
    // Running averages refuse a NaN.
    let known = |v: &[f64]| v.iter().map(|&v| if v.is_nan() { 1.0 } else { v }).collect::<Vec<_>>();
    let running = RunningStatistics::from_parts(known(batch.mean()), known(batch.var()), 1).expect("equal lengths");
    let source: Source = if input.frozen { (&running).into() } else { (&batch).into() };

    let expected = gradients(&plan, &data, source);
    check(&data, source, input.given.is_some(), &expected);

    input.place.each_isa(&plan, |plan, isa| {
        let (x, mut dy) = (input.place.buffer(&data.x), input.place.buffer(&data.dy));
        let mut out = expected.each_ref().map(|v| input.place.buffer(&vec![E::of(f64::NAN); v.len()]));
        let [dx, dgamma, dbeta] = &mut out;
        let [ask_dx, ask_dgamma, ask_dbeta] = input.ask;
        let (dgamma, dbeta) = (ask_dgamma.then_some(&mut **dgamma), ask_dbeta.then_some(&mut **dbeta));
        if input.place.halves {
            let mut sums = GradientSums::new(data.shape.channels());
            plan.gradient_sums::<E>(&x, &dy, source, data.affine(), &mut sums).expect("valid arguments");
            plan.parameter_gradients(source, &sums, dgamma, dbeta).expect("valid arguments");
            match source {
                Source::Batch(batch) if input.place.in_place => {
                    plan.input_gradient_in_place(&x, &mut dy, &batch, &sums, data.affine())
                }
                Source::Batch(batch) => plan.input_gradient::<E>(&x, &dy, &batch, &sums, data.affine(), dx),
                Source::Running(_) => {
                    plan.backward(&x, &dy, source, data.affine(), Gradients { dx: Some(dx), ..Default::default() })
                }
            }
        } else if input.place.in_place {
            plan.backward_in_place(&x, &mut dy, source, data.affine(), dgamma, dbeta)
        } else {
            plan.backward(
                &x,
                &dy,
                source,
                data.affine(),
                Gradients { dx: ask_dx.then_some(dx), dgamma, dbeta, ..Gradients::default() },
            )
        }
        .expect("valid arguments");

        let wrote_dy = input.place.in_place && !(input.place.halves && input.frozen);
        if wrote_dy {
            same("dx in place", isa, &expected[0], &dy);
        }
        let asked = [!wrote_dy && (ask_dx || input.place.halves), ask_dgamma, ask_dbeta];
        for (((name, expected), actual), asked) in ["dx", "dgamma", "dbeta"].iter().zip(&expected).zip(&out).zip(asked)
        {
            if asked {
                same(name, isa, expected, actual);
            } else {
                assert!(actual.iter().all(|v| v.f64().is_nan()), "{name} was written on {isa:?}");
            }
        }
    });
}

fn gradients<E: Float>(plan: &BatchNorm, data: &Data<E>, source: Source<'_>) -> All<E> {
    let nan = |n: usize| vec![E::of(f64::NAN); n];
    let mut out = [nan(data.x.len()), nan(data.shape.channels()), nan(data.shape.channels())];
    let [dx, dgamma, dbeta] = &mut out;
    let gradients = Gradients { dx: Some(dx), dgamma: Some(dgamma), dbeta: Some(dbeta), ..Gradients::default() };
    plan.backward(&data.x, &data.dy, source, data.affine(), gradients).expect("valid arguments");
    out
}

/// Against the reference with the same statistics: what is wrong in those is not counted here.
fn check<E: Float>(data: &Data<E>, source: Source<'_>, given: bool, [dx, dgamma, dbeta]: &All<E>) {
    let (x, dy, (gamma, _)) = (widen(&data.x), widen(&data.dy), data.params());
    let (shape, eps) = (data.shape, data.eps);
    let (statistics, expected) = match &source {
        Source::Batch(s) => {
            let statistics = (s.mean(), s.var());
            (statistics, reference::backward(shape, &x, &dy, statistics, eps, &gamma))
        }
        Source::Running(r) => {
            let statistics = (r.mean(), r.var());
            (statistics, reference::backward_frozen(shape, &x, &dy, statistics, eps, &gamma))
        }
    };
    for (c, channel) in channels::<E>(data.shape, &x).iter().enumerate() {
        let (mean, var) = (statistics.0[c], statistics.1[c]);
        let channel = &if given { channel.given::<E>(mean, var, eps) } else { Channel { mean, var, ..*channel } };
        let Some(terms) = Terms::new(data, c, channel, gamma[c], given).filter(|_| channel.promised) else {
            continue;
        };
        let sums = terms.sums::<E>(channel);
        within("dbeta", c, channel, expected.2[c], dbeta[c].f64(), sums[0]);
        within("dgamma", c, channel, expected.1[c], dgamma[c].f64(), sums[1]);
        let frozen = matches!(source, Source::Running(_));
        for k in reference::indices(data.shape, c) {
            let bound = terms.dx_bound::<E>(channel, x[k], dy[k], frozen);
            if expected.0[k].abs() + bound <= E::MAX && terms.largest(channel, x[k], dy[k], frozen) <= E::MAX {
                within("dx", k, channel, expected.0[k], dx[k].f64(), bound);
            }
        }
    }
}

/// What the bounds of a channel's gradients are made of.
struct Terms {
    mean: f64,
    inv_std: f64,
    gamma: f64,
    /// By what deviations from a given mean may be multiplied in lanes. Those of the batch's own mean and variance stay
    /// in range.
    prescale: f64,
    /// Σ|g| and Σ|g·x̂|.
    g: f64,
    gx: f64,
}

impl Terms {
    /// Nothing where a sum, a product or a coefficient leaves the range of the element type.
    fn new<E: Float>(data: &Data<E>, c: usize, channel: &Channel, gamma: f64, given: bool) -> Option<Self> {
        let (mean, inv_std) = (channel.mean, reference::inv_std(channel.var, data.eps));
        let tiny = if channel.var > 0.0 { 1.0 / (E::LIMIT * channel.var.sqrt()) } else { 0.0 };
        let prescale = if given { inv_std.max(tiny).max(1.0) } else { 0.0 };
        let (mut g_sum, mut gx_sum, mut largest) = (0.0, 0.0, 0.0f64);
        for k in reference::indices(data.shape, c) {
            let (g, d) = (data.dy[k].f64(), data.x[k].f64() - mean);
            g_sum += g.abs();
            gx_sum += (g * d * inv_std).abs();
            largest += g.abs().max((g * d).abs()).max((d * prescale).abs()).max((g * d * prescale).abs());
        }
        // The product itself may be beyond f64.
        let scale = gamma.abs() * E::LEAST_FACTOR * inv_std;
        let fits = largest <= E::MAX && gx_sum <= E::MAX && (mean * inv_std).is_finite() && scale <= E::MAX;
        fits.then_some(Self { mean, inv_std, gamma, prescale, g: g_sum, gx: gx_sum })
    }

    /// Error of the sum of |g·x̂| that is not relative to its terms: of deviations, and of products that are subnormal.
    fn gx_floor<E: Float>(&self, channel: &Channel) -> f64 {
        self.center::<E>() * self.g + channel.values * E::SUBNORMAL * (self.inv_std + 2.0)
    }

    /// Error of x̂ by that of the mean, which the kernels hold as two lanes, and of subnormal deviations.
    fn center<E: Float>(&self) -> f64 {
        E::U * E::U * self.mean.abs() * self.inv_std + E::SUBNORMAL * (1.0 + self.inv_std)
    }

    /// Errors of dbeta and dgamma.
    fn sums<E: Float>(&self, channel: &Channel) -> [f64; 2] {
        let relative = channel.relative::<E>();
        [relative * self.g + E::SUBNORMAL, relative * self.gx + self.gx_floor::<E>(channel) + E::SUBNORMAL]
    }

    /// What dx is the sum of, without its scale and without cancelling: lanes must hold it.
    fn largest(&self, channel: &Channel, x: f64, g: f64, frozen: bool) -> f64 {
        let through = (self.g + (x - self.mean).abs() * self.inv_std * self.gx) / channel.values;
        // The slope of x − mean is a coefficient.
        let slope = self.gx / channel.values * self.inv_std;
        if frozen { g.abs() } else { (g.abs() + through).max(slope) }
    }

    /// Error of dx at a value. The means of g and g·x̂ carry the errors of their sums. The first, and the slope of
    /// x − mean, are held in lanes, where they may be subnormals.
    fn dx_bound<E: Float>(&self, channel: &Channel, x: f64, g: f64, frozen: bool) -> f64 {
        // The product of the two factors may be out of the range of f64 where the result is not.
        let scaled = |v: f64| self.gamma.abs() * (self.inv_std * v);
        let relative = 2.0 * channel.relative::<E>();
        // The result, and a product that the reference makes before it.
        let subnormals = |size: f64| {
            let tiny = self.gamma.abs() < E::MIN_NORMAL / self.inv_std * E::LEAST_FACTOR;
            E::SUBNORMAL * if tiny { 1.0 + size * E::LEAST_FACTOR } else { 1.0 } + self.gamma.abs() * f64::from_bits(1)
        };
        if frozen {
            return relative * scaled(g.abs()) + subnormals(g.abs());
        }
        let distance = (x - self.mean).abs();
        let normalized = distance * self.inv_std;
        let [g_mean, gx_mean, gx_floor] = [self.g, self.gx, self.gx_floor::<E>(channel)].map(|v| v / channel.values);
        let size = g.abs() + g_mean + normalized * gx_mean;
        let subnormal = E::SUBNORMAL * (1.0 + distance * (1.0 + self.prescale) + 2.0 * normalized);
        relative * scaled(size)
            + scaled(self.center::<E>() * gx_mean + normalized * gx_floor + subnormal)
            + subnormals(size)
    }
}
