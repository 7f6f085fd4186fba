"""Every function, class and test that docs/theory.md names exists where its link says."""

import ast
import re
from pathlib import Path

import pytest

from nufed.common.theory.bounds import __file__ as bounds_file
from nufed.common.theory.convergence import RATES

DOCUMENT = Path(__file__).parents[3] / "docs" / "theory.md"
LINKS = sorted(set(re.findall(r"\[`?([^\]`]+)`?\]\(([^)]+)\)", DOCUMENT.read_text(encoding="utf-8"))))


def definitions(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}


def test_the_document_links_to_code_and_tests():
    assert len(LINKS) > 40


@pytest.mark.parametrize(("name", "target"), LINKS)
def test_every_linked_name_is_defined_in_the_linked_file(name, target):
    path = (DOCUMENT.parent / target).resolve()

    assert path.is_file()
    assert name in definitions(path)


def test_every_bound_and_rate_is_in_the_document():
    public = {name for name in definitions(Path(bounds_file)) if not name.startswith("_")}
    sums = {"hessian_free_bias", "hessian_free_error", "ObjectiveConstants"}  # of others, named in the text of Lemma 6

    assert public - sums <= {name for name, _ in LINKS}
    assert {rate.__name__ for rate in RATES.values()} <= {name for name, _ in LINKS}
