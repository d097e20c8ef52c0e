"""The documentation says what the code says."""

from __future__ import annotations

import dataclasses
import itertools
import re
import shlex
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


def commands(page: Path) -> list[list[str]]:
    """The arguments of every `sam2-backend …` in code; `a|b` stands for either, a NAME for any word."""
    code = re.findall(r"`([^`\n]+)`|^```\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)
    lines = [line for inline, block in code for line in (inline or block).splitlines()]
    found = [shlex.split(line.split("sam2-backend ", 1)[1], comments=True) for line in lines if line.startswith("sam2-backend ")]
    return [list(words) for line in found for words in itertools.product(*(word.split("|") for word in line))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.parent.name + "/" + page.name)
def test_every_command_in_the_documentation_exists(page):
    for words in commands(page):
        needs_name = words in (["checkpoints", "fetch"], ["checkpoints", "verify"])
        cli._parser().parse_args([*words, "NAME"] if needs_name else words)  # exits where it cannot


def test_the_readme_names_commands():
    assert ["checkpoints", "fetch", "sam2.1_hiera_tiny"] in commands(ROOT / "README.md")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_make_target_in_the_documentation_exists(page):
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"`make ([a-z-]+)", page.read_text())) <= targets


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_and_picture_in_the_documentation_exists(page):
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
        assert (page.parent / target).exists(), target
