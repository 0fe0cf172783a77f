"""Where everything of an archive lies, and how it gets there whole.

```
segments/<topic>/<partition>/<first>-<next>.avro    the records, an Avro object container file
segments/<topic>/<partition>/<first>-<next>.json    its signed manifest, written after it
seals/<number>.json                                 a signed moment of the whole log, written last
restored/<digest>.json                              a signed statement that the log was written again from a seal
blobs/ab/<sha256>                                   what records name by digest
```

Names of unfinished files begin with a dot; nobody reads them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Final

from filelock import FileLock, Timeout

from esper.core.errors import Busy, SettingsError
from esper.core.files import make_durable
from esper.oona import Position

_LOCK_SECONDS: Final = 10.0
_DIGITS: Final = 20
_RANGE: Final = re.compile(r"(?P<first>\d{20})-(?P<next>\d{20})")


class Layout:
    """The folder of an archive."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def segments(self) -> Path:
        """Segments with their manifests."""
        return self.root / "segments"

    @property
    def seals(self) -> Path:
        """Seals by number."""
        return self.root / "seals"

    @property
    def restored(self) -> Path:
        """Statements of restores."""
        return self.root / "restored"

    @property
    def blobs(self) -> Path:
        """Copies of blobs."""
        return self.root / "blobs"

    def segment(self, place: Position, first: int, end: int) -> Path:
        """Return where the records of a range lie."""
        topic, partition = place
        return self.segments / topic / str(partition) / f"{first:0{_DIGITS}}-{end:0{_DIGITS}}.avro"

    def seal(self, number: int) -> Path:
        """Return where a seal lies."""
        return self.seals / f"{number:08}.json"

    def name(self, path: Path) -> str:
        """Return a path as people are shown it."""
        return str(path.relative_to(self.root))

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the archive for writing, and take away what an earlier writer left unfinished.

        Raises:
            Busy: another process writes it.
            SettingsError: it cannot be written.
        """
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            with FileLock(self.root / ".lock", timeout=_LOCK_SECONDS):
                for folder in (self.segments, self.seals, self.restored, self.blobs):
                    folder.mkdir(exist_ok=True)
                for unfinished in list(self.root.rglob(".*.tmp")):
                    unfinished.unlink(missing_ok=True)
                yield
        except Timeout as error:
            raise Busy(
                f"the archive {self.root} is being written",
                cause=f"another process has held its lock for {_LOCK_SECONDS:.0f} s",
                next_step="Let that process end, then try again",
            ) from error
        except OSError as error:
            raise SettingsError(
                f"the archive {self.root} cannot be written",
                cause=error.strerror or str(error),
                next_step="Make room, or make the folder writable for this user",
            ) from error


def range_of(path: Path) -> tuple[int, int] | None:
    """Return the offsets that a segment's file name states; None for another name."""
    match = _RANGE.fullmatch(path.stem)
    return (int(match["first"]), int(match["next"])) if match else None


@contextmanager
def whole_file(path: Path, *, named: Callable[[], Path] | None = None) -> Iterator[IO[bytes]]:
    """Write a file that is there, durable and whole, when the block ends, and not at all when it raises.

    `named` gives its name once it is written, where its content decides; in the same folder.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(named() if named else path)
        make_durable(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_whole(path: Path, content: bytes) -> None:
    """Write a small file whole and durably."""
    with whole_file(path) as file:
        file.write(content)
