"""The console script. Installed beside the package under a name of its own, `esper_grow_entry`.

PyPI's `esper` is a game library with the same import name. Where it shadows ours, nothing inside our
package can run to say so; this module can, because it imports nothing before it has looked.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

_NOT_READY = 3


def _ours() -> bool:
    spec = importlib.util.find_spec("esper")
    return spec is not None and spec.origin is not None and (Path(spec.origin).parent / "leyline").is_dir()


def main() -> None:
    """Run the command line, or name the package that stands in its place."""
    if not _ours():
        sys.stderr.write(
            "error: another package called esper (PyPI's game library) stands in the place of esper-grow. "
            "Run `pip uninstall esper`, then install esper-grow again\n"
        )
        sys.exit(_NOT_READY)
    from esper.cli import main as run

    run()
