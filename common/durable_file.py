"""Files that are whole or absent: written beside their place, synced, then renamed into it.

Tensors are stored as safetensors, never pickled. Our own metadata is one JSON value under one key, because the
library writes several keys in an order that differs from process to process and equal runs must give equal bytes.
"""

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from glob import escape as glob_escape
from pathlib import Path
from typing import IO, Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from nufed.common.errors import RunError
from nufed.common.json_text import json_ready, parse_json
from nufed.common.params import Params

METADATA_KEY = "nufed"
_SEAL = re.compile(rb'\\"sha256\\": \\"(.{64})\\"')  # as it stands in the header: JSON in a string of JSON
_NO_SEAL = "0" * 64
_CHUNK = 2**20


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn the operating system's refusal to write `path` into a RunError that names it."""
    try:
        yield
    except OSError as error:
        raise RunError(
            f"Expected to write {path}, but the system refused ({error.strerror or error}). "
            "Free space there, or change its permissions."
        ) from error


def replace_durably(path: Path, write: Callable[[Path], None]) -> None:
    """Put at `path` what `write` leaves at the temporary path that it is given; a crash leaves the old file whole."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    with writing(path):
        remove_left_over(path)
        try:
            write(partial)
            _sync(partial)
            partial.replace(path)
            _sync(path.parent)
        finally:
            partial.unlink(missing_ok=True)


def remove_partials(folder: Path, names: Iterable[str]) -> None:
    """Remove what writers of these files left behind when they were killed; call it where nobody else writes them."""
    with writing(folder):
        for name in names:
            for partial in folder.glob(f".{glob_escape(name)}.*.part"):
                partial.unlink(missing_ok=True)


def remove_left_over(path: Path) -> None:
    """Remove temporary files of `path` whose process is gone."""
    for partial in path.parent.glob(f".{glob_escape(path.name)}.*.part"):
        number = partial.name.removesuffix(".part").rpartition(".")[2]
        if number.isdigit() and not is_running(int(number)):
            partial.unlink(missing_ok=True)


def is_running(process: int) -> bool:
    """Return whether there is a process of this number on this machine."""
    try:
        os.kill(process, 0)  # asks, and sends nothing
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


def write_bytes(path: Path, content: bytes) -> None:
    """Write bytes durably."""
    replace_durably(path, lambda partial: _write_plain(partial, content))


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text durably."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write indented JSON durably."""
    write_text(path, json.dumps(json_ready(value), indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def write_tensors(
    path: Path, params: Mapping[str, Tensor], metadata: Mapping[str, Any], *, sealed: bool = False
) -> None:
    """Write named tensors and JSON metadata durably as safetensors; equal content gives equal bytes.

    Args:
        path: where to.
        params: the tensors; not changed.
        metadata: JSON values.
        sealed: add `sha256` to the metadata, a checksum of all other bytes of the file; `is_sealed` checks it.
    """
    content = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in params.items()}
    seal = {"sha256": _NO_SEAL} if sealed else {}
    text = json.dumps(json_ready({**metadata, "names": list(params), **seal}), allow_nan=False)

    def write(partial: Path) -> None:
        _save_tensors(partial, content, text)
        if sealed:
            _seal(partial)

    replace_durably(path, write)


def is_sealed(path: Path) -> bool:
    """Return whether a file of tensors bears the checksum of its content; False for one without any checksum.

    Raises:
        RunError: the checksum and the content differ, or the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            found = _find_seal(file)
            if found is None:
                return False
            start, seal = found
            whole = seal == _checksum(file, start)
    except OSError as error:
        raise RunError(f"Expected to read {path}, but the system refused ({error.strerror}).") from error
    if not whole:
        raise RunError(f"Expected {path} as it was written, but its checksum does not fit its content. {_ADVICE}")
    return True


def read_tensors(path: Path) -> tuple[Params, dict[str, Any]]:
    """Return the tensors, in the order they were given to `write_tensors`, and the metadata.

    Raises:
        RunError: the file is absent, torn or not one of ours.
    """
    with _reading(path) as file:
        metadata = _metadata(path, file.metadata())
        names = metadata.pop("names", None)
        if not isinstance(names, list) or sorted(names) != sorted(file.keys()):
            raise RunError(f"Expected {path} to hold the arrays that its metadata lists. {_ADVICE}")
        return {name: file.get_tensor(name) for name in names}, metadata


def read_foreign_tensors(path: Path) -> Params:
    """Return the tensors of a safetensors file of anybody's, or of `model.safetensors` in a folder.

    Raises:
        RunError: the file is absent or torn.
    """
    with _reading(path / "model.safetensors" if path.is_dir() else path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dict


def read_metadata(path: Path) -> dict[str, Any]:
    """Return the metadata alone, without reading the tensors.

    Raises:
        RunError: the file is absent, torn or not one of ours.
    """
    with _reading(path) as file:
        metadata = _metadata(path, file.metadata())
    metadata.pop("names", None)
    return metadata


_ADVICE = "It was cut short or written by something else: put back a copy that is whole, or do again what made it."


@contextmanager
def _reading(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except FileNotFoundError as error:
        raise RunError(f"Expected a file at {path}, but there is none. Check the path.") from error
    except (SafetensorError, OSError) as error:
        raise RunError(f"Expected safetensors in {path}, but it cannot be read ({error}). {_ADVICE}") from error


def _metadata(path: Path, stored: Mapping[str, str] | None) -> dict[str, Any]:
    try:
        metadata = parse_json((stored or {})[METADATA_KEY])
    except (KeyError, ValueError) as error:
        raise RunError(f"Expected NuFed's metadata in {path}, but found none that can be read. {_ADVICE}") from error
    if not isinstance(metadata, dict):
        raise RunError(f"Expected a table of metadata in {path}, but found {type(metadata).__name__}. {_ADVICE}")
    return metadata


def _seal(path: Path) -> None:
    """Put the checksum into a file that was written with none in its place."""
    with path.open("r+b") as file:
        found = _find_seal(file)
        if found is None:
            raise AssertionError("the metadata that were written have a place for the checksum")
        start, _ = found
        seal = _checksum(file, start)
        file.seek(start)
        file.write(seal)


def _find_seal(file: IO[bytes]) -> tuple[int, bytes] | None:
    """Return where a safetensors file has its checksum, and the checksum; None if it has none."""
    size = os.fstat(file.fileno()).st_size
    file.seek(0)
    length = int.from_bytes(file.read(8), "little")  # of the header that follows
    found = list(_SEAL.finditer(file.read(min(length, size))))
    return (8 + found[-1].start(1), found[-1][1]) if found else None


def _checksum(file: IO[bytes], start: int) -> bytes:
    """Return the SHA-256 of a file in hexadecimal, with its checksum at `start` counted as zeros."""
    digest = hashlib.sha256()
    file.seek(0)
    digest.update(file.read(start))
    digest.update(_NO_SEAL.encode())
    file.seek(start + len(_NO_SEAL))
    while chunk := file.read(_CHUNK):
        digest.update(chunk)
    return digest.hexdigest().encode()


def _save_tensors(path: Path, content: dict[str, Tensor], metadata: str) -> None:
    try:
        save_file(content, path, metadata={METADATA_KEY: metadata})
    except SafetensorError as error:
        raise OSError(str(error)) from error


def _write_plain(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def write_through(file: IO[bytes], content: bytes) -> None:
    """Write all of `content` to an unbuffered file, and wait for the disk.

    Raises:
        OSError: the disk took a part, or nothing.
    """
    left = memoryview(content)
    while left:  # a disk that is nearly full takes a part, and then refuses
        left = left[file.write(left) :]
    os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Ask the disk to keep the names of a folder's files."""
    _sync(path)


def _sync(path: Path) -> None:
    """Ask the disk to keep a file's content, or a folder's names."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
