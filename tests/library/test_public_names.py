"""`import nufed`: fast, without torch, and what it exports is listed, documented and known to type checkers."""

import ast
import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import nufed

EXPORTED = [
    *("BudgetSpentError", "ConfigError", "DataConfig", "DataError", "DivergedError", "Estimate", "Evaluation"),
    *("EvaluationConfig", "FederationConfig", "MetaBatches", "MetaFedAvg", "MethodConfig", "ModelConfig", "ModelError"),
    *("NothingTrainedError", "NufedError", "OwnTask", "PeerError", "Run", "RunConfig", "RunError", "TaskConfig"),
    *("WireError", "__version__", "compare", "evaluate", "load_run", "meta_gradient"),
    *("personalize", "predict", "simulate"),
]
FUNCTIONS = ["compare", "evaluate", "load_run", "meta_gradient", "personalize", "predict", "simulate"]


def test_the_exported_names_are_these_and_change_by_decision_alone():
    assert sorted(nufed.__all__) == EXPORTED
    assert set(nufed.__all__) <= set(dir(nufed))
    with pytest.raises(AttributeError, match="no attribute 'simulat'"):
        _ = nufed.simulat


def test_type_checkers_see_what_is_loaded_lazily():
    tree = ast.parse(Path(nufed.__file__).read_text(encoding="utf-8"))
    (block,) = [node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    seen = {name.asname: node.module for node in block.body for name in node.names}

    assert seen == nufed._HOME
    assert all(hasattr(importlib.import_module(module), name) for name, module in seen.items())


@pytest.mark.parametrize("name", [name for name in EXPORTED if name != "__version__"])
def test_every_public_name_says_what_it_is(name):
    value = getattr(nufed, name)

    assert inspect.getdoc(value)
    if name in FUNCTIONS:
        arguments = set(inspect.signature(value).parameters)
        documented = inspect.getdoc(value).partition("Args:")[2]
        assert all(f"{argument}:" in documented for argument in arguments), name
        assert ">>> " in documented


def test_importing_is_fast_and_loads_neither_torch_nor_flower():
    code = (
        "import time, sys; t = time.perf_counter(); import nufed; s = time.perf_counter() - t; "
        "dir(nufed); print(s, sorted({'torch', 'flwr', 'pandas', 'pydantic', 'numpy'} & set(sys.modules)))"
    )
    outputs = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split(" ", 1)
        for _ in range(3)
    ]

    assert {loaded.strip() for _, loaded in outputs} == {"[]"}
    assert min(float(seconds) for seconds, _ in outputs) < 0.3
