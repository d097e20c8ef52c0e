"""The second course: what the first one learnt stays, and the memory learns to follow. Clips and still pictures take turns."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from checkpoints.train_demo.assets import load_assets
from checkpoints.train_demo.batches import BatchMaker, BatchSize
from checkpoints.train_demo.clip_batches import ClipBatchMaker, ClipBatchSize
from checkpoints.train_demo.clip_loss import clip_loss
from checkpoints.train_demo.clips import ClipSize
from checkpoints.train_demo.configuration import DEMO_CONFIG
from checkpoints.train_demo.evaluate import held_out_scenes, measure
from checkpoints.train_demo.evaluate_video import held_out_clips, measure_clips
from checkpoints.train_demo.start import with_memory
from checkpoints.train_demo.train import Phase, batch_loss, parser, train
from checkpoints.train_demo.trainer import Course
from sam2_backend.network import Sam2Network

SEED = 21
PEAK_RATE = 1e-3
#: The encoder stays; prompts and decoder learn what a remembered object looks like without losing what a click means.
SHARES = {
    "memory_": 1.0,
    "maskmem_tpos_enc": 1.0,
    "mask_downsample": 1.0,
    "obj_ptr_": 1.0,
    "no_obj_": 1.0,
    "sam_prompt_encoder.": 0.3,
    "sam_mask_decoder.": 0.3,
    "no_mem_embed": 0.3,
}
PICTURES_EVERY = 4  # steps
JUDGED_SCENES, JUDGED_CLIPS = 32, 8


@dataclass(frozen=True, slots=True)
class ClipPhase:
    """`truth_share`: of the clips in which the memory is the truth in place of what was found."""

    until: float  # share of the trained time
    size: ClipBatchSize
    truth_share: float


PHASES = (
    ClipPhase(0.15, ClipBatchSize(ClipSize(128, 6), clips=4, fresh_clips=2, tracks_per_clip=2), truth_share=0.7),
    ClipPhase(0.5, ClipBatchSize(ClipSize(128, 8), clips=4, fresh_clips=2, tracks_per_clip=2), truth_share=0.2),
    ClipPhase(9.99, ClipBatchSize(ClipSize(256, 8), clips=2, fresh_clips=1, tracks_per_clip=2), truth_share=0.1),
)
PICTURES = Phase(9.99, BatchSize(side_px=256, images=6, prompts_per_image=3, fresh_images=2), (0.35, 0.35, 0.2, 0.1))


def video_course(work: Path) -> Course:
    """Over the material cached in WORK, from the best weights of the first course."""
    train_assets, held_out = load_assets(work, "train"), load_assets(work, "held_out")
    clips, pictures = ClipBatchMaker(train_assets, SEED), BatchMaker(train_assets, SEED)
    scene_judges = held_out_scenes(held_out, JUDGED_SCENES, DEMO_CONFIG.image_size)
    clip_judges = held_out_clips(held_out, JUDGED_CLIPS, DEMO_CONFIG.image_size)

    def start() -> Sam2Network:
        network = Sam2Network(DEMO_CONFIG)
        network.load_state_dict(torch.load(work / "images-best.pt", weights_only=True))
        examples = pictures.batch(0, PICTURES.size).images
        return with_memory(network, examples)

    def loss(network: Sam2Network, step: int, done: float, generator: torch.Generator) -> Tensor:
        if step % PICTURES_EVERY == PICTURES_EVERY - 1:
            return batch_loss(network, pictures.batch(step, PICTURES.size), PICTURES, generator)
        phase = next(phase for phase in PHASES if done < phase.until)
        return clip_loss(network, clips.batch(step, phase.size), generator, truth_share=phase.truth_share)

    def measured(network: Sam2Network) -> dict[str, float]:
        return {**measure(network, scene_judges), **measure_clips(network, clip_judges)}

    return Course("video", SEED, start, SHARES, PEAK_RATE, loss, measured, measure_every_s=600.0)


if __name__ == "__main__":
    options = parser(__doc__).parse_args()
    train(video_course(options.work), options)
