"""The examples of a job → the memory that `similar` looks with, made once for all images of a dataset."""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from sam2_backend.box_masks import masks_of_boxes
from sam2_backend.clock import Clock
from sam2_backend.dataset_messages import Example, LabelledBox, SimilarOptions, Skipped
from sam2_backend.errors import PromptError, Sam2BackendError
from sam2_backend.masks import mask_from_runs
from sam2_backend.messages import to_wire
from sam2_backend.pictures import Atelier, Picture
from sam2_backend.similar import Memory

#: Sets of examples that are kept: some 10 MiB a label and 16 examples, on the device.
_MOST_KEPT = 2


class ExampleMemories:
    """Memories by the examples that they are made of; the ones used last. Used by one thread."""

    def __init__(self, atelier: Atelier) -> None:
        self._atelier = atelier
        self._kept: OrderedDict[str, tuple[Memory, list[Skipped]]] = OrderedDict()

    def of(
        self, examples: Sequence[Example], options: SimilarOptions, clock: Clock, between: Callable[[], None]
    ) -> tuple[Memory, list[Skipped]]:
        """The memory of the first `max_examples` of each label, and the examples that could not be used.

        Args:
            between: Called after each example.

        Raises:
            PromptError: there is no example, or none that can be used.
            BadCheckpointError: the model has no memory.
            GpuMemoryError: the device is full.
        """
        key = hashlib.blake2b(json.dumps([to_wire(examples), to_wire(options)]).encode(), digest_size=16).hexdigest()
        if key not in self._kept:
            self._kept[key] = self._made(examples, options, clock, between)
        self._kept.move_to_end(key)
        while len(self._kept) > _MOST_KEPT:
            self._kept.popitem(last=False)
        return self._kept[key]

    def _made(
        self, examples: Sequence[Example], options: SimilarOptions, clock: Clock, between: Callable[[], None]
    ) -> tuple[Memory, list[Skipped]]:
        memory, skipped = Memory.empty(self._atelier.engine, options), list[Skipped]()
        for number, example in enumerate(examples, start=1):
            if memory.n_examples.get(example.label, 0) >= options.max_examples:
                continue
            try:
                picture = self._atelier.open(example.media, clock, example.mask.size_hw if example.mask else None)
                memory.add(example.label, picture.embedding(), self._mask(example, picture))
            except Sam2BackendError as error:
                if not _is_of_this_example(error):
                    raise
                skipped.append(Skipped(f"example {number} of {example.label}", error.message))
            between()
        if not memory.n_examples:
            reason = skipped[0].reason if skipped else "Accept a region on some task first."
            raise PromptError(f"There is no example to look for. {reason}")
        return memory, skipped

    def _mask(self, example: Example, picture: Picture) -> NDArray[np.bool_]:
        if example.mask is not None:
            mask = mask_from_runs(example.mask)
            if not mask.any():
                raise PromptError("The mask of the example is empty.")
            return mask
        if example.box is None:
            raise PromptError("The example has neither a mask nor a box.")
        box = LabelledBox("", example.box)
        found, skipped = masks_of_boxes(self._atelier.engine, picture.embedding(), picture.size_hw, [box])
        if skipped:
            raise PromptError(skipped[0].reason)
        return mask_from_runs(found[0].runs)


def _is_of_this_example(error: Sam2BackendError) -> bool:
    """Whether the other examples may be good: its image is gone, or its mask is none; not where the device is full."""
    return error.code != "gpu_out_of_memory"
