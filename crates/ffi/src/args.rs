//! The structs of the header that carry the arguments of one call.

use crate::structs::{bn_gradient_sums, bn_running_statistics, bn_scale_shift, bn_slice, bn_slice_mut, bn_statistics};

/// Arguments of bn_compute_statistics.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct bn_statistics_args {
    /// sizeof(bn_statistics_args).
    pub struct_size: usize,
    /// Input.
    pub x: bn_slice,
    /// Input: a weight for each position, finite and >= 0, or absent for 1. A position with weight 0 is ignored, even
    /// if x is NaN there.
    pub weights: bn_slice,
    /// Output.
    pub statistics: *mut bn_statistics,
}

/// Arguments of bn_forward_training.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct bn_forward_training_args {
    /// sizeof(bn_forward_training_args).
    pub struct_size: usize,
    /// Input.
    pub x: bn_slice,
    /// Input: one value per channel, or absent for 1.
    pub gamma: bn_slice,
    /// Input: one value per channel, or absent for 0.
    pub beta: bn_slice,
    /// Input: added before the activation, or absent.
    pub residual: bn_slice,
    /// Input: a weight for each position, finite and >= 0, or absent for 1. A position with weight 0 is ignored, even
    /// if x is NaN there, and y is 0 there.
    pub weights: bn_slice,
    /// Output; may replace x.
    pub y: bn_slice_mut,
    /// Output: the statistics of the batch.
    pub statistics: *mut bn_statistics,
}

/// Arguments of bn_normalize.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct bn_normalize_args {
    /// sizeof(bn_normalize_args).
    pub struct_size: usize,
    /// Input.
    pub x: bn_slice,
    /// Input: the statistics of the batch that x is, or is a part of. Either these or running, the other NULL.
    pub statistics: *const bn_statistics,
    /// Input: averages from training.
    pub running: *const bn_running_statistics,
    /// Input: one value per channel, or absent for 1.
    pub gamma: bn_slice,
    /// Input: one value per channel, or absent for 0.
    pub beta: bn_slice,
    /// Input: added before the activation, or absent.
    pub residual: bn_slice,
    /// Input: a weight for each position, finite and >= 0, or absent for 1. A position with weight 0 is ignored, even
    /// if x is NaN there, and y is 0 there.
    pub weights: bn_slice,
    /// Output; may replace x.
    pub y: bn_slice_mut,
}

/// Arguments of bn_compute_gradient_sums.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct bn_gradient_sums_args {
    /// sizeof(bn_gradient_sums_args).
    pub struct_size: usize,
    /// Input.
    pub x: bn_slice,
    /// Input: the gradient of y.
    pub dy: bn_slice,
    /// Input: the statistics of the batch that x is, or is a part of. Either these or running, the other NULL.
    pub statistics: *const bn_statistics,
    /// Input: averages from training.
    pub running: *const bn_running_statistics,
    /// Input: one value per channel, or absent for 1. Used only if the activation's argument is recomputed.
    pub gamma: bn_slice,
    /// Input: one value per channel, or absent for 0. Used only if the activation's argument is recomputed.
    pub beta: bn_slice,
    /// Input: the residual of the forward pass, or absent. Used only if the activation's argument is recomputed.
    pub residual: bn_slice,
    /// Input: y of the forward pass, or absent. ReLU and leaky ReLU take their derivative from its sign. Without it,
    /// and for SiLU, the activation's argument is recomputed from x, gamma, beta and the residual, which for ReLU and
    /// float without a residual takes less time than to read y.
    pub output: bn_slice,
    /// Input: the weights of the forward pass, or absent.
    pub weights: bn_slice,
    /// Output.
    pub sums: *mut bn_gradient_sums,
}

/// Arguments of bn_input_gradient.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct bn_input_gradient_args {
    /// sizeof(bn_input_gradient_args).
    pub struct_size: usize,
    /// Input.
    pub x: bn_slice,
    /// Input: the gradient of y.
    pub dy: bn_slice,
    /// Input: the statistics of the whole batch.
    pub statistics: *const bn_statistics,
    /// Input: the sums of the whole batch.
    pub sums: *const bn_gradient_sums,
    /// Input: one value per channel, or absent for 1.
    pub gamma: bn_slice,
    /// Input: one value per channel, or absent for 0. Used only if the activation's argument is recomputed.
    pub beta: bn_slice,
    /// Input: the residual of the forward pass, or absent. Used only if the activation's argument is recomputed.
    pub residual: bn_slice,
    /// Input: y of the forward pass, or absent. ReLU and leaky ReLU take their derivative from its sign. Without it,
    /// and for SiLU, the activation's argument is recomputed from x, gamma, beta and the residual, which for ReLU and
    /// float without a residual takes less time than to read y.
    pub output: bn_slice,
    /// Input: the weights of the forward pass, or absent.
    pub weights: bn_slice,
    /// Output: the gradient of x; may replace dy.
    pub dx: bn_slice_mut,
    /// Output: the gradient of the residual, or absent.
    pub dresidual: bn_slice_mut,
}

/// Arguments of bn_parameter_gradients.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct bn_parameter_gradients_args {
    /// sizeof(bn_parameter_gradients_args).
    pub struct_size: usize,
    /// Input: the statistics that the sums were computed with. Either these or running, the other NULL.
    pub statistics: *const bn_statistics,
    /// Input: averages from training.
    pub running: *const bn_running_statistics,
    /// Input.
    pub sums: *const bn_gradient_sums,
    /// Output: one value per channel, or absent.
    pub dgamma: bn_slice_mut,
    /// Output: one value per channel, or absent.
    pub dbeta: bn_slice_mut,
}

/// Arguments of bn_backward.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct bn_backward_args {
    /// sizeof(bn_backward_args).
    pub struct_size: usize,
    /// Input.
    pub x: bn_slice,
    /// Input: the gradient of y.
    pub dy: bn_slice,
    /// Input: the statistics of the batch, through which gradients flow. Either these or running, the other NULL.
    pub statistics: *const bn_statistics,
    /// Input: averages from training, which are constants.
    pub running: *const bn_running_statistics,
    /// Input: one value per channel, or absent for 1.
    pub gamma: bn_slice,
    /// Input: one value per channel, or absent for 0. Used only if the activation's argument is recomputed.
    pub beta: bn_slice,
    /// Input: the residual of the forward pass, or absent. Used only if the activation's argument is recomputed.
    pub residual: bn_slice,
    /// Input: y of the forward pass, or absent. ReLU and leaky ReLU take their derivative from its sign. Without it,
    /// and for SiLU, the activation's argument is recomputed from x, gamma, beta and the residual, which for ReLU and
    /// float without a residual takes less time than to read y.
    pub output: bn_slice,
    /// Input: the weights of the forward pass, or absent.
    pub weights: bn_slice,
    /// Output: the gradient of x, or absent; may replace dy.
    pub dx: bn_slice_mut,
    /// Output: the gradient of the residual, or absent.
    pub dresidual: bn_slice_mut,
    /// Output: one value per channel, or absent.
    pub dgamma: bn_slice_mut,
    /// Output: one value per channel, or absent.
    pub dbeta: bn_slice_mut,
}

/// Arguments of bn_forward_training_invertible.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct bn_forward_training_invertible_args {
    /// sizeof(bn_forward_training_invertible_args).
    pub struct_size: usize,
    /// Input and output: y overwrites x.
    pub x: bn_slice_mut,
    /// Input: one value per channel, or absent for 1.
    pub gamma: bn_slice,
    /// Input: one value per channel, or absent for 0.
    pub beta: bn_slice,
    /// Output: the statistics of the batch.
    pub statistics: *mut bn_statistics,
}

/// Arguments of bn_backward_from_output.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct bn_backward_from_output_args {
    /// sizeof(bn_backward_from_output_args).
    pub struct_size: usize,
    /// Input: y as bn_forward_training_invertible left it.
    pub y: bn_slice,
    /// Input: the gradient of y.
    pub dy: bn_slice,
    /// Input: the statistics of the batch.
    pub statistics: *const bn_statistics,
    /// Input: gamma of the forward pass, one value per channel, or absent for 1.
    pub gamma: bn_slice,
    /// Input: beta of the forward pass, one value per channel, or absent for 0.
    pub beta: bn_slice,
    /// Output: the gradient of x, or absent.
    pub dx: bn_slice_mut,
    /// Output: one value per channel, or absent.
    pub dgamma: bn_slice_mut,
    /// Output: one value per channel, or absent.
    pub dbeta: bn_slice_mut,
}

/// Arguments of bn_double_backward. A cotangent is the gradient of a scalar with respect to an output of bn_backward.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct bn_double_backward_args {
    /// sizeof(bn_double_backward_args).
    pub struct_size: usize,
    /// Input.
    pub x: bn_slice,
    /// Input: the gradient of y.
    pub dy: bn_slice,
    /// Input: the statistics of the batch, through which gradients flow. Either these or running, the other NULL.
    pub statistics: *const bn_statistics,
    /// Input: averages from training, which are constants.
    pub running: *const bn_running_statistics,
    /// Input: one value per channel, or absent for 1.
    pub gamma: bn_slice,
    /// Input: the gradient of the scalar with respect to dx.
    pub dx_cotangent: bn_slice,
    /// Input: the gradient of the scalar with respect to dgamma, one value per channel, or absent for 0.
    pub dgamma_cotangent: bn_slice,
    /// Input: the gradient of the scalar with respect to dbeta, one value per channel, or absent for 0.
    pub dbeta_cotangent: bn_slice,
    /// Output: the gradient of the scalar with respect to x, or absent.
    pub x_gradient: bn_slice_mut,
    /// Output: the gradient of the scalar with respect to dy, or absent.
    pub dy_gradient: bn_slice_mut,
    /// Output: the gradient of the scalar with respect to gamma, one value per channel, or absent.
    pub gamma_gradient: bn_slice_mut,
}

/// Arguments of bn_fold.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct bn_fold_args {
    /// sizeof(bn_fold_args).
    pub struct_size: usize,
    /// Input: the statistics of a batch. Either these or running, the other NULL.
    pub statistics: *const bn_statistics,
    /// Input: averages from training.
    pub running: *const bn_running_statistics,
    /// Input: one value per channel, or absent for 1.
    pub gamma: bn_slice,
    /// Input: one value per channel, or absent for 0.
    pub beta: bn_slice,
    /// Output.
    pub scale_shift: *mut bn_scale_shift,
}

/// Arguments of bn_fold_preceding, bn_fold_following and bn_fold_following_transposed.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct bn_fold_layer_args {
    /// sizeof(bn_fold_layer_args).
    pub struct_size: usize,
    /// Input.
    pub scale_shift: *const bn_scale_shift,
    /// Input and output: the weights of a linear or convolution layer.
    pub weight: bn_slice_mut,
    /// Input and output: the bias of the layer, one value per output of the layer; zeros if it had none.
    pub bias: bn_slice_mut,
}

/// Arguments of bn_fold_preceding_transposed.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct bn_fold_transposed_args {
    /// sizeof(bn_fold_transposed_args).
    pub struct_size: usize,
    /// Input.
    pub scale_shift: *const bn_scale_shift,
    /// Input and output: the weights of the layer.
    pub weight: bn_slice_mut,
    /// Input and output: the bias of the layer, one value per channel; zeros if it had none.
    pub bias: bn_slice_mut,
    /// The number of inputs of the layer, of all groups together.
    pub inputs: usize,
    /// The number of groups of the layer, >= 1, which divides the inputs and the channels.
    pub groups: usize,
}
