"""Reads NumPy archives (.npz) that come from anybody: no pickle, no array larger than its file, no surprise.

Every array's header is read first and compared with the size of what follows, so that a header that lies, a damaged
file or one made to fill the memory is refused before anything is allocated.
"""

import math
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy_format

from nufed.common.data.pool import Array
from nufed.common.errors import DataError

_LARGEST_EXPANSION, _ALWAYS_ALLOWED = 200, 2**28
_BYTES_AT_ONCE = 2**20
_ADVICE = "write arrays of numbers or strings with numpy.savez_compressed, not objects"


class Archive:
    """An open archive; `names` are those of its arrays."""

    def __init__(self, path: Path, file: zipfile.ZipFile) -> None:
        """Refuse an archive that is a small part of what it would become."""
        self._path, self._file = path, file
        self._members = {info.filename.removesuffix(".npy"): info for info in file.infolist()}
        self.names = list(self._members)
        if len(self._members) < len(file.infolist()):
            raise DataError(f"expected arrays with names of their own in {path}, but one stands twice; {_ADVICE}")
        whole, size = sum(info.file_size for info in file.infolist()), path.stat().st_size
        if whole > max(_ALWAYS_ALLOWED, _LARGEST_EXPANSION * size):
            raise DataError(
                f"expected arrays of about the size of {path}, but its {size} bytes would become {whole}; if that is "
                "right, write it with numpy.savez, uncompressed"
            )

    def read(self, name: str) -> Array:
        """Return an array.

        Raises:
            DataError: it is not there, or is no plain array of numbers or strings.
        """
        with self._explained(name), self._file.open(self._members[name]) as member:
            shape, fortran, dtype = self._header(name, member)
            stream: Any = member
            array = np.empty(math.prod(shape), dtype)
            view, position = array.view(np.uint8).data, 0
            while position < len(view):
                got = stream.readinto(view[position : position + _BYTES_AT_ONCE])
                if not got:
                    raise EOFError("the array is cut short")
                position += got
            member.read(1)  # which makes zipfile compare the check sum
        return array.reshape(shape, order="F" if fortran else "C")

    def empty_like(self, name: str) -> Array:
        """Return an array without rows that is otherwise like one of the archive, which is not read.

        Raises:
            DataError: as `read`.
        """
        with self._explained(name), self._file.open(self._members[name]) as member:
            shape, _, dtype = self._header(name, member)
        return np.empty((0, *shape[1:]), dtype)

    def _header(self, name: str, member: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
        """Return (shape, whether in Fortran order, type), compared with the bytes that follow."""
        version = npy_format.read_magic(member)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"version {version} of the format is for tables with named fields")
        read = npy_format.read_array_header_1_0 if version == (1, 0) else npy_format.read_array_header_2_0
        shape, fortran, dtype = read(member)
        if dtype.hasobject or dtype.kind not in "biufcSUmM":
            raise ValueError(f"it holds {dtype}")
        follows = self._members[name].file_size - member.tell()
        if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != follows or not dtype.itemsize:
            raise ValueError(f"its header says {dtype} of shape {list(shape)}, but {follows} bytes follow")
        return shape, fortran, dtype

    @contextmanager
    def _explained(self, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # damaged files raise anything
            raise DataError(
                f"expected {name!r} in {self._path} to be a plain array, but it cannot be read ({error}); {_ADVICE}"
            ) from error


@contextmanager
def open_archive(path: Path, missing: str) -> Iterator[Archive]:
    """Yield the archive at `path`.

    Args:
        path: of the file.
        missing: what to do where there is no file.

    Raises:
        DataError: there is no file, or it is no archive.
    """
    if not path.is_file():
        raise DataError(f"expected a NumPy archive at {path}, but there is no such file; {missing}")
    try:
        file = zipfile.ZipFile(path)
    except Exception as error:  # damaged files raise anything
        raise DataError(
            f"expected a NumPy archive, but {path} is none; write it with numpy.savez_compressed"
        ) from error
    with file:
        yield Archive(path, file)
