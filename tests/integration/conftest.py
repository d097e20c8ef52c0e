"""Real worker processes, quick to be noticed when they die, and the web tier's way to them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from backend.dispatch import Dispatcher
from sam2_backend.settings import Settings

sys.path.insert(0, str(Path(__file__).parent))  # pytest's importlib mode leaves the helpers beside the tests out
from worker_processes import HEARTBEAT_S, Workers


@pytest.fixture
def quick(settings: Settings) -> Settings:
    return replace(settings, heartbeat_s=HEARTBEAT_S)


@pytest.fixture
def workers(quick: Settings, tmp_path: Path) -> Iterator[Workers]:
    started = Workers(quick, tmp_path)
    yield started
    started.close()


@pytest.fixture
def dispatcher(quick: Settings) -> Iterator[Dispatcher]:
    opened = Dispatcher(quick)
    yield opened
    opened.close()
