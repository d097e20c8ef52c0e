"""Follow objects through a clip as the tracker does, with gradients: B objects, prompted together on the first frame, as one batch."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from checkpoints.train_demo.interact import Prompts
from sam2_backend.network import DecoderOutput, FeatureMaps, Sam2Network
from sam2_backend.network.prompt_encoder import NOT_A_POINT
from sam2_backend.network.sam2 import N_MEMORY_MAPS, N_POINTERS

_SURE_LOGIT = 10.0


@dataclass(slots=True)
class Bank:
    """What the objects remember: (frame, map, pointer) of prompted and of tracked frames.

    `prompted_earlier_by` makes prompted frames look that much older: clips are short, videos are not.
    """

    prompted: list[tuple[int, Tensor, Tensor]] = field(default_factory=list)
    tracked: list[tuple[int, Tensor, Tensor]] = field(default_factory=list)
    prompted_earlier_by: int = 0

    def condition(self, network: Sam2Network, image: Tensor, frame: int) -> Tensor:
        """Embedding (B, d, h, w) of a frame, with what earlier frames left in it. The order is the tracker's."""
        recent = [(frame - at, memory_map) for at, memory_map, _ in self.tracked if frame - at < N_MEMORY_MAPS]
        maps = [memory_map for _, memory_map, _ in self.prompted] + [memory_map for _, memory_map in recent]
        ages = [0] * len(self.prompted) + [age for age, _ in recent]
        late = [(frame - at, pointer) for at, _, pointer in reversed(self.tracked) if frame - at < N_POINTERS]
        pointers = [pointer for _, _, pointer in self.prompted] + [pointer for _, pointer in late]
        apart = [frame - at + self.prompted_earlier_by for at, _, _ in self.prompted] + [distance for distance, _ in late]
        frames_apart = torch.tensor([apart], dtype=torch.float32, device=image.device)
        return network.condition(image, network.memory_tokens(maps, ages, pointers, frames_apart))


@dataclass(frozen=True, slots=True)
class Answer:
    """The decoder's output, and which of its four masks was taken for each object, (B,)."""

    out: DecoderOutput
    chosen: Tensor

    @property
    def mask_logits(self) -> Tensor:
        """(B, S/4, S/4) of the masks that were taken."""
        return self.out.mask_logits[torch.arange(len(self.chosen), device=self.chosen.device), self.chosen]

    def pointer(self, network: Sam2Network, object_logits: Tensor) -> Tensor:
        return network.pointer(self.out.mask_tokens[torch.arange(len(self.chosen), device=self.chosen.device), self.chosen], object_logits)


def answer(network: Sam2Network, features: FeatureMaps, image: Tensor, prompts: Prompts | None) -> Answer:
    """Decode on an embedding (B, d, h, w) with its memory in it. One click, or nothing, is ambiguous: the best scored of three is taken."""
    if prompts is None:
        prompts = Prompts(image.new_zeros(len(image), 1, 2), image.new_full((len(image), 1), NOT_A_POINT, dtype=torch.long))
    out = network.decode_conditioned(features, image, prompts.points_xy_px, prompts.labels, prompts.mask_logits)
    is_ambiguous = prompts.labels.shape[1] == 1
    chosen = 1 + out.scores[:, 1:].argmax(1) if is_ambiguous else torch.zeros(len(image), dtype=torch.long, device=image.device)
    return Answer(out, chosen)


def answer_to_mask(network: Sam2Network, features: FeatureMaps, masks: Tensor) -> Answer:
    """The decoder's view of given (B, S, S) bool masks, as the tracker asks for it: without memory, and without the vector for none."""
    shown = network.mask_downsample(masks[:, None].to(features[2]))
    nothing = Prompts(shown.new_zeros(len(masks), 1, 2), shown.new_full((len(masks), 1), NOT_A_POINT, dtype=torch.long), shown)
    found = answer(network, features, features[2], nothing)
    return Answer(found.out, torch.zeros_like(found.chosen))


def remembered(network: Sam2Network, image: Tensor, given: Answer, *, truth: Tensor | None, is_prompted: bool) -> tuple[Tensor, Tensor]:
    """The map and the pointer that a frame leaves behind; with (B, S, S) bool TRUTH it remembers that in place of what was found."""
    if truth is None:
        object_logits = given.out.object_logits
        logits = given.mask_logits[:, None]
    else:
        is_there = truth.flatten(1).any(1, keepdim=True)
        object_logits = torch.where(is_there, _SURE_LOGIT, -_SURE_LOGIT)
        logits = torch.where(truth[:, None], _SURE_LOGIT, -_SURE_LOGIT)
    memory_map = network.remember(image, logits, object_logits, binarize=is_prompted)
    return memory_map, given.pointer(network, object_logits)


def of_tracks(features: FeatureMaps, rows: Tensor) -> FeatureMaps:
    """The feature maps of single frames, one for each object: ROWS (B,) says which."""
    high_res_0, high_res_1, image = (part[rows] for part in features)
    return high_res_0, high_res_1, image
