//! Gradient descent and three optimizers based on it. They do not know about layers: W, gamma and beta are all just
//! numbers with gradients.

use crate::network::Parameter;

/// The update rule of an optimizer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Rule {
    /// `w −= rate·g`
    GradientDescent,
    /// `v = decay·v + (1 − decay)·g`, `w −= rate·v`
    Momentum { decay: f32 },
    /// `s = decay·s + (1 − decay)·g²`, `w −= rate·g / (sqrt(s) + ε)`
    RmsProp { decay: f32 },
    /// Both averages, each divided by `1 − decayᵗ` because it starts at 0: `w −= rate·v̂ / (sqrt(ŝ) + ε)`
    Adam { decays: (f32, f32) },
}

/// Keeps the quotient finite if the average of the squares is 0.
const EPSILON: f32 = 1e-8;

impl Rule {
    pub(crate) const MOMENTUM: Self = Self::Momentum { decay: 0.9 };
    pub(crate) const RMS_PROP: Self = Self::RmsProp { decay: 0.99 };
    pub(crate) const ADAM: Self = Self::Adam { decays: (0.9, 0.999) };

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::GradientDescent => "gradient descent",
            Self::Momentum { .. } => "momentum",
            Self::RmsProp { .. } => "RMSprop",
            Self::Adam { .. } => "Adam",
        }
    }
}

/// A rule, its learning rate, and the averages that it keeps for each learned number.
#[derive(Clone, Debug)]
pub(crate) struct Optimizer {
    rule: Rule,
    rate: f32,
    steps: i32,
    /// For each parameter, the averages of its gradient and of its squared gradient.
    averages: Vec<[Vec<f32>; 2]>,
}

impl Optimizer {
    pub(crate) fn new(rule: Rule, rate: f32) -> Self {
        Self { rule, rate, steps: 0, averages: Vec::new() }
    }

    /// Updates every parameter. The parameters must be in the same order each time.
    pub(crate) fn step<'a>(&mut self, parameters: impl Iterator<Item = &'a mut Parameter>) {
        self.steps += 1;
        for (i, parameter) in parameters.enumerate() {
            if i == self.averages.len() {
                self.averages.push([vec![0.0; parameter.value.len()], vec![0.0; parameter.value.len()]]);
            }
            let [v, s] = &mut self.averages[i];
            let averages = v.iter_mut().zip(s);
            for ((w, &g), (v, s)) in parameter.value.iter_mut().zip(&parameter.gradient).zip(averages) {
                let direction = match self.rule {
                    Rule::GradientDescent => g,
                    Rule::Momentum { decay } => average(v, decay, g),
                    Rule::RmsProp { decay } => g / (average(s, decay, g * g).sqrt() + EPSILON),
                    Rule::Adam { decays } => {
                        let v = average(v, decays.0, g) / (1.0 - decays.0.powi(self.steps));
                        let s = average(s, decays.1, g * g) / (1.0 - decays.1.powi(self.steps));
                        v / (s.sqrt() + EPSILON)
                    }
                };
                *w -= self.rate * direction;
            }
        }
    }
}

/// Updates an exponentially weighted average with `new`, and returns it.
fn average(old: &mut f32, decay: f32, new: f32) -> f32 {
    *old = decay * *old + (1.0 - decay) * new;
    *old
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::Role;

    /// Compares two steps from w = 1, with gradients 0.5 and −0.25 at rate 0.1, with values computed by hand.
    fn check(rule: Rule, expected: [f64; 2]) {
        let mut parameter = Parameter::new(Role::Weight, vec![1.0]);
        let mut optimizer = Optimizer::new(rule, 0.1);
        for (gradient, expected) in [0.5, -0.25].into_iter().zip(expected) {
            parameter.gradient[0] = gradient;
            optimizer.step([&mut parameter].into_iter());
            let w = f64::from(parameter.value[0]);
            // Two steps with at most eight roundings each.
            assert!((w - expected).abs() <= 16.0 * f64::from(f32::EPSILON), "{rule:?}: expected {expected}, got {w}");
        }
    }

    #[test]
    fn gradient_descent_by_hand() {
        check(Rule::GradientDescent, [1.0 - 0.1 * 0.5, 0.95 + 0.1 * 0.25]);
    }

    #[test]
    fn momentum_by_hand() {
        // v = 0.1·0.5 = 0.05, then 0.9·0.05 − 0.1·0.25 = 0.02.
        check(Rule::MOMENTUM, [1.0 - 0.1 * 0.05, 0.995 - 0.1 * 0.02]);
    }

    #[test]
    fn rms_prop_by_hand() {
        // s = 0.5·0.25 = 0.125, then 0.5·0.125 + 0.5·0.0625 = 0.09375.
        let first = 1.0 - 0.1 * 0.5 / 0.125f64.sqrt();
        check(Rule::RmsProp { decay: 0.5 }, [first, first + 0.1 * 0.25 / 0.09375f64.sqrt()]);
    }

    #[test]
    fn adam_by_hand() {
        // The size of the first step is the rate, for any gradient. Then v̂ = (0.5·0.25 − 0.5·0.25) / 0.75 = 0.
        check(Rule::Adam { decays: (0.5, 0.5) }, [0.9, 0.9]);
        // v̂ = (0.75·0.125 − 0.25·0.25) / (1 − 0.75²) = 1/14, ŝ = (0.5·0.125 + 0.5·0.0625) / 0.75 = 1/8.
        check(Rule::Adam { decays: (0.75, 0.5) }, [0.9, 0.9 - 0.1 / 14.0 / 0.125f64.sqrt()]);
    }
}
