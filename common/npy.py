"""Tensors as the bytes of a `.npy` file and back, with one copy each way.

Byte for byte what `numpy.save` writes (format 1.0, C order), which Flower puts into its arrays. NumPy's own writer and
reader go through a stream and copy the content two to three times.
"""

from functools import lru_cache
from io import BytesIO

import numpy as np
import torch
from torch import Tensor

_TYPES = frozenset(
    ("float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "bool", "complex64", "complex128")
)


def to_npy(tensor: Tensor) -> bytes:
    """Return the file's bytes for a tensor.

    Raises:
        TypeError: NumPy has no such type, as bfloat16.
    """
    array = tensor.detach().cpu().contiguous().numpy()
    dtype = str(tensor.dtype).removeprefix("torch.")  # NumPy's name as well, and NumPy is slow to say it
    return b"".join((_header(dtype, array.shape), array.reshape(-1).view(np.uint8).data))


def from_npy(data: bytes, dtype: str, shape: tuple[int, ...]) -> Tensor | None:
    """Return a tensor that owns the content, or None unless the bytes are `to_npy` of such a tensor.

    Args:
        data: the file's bytes; may come from anybody.
        dtype: NumPy's name of the type, as announced.
        shape: as announced.
    """
    if dtype not in _TYPES or any(size < 0 for size in shape):
        return None
    header = _header(dtype, shape)
    count = 1
    for size in shape:
        count *= size
    if len(data) != len(header) + count * np.dtype(dtype).itemsize or not data.startswith(header):
        return None
    return torch.from_numpy(np.frombuffer(data, dtype, count, len(header)).reshape(shape).copy())


@lru_cache(maxsize=1024)
def _header(dtype: str, shape: tuple[int, ...]) -> bytes:
    stream = BytesIO()
    facts = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(stream, facts)
    return stream.getvalue()
