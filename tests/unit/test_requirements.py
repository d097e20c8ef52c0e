"""What a user's machine installs: newer majors than those we tried are not let in, since the worker overrides parts of its libraries."""

import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
NAMED = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["web"], *PROJECT["optional-dependencies"]["worker"]]
OVERRIDDEN = {"rq", "redis", "gunicorn", "torch", "opencv-python-headless", "numpy", "pillow", "flask", "av"}
BOUNDED = [requirement for text in NAMED if (requirement := Requirement(text)).name in OVERRIDDEN]


@pytest.mark.parametrize("requirement", BOUNDED, ids=lambda requirement: requirement.name)
def test_a_new_major_of_what_we_build_on_is_not_installed_untried(requirement: Requirement) -> None:
    assert any(bound.operator == "<" for bound in requirement.specifier)


def test_rq_3_is_refused_because_it_renamed_what_the_worker_overrides() -> None:
    rq = next(requirement for requirement in BOUNDED if requirement.name == "rq")
    assert not rq.specifier.contains("3.0.0")
    assert rq.specifier.contains("2.12.0")
