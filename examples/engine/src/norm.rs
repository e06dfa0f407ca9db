//! The adapter: the engine's batch normalization layer over the crate `batchnorm`.

use crate::error::{Error, Result};
use crate::tensor::{Tensor, Unwritten};
use crate::threads::ThreadPool;
use batchnorm as bn;
use std::sync::Arc;

impl bn::Executor for ThreadPool {
    fn threads(&self) -> usize {
        ThreadPool::threads(self)
    }

    fn parallel_for(&self, n: usize, task: &(dyn Fn(usize) + Sync)) {
        self.for_each(n, task);
    }
}

/// The layer, with parameters of type `P` and running statistics of f32: what the engine's checkpoints have.
pub struct BatchNorm<P> {
    gamma: Tensor<P>,
    beta: Tensor<P>,
    /// The running mean of each channel.
    pub running_mean: Vec<f32>,
    /// The running variance of each channel.
    pub running_var: Vec<f32>,
    /// The number of batches in the running statistics.
    pub batches: u64,
    pool: Arc<ThreadPool>,
    plan: Option<Arc<bn::BatchNorm>>,
}

/// What a forward pass keeps for its backward pass. Tensors share their buffers, so x is not copied.
pub struct Saved<E> {
    plan: Arc<bn::BatchNorm>,
    x: Tensor<E>,
    /// None if the layer was frozen.
    batch: Option<bn::Statistics>,
}

/// What a backward pass returns.
pub struct Gradients<E, P> {
    /// The gradient of x.
    pub dx: Tensor<E>,
    /// The gradients of gamma and beta, if they were requested.
    pub parameters: Option<[Tensor<P>; 2]>,
}

const EPS: f64 = 1e-5;
const MOMENTUM: bn::Momentum = bn::Momentum::Exponential(0.1);

impl<P: bn::Element> BatchNorm<P> {
    /// A layer with a gamma and a beta for each channel, which runs on the engine's threads.
    ///
    /// # Errors
    /// If their numbers differ.
    pub fn new(gamma: Vec<P>, beta: Vec<P>, pool: Arc<ThreadPool>) -> Result<Self> {
        let channels = [gamma.len()];
        let [running_mean, running_var] = [0.0, 1.0].map(|v| vec![v; gamma.len()]);
        let [gamma, beta] = [Tensor::new(&channels, gamma)?, Tensor::new(&channels, beta)?];
        Ok(Self { gamma, beta, running_mean, running_var, batches: 0, pool, plan: None })
    }

    /// Normalizes `[n, c, ..]` with the batch's statistics, which also update the running ones.
    ///
    /// # Errors
    /// If x does not fit the layer, or has only one value per channel.
    pub fn forward_training<E: bn::Element<Param = P::Param>>(
        &mut self,
        x: &Tensor<E>,
    ) -> Result<(Tensor<E>, Saved<E>)> {
        let (plan, x) = self.prepare(x)?;
        let (mut y, mut batch) = (Unwritten::like(&x), bn::Statistics::new(plan.shape().channels()));
        let with = plan.with(bn::Extras::default()).parameters_of::<P>().uninit();
        with.forward_training(elements(&x), self.affine(), y.memory(), &mut batch)?;
        // SAFETY: a pass that returned Ok has written all of its outputs.
        let y = unsafe { y.written() };
        self.update(&batch)?;
        Ok((y, Saved { plan, x, batch: Some(batch) }))
    }

    /// The same if the producer of x has taken its statistics while it wrote it: one read and one write of a tensor.
    ///
    /// # Errors
    /// As [`forward_training`](Self::forward_training), and if the statistics are not those of as many values.
    pub fn forward_with_statistics<E: bn::Element<Param = P::Param>>(
        &mut self,
        x: &Tensor<E>,
        batch: bn::Statistics,
    ) -> Result<(Tensor<E>, Saved<E>)> {
        let (plan, x) = self.prepare(x)?;
        if batch.count() != plan.shape().values_per_channel() as f64 {
            let expected = "x to have as many values per channel as the statistics";
            return Err(Error::Dims { expected, actual: x.dims().to_vec() });
        }
        let y = self.normalize(&plan, &x, &batch)?;
        self.update(&batch)?;
        Ok((y, Saved { plan, x, batch: Some(batch) }))
    }

    /// Normalizes with the running statistics: inference, and training of the layers around a frozen one.
    ///
    /// # Errors
    /// If x does not fit the layer.
    pub fn forward_frozen<E: bn::Element<Param = P::Param>>(&mut self, x: &Tensor<E>) -> Result<(Tensor<E>, Saved<E>)> {
        let (plan, x) = self.prepare(x)?;
        let y = self.normalize(&plan, &x, &self.running()?)?;
        Ok((y, Saved { plan, x, batch: None }))
    }

    /// The gradients of x, and of gamma and beta if `parameters` are to be trained.
    ///
    /// # Errors
    /// If dy does not have the dimensions of x.
    pub fn backward<E: bn::Element<Param = P::Param>>(
        &self,
        saved: &Saved<E>,
        dy: &Tensor<E>,
        parameters: bool,
    ) -> Result<Gradients<E, P>> {
        let (x, dy, running) = (&saved.x, dy.in_layout_of(&saved.x)?, self.running()?);
        let source = saved.batch.as_ref().map_or_else(|| bn::Source::from(&running), bn::Source::from);
        let mut dx = Unwritten::like(x);
        let mut of_parameters = parameters.then(|| [&self.gamma, &self.beta].map(Unwritten::like));
        let [dgamma, dbeta] = match &mut of_parameters {
            Some(gradients) => gradients.each_mut().map(|gradient| Some(gradient.memory())),
            None => [None, None],
        };
        let gradients = bn::Gradients { dx: Some(dx.memory()), dgamma, dbeta, ..bn::Gradients::default() };
        let with = saved.plan.with(bn::Extras::default()).parameters_of::<P>().uninit();
        with.backward(elements(x), elements(&dy), source, self.affine(), gradients)?;
        // SAFETY: a pass that returned Ok has written all of its outputs.
        let (dx, parameters) =
            unsafe { (dx.written(), of_parameters.map(|gradients| gradients.map(|gradient| gradient.written()))) };
        Ok(Gradients { dx, parameters })
    }

    /// A plan for x, and x as a dense tensor. The plan of the last batch is used again if it fits.
    fn prepare<E: bn::Element>(&mut self, x: &Tensor<E>) -> Result<(Arc<bn::BatchNorm>, Tensor<E>)> {
        let (x, shape) = match shape_of(x)? {
            Some(shape) => (x.clone(), shape),
            None => {
                let x = Tensor::new(x.dims(), x.to_vec())?;
                let shape = bn::Shape::new(x.dims()[0], x.dims()[1], x.dims()[2..].iter().product())?;
                (x, shape)
            }
        };
        let plan = match self.plan.take().filter(|plan| plan.shape() == shape) {
            Some(plan) => plan,
            None => {
                let threads = bn::Threads::Executor(self.pool.clone());
                Arc::new(bn::BatchNorm::new(shape).eps(EPS)?.threads(threads))
            }
        };
        self.plan = Some(plan.clone());
        Ok((plan, x))
    }

    fn normalize<'s, E: bn::Element<Param = P::Param>>(
        &self,
        plan: &bn::BatchNorm,
        x: &Tensor<E>,
        source: impl Into<bn::Source<'s>>,
    ) -> Result<Tensor<E>> {
        let mut y = Unwritten::like(x);
        let with = plan.with(bn::Extras::default()).parameters_of::<P>().uninit();
        with.normalize(elements(x), source, self.affine(), y.memory())?;
        // SAFETY: a pass that returned Ok has written all of its outputs.
        Ok(unsafe { y.written() })
    }

    fn affine(&self) -> bn::Affine<'_, P> {
        bn::Affine::new(elements(&self.gamma), elements(&self.beta))
    }

    fn running(&self) -> Result<bn::RunningStatistics<&[f32]>> {
        Ok(bn::RunningStatistics::from_parts(&self.running_mean[..], &self.running_var[..], self.batches)?)
    }

    fn update(&mut self, batch: &bn::Statistics) -> Result<()> {
        let (mean, var) = (&mut self.running_mean[..], &mut self.running_var[..]);
        let mut running = bn::RunningStatistics::from_parts(mean, var, self.batches)?;
        running.update(batch, MOMENTUM)?;
        self.batches = running.batches();
        Ok(())
    }
}

/// The elements of a dense tensor in the order of memory.
fn elements<T: Copy>(x: &Tensor<T>) -> &[T] {
    &x.memory()[..x.len()]
}

/// The shape of `[n, c, ..]` in memory, whatever the order of its axes there. None if the tensor has gaps.
fn shape_of<T: Copy>(x: &Tensor<T>) -> Result<Option<bn::Shape>> {
    if x.dims().len() < 2 {
        return Err(Error::Dims { expected: "x to be [n, c, ..]", actual: x.dims().to_vec() });
    }
    let strides: Vec<_> = x.strides().iter().map(|&stride| stride as isize).collect();
    match bn::Shape::from_strides(x.dims(), &strides, 1) {
        Err(bn::Error::NotDense { .. }) => Ok(None),
        shape => Ok(Some(shape?)),
    }
}
