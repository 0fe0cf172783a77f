"""Predicting the next character of Python's own standard library, whose source every installation brings along."""

from __future__ import annotations

import sysconfig
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from esper.core.errors import UsageError
from esper.core.rng import derive_seed
from esper.tolaria.tasks._tasks import Split, Task
from esper.tolaria.tasks._transformer import transformer_host

LENGTH: Final = 64
#: Windows of each part, and the modules whose text they are cut from: no file has characters in two parts.
_WINDOWS: Final = {"train": 2048, "validation": 256, "test": 512}
_MODULES: Final = {
    "train": (
        "argparse.py", "ast.py", "codecs.py", "configparser.py", "contextlib.py", "dataclasses.py", "datetime.py",
        "difflib.py", "doctest.py", "enum.py", "fractions.py", "functools.py", "inspect.py", "ipaddress.py",
    ),
    "validation": ("pathlib.py", "pickle.py", "random.py"),
    "test": ("shutil.py", "statistics.py", "tempfile.py", "threading.py"),
}  # fmt: skip
#: Line feed and printable ASCII, each a class of its own; one more stands for every other character.
_ALPHABET: Final = "\n" + "".join(map(chr, range(32, 127)))
CLASSES: Final = len(_ALPHABET) + 1


def charlm() -> Task:
    """Return charlm: inputs and targets [N, 64] int64, 97 classes, 2048 train, 256 validation, 512 test windows.

    A target is the character after its input. The text is the source of fixed modules of the standard library of the
    Python that runs this, so the data digest of a run is that Python's, and differs on another version.

    Raises:
        UsageError: this Python has no source of its standard library.
    """
    parts = {part: _part(part) for part in _WINDOWS}
    return Task(
        name="charlm",
        train=parts["train"],
        validation=parts["validation"],
        test=parts["test"],
        classes=CLASSES,
        hosts={
            "transformer": transformer_host(classes=CLASSES, length=LENGTH, width=32, heads=2, depth=2, inner=32),
        },
        batch_size=32,
        epochs=20,
    )


def _part(part: str) -> Split:
    """Return windows of a part, chosen evenly at random from all of its modules by a stream of its own."""
    windows = torch.cat([_windows(_source(name)) for name in _MODULES[part]])
    generator = torch.Generator().manual_seed(derive_seed(0, "charlm", part))
    chosen = windows[torch.randperm(len(windows), generator=generator)[: _WINDOWS[part]]]
    return Split(chosen[:, :-1].contiguous(), chosen[:, 1:].contiguous())


def _windows(text: str) -> Tensor:
    """Return [windows, LENGTH + 1]: consecutive windows of which each begins with the last character before it."""
    return _tokens(text).unfold(0, LENGTH + 1, LENGTH)


def _tokens(text: str) -> Tensor:
    classes = {character: index for index, character in enumerate(_ALPHABET)}
    return torch.tensor([classes.get(character, len(_ALPHABET)) for character in text])


def _source(module: str) -> str:
    path = Path(sysconfig.get_path("stdlib")) / module
    if not path.exists():  # Later Pythons have made packages of some: pathlib in 3.13.
        path = path.with_suffix("") / "__init__.py"
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(
            "the task 'charlm' cannot be made",
            cause=f"this Python brings no source of {module}: {error.strerror}",
            next_step="Use a Python that is installed with its standard library's source",
        ) from error
