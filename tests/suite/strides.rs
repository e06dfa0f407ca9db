//! Does a shape from strides put every element into its channel, and is every tensor refused that has none?

use crate::common::*;
use batchnorm::{Error, Shape, reference};

/// The strides of a dense tensor whose axes lie in memory in this order, outermost first.
fn dense_strides(dims: &[usize], order: &[usize]) -> Vec<isize> {
    let mut strides = vec![0; dims.len()];
    let mut stride = 1;
    for &axis in order.iter().rev() {
        strides[axis] = stride;
        stride *= dims[axis].max(1) as isize;
    }
    strides
}

/// The offset of every element, with its index along an axis.
fn offsets(dims: &[usize], strides: &[isize], axis: usize) -> Vec<(isize, usize)> {
    let len = dims.iter().product();
    let element = |mut k: usize| {
        let (mut offset, mut along) = (0, 0);
        for a in (0..dims.len()).rev() {
            let index = k % dims[a];
            k /= dims[a];
            offset += index as isize * strides[a];
            along = if a == axis { index } else { along };
        }
        (offset, along)
    };
    (0..len).map(element).collect()
}

/// Every channel of the shape has the elements whose index along the channel axis it is.
fn assert_channels(shape: Shape, dims: &[usize], strides: &[isize], axis: usize) {
    let context = format!("{shape:?} for dims {dims:?}, strides {strides:?} and channel axis {axis}");
    assert_eq!((shape.channels(), shape.len()), (dims[axis], dims.iter().product()), "{context}");
    let mut naive = vec![vec![]; dims[axis]];
    for (offset, channel) in offsets(dims, strides, axis) {
        naive[channel].push(offset as usize);
    }
    for (c, naive) in naive.iter_mut().enumerate() {
        naive.sort_unstable();
        assert!(reference::indices(shape, c).eq(naive.iter().copied()), "channel {c}: {context}");
    }
}

/// Calls `f` with every order of `n` axes.
fn permutations(n: usize, f: &mut impl FnMut(&[usize])) {
    fn extend(order: &mut Vec<usize>, n: usize, f: &mut impl FnMut(&[usize])) {
        if order.len() == n {
            return f(order);
        }
        for axis in 0..n {
            if !order.contains(&axis) {
                order.push(axis);
                extend(order, n, f);
                order.pop();
            }
        }
    }
    extend(&mut vec![], n, f);
}

#[test]
fn every_order_of_axes() {
    let tensors: [&[usize]; 12] = [
        &[5],
        &[1],
        &[3, 4],
        &[1, 4],
        &[2, 3, 4],
        &[3, 1, 2],
        &[1, 1, 3],
        &[2, 3, 4, 5],
        &[2, 2, 1, 2],
        &[1, 3, 1, 1],
        &[2, 3, 2, 2, 3],
        &[2, 1, 3, 1, 2],
    ];
    for dims in tensors {
        permutations(dims.len(), &mut |order| {
            let strides = dense_strides(dims, order);
            for axis in 0..dims.len() {
                let shape = Shape::from_strides(dims, &strides, axis).unwrap();
                assert_channels(shape, dims, &strides, axis);
                // The strides of axes with one element make no difference.
                for any in [isize::MIN, -1, 0, 1, 2, 7, isize::MAX] {
                    let stride = |(d, s): (&usize, &isize)| if *d == 1 { any } else { *s };
                    let strides: Vec<_> = dims.iter().zip(&strides).map(stride).collect();
                    assert_eq!(Shape::from_strides(dims, &strides, axis), Ok(shape), "{dims:?} {strides:?} {axis}");
                }
            }
        });
    }
}

/// Tensors in the order of their dims have the shapes of the constructors, also with extents of 1 and 0.
#[test]
fn the_named_layouts() {
    let extents = [0, 1, 2, 5];
    for (n, c, h, w) in extents.iter().flat_map(|n| extents.iter().flat_map(move |c| extents.map(|h| (*n, *c, h, 3)))) {
        let of = |dims: &[usize], axis| {
            let order: Vec<_> = (0..dims.len()).collect();
            Shape::from_strides(dims, &dense_strides(dims, &order), axis)
        };
        assert_eq!(of(&[n, c], 1), Shape::nc(n, c));
        assert_eq!(of(&[n, c, h], 1), Shape::ncl(n, c, h));
        assert_eq!(of(&[n, c, h, w], 1), Shape::nchw(n, c, h, w));
        assert_eq!(of(&[n, c, 2, h, w], 1), Shape::ncdhw(n, c, 2, h, w));
        assert_eq!(of(&[n, h, w, c], 3), Shape::nhwc(n, h, w, c));
        assert_eq!(of(&[n, 2, h, w, c], 4), Shape::ndhwc(n, 2, h, w, c));
        if n > 0 && c > 1 && h > 0 {
            let channels_last = Shape::from_strides(&[n, c, h, w], &dense_strides(&[n, c, h, w], &[0, 2, 3, 1]), 1);
            assert_eq!(channels_last, Shape::nhwc(n, h, w, c));
            let images_last = Shape::from_strides(&[c, h, w, n], &dense_strides(&[c, h, w, n], &[0, 1, 2, 3]), 0);
            assert_eq!(images_last, Shape::new(1, c, h * w * n));
        }
    }
    let empty = Shape::from_strides(&[2, 3, 0, 4], &[-7, 0, isize::MAX, 5], 1);
    assert_eq!(empty, Shape::ncl(2, 3, 0));
    let many = Shape::from_strides(&[1; 1000], &[3; 1000], 999);
    assert_eq!(many, Shape::new(1, 1, 1));
}

/// Strides near the right ones: those of a dense tensor give the right shape, all others an error that says how to go on.
#[test]
fn random_strides() {
    let mut random = Random(51);
    let (mut shapes, mut errors) = (0, 0);
    for _ in 0..20_000 {
        let dims: Vec<usize> = (0..1 + random.below(5)).map(|_| 1 + random.below(3)).collect();
        let mut order: Vec<_> = (0..dims.len()).collect();
        for k in (1..dims.len()).rev() {
            order.swap(k, random.below(k + 1));
        }
        let mut strides = dense_strides(&dims, &order);
        for _ in 0..random.below(3) {
            let stride = [-1, 0, 1, 2, 3, 4, 6, 9, 12, 18][random.below(10)];
            strides[random.below(dims.len())] = stride;
        }
        let axis = random.below(dims.len());
        let mut found: Vec<_> = offsets(&dims, &strides, 0).into_iter().map(|(offset, _)| offset).collect();
        found.sort_unstable();
        let forward = dims.iter().zip(&strides).all(|(d, s)| *d == 1 || *s > 0);
        let dense = forward && found.iter().copied().eq(0..found.len() as isize);
        match Shape::from_strides(&dims, &strides, axis) {
            Ok(shape) => {
                shapes += 1;
                assert!(dense, "{shape:?} for {dims:?} {strides:?}");
                assert_channels(shape, &dims, &strides, axis);
            }
            Err(error) => {
                errors += 1;
                assert!(!dense, "{error} for {dims:?} {strides:?}");
                assert_leads_to_a_dense_tensor(error, &dims, strides, axis);
            }
        }
    }
    assert!(shapes > 5000 && errors > 5000, "{shapes} {errors}");
}

/// Whoever sets each stride to the expected one ends with a dense tensor, and a copy in standard layout is one.
fn assert_leads_to_a_dense_tensor(mut error: Error, dims: &[usize], mut strides: Vec<isize>, axis: usize) {
    let mut steps = 0;
    loop {
        let Error::NotDense { argument: "the tensor", axis: wrong, expected, actual, order, standard } = error else {
            panic!("{error:?} for {dims:?} {strides:?}");
        };
        assert_eq!((actual, dims[wrong] > 1), (strides[wrong], true), "{dims:?} {strides:?}");
        assert!(Shape::from_strides(dims, &standard, axis).is_ok(), "{dims:?} {standard:?}");
        let mut sorted = order.clone();
        sorted.sort_unstable();
        assert!(sorted.into_iter().eq((0..dims.len()).filter(|&a| dims[a] > 1)), "{order:?} for {dims:?}");
        assert!(order.is_sorted_by_key(|&a| -strides[a].abs()), "{order:?} for {strides:?}");
        strides[wrong] = expected;
        match Shape::from_strides(dims, &strides, axis) {
            Ok(shape) => return assert_channels(shape, dims, &strides, axis),
            Err(next) => error = next,
        }
        steps += 1;
        assert!(steps < 25, "{dims:?} {strides:?}");
    }
}
