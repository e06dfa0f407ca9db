//! Does any pass read or write outside of its buffers? Each buffer lies directly before or behind an inaccessible page,
//! so that an access one byte outside of it is a crash.

use crate::common::*;
use batchnorm::{Affine, Extras, GradientSums, Gradients, Source, Statistics};
use std::ptr::NonNull;

/// The side of a buffer that the inaccessible page is on.
#[derive(Clone, Copy, Debug)]
enum Guard {
    Before,
    Behind,
}

/// Memory between two inaccessible pages, with room for any buffer of these tests.
struct Pages {
    base: NonNull<u8>,
    page: usize,
}

const ROOM: usize = 1 << 17;

impl Pages {
    fn new() -> Self {
        // SAFETY: sysconf has no preconditions; the mapping is new, and the two protected pages are part of it.
        unsafe {
            let page = usize::try_from(libc::sysconf(libc::_SC_PAGESIZE)).unwrap();
            assert!(ROOM.is_multiple_of(page), "pages of {page} bytes");
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
            let map =
                libc::mmap(std::ptr::null_mut(), ROOM + 2 * page, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0);
            assert_ne!(map, libc::MAP_FAILED);
            for guard in [map, map.byte_add(page + ROOM)] {
                assert_eq!(libc::mprotect(guard, page, libc::PROT_NONE), 0);
            }
            Self { base: NonNull::new(map.cast()).unwrap(), page }
        }
    }

    /// A copy of `values` that ends or starts at the edge.
    fn place<T: Value>(&mut self, values: &[T], guard: Guard) -> &mut [T] {
        let bytes = size_of_val(values);
        assert!(bytes <= ROOM);
        let at = self.page + if matches!(guard, Guard::Before) { 0 } else { ROOM - bytes };
        // SAFETY: the range lies between the guards; it is aligned, since `bytes` is a multiple of the element's size;
        // and it is borrowed mutably with `self`.
        let slice = unsafe { std::slice::from_raw_parts_mut(self.base.as_ptr().add(at).cast::<T>(), values.len()) };
        slice.copy_from_slice(values);
        slice
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: this is the whole mapping, and it is no longer borrowed.
        unsafe { libc::munmap(self.base.as_ptr().cast(), ROOM + 2 * self.page) };
    }
}

/// Runs all passes with every buffer at a guard, for shapes around every boundary.
fn check<T: Float>() {
    let mut pages: [Pages; 8] = std::array::from_fn(|_| Pages::new());
    let [x, dy, y, dx, gamma, beta, dgamma, dbeta] = &mut pages;
    for (i, shape) in boundary_shapes(T::LANES).into_iter().enumerate() {
        let p = Problem::<T>::random(shape, i as u64);
        let (len, channels) = (shape.len(), shape.channels());
        let (nan, channel_nan) = (vec![T::NAN; len], vec![T::NAN; channels]);
        let running = p.running();
        let expected = train(&p.plan(), &p, Way::Fused, 0);
        let frozen = train_frozen(&p.plan(), &p, &running, Way::Fused, 0);
        every_isa(|isa| {
            for guard in [Guard::Before, Guard::Behind] {
                let plan = p.plan().isa(isa).unwrap();
                let (mut statistics, mut sums) = (Statistics::new(channels), GradientSums::new(channels));
                let x = x.place(&p.x, guard);
                let dy = &*dy.place(&p.dy, guard);
                let y = y.place(&nan, guard);
                let dx = dx.place(&nan, guard);
                let gamma = &*gamma.place(p.gamma.as_ref().unwrap(), guard);
                let beta = &*beta.place(p.beta.as_ref().unwrap(), guard);
                let affine = batchnorm::Affine::new(gamma, beta);
                let dgamma = dgamma.place(&channel_nan, guard);
                let dbeta = dbeta.place(&channel_nan, guard);

                plan.forward_training(x, affine, y, &mut statistics).unwrap();
                assert!(same(y, &expected.y));
                plan.statistics(x, &mut statistics).unwrap();
                plan.normalize(x, &running, affine, y).unwrap();
                assert!(same(y, &frozen.y));
                plan.gradient_sums(x, dy, &statistics, Affine::default(), &mut sums).unwrap();
                plan.parameter_gradients(&statistics, &sums, Some(dgamma), Some(dbeta)).unwrap();
                plan.input_gradient(x, dy, &statistics, &sums, affine, dx).unwrap();
                assert!(same(dx, &expected.dx));
                let gradients = Gradients {
                    dx: Some(&mut *dx),
                    dgamma: Some(&mut *dgamma),
                    dbeta: Some(&mut *dbeta),
                    ..Gradients::default()
                };
                plan.backward(x, dy, &statistics, affine, gradients).unwrap();
                assert!(same(dx, &expected.dx) && same(dgamma, &expected.dgamma) && same(dbeta, &expected.dbeta));
                let gradients = Gradients { dx: Some(&mut *dx), ..Gradients::default() };
                plan.backward(x, dy, &running, affine, gradients).unwrap();
                assert!(same(dx, &frozen.dx));
                dx.copy_from_slice(dy);
                plan.backward_in_place(x, dx, &statistics, affine, Some(dgamma), Some(dbeta)).unwrap();
                assert!(same(dx, &expected.dx) && same(dgamma, &expected.dgamma) && same(dbeta, &expected.dbeta));
                plan.forward_training_in_place(x, affine, &mut statistics).unwrap();
                assert!(same(x, &expected.y));
                x.copy_from_slice(&p.x);
                plan.normalize_in_place(x, &running, affine).unwrap();
                assert!(same(x, &frozen.y));
            }
        });
    }
}

#[test]
fn f32_buffers() {
    check::<f32>();
}

#[test]
fn f64_buffers() {
    check::<f64>();
}

/// f32 channels that are summed again in f64, which other code reads.
#[test]
fn channels_summed_again() {
    let mut pages = Pages::new();
    for shape in boundary_shapes(f32::LANES) {
        let mut p = Problem::<f32>::random(shape, 31);
        p.x.iter_mut().for_each(|x| *x *= 1e-42);
        let expected = train(&p.plan(), &p, Way::Fused, 0);
        every_isa(|isa| {
            for guard in [Guard::Before, Guard::Behind] {
                let mut statistics = Statistics::new(shape.channels());
                p.plan().isa(isa).unwrap().statistics(pages.place(&p.x, guard), &mut statistics).unwrap();
                assert_eq!(statistics, expected.statistics);
            }
        });
    }
}

/// Runs the passes with everything fused to them, with every buffer at a guard.
fn check_fused<T: Number>() {
    let mut pages: [Pages; 12] = std::array::from_fn(|_| Pages::new());
    let [x, dy, y, dx, residual, output, weights, dresidual, gamma, beta, dgamma, dbeta] = &mut pages;
    for (i, shape) in boundary_shapes(T::LANES).into_iter().enumerate() {
        let (activation, weighting) = (ACTIVATIONS[i % 4], WEIGHTINGS[i % 3]);
        let fusion = Fusion::<T>::random(shape, i as u64, activation, true, weighting);
        let (p, channels) = (&fusion.problem, shape.channels());
        let (nan, channel_nan) = (vec![T::NAN; shape.len()], vec![T::Param::NAN; channels]);
        let running = p.running();
        for running in [None, Some(&running)] {
            let expected = fusion.run(&fusion.plan(), running, Way::Fused, false, 0);
            every_isa(|isa| {
                for guard in [Guard::Before, Guard::Behind] {
                    let plan = fusion.plan().isa(isa).unwrap();
                    let mut statistics = Statistics::new(channels);
                    let x = x.place(&p.x, guard);
                    let dy = dy.place(&p.dy, guard);
                    let y = y.place(&nan, guard);
                    let dx = dx.place(&nan, guard);
                    let dresidual = dresidual.place(&nan, guard);
                    let gamma = &*gamma.place(p.gamma.as_ref().unwrap(), guard);
                    let beta = &*beta.place(p.beta.as_ref().unwrap(), guard);
                    let affine = Affine::new(gamma, beta);
                    let dgamma = dgamma.place(&channel_nan, guard);
                    let dbeta = dbeta.place(&channel_nan, guard);
                    let residual = &*residual.place(fusion.residual.as_ref().unwrap(), guard);
                    let weights = fusion.weights.as_ref().map(|w| &*weights.place(w, guard));
                    let output = &*output.place(&expected.outputs.y, guard);
                    let extras = Extras { residual: Some(residual), output: None, weights };
                    if running.is_none() {
                        plan.with(extras).forward_training(x, affine, y, &mut statistics).unwrap();
                        assert!(same(y, &expected.outputs.y));
                    }
                    let source = running.map_or(Source::from(&statistics), Source::from);
                    plan.with(extras).normalize(x, source, affine, y).unwrap();
                    assert!(same(y, &expected.outputs.y));
                    for given in [false, true] {
                        let extras = Extras { output: given.then_some(output), ..extras };
                        let gradients = Gradients {
                            dx: Some(&mut *dx),
                            dresidual: Some(&mut *dresidual),
                            dgamma: Some(&mut *dgamma),
                            dbeta: Some(&mut *dbeta),
                        };
                        plan.with(extras).backward(x, dy, source, affine, gradients).unwrap();
                        assert!(same(dx, &expected.outputs.dx) && same(dresidual, &expected.dresidual));
                        assert!(same(dgamma, &expected.outputs.dgamma) && same(dbeta, &expected.outputs.dbeta));
                    }
                    let gradients = Gradients { dresidual: Some(&mut *dresidual), ..Gradients::default() };
                    plan.with(extras).backward_in_place(x, dy, source, affine, gradients).unwrap();
                    assert!(same(dy, &expected.outputs.dx) && same(dresidual, &expected.dresidual));
                    plan.with(extras).normalize_in_place(x, source, affine).unwrap();
                    assert!(same(x, &expected.outputs.y));
                }
            });
        }
    }
}

#[test]
fn fused_f32_buffers() {
    check_fused::<f32>();
}

#[test]
fn fused_f64_buffers() {
    check_fused::<f64>();
}

#[cfg(feature = "half")]
#[test]
fn fused_bf16_buffers() {
    check_fused::<half::bf16>();
}

#[cfg(feature = "half")]
#[test]
fn fused_f16_buffers() {
    check_fused::<half::f16>();
}
