"""`images:FOLDER`: one folder per class, as torchvision's ImageFolder has them; without labels, images in the folder.

A folder's name is the name of its class in the run, so a client may lack classes. Images have 8 bits per channel and
the run's number of channels and size; they are changed only when asked to: size=64 or size=48,64 (height, width)
scales them, gray=1 makes them grey. Pixels arrive in [0, 1].
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from nufed.common.data.pool import Array
from nufed.common.data.private.rows import PrivateRows, number_rows, tell_here
from nufed.common.data.private.spec import PrivateSpec
from nufed.common.errors import ConfigError, DataError
from nufed.common.examples import TaskInfo

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
"""Those of torchvision's ImageFolder."""

_MODES = {1: "L", 3: "RGB"}


def read_images(spec: PrivateSpec, task: TaskInfo, *, labelled: bool) -> PrivateRows:
    """Return the images in the order of their paths: inputs uint8 [N, C, H, W].

    Args:
        spec: of kind images.
        task: what the run expects.
        labelled: whether there must be one folder per class.

    Raises:
        ConfigError: the run expects no images, or an option is malformed.
        DataError: a folder is no class of the run, or an image cannot be read or has another size or other channels.
    """
    if len(task.input_shape) != 3 or task.input_shape[0] not in _MODES or task.kind != "classification":
        raise ConfigError(
            f"--data {spec.text} gives images with classes, but the run expects {task.kind} of inputs of shape "
            f"{list(task.input_shape)}. Name data of that form, or have the run declare 1,H,W or 3,H,W."
        )
    folder = spec.path
    if not folder.is_dir():
        raise DataError(f"expected a folder of images at {folder}, but there is none; check --data")
    classes = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    reader = _Reader(spec, task)
    if not classes and not labelled:
        inputs = reader.read(_files(folder), "the folder")
        return PrivateRows(inputs, None, number_rows(inputs))
    _check_classes(folder, classes, task)
    parts = [reader.read(_files(path), f"class {path.name!r}") for path in classes]
    targets = np.repeat([task.class_names.index(path.name) for path in classes], [len(part) for part in parts])
    inputs = np.concatenate(parts)
    return PrivateRows(inputs, targets.astype(np.int64), number_rows(inputs))


def _check_classes(folder: Path, classes: Sequence[Path], task: TaskInfo) -> None:
    if not classes:
        raise DataError(f"expected one folder per class in {folder}, but it has no folders; sort the images into them")
    if unknown := [path.name for path in classes if path.name not in task.class_names]:
        raise DataError(
            f"expected folders named after the run's classes ({', '.join(task.class_names)}), but got "
            f"{', '.join(unknown)}; rename them or take them out"
        )


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in EXTENSIONS and path.is_file())


class _Reader:
    """Reads images into the run's form; holds what that is and what may be changed to reach it."""

    def __init__(self, spec: PrivateSpec, task: TaskInfo) -> None:
        """Read the options."""
        self._channels, self._height, self._width = task.input_shape
        self._size = _parse_size(spec)
        self._gray = spec.choice("gray", ("0", "1"), "0") == "1"

    def read(self, files: Sequence[Path], where: str) -> Array:
        """Return the images, uint8 [M, C, H, W]; `where` names their folder in errors."""
        images = np.empty((len(files), self._channels, self._height, self._width), np.uint8)
        for index, path in enumerate(files):
            try:
                with Image.open(path) as image:
                    pixels = np.asarray(self._converted(image))
            except (OSError, ValueError, SyntaxError, UnidentifiedImageError, Image.DecompressionBombError) as error:
                raise _refused(path, f"image {index + 1} of {where}", "it cannot be decoded", "replace it") from error
            except _WrongFormError as error:
                raise _refused(path, f"image {index + 1} of {where}", str(error), error.advice) from error
            images[index] = pixels[None] if self._channels == 1 else pixels.transpose(2, 0, 1)
        return images

    def _converted(self, image: Any) -> Any:
        if image.mode == "P" and "transparency" not in image.info:  # a palette is a way of writing, not of looking
            image = image.convert("RGB")
        if image.mode == "1" or (self._gray and image.mode == "RGB"):
            image = image.convert("L")
        if image.mode != _MODES[self._channels]:
            advice = "gray=1 makes color images grey" if image.mode == "RGB" else "convert the files"
            raise _WrongFormError(f"it has the form {image.mode}, not {_MODES[self._channels]}", advice)
        if self._size and image.size != self._size:
            image = image.resize(self._size, Image.Resampling.BILINEAR)
        if image.size != (self._width, self._height):
            raise _WrongFormError(
                f"it is {image.size[1]} x {image.size[0]} pixels (height x width), not {self._height} x {self._width}",
                f"size={self._height},{self._width} scales all images",
            )
        return image


class _WrongFormError(Exception):
    """An image that can be read and is not what the run expects; says what it is and what would help."""

    def __init__(self, text: str, advice: str) -> None:
        """Keep both."""
        super().__init__(text)
        self.advice = advice


def _refused(path: Path, which: str, problem: str, advice: str) -> DataError:
    tell_here("%s is %s", which, path)
    return DataError(
        f"expected images of the run's form, but of {which}, by name: {problem}; {advice}, and this client's own log "
        "names the file"
    )


def _parse_size(spec: PrivateSpec) -> tuple[int, int] | None:
    """Return (width, height) of the option size=HEIGHT,WIDTH."""
    if (text := spec.options.get("size")) is None:
        return None
    parts = text.split(",")
    if not 1 <= len(parts) <= 2 or not all(part.isdecimal() and 0 < int(part) < 2**16 for part in parts):
        raise ConfigError(f"--data: size={text!r} is refused: expected HEIGHT,WIDTH in pixels, e.g. 28,28.")
    return int(parts[-1]), int(parts[0])
