//! The operation on burn's backends, and its gradients.

use crate::passes::{Layer, Normalizer, backward, forward};
use batchnorm as bn;
use burn::backend::autodiff::NodeId;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, NodeGuard, Ops, OpsKind};
use burn::backend::flex::FlexTensor;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, ExtensionType, Flex, backend_extension};

/// What is added before the activation. (An operation of a backend cannot take an `Option`.)
#[derive(ExtensionType)]
pub(crate) enum Residual<B: Backend> {
    Absent,
    Present(FloatTensor<B>),
}

#[backend_extension(Flex, Autodiff)]
pub(crate) trait BatchNormOps: Backend {
    /// Normalizes x with its own statistics, which are also returned, or with running ones.
    fn normalize(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        #[extension_type] residual: Residual<Self>,
        plan: bn::BatchNorm,
        normalizer: Normalizer,
    ) -> (FloatTensor<Self>, Normalizer);
}

impl BatchNormOps for Flex {
    fn normalize(
        x: FlexTensor,
        gamma: FlexTensor,
        beta: FlexTensor,
        residual: Residual<Self>,
        plan: bn::BatchNorm,
        mut normalizer: Normalizer,
    ) -> (FlexTensor, Normalizer) {
        let residual = match residual {
            Residual::Absent => None,
            Residual::Present(residual) => Some(residual),
        };
        let y = forward(&Layer::new(plan, gamma, beta), x, residual, &mut normalizer);
        (y, normalizer)
    }
}

impl<C: CheckpointStrategy> BatchNormOps for Autodiff<Flex, C> {
    fn normalize(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        residual: Residual<Self>,
        plan: bn::BatchNorm,
        normalizer: Normalizer,
    ) -> (FloatTensor<Self>, Normalizer) {
        let ((gamma, gamma_node), (beta, beta_node)) = (gamma.into_parts(), beta.into_parts());
        let (layer, x_node) = (Layer::new(plan, gamma, beta), x.node());
        match residual {
            Residual::Absent => tracked::<C, 3>([x_node, gamma_node, beta_node], layer, x, None, normalizer),
            Residual::Present(residual) => {
                let (residual, node) = residual.into_parts();
                tracked::<C, 4>([x_node, gamma_node, beta_node, node], layer, x, Some(residual), normalizer)
            }
        }
    }
}

/// Normalizes x and, if a gradient is wanted, records how to compute it.
fn tracked<C: CheckpointStrategy, const N: usize>(
    nodes: [NodeGuard; N],
    layer: Layer,
    x: FloatTensor<Autodiff<Flex>>,
    residual: Option<FlexTensor>,
    mut normalizer: Normalizer,
) -> (FloatTensor<Autodiff<Flex>>, Normalizer) {
    match BatchNormBackward.prepare::<C>(nodes).compute_bound().stateful() {
        OpsKind::Tracked(mut prep) => {
            let (checkpoint, fused) = (prep.checkpoint(&x), residual.is_some());
            let y = forward(&layer, x.into_primitive(), residual, &mut normalizer);
            let saved = Saved { layer, x: checkpoint, y: fused.then(|| y.clone()), normalizer: normalizer.clone() };
            (prep.finish(saved, y), normalizer)
        }
        OpsKind::UnTracked(prep) => {
            let y = forward(&layer, x.into_primitive(), residual, &mut normalizer);
            (prep.finish(y), normalizer)
        }
    }
}

/// What the backward pass needs. The statistics are in f64: rounded to f32, the mean would be off by up to 2⁻²⁴·|mean|.
#[derive(Clone, Debug)]
struct Saved {
    layer: Layer,
    x: NodeId,
    /// Instead of the residual, whose sum with the normalized x the mask of ReLU would otherwise be computed from.
    y: Option<FlexTensor>,
    normalizer: Normalizer,
}

#[derive(Debug)]
struct BatchNormBackward;

/// The inputs are x, gamma, beta and, if N is 4, a residual.
impl<const N: usize> Backward<Flex, N> for BatchNormBackward {
    type State = Saved;

    fn backward(self, ops: Ops<Saved, N>, gradients: &mut Gradients, checkpointer: &mut Checkpointer) {
        let dy = gradients.consume::<Flex>(&ops.node);
        let Saved { layer, x, y, normalizer } = ops.state;
        let x = checkpointer.retrieve_node_output::<FlexTensor>(x);
        let mut wanted = [false; 4];
        for (wanted, input) in wanted.iter_mut().zip(&ops.parents) {
            *wanted = input.is_some();
        }
        let computed = backward(&layer, x, dy, y, &normalizer, wanted);
        for (input, gradient) in ops.parents.into_iter().zip(computed) {
            if let (Some(input), Some(gradient)) = (input, gradient) {
                gradients.register::<Flex>(input.id, gradient);
            }
        }
    }
}
