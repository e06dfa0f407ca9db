//! Activation functions.

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Activation {
    Relu,
    Sigmoid,
}

impl Activation {
    pub(super) fn forward(self, x: &[f32], y: &mut Vec<f32>) {
        y.clear();
        match self {
            Self::Relu => y.extend(x.iter().map(|&x| x.max(0.0))),
            Self::Sigmoid => y.extend(x.iter().map(|&x| 1.0 / (1.0 + (-x).exp()))),
        }
    }

    /// Overwrites dy with dx.
    pub(super) fn backward(self, y: &[f32], dy: &mut [f32]) {
        let slope = |y: f32| match self {
            Self::Relu => f32::from(y > 0.0),
            Self::Sigmoid => y * (1.0 - y),
        };
        dy.iter_mut().zip(y).for_each(|(dy, &y)| *dy *= slope(y));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn relu_passes_gradients_of_positive_outputs() {
        let (mut y, mut dy) = (Vec::new(), vec![1.0, 2.0, 3.0]);
        Activation::Relu.forward(&[-1.0, 0.5, 2.0], &mut y);
        Activation::Relu.backward(&y, &mut dy);
        assert_eq!((y, dy), (vec![0.0, 0.5, 2.0], vec![0.0, 2.0, 3.0]));
    }
}
