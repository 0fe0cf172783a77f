"""Who may log in at the home's own broker when it asks for a login: one password file for each principal.

```
<root>/principals/<name>     64 hexadecimal digits (256 bits), mode 0600, in a folder of mode 0700
```

A process of the home logs in as its own subsystem with the file of that name. Whoever may read a file is that
principal: a process that shall be one principal and no other gets that one file.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Iterable
from typing import Final

from esper.core.errors import SecretError, SettingsError
from esper.core.files import write_atomically
from esper.core.home import Home
from esper.core.rng import new_secret

__all__ = ["ADMIN", "MECHANISM", "Principals", "check_principal"]

#: The principal that may do everything: it makes topics, grants and further principals.
ADMIN: Final = "admin"
#: How a principal proves its password without sending it (RFC 5802, with SHA-512).
MECHANISM: Final = "SCRAM-SHA-512"
#: As user names of Kafka and as file names, the same everywhere.
_NAME: Final = re.compile(r"[a-z][a-z0-9-]{0,63}")
_AGAIN: Final = "Run `esper up` again: it makes missing passwords and tells the broker"


def check_principal(name: str) -> str:
    """Return `name` when a principal may be called so; raises SettingsError."""
    if not _NAME.fullmatch(name):
        raise SettingsError(
            f"principal {name!r} cannot be used",
            cause="a principal's name is lower-case letters, digits and '-', and begins with a letter",
            next_step="Correct the `writers` and `readers` of the topic files",
        )
    return name


class Principals:
    """The password files of one home; writers must hold a lock, as whoever starts the broker does."""

    def __init__(self, home: Home) -> None:
        self._folder = home.root / "principals"

    def password(self, name: str) -> str:
        """Return the password of principal `name`.

        Raises:
            SecretError: there is none, it cannot be read, or other users may read it.
            SettingsError: nobody may be called so.
        """
        path = self._folder / check_principal(name)
        try:
            mode = stat.S_IMODE(path.stat().st_mode)
            text = path.read_text(encoding="ascii").strip()
        except FileNotFoundError as error:
            raise SecretError(
                f"principal {name} has no password", cause=f"there is no file {path}", next_step=_AGAIN
            ) from error
        except (OSError, UnicodeDecodeError) as error:
            # Not the error's own text: one that is about decoding shows the bytes.
            cause = error.strerror if isinstance(error, OSError) else "it is not ASCII"
            raise SecretError(f"password file {path} cannot be read", cause=cause or "", next_step=_AGAIN) from None
        if mode & 0o077:
            raise SecretError(
                f"password file {path} is open to other users",
                cause=f"its mode is {mode:04o}",
                next_step=f"Delete it and run `esper up` again, which makes a new one; or run `chmod 600 {path}`",
            )
        if not text:
            raise SecretError(f"password file {path} is empty", next_step=f"Delete it. {_AGAIN}")
        return text

    def names(self) -> set[str]:
        """Return the principals that have a password."""
        if not self._folder.is_dir():
            return set()
        return {path.name for path in self._folder.iterdir() if _NAME.fullmatch(path.name)}

    def make(self, names: Iterable[str]) -> None:
        """Give each of `names` a password that has none; a password that is there stays. Raises OSError."""
        self._folder.mkdir(mode=0o700, exist_ok=True)
        self._folder.chmod(0o700)
        for name in sorted(set(names) - self.names()):
            write_atomically(self._folder / check_principal(name), f"{new_secret()}\n".encode(), mode=0o600)

    def remove(self, name: str) -> None:
        """Take the password of `name` away. Raises OSError."""
        (self._folder / check_principal(name)).unlink(missing_ok=True)
