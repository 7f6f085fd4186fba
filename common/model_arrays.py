"""Model arrays between tensors and Flower's records, and the checks that they pass before anything is computed."""

import math
from collections.abc import Mapping

from flwr.app import Array, ArrayRecord
from torch import Tensor

from nufed.common.errors import WireError
from nufed.common.npy import NpyError, from_npy, to_npy
from nufed.common.params import Params, largest_magnitude
from nufed.common.untrusted import shown, shown_shape

NUMPY = "numpy.ndarray"
"""Flower's name for the bytes of a `.npy` file."""


def params_to_arrays(params: Mapping[str, Tensor]) -> ArrayRecord:
    """Return Flower arrays with the content of `params`, in their order."""
    return ArrayRecord({name: _to_array(tensor) for name, tensor in params.items()})


def arrays_to_params(arrays: ArrayRecord, reference: Mapping[str, Tensor] | None = None) -> Params:
    """Return tensors that own the content of Flower arrays.

    Args:
        arrays: may come from anybody.
        reference: a model of the names, shapes and types that are expected; nothing is decoded before all three are
            found to agree, so that no more memory is taken than one such model. None takes what comes.

    Raises:
        WireError: an array is not a plain NumPy array, or not one of the reference's.
    """
    if reference is not None:
        _check_names(arrays, reference)
    result: Params = {}
    for name, array in arrays.items():
        if reference is not None:
            _check_announced(name, array, reference[name])
        try:
            result[name] = _decoded(array)
        except NpyError as error:
            raise WireError(
                f"array {shown(name)} cannot be decoded ({error}); send NumPy arrays without objects"
            ) from error
    return result


def check_params(
    params: Mapping[str, Tensor], reference: Mapping[str, Tensor], limit: float | Mapping[str, float]
) -> None:
    """Refuse parameters that are not a finite model of the reference's names, shapes and types.

    Args:
        params: what came.
        reference: what was sent.
        limit: largest magnitude accepted, for all arrays or by name.

    Raises:
        WireError: with the first difference.
    """
    check_layout(params, reference)
    for name in reference:
        check_values(name, params[name], limit[name] if isinstance(limit, Mapping) else limit)


def check_layout(params: Mapping[str, Tensor], reference: Mapping[str, Tensor]) -> None:
    """Refuse parameters of other names, shapes or types than the reference's, whatever their values are.

    Raises:
        WireError: with the first difference.
    """
    _check_names(params, reference)
    for name, expected in reference.items():
        got = params[name]
        if got.shape != expected.shape:
            raise WireError(f"array {name!r} has shape {tuple(got.shape)}, expected {tuple(expected.shape)}")
        if got.dtype != expected.dtype:
            raise WireError(f"array {name!r} has type {got.dtype}, expected {expected.dtype}")


def check_values(name: str, values: Tensor, allowed: float) -> None:
    """Refuse an array that is not finite, or beyond the largest magnitude allowed.

    Raises:
        WireError: it is one of the two.
    """
    largest = largest_magnitude(values)
    if not math.isfinite(largest):
        raise WireError(f"array {name!r} contains NaN or infinite values")
    if largest > allowed:
        raise WireError(f"array {name!r} has an element of magnitude {largest:.3g}, beyond the limit {allowed:.3g}")


def _to_array(tensor: Tensor) -> Array:
    dtype = str(tensor.dtype).removeprefix("torch.")
    return Array(dtype=dtype, shape=tuple(tensor.shape), stype=NUMPY, data=to_npy(tensor))


def _decoded(array: Array) -> Tensor:
    if array.stype != NUMPY:
        raise NpyError(f"it is of the kind {shown(array.stype)}")
    return from_npy(array.data, array.dtype, array.shape)


def _check_names(arrays: Mapping[str, object], reference: Mapping[str, Tensor]) -> None:
    if missing := [name for name in reference if name not in arrays]:
        raise WireError(f"expected array {missing[0]!r}, which is missing (and {len(missing) - 1} more)")
    if extra := [name for name in arrays if name not in reference]:
        raise WireError(f"array {shown(extra[0])} was not expected (and {len(extra) - 1} more)")


def _check_announced(name: str, array: Array, expected: Tensor) -> None:
    """Refuse an array that is announced as another than expected; what it holds is not looked at."""
    if array.shape != tuple(expected.shape):
        raise WireError(f"array {name!r} has shape {shown_shape(array.shape)}, expected {tuple(expected.shape)}")
    dtype = str(expected.dtype).removeprefix("torch.")
    if array.dtype != dtype:
        raise WireError(f"array {name!r} has type {shown(array.dtype)}, expected {dtype}")
