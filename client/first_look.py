"""A look at a client's own data before it dials: what is plainly missing is said while somebody still sits there.

Whether the data fit a run can only be told when the run is known (`nufed.common.data.private.load`).
"""

import unicodedata
import zipfile

from nufed.common.config import DataConfig
from nufed.common.data.private.load import is_slice
from nufed.common.data.private.readers import open_table
from nufed.common.data.private.spec import PrivateSpec, parse_spec
from nufed.common.data.registry import find_source
from nufed.common.errors import ConfigError, DataError
from nufed.common.user_code import load_function


def look_at(text: str) -> None:
    """Refuse a SPEC whose file, folder or function is not there, or has no labels; little of it is read.

    Raises:
        ConfigError: the spec is misspelled, or names no such function or label.
        DataError: the file or folder is missing, empty, or of another kind.
    """
    if is_slice(text):
        find_source(DataConfig(source=text.rpartition("#")[0]).source)
        return
    spec = parse_spec(text)
    if spec.kind in ("csv", "parquet"):
        _look_at_table(spec)
    elif spec.kind == "images":
        if not spec.path.is_dir() or not any(path.is_dir() for path in spec.path.iterdir()):
            raise DataError(f"Expected a folder with one folder of images per class at {spec.path}. Check --data.")
    elif spec.kind == "npz":
        if not spec.path.is_file() or not zipfile.is_zipfile(spec.path):
            raise DataError(
                f"Expected an archive written by numpy.savez at {spec.path}, but there is none. Check --data."
            )
    else:
        load_function(spec.argument, "--data", DataError)


def _look_at_table(spec: PrivateSpec) -> None:
    if not (labels := spec.names("label")):
        raise ConfigError("--data names no label. Type ?label=COLUMN behind the path.")
    if not spec.path.is_file():
        raise DataError(f"Expected a {spec.kind} file at {spec.path}, but there is no such file. Check --data.")
    with open_table(spec) as table:
        found = {unicodedata.normalize("NFC", name) for name in table.header}
        lacking = [name for name in labels if unicodedata.normalize("NFC", name) not in found]
        if lacking:
            raise ConfigError(
                f"--data: label={lacking[0]!r} is no column of {spec.path}. It has: {', '.join(table.header[:20])}."
            )
        if next(iter(table.parts([0])), None) is None:
            raise DataError(f"Expected examples in {spec.path}, but it has a header alone. Check --data.")
