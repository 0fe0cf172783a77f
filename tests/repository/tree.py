"""The files of this repository, as the tests of this folder look at them."""

from __future__ import annotations

import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def source_files(*suffixes: str) -> list[Path]:
    """List the files that are committed or would be, relative to the root; all of them when no suffix is given."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    paths = sorted({Path(name) for name in listed.split("\0") if name and (ROOT / name).is_file()})
    assert paths, "git listed no file: these tests run in a checkout"
    return [path for path in paths if not suffixes or path.suffix in suffixes]


def documents() -> list[Path]:
    """List the Markdown pages of the repository, relative to the root."""
    return source_files(".md")


def text_of(path: Path | str) -> str:
    """Read a file of the repository."""
    return (ROOT / path).read_text(encoding="utf-8")
