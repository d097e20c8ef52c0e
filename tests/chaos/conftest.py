"""One service for all faults, and at the end a table of what was counted."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "integration"))
sys.path.insert(0, str(Path(__file__).parent))

from arena import Arena
from ledger import HEAD, Ledger

_ledgers: list[Ledger] = []


@pytest.fixture(scope="module")
def arena() -> Iterator[Arena]:
    folder = Path(tempfile.mkdtemp(prefix="sam2-chaos-"))
    arena = Arena(folder)
    arena.open()
    yield arena
    arena.close()
    shutil.rmtree(folder)


@pytest.fixture
def ledger(request: pytest.FixtureRequest) -> Ledger:
    """A row of the table."""
    made = Ledger(request.node.callspec.id if hasattr(request.node, "callspec") else request.node.name)
    _ledgers.append(made)
    return made


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _ledgers:
        terminalreporter.write_line("\n".join(["", HEAD, *(ledger.row for ledger in _ledgers)]))
