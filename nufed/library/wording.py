"""Errors of what the command line shares with Python, in the words of Python: `num_rounds` for `--rounds`."""

import functools
import re
from collections.abc import Callable
from dataclasses import fields
from typing import Any, TypeVar, cast

from nufed.common.errors import NufedError
from nufed.deploy.simulation.engine_options import EngineOptions
from nufed.deploy.simulation.engines import ENGINES

Function = TypeVar("Function", bound=Callable[..., Any])

_FLAGS = {
    each: each for each in ("device", "data-root", "download", "engine", "method", "seed", "name", "dataset", "model")
}
_FLAGS |= {
    each: each
    for each in ("partition", "init", "inner-lr", "estimator", "local-lr", "batch-size", "weighting", "dp", "publish")
}
_FLAGS |= {
    each: f"num-{each}" for each in ("clients", "new-clients", "inner-steps", "local-steps", "adapt-steps", "threads")
}
_FLAGS |= {f"dp-{each}": each for each in ("clip", "noise", "epsilon", "delta")}
_FLAGS |= {"fraction": "participation-fraction", "secure-aggregation": "secure-aggregation"}
_FLAGS |= {each.name.replace("_", "-"): each.name for each in fields(EngineOptions)}
"""Argument of Python by flag of the command line, where more is to be said of it than a pattern below does."""
_NAMES = "|".join((*ENGINES, "cpu", "cuda", "record", "client", "none", "uniform", "examples"))
"""Values that are written after a flag, which would otherwise read as words of the sentence."""


def _argument(found: re.Match[str]) -> str:
    return _FLAGS[found[1]].replace("-", "_")


_WORDS: tuple[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]], ...] = (
    (re.compile(r" \(--(?:engine|method)\)"), ""),
    (re.compile(r"; --debug shows the traceback"), ""),
    (re.compile(r"--rounds\b"), "num_rounds"),
    (re.compile(r"--out\b"), "out="),
    (re.compile(r"(?:nufed simulate )?--attack ([a-z-]+) --attackers (\d+)"), r"attack='\1', attackers=\2"),
    (re.compile(r"nufed simulate neither --attack nor --attackers"), "neither attack= nor attackers="),
    (re.compile(r" \(--attack\)"), ""),
    (re.compile(r"--(attackers?)\b"), r"\1"),
    (re.compile(rf"--engine ({_NAMES}) or ({_NAMES})\b"), r"engine='\1' or '\2'"),
    (re.compile(rf"--({'|'.join(_FLAGS)}) ({_NAMES})\b(?!-)"), lambda found: f"{_argument(found)}='{found[2]}'"),
    (re.compile(rf"--({'|'.join(_FLAGS)})\b(?!-)"), _argument),
    (re.compile(r"\bdata\.source='given:[0-9a-f]+'|\bgiven:[0-9a-f]{16}\b(?= has)"), "the dataset"),
    (re.compile(r"\bmodel\.name='given:\w+'"), "model"),
    (re.compile(r" \(data\.task=given:\w+\)"), ""),
    (re.compile(r"\bdata\.task='?given:\w+'?"), "the task"),
    (re.compile(r"\bevaluation\.(?=metrics=|primary-metric=)"), ""),
)


def in_words_of_python(function: Function) -> Function:
    """Return the function, whose errors name its own arguments and no flags of the command line."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except NufedError as error:
            said = _in_python(str(error))
            if said != str(error):
                error.args = (said, *error.args[1:])
            raise

    return cast("Function", call)


def _in_python(text: str) -> str:
    """Return a message in words of Python but for the commands in it, which stand in backquotes."""
    parts = text.split("`")
    for number in range(0, len(parts), 2):
        for pattern, words in _WORDS:
            parts[number] = pattern.sub(words, parts[number])
    return "`".join(parts)
