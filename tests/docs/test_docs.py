"""The documentation says what the code says."""

from __future__ import annotations

import argparse
import dataclasses
import re
from pathlib import Path

import pytest

from backend import cli
from backend.project_options import OPTIONS
from sam2_backend.errors import ERRORS_BY_CODE, Sam2BackendError
from sam2_backend.settings import GIB, MIB, Settings, env_name

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "checkpoints/README.md", *sorted((ROOT / "docs").glob("*.md"))]


def _value(value: object) -> str:
    if isinstance(value, Path):
        return "see below"
    if isinstance(value, int) and not isinstance(value, bool) and value and value % MIB == 0:
        return f"{value // GIB} GiB" if value % GIB == 0 else f"{value // MIB} MiB"
    return {"": "–", "True": "true", "False": "false"}.get(str(value), f"{value:g}" if isinstance(value, float) else str(value))


def settings_table() -> str:
    rows = [f"| `{env_name(f)}` | {_value(f.default)} | {f.metadata['help']} |" for f in dataclasses.fields(Settings)]
    return "\n".join(["| setting | default | meaning |", "|---|---|---|", *rows])


def errors_table() -> str:
    rows = [
        f"| `{code}` | {error.status.value} | {error.mender} | {(error.__doc__ or '').strip().splitlines()[0]} |"
        for code, error in sorted(ERRORS_BY_CODE.items(), key=lambda item: (item[1].status.value, item[0]))
    ]
    return "\n".join(["| code | status | who can put it right | meaning |", "|---|---|---|---|", *rows])


def test_every_setting_is_documented_with_its_default():
    assert settings_table() in (ROOT / "docs/settings.md").read_text()


def test_every_error_is_documented_with_its_status_and_mender():
    assert errors_table() in (ROOT / "docs/errors.md").read_text()


def test_error_codes_are_distinct():
    def tree(root: type[Sam2BackendError]) -> list[str]:
        return [root.code, *(code for child in root.__subclasses__() if child.__module__ == root.__module__ for code in tree(child))]

    codes = tree(Sam2BackendError)
    assert len(codes) == len(set(codes))


def test_every_project_option_is_documented():
    page = (ROOT / "docs/label-studio.md").read_text()
    assert [name for name in OPTIONS if f"| `{name}` |" not in page] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_in_the_documentation_exists(page):
    parser = cli._parser()
    for line in re.findall(
        r"sam2-backend ((?:[a-z]+ ?)+(?: --?[a-z-]+[^`\n#&]*)?)",
        "\n".join(re.findall(r"`[^`\n]+`|^```.*?^```", page.read_text(), re.DOTALL | re.MULTILINE)),
    ):
        words = [word for word in line.replace("…", "").split() if word != "NAME"]
        if words == ["checkpoints"]:
            continue
        arguments = [*words, "x"] if words[:2] in (["checkpoints", "fetch"], ["checkpoints", "verify"]) and len(words) == 2 else words
        options = parser.parse_args(arguments)
        assert isinstance(options, argparse.Namespace)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_make_target_in_the_documentation_exists(page):
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"`make ([a-z-]+)", page.read_text())) <= targets


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_and_picture_in_the_documentation_exists(page):
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
        assert (page.parent / target).exists(), target
