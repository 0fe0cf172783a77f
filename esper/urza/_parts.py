"""Compiled parts for kernels that are fetched: opened where a verified record of this home's forge lists them."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from google.protobuf.message import Message

from esper.core.kernel import COMPILED_PART, ArtifactRefused, BlobMissing, BlobStore, choose_part, refused_as
from esper.leyline import messages as ly

if TYPE_CHECKING:
    from esper.core.kernel import Kernel

_logger = logging.getLogger("esper.urza")

#: Told of a part that was refused: kernel, artifact, why.
OnRefusal = Callable[[str, str, ArtifactRefused], None]


class CompiledParts:
    """A fold of `KernelPartCompiled`, and opening what it lists; for one thread at a time."""

    def __init__(self, store: BlobStore, *, home_id: str, on_refusal: OnRefusal) -> None:
        self._store = store
        self._home_id = home_id
        self._on_refusal = on_refusal
        self._records: dict[str, list[ly.KernelPartCompiled]] = {}

    def fold(self, message: Message) -> None:
        """Take one more event of kernel-catalog; of others than compiled parts nothing is kept."""
        if isinstance(message, ly.KernelPartCompiled):
            self._records.setdefault(message.artifact_ref, []).append(message)

    def opened(self, kernel: Kernel, artifact_ref: str) -> Kernel:
        """Return `kernel` with the part that is chosen for this home and platform; as it is where there is none.

        A part that is missing, refused or unusable is no reason to have no kernel: it runs eagerly.
        """
        import torch

        from esper.core.kernel import open_part, platform_of

        record = choose_part(
            self._records.get(artifact_ref, ()),
            kind=ly.COMPILED_KIND_AOT_TRAIN_PACKAGE,
            artifact_ref=artifact_ref,
            home_id=self._home_id,
            platform=platform_of(torch.device("cpu")),
        )
        if record is None:
            return kernel
        try:
            with refused_as(COMPILED_PART):
                content = self._store.get(record.part_digest, bytes_max=record.part_bytes)
            return open_part(kernel, record, content, artifact_ref=artifact_ref, home_id=self._home_id)
        except ArtifactRefused as error:
            self._on_refusal(record.kernel_id, artifact_ref, error)
        except (BlobMissing, RuntimeError) as error:
            _logger.warning("kernel %s runs eagerly, its compiled part cannot be used: %s", record.kernel_id, error)
        return kernel
