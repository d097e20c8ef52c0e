"""In which order clicks that were taken together are answered, and which of them in one go. Knows no Redis."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar

from sam2_backend.jobs import Runtime
from sam2_backend.messages import ImageJob


class Click(Protocol):
    """A job of the queue."""

    def click(self) -> ImageJob | None:
        """None: it cannot be read."""
        ...


AnyClick = TypeVar("AnyClick", bound=Click)


def turns(clicks: Sequence[AnyClick], runtime: Runtime) -> tuple[list[list[AnyClick]], list[AnyClick]]:
    """Share clicks out into turns.

    Those whose image is embedded go first, the small ones before the large: they take milliseconds. One of the others, which first of all
    take an encoder run, goes last; the rest of these waits, so that no more than one stands between the queue and the next warm click.

    Returns:
        (groups, one after the other, the clicks of each to be decoded together; those to be put back, in their order)
    """
    ready: list[tuple[int, AnyClick]] = []
    others: list[AnyClick] = []
    for click in clicks:
        job = click.click()
        if job is not None and runtime.is_ready(job):
            ready.append((len(job.prompts), click))
        else:
            others.append(click)
    ready.sort(key=lambda sized: sized[0])
    return [*_groups(ready, runtime.prompts_together), *([others[:1]] if others else [])], others[1:]


def _groups(ready: Sequence[tuple[int, AnyClick]], most_prompts: int) -> list[list[AnyClick]]:
    """Cut where the next click would be one prompt too many for one decoder run."""
    groups: list[list[AnyClick]] = []
    n_prompts = 0
    for n_own, click in ready:
        if groups and n_prompts + n_own <= most_prompts:
            groups[-1].append(click)
            n_prompts += n_own
        else:
            groups.append([click])
            n_prompts = n_own
    return groups
