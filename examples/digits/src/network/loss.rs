//! The loss of a classifier.

/// The mean cross-entropy between the softmax of `logits` and the labels, in nats, and its gradient.
pub(crate) fn cross_entropy(logits: &[f32], labels: &[u8]) -> (f64, Vec<f32>) {
    let classes = logits.len() / labels.len();
    let mut gradient = Vec::with_capacity(logits.len());
    let mut loss = 0.0;
    for (row, &label) in logits.chunks_exact(classes).zip(labels) {
        let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let exp = row.iter().map(|&v| f64::from(v - max).exp());
        let sum: f64 = exp.clone().sum();
        loss += sum.ln() - f64::from(row[usize::from(label)] - max);
        gradient.extend(exp.enumerate().map(|(class, e)| {
            let target = if class == usize::from(label) { 1.0 } else { 0.0 };
            ((e / sum - target) / labels.len() as f64) as f32
        }));
    }
    (loss / labels.len() as f64, gradient)
}
