//! Linear layers.

use super::{Parameter, Role};

/// `y = x·W + b`
#[derive(Clone, Debug)]
pub(super) struct Linear {
    inputs: usize,
    outputs: usize,
    pub(super) weight: Parameter,
    pub(super) bias: Option<Parameter>,
}

impl Linear {
    pub(super) fn new(
        inputs: usize,
        outputs: usize,
        bias: Option<Role>,
        scale: f32,
        random: &mut fastrand::Rng,
    ) -> Self {
        let deviation = scale * (2.0 / inputs as f32).sqrt();
        let weight = (0..inputs * outputs).map(|_| deviation * normal(random)).collect();
        let bias = bias.map(|role| Parameter::new(role, vec![0.0; outputs]));
        Self { inputs, outputs, weight: Parameter::new(Role::Weight, weight), bias }
    }

    pub(super) fn forward(&self, x: &[f32], rows: usize, y: &mut Vec<f32>) {
        y.clear();
        match &self.bias {
            Some(bias) => (0..rows).for_each(|_| y.extend(&bias.value)),
            None => y.resize(rows * self.outputs, 0.0),
        }
        let (x, w) = (Matrix::new(x, self.inputs), Matrix::new(&self.weight.value, self.outputs));
        multiply(x, w, 1.0, y);
    }

    pub(super) fn backward(&mut self, x: &[f32], rows: usize, dy: &[f32]) -> Vec<f32> {
        let (x, dy_matrix) = (Matrix::new(x, self.inputs), Matrix::new(dy, self.outputs));
        multiply(x.transposed(), dy_matrix, 0.0, &mut self.weight.gradient);
        if let Some(bias) = &mut self.bias {
            bias.gradient.fill(0.0);
            for row in dy.chunks_exact(self.outputs) {
                bias.gradient.iter_mut().zip(row).for_each(|(db, dy)| *db += dy);
            }
        }
        let mut dx = vec![0.0; rows * self.inputs];
        multiply(dy_matrix, Matrix::new(&self.weight.value, self.outputs).transposed(), 0.0, &mut dx);
        dx
    }
}

/// A standard normal random number, by the Box–Muller transform.
pub(super) fn normal(random: &mut fastrand::Rng) -> f32 {
    let radius = (-2.0 * (1.0 - random.f64()).ln()).sqrt();
    (radius * (std::f64::consts::TAU * random.f64()).cos()) as f32
}

/// A row-major slice as a matrix, or the transpose of one.
#[derive(Clone, Copy)]
struct Matrix<'a> {
    values: &'a [f32],
    rows: usize,
    columns: usize,
    strides: (isize, isize),
}

impl<'a> Matrix<'a> {
    fn new(values: &'a [f32], columns: usize) -> Self {
        let rows = values.len() / columns;
        assert_eq!(values.len(), rows * columns, "the slice has full rows");
        Self { values, rows, columns, strides: (columns as isize, 1) }
    }

    fn transposed(self) -> Self {
        let (down, right) = self.strides;
        Self { rows: self.columns, columns: self.rows, strides: (right, down), ..self }
    }
}

/// `c = a·b + keep·c`
fn multiply(a: Matrix<'_>, b: Matrix<'_>, keep: f32, c: &mut [f32]) {
    assert_eq!((a.columns, a.rows * b.columns), (b.rows, c.len()), "the dimensions match");
    // SAFETY: a row and a column of a `Matrix`, times its strides, stay within its slice, whose length is checked by
    // `Matrix::new`. `c` has a.rows rows of b.columns values, as checked above.
    unsafe {
        matrixmultiply::sgemm(
            a.rows,
            a.columns,
            b.columns,
            1.0,
            a.values.as_ptr(),
            a.strides.0,
            a.strides.1,
            b.values.as_ptr(),
            b.strides.0,
            b.strides.1,
            keep,
            c.as_mut_ptr(),
            b.columns as isize,
            1,
        );
    }
}
