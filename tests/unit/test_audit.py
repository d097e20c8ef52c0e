"""What `make audit` makes of pip-audit's answers: an advisory fails, and what was not asked about is said, never taken for safe."""

from __future__ import annotations

import importlib.util
import json
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
_spec = importlib.util.spec_from_file_location("audit", ROOT / "tests/audit.py")
audit = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(audit)

ADVISORY = {"id": "PYSEC-2026-1", "fix_versions": ["3.1.4"], "aliases": ["CVE-2026-1"], "description": "…"}
UNKNOWN = {"name": "b", "skip_reason": "Dependency not found on PyPI and could not be audited: b (2)"}


def answer(*dependencies: dict) -> str:
    return json.dumps({"dependencies": list(dependencies), "fixes": []})


def known(name: str, *advisories: dict) -> dict:
    return {"name": name, "version": "1", "vulns": list(advisories)}


def test_an_advisory_fails_with_the_version_that_mends_it():
    assert audit.judged(answer(known("a", ADVISORY), known("b")), "") == (
        1,
        ["a 1: PYSEC-2026-1, mended in 3.1.4.", "2 of 2 pinned versions were audited."],
    )


def test_without_advisories_all_is_well_and_counted():
    assert audit.judged(answer(known("a"), known("b")), "") == (0, ["2 of 2 pinned versions were audited."])


@pytest.mark.parametrize("dependencies", [[UNKNOWN], [UNKNOWN, known("a")]])
def test_what_was_not_asked_about_is_said(dependencies):
    exit_code, words = audit.judged(answer(*dependencies), "")
    assert exit_code == 0
    assert "NOT AUDITED: 1 versions" in words[-1] and words[-1].endswith("b …")


def test_an_advisory_fails_also_where_others_were_not_asked_about():
    assert audit.judged(answer(UNKNOWN, known("a", ADVISORY)), "")[0] == 1


@pytest.mark.parametrize("output", ["", "{", "[]", "null"])
def test_a_service_that_cannot_be_reached_is_said_and_fails_nothing(output):
    assert audit.judged(output, "Traceback …\nConnectionError: no such host\n") == (
        0,
        ["NOT AUDITED: the advisories cannot be had here (ConnectionError: no such host)."],
    )


@pytest.mark.parametrize("accepted", ["PYSEC-2026-1", "CVE-2026-1"])
def test_an_accepted_advisory_fails_nothing(monkeypatch, accepted):
    monkeypatch.setitem(audit.ACCEPTED, accepted, "the function is not used")
    assert audit.judged(answer(known("a", ADVISORY)), "")[0] == 0


def test_every_pinned_version_and_torch_is_asked_about():
    found = audit.pins(*(path.read_text() for path in audit.PINNED))
    lines = [line for line in (ROOT / "tests/constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    assert len(found) == len(lines) + 1
    assert any(pin.startswith("torch==") for pin in found)


def test_whatever_a_container_installs_is_pinned_and_so_audited():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = [*project["dependencies"], *project["optional-dependencies"]["web"], *project["optional-dependencies"]["worker"]]
    pinned = {re.sub(r"[-_.]+", "-", pin.partition("==")[0]).lower() for pin in audit.pins(*(path.read_text() for path in audit.PINNED))}
    assert {re.match(r"[\w-]+", text)[0].lower().replace("_", "-") for text in named} <= pinned


def test_the_tests_of_ci_audit():
    makefile = (ROOT / "Makefile").read_text()
    assert re.search(r"(?m)^test: .*\baudit\b", makefile)
    assert "tests/audit.py" in makefile


def test_where_nobody_answers_for_one_version_the_rest_is_not_asked_about(monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(audit, "asked_about", lambda pinned: asked.append(pinned) or audit.judged(answer(UNKNOWN), ""))
    assert audit.main() == 0
    assert [len(pinned) for pinned in asked] == [1]
    said = capsys.readouterr().out
    assert "NOT AUDITED" in said and "Run `make audit`" in said


def test_where_somebody_answers_all_versions_are_asked_about(monkeypatch):
    asked = []
    monkeypatch.setattr(audit, "asked_about", lambda pinned: asked.append(pinned) or audit.judged(answer(known("flask")), ""))
    assert audit.main() == 0
    assert [len(pinned) for pinned in asked] == [1, len(audit.pins(*(path.read_text() for path in audit.PINNED)))]
