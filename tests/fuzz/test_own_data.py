"""Files of a client's own data, made at random: tables, archives, images."""

import io
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from nufed.common.config import RunConfig
from nufed.common.data.private.load import Membership, load_private
from nufed.common.settings import Settings
from tests.fuzz.budget import examples, limits

CANARY = "zq7-ann-smith"
TABLE = RunConfig().updated(
    {
        "data.source": "private",
        "data.feature-names": "a,b",
        "data.categories": "b:x|y|01|NA",
        "data.class-names": "no,yes,None,1",
    }
)
ARRAYS = RunConfig().updated({"data.source": "private", "data.input-shape": "2", "data.class-names": "no,yes"})
IMAGES = RunConfig().updated({"data.source": "private", "data.input-shape": "1,4,4", "data.class-names": "no,yes"})


def load(name: str, content: bytes, options: str, config: RunConfig) -> None:
    """Read a file as a client would; whatever is refused must be fit to be sent."""
    with tempfile.TemporaryDirectory(prefix=CANARY) as folder:
        path = Path(folder) / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
        kind, target = (name.rpartition(".")[2], path) if "/" not in name else ("images", folder)
        with limits() as refused:
            load_private(Membership(f"{kind}:{target}{options}", "site"), config, Settings())
    assert not [error for error in refused if error.sendable and CANARY in str(error)]


CELLS = st.one_of(
    st.sampled_from(
        ["", "1", "01", "1.0", "1e39", "NA", "None", "x", "y", "no", "yes", '"', "'", ",", ";", "\x00", CANARY]
    ),
    st.text(max_size=6),
    st.floats().map(str),
    st.integers().map(str),
)
OPTIONS = st.sampled_from(
    ["?label=y", "?label=y&missing=drop", "?label=y&missing=mean&scale=local", "?label=y&na=x,1", "?label=y&sep=;", ""]
)


@st.composite
def csv_files(draw):
    """Return the bytes of something like a table."""
    if draw(st.integers(0, 4)) == 0:
        return draw(st.binary(max_size=200))
    header = draw(st.sampled_from([["a", "b", "y"], ["y", "b", "a", "c"], ["a", CANARY], [CANARY, "a", "b", "y"]]))
    ragged = draw(st.booleans())
    rows = draw(st.lists(st.lists(CELLS, min_size=0 if ragged else len(header), max_size=len(header)), max_size=12))
    quoted = draw(st.booleans())
    lines = [header, *rows]
    text = "\n".join(",".join(f'"{cell}"' if quoted else cell for cell in line) for line in lines)
    return text.encode("utf-8", "surrogatepass")


@settings(max_examples=examples(50))
@given(content=csv_files(), options=OPTIONS)
def test_csv_files(content, options):
    load("t.csv", content, options, TABLE)


TYPES = [
    *(pa.int8(), pa.int64(), pa.uint64(), pa.float16(), pa.float32(), pa.float64(), pa.bool_(), pa.string()),
    *(pa.large_string(), pa.binary(), pa.date32(), pa.timestamp("ns"), pa.timestamp("s", "UTC"), pa.time64("us")),
    *(pa.decimal128(9, 2), pa.decimal256(50, 0), pa.duration("s"), pa.list_(pa.int8()), pa.null()),
    *(pa.struct([(CANARY, pa.int8())]), pa.dictionary(pa.int8(), pa.string())),
]


@st.composite
def arrow_columns(draw, length: int):
    """Return a column of any type that parquet has and that is easily made."""
    kind = draw(st.sampled_from(TYPES))
    if pa.types.is_dictionary(kind) or pa.types.is_string(kind):
        texts = draw(st.lists(st.one_of(st.none(), CELLS), min_size=length, max_size=length))
        texts = [None if text is None else text.encode("utf-8", "ignore").decode() for text in texts]
        column = pa.array(texts, pa.string())
        return column.dictionary_encode() if pa.types.is_dictionary(kind) else column
    numbers = draw(st.lists(st.one_of(st.none(), st.integers(-99, 99)), min_size=length, max_size=length))
    try:
        return pa.array(numbers).cast(kind, safe=False)
    except (pa.ArrowException, ValueError):
        return pa.array([None] * length, kind)


@st.composite
def parquet_files(draw):
    """Return the bytes of a parquet file, sometimes damaged."""
    length = draw(st.integers(0, 6))
    names = draw(st.sampled_from([["a", "b", "y"], ["a", "b", "y", CANARY], ["a", "b"], ["a", "a", "y"]]))
    table = pa.Table.from_arrays([draw(arrow_columns(length)) for _ in names], names)
    stream = io.BytesIO()
    pq.write_table(table, stream)
    return damaged(draw, stream.getvalue())


def damaged(draw, content: bytes) -> bytes:
    """Return a file's bytes, half of the time with some of them changed or cut off."""
    if draw(st.booleans()):
        return content
    changed = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        changed[draw(st.integers(0, len(changed) - 1))] = draw(st.integers(0, 255))
    return bytes(changed[: draw(st.integers(len(changed) // 2, len(changed)))])


@settings(max_examples=examples(30))
@given(content=parquet_files(), options=OPTIONS)
def test_parquet_files(content, options):
    load("t.parquet", content, options, TABLE)


ARRAYS_OF_TYPES = st.sampled_from(
    ["<f4", ">f4", "<f8", "f2", "g", "<i8", ">i4", "u8", "u1", "?", "c8", "M8[s]", "U5", "S5", "O", [("a", "i4")], "V3"]
)


@st.composite
def arrays(draw, rows: int):
    """Return an array of any type and of nearly the right shape."""
    dtype = np.dtype(draw(ARRAYS_OF_TYPES))
    shape = draw(st.sampled_from([(rows, 2), (rows,), (), (rows, 1), (rows, 2, 2), (0, 2), (rows, 0), (2, rows)]))
    numbers = np.arange(int(np.prod(shape))).reshape(shape) % draw(st.sampled_from([2, 3, 99]))
    try:
        made = numbers.astype(dtype)
    except (TypeError, ValueError):
        made = np.zeros(shape, dtype)
    if dtype.kind == "f" and made.size and draw(st.booleans()):
        made.flat[0] = draw(st.floats(width=16))
    return np.asarray(made, dtype, order="F" if draw(st.booleans()) else "C")


@st.composite
def archives(draw):
    """Return the bytes of an archive: of any arrays, with headers that lie, damaged, or huge."""
    rows = draw(st.integers(0, 9))
    names = draw(
        st.sampled_from(
            [
                ("x", "y"),
                ("x",),
                ("x", "y", "user"),
                ("x_train", "y_train", "x_test", "y_test"),
                ("x", "y", "class_names"),
            ]
        )
    )
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", draw(st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]))) as file:
        for name in names:
            member = io.BytesIO()
            np.lib.format.write_array(member, draw(arrays(rows)))
            raw = member.getvalue()
            if draw(st.integers(0, 4)) == 0:
                lie = draw(st.sampled_from([b"(99999999999,)", b"(-1,)", b"(2,", b"(1, 1)"]))
                raw = raw.replace(f"({rows}, 2)".encode(), lie)
            if draw(st.integers(0, 9)) == 0:
                raw = raw[:10] + b"\x00" * draw(st.sampled_from([10, 10**7]))
            file.writestr(f"{name}.npy", raw)
    return damaged(draw, content.getvalue())


@settings(max_examples=examples(50))
@given(content=archives(), options=st.sampled_from(["", f"?user={CANARY}", "?user=1"]))
def test_archives(content, options):
    load("t.npz", content, options, ARRAYS)


@st.composite
def image_files(draw):
    """Return the bytes of an image of some form, sometimes damaged."""
    mode = draw(st.sampled_from(["L", "RGB", "RGBA", "P", "1", "I;16", "CMYK", "F", "LA"]))
    size = draw(st.sampled_from([(4, 4), (4, 5), (1, 1), (300, 200)]))
    form = draw(st.sampled_from(["PNG", "JPEG", "BMP", "TIFF", "WEBP", "PPM", "GIF"]))
    stream = io.BytesIO()
    try:
        Image.new(mode, size, draw(st.sampled_from([0, 1]))).save(stream, form)
    except (OSError, ValueError, TypeError):
        return b"no such image"
    return damaged(draw, stream.getvalue())


@settings(max_examples=examples(50))
@given(content=image_files(), options=st.sampled_from(["", "?gray=1", "?size=4,4", "?gray=1&size=4"]))
def test_image_files(content, options):
    load(f"yes/{CANARY}.png", content, options, IMAGES)
