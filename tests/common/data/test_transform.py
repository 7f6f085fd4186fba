"""What clients see their examples through."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nufed.common.config import DataConfig
from nufed.common.data.federation import load_client, load_federation
from nufed.common.data.transform import label_permutation, ring_names, rotate
from nufed.common.errors import ConfigError
from nufed.common.settings import Settings


def clients(**changes):
    config = DataConfig(num_clients=4, num_new_clients=2, partition="iid", **changes)
    return load_federation(config, seed=3, dtype=torch.float32, settings=Settings()).clients


def test_a_quarter_turn_moves_every_pixel_where_it_belongs():
    images = torch.arange(12.0).reshape(1, 1, 3, 4)
    square = images[..., :3]

    turned = rotate(square, 90.0)

    torch.testing.assert_close(turned, square.rot90(1, (2, 3)), atol=1e-5, rtol=0)


def test_half_a_turn_of_an_oblong_image_reverses_both_axes():
    images = torch.arange(12.0).reshape(1, 1, 3, 4)

    turned = rotate(images, 180.0)

    torch.testing.assert_close(turned, images.flip(2, 3), atol=1e-5, rtol=0)


@given(st.integers(2, 30), st.floats(0, 1), st.integers(0, 1000))
def test_a_label_permutation_is_one_and_moves_no_more_classes_than_its_strength_says(num_classes, strength, seed):
    names = label_permutation(num_classes, strength, torch.Generator().manual_seed(seed))

    assert sorted(names.tolist()) == list(range(num_classes))
    assert int((names != torch.arange(num_classes)).sum()) <= round(strength * num_classes)


def test_without_a_transform_or_without_strength_nothing_changes():
    plain = clients()

    for changed in (
        clients(transform="permute-labels", transform_strength=0.0),
        clients(transform="rotate", transform_strength=0.0),
        clients(transform="two-groups", transform_strength=0.0),
    ):
        for ours, theirs in zip(plain, changed, strict=True):
            torch.testing.assert_close(ours.support.inputs, theirs.support.inputs, atol=1e-5, rtol=0)
            assert torch.equal(ours.support.targets, theirs.support.targets)


def test_a_client_has_one_permutation_in_all_its_splits_and_another_client_another():
    plain, changed = clients(), clients(transform="permute-labels")
    names = []

    for before, after in zip(plain, changed, strict=True):
        pairs = {
            pair
            for split in ("support", "validation", "test")
            for pair in zip(
                getattr(before, split).targets.tolist(), getattr(after, split).targets.tolist(), strict=True
            )
        }
        names.append(dict(pairs))
        assert len(pairs) == len(names[-1])

    assert names[0] != names[1]
    assert names[4] != names[5]


@given(st.integers(2, 30), st.floats(0, 1), st.integers(0, 1000))
def test_a_ring_renames_as_many_classes_as_its_strength_says_and_none_alone(num_classes, strength, seed):
    names = ring_names(num_classes, strength, torch.Generator().manual_seed(seed))

    count = round(strength * num_classes)
    assert sorted(names.tolist()) == list(range(num_classes))
    assert int((names != torch.arange(num_classes)).sum()) == (count if count > 1 else 0)


def test_every_second_client_is_dimmed_and_its_group_has_one_code():
    plain, changed = clients(), clients(transform="two-groups", transform_strength=1.0)
    codes = []

    for number, (before, after) in enumerate(zip(plain, changed, strict=True)):
        gain = 0.3 if number % 2 else 1.0
        torch.testing.assert_close(after.test.inputs, gain * before.test.inputs)
        codes.append(dict(zip(before.support.targets.tolist(), after.support.targets.tolist(), strict=True)))

    assert all(name == own for code in codes[::2] for name, own in code.items())
    assert all(name != own for code in codes[1::2] for name, own in code.items())
    assert all(
        codes[1][name] == codes[3][name] == codes[5][name]
        for name in codes[1].keys() & codes[3].keys() & codes[5].keys()
    )


def test_rotated_clients_differ_by_one_angle_each():
    plain, changed = clients(), clients(transform="rotate", transform_strength=0.5)

    differences = [
        float((before.support.inputs - after.support.inputs).abs().mean())
        for before, after in zip(plain, changed, strict=True)
    ]

    assert len({round(difference, 6) for difference in differences}) == len(differences)
    assert max(differences) > 0.05


def test_a_client_loaded_alone_is_transformed_alike():
    config = DataConfig(num_clients=4, num_new_clients=2, transform="rotate")
    settings = Settings()

    together = load_federation(config, seed=1, dtype=torch.float32, settings=settings).clients[2]
    alone = load_client(config, 2, seed=1, dtype=torch.float32, settings=settings)

    assert torch.equal(together.test.inputs, alone.test.inputs)


@pytest.mark.parametrize(
    ("source", "transform", "needed"),
    [
        ("quadratic", "rotate", "images"),
        ("sinusoid", "permute-labels", "classes"),
        ("sinusoid", "two-groups", "classes"),
    ],
)
def test_a_transform_that_the_task_cannot_have_is_refused(source, transform, needed):
    with pytest.raises(ConfigError, match=f"data.transform={transform} needs {needed}"):
        clients(source=source, transform=transform)
