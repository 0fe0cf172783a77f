"""`--enforce-latency` reaches the workers that a command starts, and is refused where it would reach none."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import cast

import pytest

from esper.cli._latency import check_enforced, enforce_latency
from esper.core.errors import UsageError
from esper.core.settings import Settings, load_settings
from esper.kasmina import KasminaConfig, LatencyBudgets
from esper.oona import Fabric
from esper.weatherlight._grafting import controller_factory, kasmina_config


def test_the_flag_is_the_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Goal: one meaning. Method: the environment that members inherit, with the flag and without."""
    monkeypatch.setenv("ESPER_ENFORCE_LATENCY", "false")
    enforce_latency(wanted=False)
    assert load_settings().enforce_latency is False
    enforce_latency(wanted=True)
    assert os.environ["ESPER_ENFORCE_LATENCY"] == "true"
    assert load_settings().enforce_latency is True


def test_it_is_refused_where_no_worker_is_started() -> None:
    """Goal: no flag that does nothing. Method: a worker among the started, and none."""
    check_enforced(["tamiyo-0"], wanted=False)
    check_enforced(["tamiyo-0", "tolaria-0"], wanted=True)
    with pytest.raises(UsageError, match="serve --enforce-latency"):
        check_enforced(["tamiyo-0"], wanted=True)


def test_settings_reach_kasmina() -> None:
    """Goal: every setting of the household is used. Method: none at its default, and what Kasmina then gets."""
    settings = Settings(
        kernel_device_bytes=7,
        kernel_device_epochs=3,
        memory_share_max=0.5,
        collect_every_epochs=4,
        latency_budgets="fetch=2.5",
        enforce_latency=True,
    )
    assert kasmina_config(settings, kernel_wait_seconds=9.0) == KasminaConfig(
        kernel_wait_seconds=9.0,
        cache_bytes_max=7,
        cache_epochs_max=3,
        memory_share_max=0.5,
        collect_every_epochs=4,
        latency_budgets=LatencyBudgets(fetch=2.5),
        enforce_latency=True,
    )


def test_budgets_that_cannot_be_read_stop_a_worker_before_it_takes_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Goal: no run fails of a worker's setting. Method: an operation that does not exist."""
    monkeypatch.setattr("esper.weatherlight._grafting.kernel_runtime", lambda _: None)
    fabric = cast("Fabric", SimpleNamespace(settings=Settings(latency_budgets="sing=1")))
    with pytest.raises(UsageError, match="sing"):
        controller_factory(fabric)
