//! Momentum, and very many batches and values.

use super::*;

#[test]
fn momentum_zero_and_one() {
    let batch = Statistics::from_parts(5.0, vec![3.0; 4], vec![2.0; 4]).unwrap();
    let old = [f64::NAN, f64::INFINITY, -0.0, 1e-310];
    let running = || RunningStatistics::from_parts(old.to_vec(), old.to_vec(), 3).unwrap();
    let bits = |values: &[f64]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();

    let mut kept = running();
    kept.update(&batch, Momentum::Exponential(0.0)).unwrap();
    assert_eq!((bits(kept.mean()), bits(kept.var())), (bits(&old), bits(&old)));
    assert_eq!(kept.batches(), 4);
    let mut replaced = running();
    replaced.update(&batch, Momentum::Exponential(1.0)).unwrap();
    assert_eq!((replaced.mean(), replaced.var()), (&[3.0; 4][..], &[2.5; 4][..]));
    let nan = Statistics::from_parts(5.0, vec![f64::NAN], vec![f64::NAN]).unwrap();
    let mut kept = RunningStatistics::new(1);
    kept.update(&nan, Momentum::Exponential(0.0)).unwrap();
    assert_eq!((kept.mean(), kept.var()), (&[0.0][..], &[1.0][..]));
}

#[test]
fn cumulative_momentum_over_very_many_batches() {
    let mut running = RunningStatistics::new(1);
    for k in 0..1000 {
        let batch = Statistics::from_parts(2.0, vec![f64::from(k)], vec![f64::from(k)]).unwrap();
        running.update(&batch, Momentum::Cumulative).unwrap();
    }
    assert_eq!(running.batches(), 1000);
    assert!((running.mean()[0] - 499.5).abs() < 1e-10, "{running:?}");
    assert!((running.var()[0] - 999.0).abs() < 1e-10, "{running:?}");

    // Beyond 2^53 a floating-point count would stop growing.
    let batches = (1 << 53) + 1;
    let mut running = RunningStatistics::from_parts(vec![1.0], vec![1.0], batches).unwrap();
    let batch = Statistics::from_parts(2.0, vec![2.0], vec![1.0]).unwrap();
    running.update(&batch, Momentum::Cumulative).unwrap();
    assert_eq!(running.batches(), batches + 1);
    let mut running = RunningStatistics::from_parts(vec![1.0], vec![1.0], u64::MAX).unwrap();
    running.update(&batch, Momentum::Cumulative).unwrap();
    assert_eq!(running.batches(), u64::MAX);
}

/// 2^24 + 1 ones and one other value: a count or a sum of ones in f32 would stop at 2^24.
#[test]
fn more_than_2_to_the_24_values() {
    for (outer, inner) in [(1 << 24 | 2, 1), (1, 1 << 24 | 2)] {
        let shape = Shape::new(outer, 1, inner).unwrap();
        let mut x = vec![1.0f32; shape.len()];
        x[shape.len() - 1] = 3.0;
        let mut statistics = Statistics::new(1);
        BatchNorm::new(shape).statistics(&x, &mut statistics).unwrap();
        let m = shape.len() as f64;
        let (mean, var) = (1.0 + 2.0 / m, 4.0 / m * (1.0 - 1.0 / m));
        assert_eq!(statistics.count(), m);
        assert!((statistics.mean()[0] - mean).abs() <= 2.0 * f32::U * var.sqrt(), "{statistics:?}");
        assert!((statistics.var()[0] - var).abs() <= 4.0 * f32::U * var, "{statistics:?}");
    }
}

/// Counts are f64 and exact up to 2^53.
#[test]
fn merged_counts_beyond_2_to_the_32() {
    let mut whole = Statistics::new(1);
    for _ in 0..4 {
        let part = Statistics::from_parts(f64::from(u32::MAX), vec![1.0], vec![2.0]).unwrap();
        whole.merge(&part).unwrap();
    }
    assert_eq!((whole.count(), whole.mean(), whole.var()), (4.0 * f64::from(u32::MAX), &[1.0][..], &[2.0][..]));
    whole.merge(&Statistics::from_parts(1.0, vec![1.0], vec![2.0]).unwrap()).unwrap();
    assert_eq!(whole.count(), 4.0 * f64::from(u32::MAX) + 1.0);
}

#[test]
fn merged_counts_beyond_f64() {
    let part = |count| Statistics::from_parts(count, vec![1.0], vec![0.5]).unwrap();
    let mut half = part(f64::MAX / 2.0);
    half.merge(&part(f64::MAX / 2.0)).unwrap();
    assert_eq!(half, part(f64::MAX));
    assert_eq!(half.merge(&part(f64::MAX / 2.0)), Err(Error::Count(f64::INFINITY)));
    assert_eq!(half, part(f64::MAX));
}
