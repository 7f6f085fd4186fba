"""Tensors as the bytes of a `.npy` file and back, with one copy each way.

Byte for byte what `numpy.save` writes (format 1.0, C order), which Flower puts into its arrays. NumPy's own writer and
reader go through a stream and copy the content two to three times; and its reader makes an array of the size that a
file's header claims before it looks at what follows, and opens archives.
"""

import ast
from functools import lru_cache
from io import BytesIO

import numpy as np
import torch
from torch import Tensor

_TYPES = frozenset(
    ("float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "bool", "complex64", "complex128")
)
_MAGIC = b"\x93NUMPY"
_LENGTH_BYTES = {(1, 0): 2, (2, 0): 4, (3, 0): 4}
"""Bytes that hold the header's length, by version of the format."""

LONGEST_HEADER = 10_000
"""Bytes of a header; NumPy's reader refuses longer ones as well."""

MOST_DIMENSIONS = 64
"""Of NumPy's arrays and of tensors."""


class NpyError(ValueError):
    """Bytes that are not the `.npy` file that was announced."""


def to_npy(tensor: Tensor) -> bytes:
    """Return the file's bytes for a tensor.

    Raises:
        TypeError: NumPy has no such type, as bfloat16.
    """
    array = tensor.detach().cpu().contiguous().numpy()
    dtype = str(tensor.dtype).removeprefix("torch.")  # NumPy's name as well, and NumPy is slow to say it
    return b"".join((_header(dtype, array.shape), array.reshape(-1).view(np.uint8).data))


def from_npy(data: bytes, dtype: str, shape: tuple[int, ...]) -> Tensor:
    """Return a tensor that owns the content; no memory is taken before type, shape and length are found to agree.

    Args:
        data: the file's bytes, in the machine's byte order; may come from anybody.
        dtype: NumPy's name of the type, as announced.
        shape: as announced.

    Raises:
        NpyError: the bytes are not such an array.
    """
    if dtype not in _TYPES or len(shape) > MOST_DIMENSIONS or any(size < 0 for size in shape):
        raise NpyError("no array of plain numbers is announced")
    count = 1
    for size in shape:
        count *= size
    num_bytes = count * np.dtype(dtype).itemsize
    if not 0 <= len(data) - num_bytes <= LONGEST_HEADER + 12:
        raise NpyError(f"it has {len(data)} bytes, another number than announced")
    header = _header(dtype, shape)
    start, order = (len(header), "C") if data.startswith(header) else _read_header(data, dtype, shape)
    if len(data) - start != num_bytes:
        raise NpyError(f"it has {len(data)} bytes, another number than announced")
    values = np.frombuffer(data, dtype, count, start) if count else np.empty(0, dtype)
    return torch.from_numpy(_shaped(values, shape, order).copy())


@lru_cache(maxsize=1024)
def _header(dtype: str, shape: tuple[int, ...]) -> bytes:
    stream = BytesIO()
    facts = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(stream, facts)
    return stream.getvalue()


def _shaped(values: np.ndarray, shape: tuple[int, ...], order: str) -> np.ndarray:
    try:
        return values.reshape(shape[::-1]).T if order == "F" else values.reshape(shape)
    except (ValueError, OverflowError) as error:  # an empty array with a side beyond all integers
        raise NpyError("its shape is out of range") from error


def _read_header(data: bytes, dtype: str, shape: tuple[int, ...]) -> tuple[int, str]:
    """Return where the content begins and its order (C or F) in a file that another writer made.

    Raises:
        NpyError: there is no such header, or it says something else than was announced.
    """
    size = _LENGTH_BYTES.get((data[6], data[7])) if data.startswith(_MAGIC) and len(data) > len(_MAGIC) + 6 else None
    if size is None:
        raise NpyError("it does not begin as an array of NumPy does")
    start = len(_MAGIC) + 2 + size
    length = int.from_bytes(data[len(_MAGIC) + 2 : start], "little")
    if length > min(LONGEST_HEADER, len(data) - start):
        raise NpyError(f"its header is {length} bytes long")
    try:
        facts = ast.literal_eval(data[start : start + length].decode("latin-1").strip())
        is_same = facts["shape"] == shape and facts["descr"] == np.lib.format.dtype_to_descr(np.dtype(dtype))
        order = "F" if facts["fortran_order"] is True else "C"
    except (SyntaxError, ValueError, TypeError, KeyError, MemoryError, RecursionError) as error:
        raise NpyError("its header cannot be read") from error
    if not is_same:
        raise NpyError("its header has another type or shape than was announced")
    return start + length, order
