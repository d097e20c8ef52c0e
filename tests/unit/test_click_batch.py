"""In which order clicks that were taken together are answered."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace

import pytest

from sam2_backend.click_batch import turns
from sam2_backend.messages import ImageJob, ImagePrompt, MediaRef


@dataclass(frozen=True)
class Waiting:
    """A job on the queue; `is_ready`: its image is embedded."""

    name: str
    n_prompts: int = 1
    is_ready: bool = True
    is_readable: bool = True

    def click(self) -> ImageJob | None:
        prompts = tuple(ImagePrompt(str(n)) for n in range(self.n_prompts))
        return ImageJob(MediaRef("ready" if self.is_ready else "cold"), (2, 2), prompts) if self.is_readable else None


def order(*clicks: Waiting, prompts_together: int = 1) -> tuple[list[list[str]], list[str]]:
    runtime = SimpleNamespace(prompts_together=prompts_together, is_ready=lambda job: job.media.uri == "ready")
    groups, later = turns(clicks, runtime)
    assert sorted([click.name for group in groups for click in group] + [click.name for click in later]) == sorted(c.name for c in clicks)
    return [[click.name for click in group] for group in groups], [click.name for click in later]


def cold(name: str) -> Waiting:
    return Waiting(name, is_ready=False)


def test_embedded_images_go_before_one_that_is_not_and_the_others_of_those_wait():
    assert order(cold("a"), Waiting("b"), cold("c"), Waiting("d")) == ([["b"], ["d"], ["a"]], ["c"])


def test_of_images_that_are_not_embedded_one_is_done_however_many_others_wait():
    """Else warm clicks that keep coming would starve it."""
    assert order(cold("a"), cold("b"), cold("c")) == ([["a"]], ["b", "c"])


def test_small_clicks_go_before_large_ones_and_equal_ones_in_the_order_they_came():
    assert order(Waiting("a", 40), Waiting("b", 2), Waiting("c"), Waiting("d", 2)) == ([["c"], ["b"], ["d"], ["a"]], [])


@pytest.mark.parametrize(
    ("prompts_together", "groups"), [(1, ["a", "b", "c", "de"]), (2, ["ab", "c", "de"]), (5, ["abc", "de"]), (32, ["abcde"])]
)
def test_so_many_prompts_as_one_decoder_run_takes_are_one_group(prompts_together, groups):
    clicks = [*map(Waiting, "abc"), Waiting("de", 3)]
    assert [list("".join(group)) for group in order(*clicks, prompts_together=prompts_together)[0]] == [list(group) for group in groups]


def test_what_cannot_be_read_is_done_by_itself():
    assert order(Waiting("a", is_readable=False), Waiting("b"), prompts_together=8) == ([["b"], ["a"]], [])


def test_nothing_is_nothing():
    assert order() == ([], [])
