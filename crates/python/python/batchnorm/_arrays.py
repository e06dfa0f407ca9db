"""What numpy arrays must be like for a pass, and how the native functions are given them."""

import numpy as np

# The numbers of `elements.rs`.
ELEMENTS = {np.dtype(np.float32): 0, np.dtype(np.float64): 1, np.dtype(np.float16): 3}
# bfloat16, which is number 2, is no dtype of numpy.


def raw(array):
    """The address and the number of elements of an array that has been checked."""
    return array.ctypes.data, array.size


def check_array(name, array):
    if not isinstance(array, np.ndarray):
        raise TypeError(f"{name} has the wrong type: expected a numpy array, got {type(array).__name__}")


def element(name, array):
    """The number of the element type."""
    check_array(name, array)
    number = ELEMENTS.get(array.dtype)
    if number is None:
        raise TypeError(f"{name} has the wrong dtype: expected float32, float64 or float16, got {array.dtype}")
    return number


def check_dtype(name, array, *dtypes):
    check_array(name, array)
    if array.dtype not in dtypes:
        expected = " or ".join(str(np.dtype(dtype)) for dtype in dtypes)
        raise TypeError(f"{name} has the wrong dtype: expected {expected}, got {array.dtype}")


def check_writeable(name, array):
    if not array.flags.writeable:
        raise ValueError(f"{name} is read-only: expected an array that can be written")


def strides(array):
    """In elements."""
    return [stride // array.itemsize for stride in array.strides]


def check_like(name, array, x):
    """Checks that an array has the dtype, the dims and the strides of x, so that a pass reads both with one index."""
    check_dtype(name, array, x.dtype)
    if array.shape != x.shape:
        raise ValueError(f"{name} has the wrong dims: expected those of x, {list(x.shape)}, got {list(array.shape)}")
    # An axis of extent 1 may have any stride.
    if x.size and any(n > 1 and a != b for n, a, b in zip(x.shape, array.strides, x.strides)):
        raise ValueError(f"{name} has the wrong strides: expected those of x, {strides(x)}, got {strides(array)}")


def check_values(name, array, *dtypes):
    """Checks an array with one value per channel, or per position. The native functions check its length."""
    check_dtype(name, array, *dtypes)
    if array.ndim != 1:
        raise ValueError(f"{name} has the wrong dims: expected one axis, got {list(array.shape)}")
    if not array.flags.c_contiguous:
        raise ValueError(f"{name} is not dense in memory: expected stride 1, got {strides(array)[0]}")


def input_like(name, array, x):
    if array is None:
        return None
    check_like(name, array, x)
    return raw(array)


def output_like(name, array, x):
    check_like(name, array, x)
    check_writeable(name, array)
    return raw(array)


def output_values(name, array, dtype):
    check_values(name, array, dtype)
    check_writeable(name, array)
    return raw(array)
