"""Errors of what the command line shares with Python, in the words of Python: `num_rounds` for `--rounds`."""

import functools
import re
from collections.abc import Callable
from typing import Any, TypeVar, cast

from nufed.common.errors import NufedError

Function = TypeVar("Function", bound=Callable[..., Any])

_WORDS = (
    (re.compile(r" \(--(?:engine|method)\)"), ""),
    (re.compile(r"; --debug shows the traceback"), ""),
    (re.compile(r"--rounds\b"), "num_rounds"),
    (re.compile(r"--out\b"), "out="),
    (re.compile(r"(?:nufed simulate )?--attack ([a-z-]+) --attackers (\d+)"), r"attack='\1', attackers=\2"),
    (re.compile(r"nufed simulate neither --attack nor --attackers"), "neither attack= nor attackers="),
    (re.compile(r" \(--attack\)"), ""),
    (re.compile(r"--(attackers?)\b"), r"\1"),
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
            said = str(error)
            for pattern, words in _WORDS:
                said = pattern.sub(words, said)
            if said != str(error):
                error.args = (said, *error.args[1:])
            raise

    return cast("Function", call)
