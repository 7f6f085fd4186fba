"""Generalized meta federated learning: one starting point that every client adapts to its own data in ν steps.

The packages lie at the top of the repository (`client/`, `common/`, `deploy/`, `server/`, `strategy/`) and are imported
from here: `nufed.client`, `nufed.common`, … (docs/decisions/0009-one-package.md).
"""

from pathlib import Path

__version__ = "0.1.0"

if not (Path(__file__).parent / "common").is_dir():  # an unpacked app bundle, or a checkout without symbolic links
    __path__.append(str(Path(__file__).parent.parent))
