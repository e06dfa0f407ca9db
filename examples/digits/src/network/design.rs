//! The architecture of a network.

use super::Activation;

/// What a network is built from.
#[derive(Clone, Debug)]
pub(crate) struct Design {
    /// Units of each hidden layer.
    pub(crate) hidden: Vec<usize>,
    pub(crate) activation: Activation,
    /// `None` for no batch normalization.
    pub(crate) norm: Option<Placement>,
    /// Whether gamma and beta are learned; otherwise they stay 1 and 0.
    pub(crate) affine: bool,
    /// Whether hidden linear layers have a bias.
    pub(crate) bias: bool,
    /// The rate of dropout after each hidden layer.
    pub(crate) dropout: Option<f32>,
    /// Initial weights are normal with standard deviation `initial_scale · sqrt(2 / inputs)`.
    pub(crate) initial_scale: f32,
    /// How many rows of a mini-batch are normalized together in training; all if `None`.
    pub(crate) group: Option<usize>,
    pub(crate) backend: Backend,
}

impl Default for Design {
    fn default() -> Self {
        Self {
            hidden: vec![128, 128],
            activation: Activation::Relu,
            norm: Some(Placement::BeforeActivation),
            affine: true,
            bias: false,
            dropout: None,
            initial_scale: 1.0,
            group: None,
            backend: Backend::Kernels,
        }
    }
}

impl Design {
    /// The same network without batch normalization; its linear layers then need their bias.
    pub(crate) fn plain(self) -> Self {
        Self { norm: None, bias: true, ..self }
    }
}

/// The place of batch normalization.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Placement {
    BeforeActivation,
    AfterActivation,
}

/// What computes batch normalization.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Backend {
    Kernels,
    Reference,
}
