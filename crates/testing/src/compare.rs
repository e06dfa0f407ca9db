//! Comparison by bits.

use crate::Value;
use std::fmt::Debug;

/// The bits of all values.
pub fn bits_of<T: Value>(values: &[T]) -> Vec<u64> {
    values.iter().map(|v| v.bits()).collect()
}

/// Whether two slices have the same bits.
pub fn same<T: Value>(a: &[T], b: &[T]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.bits() == b.bits())
}

/// Fails at the first value whose bits differ.
#[track_caller]
pub fn assert_same<T: Value>(name: &str, expected: &[T], actual: &[T], context: &dyn Debug) {
    assert_same_bits_of(name, &bits_of(expected), &bits_of(actual), context);
}

/// [`assert_same`] for several outputs, each with its name and its bits.
#[track_caller]
pub fn assert_same_arrays(
    expected: &[(&'static str, Vec<u64>)],
    actual: &[(&'static str, Vec<u64>)],
    context: &dyn Debug,
) {
    assert_eq!(expected.len(), actual.len(), "{context:?}");
    for ((name, expected), (_, actual)) in expected.iter().zip(actual) {
        assert_same_bits_of(name, expected, actual, context);
    }
}

#[track_caller]
fn assert_same_bits_of(name: &str, expected: &[u64], actual: &[u64], context: &dyn Debug) {
    assert_eq!(expected.len(), actual.len(), "length of {name}: {context:?}");
    if let Some(k) = (0..actual.len()).find(|&k| expected[k] != actual[k]) {
        panic!("{name}[{k}] differs: expected {:#x}, got {:#x}, {context:?}", expected[k], actual[k]);
    }
}
