"""A client's images, arrays, functions and slices; and that each is compared with what the run expects."""

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

from nufed.common.config import RunConfig
from nufed.common.data import load_federation
from nufed.common.data.private.found_rows import load_rows
from nufed.common.data.private.load import Membership, load_private
from nufed.common.data.private.spec import KINDS, parse_spec
from nufed.common.errors import ConfigError, DataError
from nufed.common.settings import Settings

IMAGES = RunConfig().updated(
    {"data.source": "private", "data.input-shape": "1,6,8", "data.class-names": "unsure,yes,no"}
)
ARRAYS = RunConfig().updated({"data.source": "private", "data.input-shape": "3", "data.class-names": "no,yes"})
SLICES = RunConfig().updated({"data.num-clients": 4, "data.num-new-clients": 2})


def load(spec, run, name="site-a", group=None):
    return load_private(Membership(spec, name, group), run, Settings())


def draw_images(folder, *, mode="L", size=(8, 6), classes=("yes", "no"), count=6):
    """Image i of a class is filled with the value 10 i + 1; `yes` has one more."""
    for name in classes:
        (folder / name).mkdir(parents=True)
        for index in range(count + (name == "yes")):
            color = 10 * index + 1 if mode in ("L", "P", "I;16") else (10 * index + 1,) * len(mode)
            Image.new(mode, size, color).save(folder / name / f"{index}.png")
    return folder


def splits(client):
    return [client.data.support, client.data.validation, client.data.test]


def test_images_get_their_class_from_their_folders_name(tmp_path):
    """By name, not by position: this client lacks the class `unsure`."""
    client = load(f"images:{draw_images(tmp_path)}", IMAGES)

    inputs = torch.cat([part.inputs for part in splits(client)])
    targets = torch.cat([part.targets for part in splits(client)])
    assert inputs.shape == (13, 1, 6, 8)
    assert sorted(targets.tolist()) == [1] * 7 + [2] * 6
    assert torch.equal(inputs[targets == 1].unique(), torch.arange(7) * 10 / 255 + 1 / 255)


def test_images_are_changed_only_when_asked_to(tmp_path):
    """Another size or color is an error that names the option."""
    folder = draw_images(tmp_path, mode="RGB", size=(16, 12))

    with pytest.raises(DataError, match=r"image 1 of class 'no'.*form RGB, not L; gray=1"):
        load(f"images:{folder}", IMAGES)
    with pytest.raises(DataError, match=r"12 x 16 pixels .*not 6 x 8; size=6,8"):
        load(f"images:{folder}?gray=1", IMAGES)

    client = load(f"images:{folder}?gray=1&size=6,8", IMAGES)

    assert torch.allclose(
        torch.cat([part.inputs for part in splits(client)]).unique(), torch.arange(7) * 10 / 255 + 1 / 255
    )


def test_color_images_arrive_channels_first(tmp_path):
    """[3, H, W], red first."""
    (tmp_path / "no").mkdir()
    for index in range(4):
        Image.new("RGB", (8, 6), (255, index, 51)).save(tmp_path / "no" / f"{index}.png")

    client = load(f"images:{tmp_path}", IMAGES.updated({"data.input-shape": "3,6,8"}))

    assert torch.allclose(client.data.support.inputs[0].mean((1, 2)), torch.tensor([1.0, 0.0, 0.2]), atol=0.02)


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (
            lambda folder: draw_images(folder, classes=("yes", "maybe")),
            "",
            r"run's classes \(unsure, yes, no\), but 1 of 2 are not",
        ),
        (lambda folder: draw_images(folder, mode="I;16"), "", "has the form I;16"),
        (lambda folder: draw_images(folder, mode="RGBA"), "?gray=1", "has the form RGBA"),
        (lambda folder: (draw_images(folder) / "no" / "3.png").write_bytes(b"text"), "", "4 of class 'no'.*decoded"),
        (
            lambda folder: Image.new("L", (8, 6)).save(
                draw_images(folder) / "no" / "3.png", save_all=True, append_images=[Image.new("L", (8, 6), 9)]
            ),
            "",
            "4 of class 'no'.*2 pages",
        ),
        (lambda folder: None, "", "no folders"),
        (lambda folder: folder.rmdir(), "", "there is none"),
        (draw_images, "?size=0", "HEIGHT,WIDTH"),
        (draw_images, "?size=a,b", "HEIGHT,WIDTH"),
        (draw_images, "?gray=yes", "gray='yes' is unknown"),
    ],
)
def test_a_folder_that_is_not_as_expected_is_refused(tmp_path, make, options, message, caplog):
    """The position of the image travels, the file's name, which may be a person's, does not."""
    make(tmp_path)

    with pytest.raises((DataError, ConfigError), match=message) as caught:
        load(f"images:{tmp_path}{options}", IMAGES)

    assert ".png" not in str(caught.value)


def test_images_do_not_fit_a_run_on_tables(tmp_path):
    """Whatever is in the folder."""
    with pytest.raises(ConfigError, match=r"inputs of shape \[3\]"):
        load(f"images:{tmp_path}", ARRAYS)


def test_images_to_predict_need_no_folders(tmp_path):
    """They keep the order of their names."""
    draw_images(tmp_path, classes=("all",))

    found = load_rows(f"images:{tmp_path}/all", load_task(IMAGES), IMAGES, Settings())

    assert found.rows.targets is None
    assert (found.examples.inputs[:, 0, 0, 0] * 255).round().tolist() == [1, 11, 21, 31, 41, 51]


def load_task(run):
    from nufed.common.data import describe_task

    return describe_task(run.data, Settings())


X = np.arange(36, dtype=np.float32).reshape(12, 3)
Y = np.arange(12) % 2


def save(tmp_path, **arrays):
    np.savez(tmp_path / "mine.npz", **arrays)
    return f"npz:{tmp_path}/mine.npz"


def test_an_archive_is_one_clients_data(tmp_path):
    """Every example is in one split."""
    client = load(save(tmp_path, x=X, y=Y), ARRAYS)

    rows = torch.cat([part.inputs for part in splits(client)])
    assert np.array_equal(np.array(sorted(rows.tolist())), X)


def test_an_archives_own_test_part_is_the_test_split(tmp_path):
    """For data that are divided by time."""
    client = load(save(tmp_path, x_train=X[:8], y_train=Y[:8], x_test=X[8:], y_test=Y[8:]), ARRAYS)

    assert np.array_equal(np.array(sorted(client.data.test.inputs.tolist())), X[8:])
    assert len(client.data.support) + len(client.data.validation) == 8


def test_a_federations_archive_gives_one_of_its_users(tmp_path, caplog):
    """For trials; the names of the others stay on this machine."""
    spec = save(tmp_path, x=X, y=Y, user=np.array(["va", "basel"] * 6))

    client = load(f"{spec}?user=va", ARRAYS)

    rows = torch.cat([part.inputs for part in splits(client)])
    assert np.array_equal(np.array(sorted(rows.tolist())), X[::2])
    for wrong, message in ((spec, "of 2 users. Type .user=NAME"), (f"{spec}?user=bern", "none of the 2 users")):
        with pytest.raises(ConfigError, match=message) as caught:
            load(wrong, ARRAYS)
        assert "basel" not in str(caught.value)
    assert "basel" in caplog.text


@pytest.mark.parametrize(
    ("arrays", "options", "message"),
    [
        ({"x": X[:, :2], "y": Y}, "", r"client 'site-a': expected inputs of shape \[3\].*got \[2\]"),
        ({"x": X, "y": Y + 1}, "", r"labels from 0 to 1 \(no, yes\).*6 of 12 are beyond;"),
        ({"x": X, "y": Y * 0.5}, "", "expected targets for classification.*got values"),
        (
            {"x": X, "y": Y, "class_names": ["yes", "no"]},
            "",
            r"class names .*run's \(no, yes\), but they are others, or in another order",
        ),
        ({"x": X[:1], "y": Y[:1]}, "", "has 1 examples and needs at least 2"),
        ({"x": X, "y": Y}, "?user=me", "does not say who made"),
        ({"x": X}, "", "expected an archive of examples"),
    ],
)
def test_an_archive_that_is_not_what_the_run_expects_is_refused(tmp_path, arrays, options, message):
    """With the client's name and what differs."""
    with pytest.raises((DataError, ConfigError), match=message):
        load(save(tmp_path, **arrays) + options, ARRAYS)


def test_features_are_compared_by_name(tmp_path):
    """The same shape in another order would train on nonsense."""
    run = ARRAYS.updated({"data.input-shape": "", "data.feature-names": "a,b,c"})

    with pytest.raises(DataError, match=r"feature names .*\(a, b, c\), but they are others, or in another order"):
        load(save(tmp_path, x=X, y=Y, feature_names=["a", "c", "b"]), run)


@pytest.mark.parametrize("dtype", [str, "S3"])
def test_labels_may_be_the_names_of_the_runs_classes(tmp_path, dtype):
    """In an archive as in a table."""
    named = load(save(tmp_path, x=X, y=np.array(["no", "yes"] * 6).astype(dtype)), ARRAYS)
    numbered = load(save(tmp_path, x=X, y=Y), ARRAYS)

    for ours, theirs in zip(splits(named), splits(numbered), strict=True):
        assert torch.equal(ours.targets, theirs.targets)
    with pytest.raises(DataError, match=r"classes as targets \(no, yes\), but 6 of 12 are others"):
        load(save(tmp_path, x=X, y=np.array(["no", "NA"] * 6)), ARRAYS)


def test_codes_in_an_archive_do_not_make_classes(tmp_path):
    """The run says how many there are; nothing of that size is made to find out."""
    with pytest.raises(DataError, match=r"labels from 0 to 1 .* 6 of 12 are beyond"):
        load(save(tmp_path, x=X, y=Y * (2**31 - 1)), ARRAYS)


def test_folders_are_classes_by_the_same_rule_as_cells(tmp_path):
    """`3.0` is 3, and 03 is no class of a run that has 3."""
    run = IMAGES.updated({"data.class-names": "3,03"})
    draw_images(tmp_path, classes=("3.0",), count=4)
    draw_images(tmp_path, classes=("03",), count=2)

    client = load(f"images:{tmp_path}", run)

    targets = torch.cat([part.targets for part in splits(client)])
    assert sorted(targets.tolist()) == [0] * 4 + [1] * 2


def test_images_are_seen_upright(tmp_path):
    """A camera that was held sideways writes what it saw, and that it is to be turned; viewers turn it."""
    upright = np.zeros((6, 8), np.uint8)
    turned = Image.Exif()
    turned[ExifTags.Base.Orientation] = 6
    for number in range(5):
        (tmp_path / "yes").mkdir(exist_ok=True)
        upright[0] = 255 - number
        Image.fromarray(np.rot90(upright)).save(tmp_path / "yes" / f"{number}.png", exif=turned)

    client = load(f"images:{tmp_path}", IMAGES)

    assert torch.allclose(client.data.support.inputs[0, 0], torch.from_numpy(upright / 255).float(), atol=0.02)


def test_files_that_are_no_images_are_counted_here(tmp_path, caplog):
    """A folder of DICOM files with three previews would be a client of three."""
    draw_images(tmp_path)
    (tmp_path / "yes" / "scan.dcm").write_bytes(b"DICM")

    load(f"images:{tmp_path}", IMAGES)

    assert "1 of 8 files in" in caplog.text


def test_an_archive_to_predict_may_hold_inputs_alone(tmp_path):
    """Or labels too, which are then compared with."""
    found = load_rows(save(tmp_path, x=X), load_task(ARRAYS), ARRAYS, Settings())
    labelled = load_rows(save(tmp_path, x=X, y=Y), load_task(ARRAYS), ARRAYS, Settings()).rows
    rows, examples = found.rows, found.examples

    assert rows.targets is None
    assert np.array_equal(examples.inputs.numpy(), X)
    assert np.array_equal(labelled.targets, Y)


MODULE = """
import numpy as np

def mine(task):
    return np.ones((8, *task.input_shape), "float32"), np.arange(8) % task.num_outputs

def unlabelled(task):
    return np.ones((8, *task.input_shape), "float32"), None

def raising(task):
    raise ValueError("patient Ann-Smith-77 has no age")

def nothing(task):
    return None

def ragged(task):
    return np.ones((8, *task.input_shape)), np.zeros(7, int)
"""


@pytest.fixture
def _module(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "private_module_of_mine.py").write_text(MODULE)


@pytest.mark.usefixtures("_module")
def test_a_function_is_told_the_task_and_returns_the_examples():
    """Its targets may be unknown when it is to be predicted."""
    client = load("python:private_module_of_mine:mine", ARRAYS)
    rows = load_rows("python:private_module_of_mine:unlabelled", client.task, ARRAYS, Settings()).rows

    assert sum(map(len, splits(client))) == 8
    assert rows.targets is None


@pytest.mark.usefixtures("_module")
@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("raising", "it raised something; this client's own log says what"),
        ("nothing", "a pair"),
        ("ragged", "got 7 and 8"),
        ("unlabelled", "expected labels"),
        ("absent", "does not define"),
    ],
)
def test_a_functions_own_words_stay_here(function, message, caplog):
    """They may quote its data."""
    with pytest.raises((DataError, ConfigError), match=message) as caught:
        load(f"python:private_module_of_mine:{function}", ARRAYS)

    assert "Ann-Smith-77" not in str(caught.value)
    assert ("Ann-Smith-77" in caplog.text) == (function == "raising")


@pytest.mark.parametrize("index", range(6))
def test_a_slice_is_the_simulations_client(index):
    """Name, group and every example; its number is the partition id, from 0."""
    federation = load_federation(SLICES.data, seed=0, dtype=torch.float32, settings=Settings())

    client = load(f"digits#{index}/4", SLICES, name="anything")

    whole = federation.clients[index]
    assert (client.data.client_id, client.data.group) == (whole.client_id, whole.group)
    for ours, theirs in zip(splits(client), (whole.support, whole.validation, whole.test), strict=True):
        assert torch.equal(ours.inputs, theirs.inputs)
        assert torch.equal(ours.targets, theirs.targets)


@pytest.mark.parametrize(
    ("spec", "group", "message"),
    [
        ("digits#0/5", None, "dealt to 5 clients.*Type --data digits#0/4"),
        ("mnist#0/4", None, "a slice of another source.*runs 'digits' with 4"),
        ("digits#6/4", None, "clients 0 to 5"),
        ("digits#0/4", "new", r"participating client.*new clients are 4 to 5"),
        ("digits#4/4", "participating", "a new client"),
    ],
)
def test_a_slice_that_the_run_does_not_have_is_refused(spec, group, message):
    """No two sides deal differently."""
    with pytest.raises((DataError, ConfigError), match=message):
        load(spec, SLICES, group=group)


def test_a_slice_to_predict_is_its_test_split():
    """What its personal model was not adapted to."""
    found = load_rows("digits#1/4", load_task(SLICES), SLICES, Settings())
    rows, examples = found.rows, found.examples

    assert torch.equal(examples.inputs, load("digits#1/4", SLICES).data.test.inputs)
    assert np.array_equal(rows.targets, examples.targets.numpy())


def test_a_new_client_keeps_all_that_is_not_test_for_adaptation(tmp_path):
    """As in a simulation."""
    archive = save(tmp_path, x=X, y=Y)

    client = load(archive, ARRAYS, group="new")

    support, validation, test = map(len, splits(client))
    assert (support + test, validation) == (len(X), 0)
    assert torch.equal(client.data.test.inputs, load(archive, ARRAYS).data.test.inputs)
    assert client.data.group == "new"


def test_own_data_need_a_name():
    """The split depends on it, and the server knows the client by it."""
    with pytest.raises(ConfigError, match="--name"):
        load("npz:mine.npz", ARRAYS, name="")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mine.csv", "Type it like one of: csv:patients"),
        ("module:function", "python:my_module:my_function"),
        ("csv:", "lacks what follows csv:"),
        ("csv:?label=a", "lacks what follows csv:"),
        ("csv:a?label", "expected option=value"),
        ("csv:a?label=", "expected option=value"),
        ("csv:a?lable=b", "Did you mean 'label'"),
        ("csv:a?label=b&label=c", "stands twice"),
        ("python:m:f?x=1", "test"),
    ],
)
def test_a_misspelled_spec_is_refused_with_the_right_spelling(text, message):
    """Before anything is read."""
    with pytest.raises(ConfigError, match=message):
        parse_spec(text)


def test_values_in_a_spec_may_be_escaped():
    """A column may be called `a&b`."""
    spec = parse_spec("csv:~/my file.csv?label=a%26b&na=?")

    assert (spec.kind, spec.options) == ("csv", {"label": "a&b", "na": "?"})
    assert spec.path.name == "my file.csv"
    assert set(KINDS) == {"csv", "parquet", "images", "npz", "python"}
