//! Numbers that are learned.

/// What a parameter is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    Weight,
    /// The bias of a hidden linear layer.
    Bias,
    /// The bias of the last layer.
    OutputBias,
    Gamma,
    Beta,
}

/// Numbers that are learned, and the gradient of the loss with respect to each.
#[derive(Clone, Debug)]
pub(crate) struct Parameter {
    pub(crate) role: Role,
    pub(crate) value: Vec<f32>,
    pub(crate) gradient: Vec<f32>,
}

impl Parameter {
    pub(crate) fn new(role: Role, value: Vec<f32>) -> Self {
        let gradient = vec![0.0; value.len()];
        Self { role, value, gradient }
    }
}
