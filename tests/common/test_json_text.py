"""Claims about what is written as JSON."""

import json
import math
from pathlib import Path

import numpy as np

from nufed.common.json_text import json_ready


def test_what_json_has_no_word_for_becomes_null_or_a_plain_value():
    value = {
        1: (math.nan, -math.inf, 0.5, True, None, "text"),
        "numpy": [np.float32(0.5), np.float64(math.nan), np.float32(math.inf), np.int64(3), np.bool_(1), np.str_("s")],
        "path": Path("a") / "b",
    }

    written = json.dumps(json_ready(value), allow_nan=False)

    assert json.loads(written) == {
        "1": [None, None, 0.5, True, None, "text"],
        "numpy": [0.5, None, None, 3, True, "s"],
        "path": str(Path("a") / "b"),
    }
