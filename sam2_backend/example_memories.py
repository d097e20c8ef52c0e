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
from sam2_backend.errors import GpuMemoryError, MediaUnreachableError, PromptError, Sam2BackendError
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
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        making = _Making(self._atelier, options, clock)
        for number, example in enumerate(examples, start=1):
            making.add(number, example)
            between()
        if not making.memory.n_examples:
            reason = making.skipped[0].reason if making.skipped else "Accept a region on some task first."
            raise PromptError(f"There is no example to look for. {reason}")
        if making.is_lasting:
            self._kept[key] = making.memory, making.skipped
            while len(self._kept) > _MOST_KEPT:
                self._kept.popitem(last=False)
        return making.memory, making.skipped


class _Making:
    """A memory as examples are added to it.

    Attributes:
        skipped: The examples that could not be used.
        is_lasting: What could not be used never will be; False: an image was out of reach, and may be back for the next job.
    """

    def __init__(self, atelier: Atelier, options: SimilarOptions, clock: Clock) -> None:
        self._atelier, self._options, self._clock = atelier, options, clock
        self.memory, self.skipped, self.is_lasting = Memory.empty(atelier.engine, options), list[Skipped](), True

    def add(self, number: int, example: Example) -> None:
        """Read an example, unless its label has enough of them."""
        if self.memory.n_examples.get(example.label, 0) >= self._options.max_examples:
            return
        try:
            picture = self._atelier.open(example.media, self._clock, example.mask.size_hw if example.mask else None)
            self.memory.add(example.label, picture.embedding(), self._mask(example, picture))
        except GpuMemoryError:
            raise
        except Sam2BackendError as error:
            self.skipped.append(Skipped(f"example {number} of {example.label}", error.message))
            self.is_lasting &= not isinstance(error, MediaUnreachableError)

    def _mask(self, example: Example, picture: Picture) -> NDArray[np.bool_]:
        if example.mask is not None:
            mask = mask_from_runs(example.mask)
            if not mask.any():
                raise PromptError("The mask of the example is empty.")
            return mask
        if example.box is None:
            raise PromptError("The example has neither a mask nor a box.")
        found, skipped = masks_of_boxes(self._atelier.engine, picture.embedding(), picture.size_hw, [LabelledBox("", example.box)])
        if skipped:
            raise PromptError(skipped[0].reason)
        return mask_from_runs(found[0].runs)
