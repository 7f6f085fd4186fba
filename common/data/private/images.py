"""`images:FOLDER`: one folder per class, as torchvision's ImageFolder has them; without labels, images in the folder.

A folder's name is the name of its class in the run, so a client may lack classes. Images have 8 bits per channel and
the run's number of channels and size, seen upright as a camera has noted; they are changed only when asked to: size=64
or size=48,64 (height, width) scales them, gray=1 makes them grey. Pixels arrive in [0, 1].

group=folder keeps the images of each folder below a class's together, whatever lies deeper: class/patient/visit/1.png
belongs to the patient. The same name under two classes is one group. In data of several clients, user=folder says whose
an image is, and the folder below that is its group: class/site/patient/1.png.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageOps

from nufed.common.data.division import Names, names_of
from nufed.common.data.pool import Array
from nufed.common.data.private.rows import (
    PrivateRows,
    listed,
    number_rows,
    refusal,
    shown_names,
    tell_here,
)
from nufed.common.data.private.spec import PrivateSpec
from nufed.common.data.private.task import canonical
from nufed.common.errors import ConfigError, DataError
from nufed.common.examples import TaskInfo

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
"""Those of torchvision's ImageFolder."""

_ENDINGS = ", ".join(EXTENSIONS)

_FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP")
"""Decoders that are tried, whatever a file is called; others start programs or read further files."""

_MOST_PIXELS = 2**26

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
        raise refusal(
            ConfigError,
            f"--data gives images with classes, but the run expects {task.kind} of inputs of shape "
            f"{list(task.input_shape)}. Name data of that form, or have the run declare 1,H,W or 3,H,W.",
        )
    folder = spec.path
    if not folder.is_dir():
        raise refusal(
            DataError,
            "expected a folder of images where --data says, but there is none; check --data",
            "there is no folder %s",
            folder,
        )
    try:
        return _read_folder(folder, _Reader(spec, task), task, labelled=labelled)
    except OSError as error:
        raise refusal(
            DataError,
            "expected a folder of images that can be read, but the system refuses; check its permissions",
            "%s",
            error,
        ) from error


def _read_folder(folder: Path, reader: "_Reader", task: TaskInfo, *, labelled: bool) -> PrivateRows:
    classes = subfolders(folder)
    if not classes and not labelled:
        inputs = reader.read(image_files(folder), "the folder")
        return PrivateRows(inputs, None, number_rows(inputs))
    _check_classes(classes, task)
    codes = {canonical(name): code for code, name in enumerate(task.class_names)}
    own = [codes[canonical(path.name)] for path in classes]
    files = [image_files(path) for path in classes]
    inside = [path.relative_to(folder).parent.parts[1:] for paths in files for path in paths]
    groups, users = _folder_names(inside, reader.named) if labelled else (None, None)
    parts = [reader.read(paths, f"class {task.class_names[code]!r}") for code, paths in zip(own, files, strict=True)]
    inputs = np.concatenate(parts)
    targets = np.repeat(own, list(map(len, parts))).astype(np.int64)
    return PrivateRows(inputs, targets, number_rows(inputs), groups=groups, users=users)


def _folder_names(inside: Sequence[tuple[str, ...]], named: Sequence[str]) -> tuple[Names | None, Names | None]:
    """Return the group and the user of each image.

    Args:
        inside: the folders between a class's and each image, the highest first.
        named: what the first of them name: `user`, `group`, both in this order, or nothing.
    """
    if not named:
        if any(inside):
            tell_here("classes have folders within; group=folder keeps the images of each in one split")
        return None, None
    lacking = [len(folders) < len(named) for folders in inside]
    if any(lacking):
        raise refusal(
            DataError,
            f"expected every image in {' and '.join(f'a folder of its {name}' for name in named)}, below that of its "
            f"class, but {sum(lacking)} of {len(inside)} are not; move them there, or leave "
            f"{' and '.join(f'{name}=folder' for name in named)} out",
        )
    found = {name: names_of([canonical(folders[level]) for folders in inside]) for level, name in enumerate(named)}
    return found.get("group"), found.get("user")


def _check_classes(classes: Sequence[Path], task: TaskInfo) -> None:
    if not classes:
        raise refusal(
            DataError, "expected one folder of images per class, but there are no folders; sort the images into them"
        )
    known = set(map(canonical, task.class_names))
    if unknown := [path.name for path in classes if canonical(path.name) not in known]:
        raise refusal(
            DataError,
            f"expected folders named after the run's classes ({shown_names(task.class_names)}), but {len(unknown)} of "
            f"{len(classes)} are not; rename them or take them out. This client's own log has their names",
            "folders that are no class of the run: %s",
            listed(unknown),
        )
    if len({canonical(path.name) for path in classes}) < len(classes):
        raise refusal(
            DataError,
            "expected one folder per class, but two of them are spellings of one name; put their images together",
            "folders: %s",
            listed([path.name for path in classes]),
        )


def image_files(folder: Path) -> list[Path]:
    """Return the images in a folder and below it; other files are counted in this machine's log."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    images = [path for path in files if path.suffix.lower() in EXTENSIONS]
    if left_out := len(files) - len(images):
        tell_here("%d of %d files in %s are left out: they do not end in %s", left_out, len(files), folder, _ENDINGS)
    return images


class _Reader:
    """Reads images into the run's form; holds what that is and what may be changed to reach it."""

    def __init__(self, spec: PrivateSpec, task: TaskInfo) -> None:
        """Read the options."""
        self._channels, self._height, self._width = task.input_shape
        self._size = _parse_size(spec)
        self._gray = spec.choice("gray", ("0", "1"), "0") == "1"
        self.named = [
            name for name in ("user", "group") if name in spec.options and spec.choice(name, ("folder",), "folder")
        ]

    def read(self, files: Sequence[Path], where: str) -> Array:
        """Return the images, uint8 [M, C, H, W]; `where` names their folder in errors."""
        images = np.empty((len(files), self._channels, self._height, self._width), np.uint8)
        for index, path in enumerate(files):
            try:
                with Image.open(path, formats=_FORMATS) as image:
                    pixels = np.asarray(self._converted(image))
            except _WrongFormError as error:
                raise _refused(path, f"image {index + 1} of {where}", str(error), error.advice) from error
            except Exception as error:  # damaged files raise anything
                raise _refused(path, f"image {index + 1} of {where}", "it cannot be decoded", "replace it") from error
            images[index] = pixels[None] if self._channels == 1 else pixels.transpose(2, 0, 1)
        return images

    def _converted(self, image: Any) -> Any:
        self._check_form(image)
        image = ImageOps.exif_transpose(image)
        if image.mode == "P":
            image = image.convert("RGB")
        if image.mode != _MODES[self._channels]:
            image = image.convert("L")
        return image.resize(self._size, Image.Resampling.BILINEAR) if self._size else image

    def _check_form(self, image: Any) -> None:
        """Refuse by the file's head what cannot become an image of the run; nothing is decoded for that."""
        # A palette, or one bit, is a way of writing, not of looking.
        mode = "RGB" if image.mode == "P" and "transparency" not in image.info else image.mode
        if mode == "1" or (self._gray and mode == "RGB"):
            mode = "L"
        if mode != _MODES[self._channels]:
            advice = "gray=1 makes color images grey" if mode == "RGB" else "convert the files"
            raise _WrongFormError(f"it has the form {mode}, not {_MODES[self._channels]}", advice)
        width, height = self._size or (image.size[::-1] if _is_turned(image) else image.size)
        if (width, height) != (self._width, self._height):
            raise _WrongFormError(
                f"it is {height} x {width} pixels (height x width), not {self._height} x {self._width}",
                f"size={self._height},{self._width} scales all images",
            )
        if image.size[0] * image.size[1] > _MOST_PIXELS:
            raise _WrongFormError(f"it has more than {_MOST_PIXELS} pixels", "scale it before")
        pages = getattr(image, "n_frames", 1)
        if image.format != "MPO" and pages > 1:  # whose further pages are previews of the first, as cameras make them
            raise _WrongFormError(f"it has {pages} pages", "write each page as a file")


class _WrongFormError(Exception):
    """An image that can be read and is not what the run expects; says what it is and what would help."""

    def __init__(self, text: str, advice: str) -> None:
        """Keep both."""
        super().__init__(text)
        self.advice = advice


def _is_turned(image: Any) -> bool:
    """Return whether a camera has noted that height and width are to be exchanged."""
    return image.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8)


def _refused(path: Path, which: str, problem: str, advice: str) -> DataError:
    return refusal(
        DataError,
        f"expected images of the run's form, but of {which}, by name: {problem}; {advice}, and this client's own log "
        "names the file",
        "%s is %s",
        which,
        path,
    )


def _parse_size(spec: PrivateSpec) -> tuple[int, int] | None:
    """Return (width, height) of the option size=HEIGHT,WIDTH."""
    if (text := spec.options.get("size")) is None:
        return None
    parts = text.split(",")
    if not 1 <= len(parts) <= 2 or not all(part.isdecimal() and 0 < int(part) < 2**16 for part in parts):
        raise ConfigError(f"--data: size={text!r} is refused: expected HEIGHT,WIDTH in pixels, e.g. 28,28.")
    return int(parts[-1]), int(parts[0])


def subfolders(folder: Path) -> list[Path]:
    """Return the folders in a folder, hidden ones apart, by name."""
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def is_of_sites(folder: Path) -> bool:
    """Return whether a folder holds a folder of classes for each site: images lie two folders down, none higher."""
    return not any(
        path.suffix.lower() in EXTENSIONS
        for within in subfolders(folder)
        for path in within.iterdir()
        if path.is_file()
    ) and any(subfolders(within) for within in subfolders(folder))


def find_form(spec: PrivateSpec, folders: Sequence[Path]) -> tuple[int, int, int]:
    """Return channels, height and width of the first image in some folders, as `size=` and `gray=` make it.

    Raises:
        DataError: there is no image, or it cannot be read.
    """
    first = next((files[0] for folder in folders if (files := image_files(folder))), None)
    if first is None:
        raise refusal(DataError, "expected images in the folders of the classes, but there are none; check --data")
    try:
        with Image.open(first, formats=_FORMATS) as image:
            mode = "RGB" if image.mode == "P" and "transparency" not in image.info else image.mode
            size = image.size[::-1] if _is_turned(image) else image.size
    except Exception as error:  # damaged files raise anything
        raise _refused(first, "the first", "it cannot be decoded", "replace it") from error
    width, height = _parse_size(spec) or size
    is_color = mode == "RGB" and spec.options.get("gray") != "1"
    return 3 if is_color else 1, height, width
