"""`make audit`: whether advisories are published for the versions that the tests, and so the containers, run with.

pip-audit asks PyPI. What it could not ask about it passes over and still says "No known vulnerabilities found"; here that is said, and ends
in 0, so that a machine without a way to PyPI's advisories can run the tests. An advisory ends in 1.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PINNED = (ROOT / "tests/constraints.txt", ROOT / "Makefile")
"""Where versions stand: one a line, and torch's."""
ACCEPTED: dict[str, str] = {}
"""Advisories that do not concern us, by id: why not."""
LONGEST_S = 600


def pins(*texts: str) -> list[str]:
    """Every `name==version` in some texts, once each."""
    found = (pin for text in texts for pin in re.findall(r"(?m)(?:^|\?= )([A-Za-z][\w.-]*==[\w.+-]+)", text))
    return sorted(dict.fromkeys(found), key=str.lower)


def judged(output: str, errors: str) -> tuple[int, list[str]]:
    """The exit code, and what to say, of what pip-audit wrote to its two streams."""
    try:
        dependencies: list[dict[str, Any]] = json.loads(output)["dependencies"]
    except (ValueError, KeyError, TypeError):
        last = (errors.strip().splitlines() or ["it said nothing"])[-1]
        return 0, [f"NOT AUDITED: the advisories cannot be had here ({last[:300]})."]
    asked = [dependency for dependency in dependencies if "skip_reason" not in dependency]
    words = [
        f"{found['name']} {found['version']}: {advisory['id']}, mended in {', '.join(advisory['fix_versions']) or 'no version yet'}."
        for found in asked
        for advisory in found["vulns"]
        if not {advisory["id"], *advisory.get("aliases", ())} & ACCEPTED.keys()
    ]
    exit_code = 1 if words else 0
    words += [f"{len(asked)} of {len(dependencies)} pinned versions were audited."] if asked else []
    if len(asked) < len(dependencies):
        unasked = [dependency["name"] for dependency in dependencies if "skip_reason" in dependency]
        words.append(f"NOT AUDITED: {len(unasked)} versions; PyPI's advisories cannot be had here for {', '.join(unasked[:5])} …")
    return exit_code, words


def asked_about(pinned: list[str]) -> tuple[int, list[str]]:
    """What pip-audit says of some versions; see `judged`."""
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as requirements:
        requirements.write("\n".join(pinned) + "\n")
        requirements.flush()
        arguments = ["-r", requirements.name, "--no-deps", "--disable-pip", "-f", "json", "--progress-spinner", "off"]
        try:
            command = [sys.executable, "-m", "pip_audit", *arguments]
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=LONGEST_S)
        except subprocess.TimeoutExpired:
            return 0, ["NOT AUDITED: the advisories did not come in time."]
    return judged(done.stdout, done.stderr)


def main() -> int:
    pinned = pins(*(path.read_text() for path in PINNED))
    exit_code, words = asked_about([pin for pin in pinned if pin.lower().startswith("flask==")])
    if words[0].startswith("1 of 1") or exit_code:  # somebody answers: the rest may be asked about
        exit_code, words = asked_about(pinned)
    else:
        words.append(f"Nothing was asked about the other {len(pinned) - 1} versions. Run `make audit` where pypi.org can be reached.")
    print("\n".join(words))
    return exit_code


if __name__ == "__main__":
    sys.exit(main())
