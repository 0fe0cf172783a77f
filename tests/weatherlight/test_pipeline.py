"""The pipeline on the real broker: one object from blueprint to module, and everybody hears of it."""

from __future__ import annotations

import pytest
import torch
from google.protobuf.message import Message

from esper.core.errors import UsageError
from esper.core.ids import new_event_id
from esper.karn import BlueprintQuery, BlueprintRefused
from esper.leyline import messages as ly
from esper.oona import Fabric
from esper.weatherlight import BlueprintPipeline
from tests.integration.driver import eventually


def test_from_blueprint_to_kernel_in_one_process(fabric: Fabric) -> None:
    """Goal: the three compose. Method: select, ask for a new kernel, again, for what cannot be; listen."""
    heard: list[Message] = []
    scale = 0.5 + int(new_event_id()[:6], 16) / (1 << 24)
    with BlueprintPipeline(fabric, notify=heard.append) as pipeline:
        query = BlueprintQuery("BP002", layout="vector", parameters={"scale": scale})
        assert pipeline.select(query).name == "linear_projection"
        with pytest.raises(BlueprintRefused, match="quarantine_only"):
            pipeline.select(BlueprintQuery("BP046"))
        first = pipeline.kernel("BP002", {"scale": scale}, layout="vector", shape=[6], wait_seconds=120)
        assert first.module is not None
        x = torch.randn(3, 6, generator=torch.Generator().manual_seed(0))
        assert torch.count_nonzero(first.module(x)) == 0
        again = pipeline.kernel("BP002", {"scale": scale}, layout="vector", shape=[6])
        assert again.artifact_ref == first.artifact_ref
        assert again.latency_ms < first.latency_ms
        assert again.descriptor is not None
        with pytest.raises(UsageError):
            pipeline.kernel("BP999", {}, layout="vector", shape=[6])
        with pytest.raises(UsageError):
            pipeline.kernel("BP002", {"scale": 1e9}, layout="vector", shape=[6])

        def mine() -> list[ly.KernelCatalogUpdate]:
            updates = [each for each in heard if isinstance(each, ly.KernelCatalogUpdate)]
            return [each for each in updates if each.artifact_ref == first.artifact_ref]

        assert len(eventually(mine, what="the notice of the kernel")) == 1
