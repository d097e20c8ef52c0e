"""The benchmark of a team's load still runs against the real servers: two people, a few seconds, no model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_two_annotators_are_served_without_an_error():
    command = [sys.executable, "-m", "benchmarks.load", "--fake", "--annotators", "2", "--seconds", "5"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    [row] = json.loads(done.stdout.splitlines()[-1])["rows"]
    assert row["error_kinds"] == {}
    assert row["tasks"] >= 2
    assert row["clicks"] > 0
    assert row["stages_p50"]["decode"] >= 10
    assert row["p50"] >= row["stages_p50"]["decode"]
