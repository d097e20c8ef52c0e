"""transformers' video predictor, driven like our tracker and mended where it is known to be wrong."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from transformers.models.sam2_video.modeling_sam2_video import Sam2VideoInferenceSession

from benchmarks.video_peer import twin
from sam2_backend.network import Sam2Network
from sam2_backend.tracker import TrackerPrompt

#: Where its centre is at frame 0, in x and y, its motion from frame to frame, its radius; all px.
Disc = tuple[int, int, int, int, int]


def disc_frames(discs: Sequence[Disc], n_frames: int, side_px: int) -> torch.Tensor:
    """Discs that move over a blurred ground, (n_frames, 3, side_px, side_px) float32."""
    y, x = torch.meshgrid(torch.arange(side_px), torch.arange(side_px), indexing="ij")
    generator = torch.Generator().manual_seed(2)
    ground = F.interpolate(torch.randn(1, 3, 16, 16, generator=generator) * 0.4, (side_px, side_px), mode="bilinear")[0]
    colours = torch.randn(len(discs), 3, 1, 1, generator=generator) * 1.5
    made = []
    for t in range(n_frames):
        frame = ground
        for (x0, y0, dx, dy, radius), colour in zip(discs, colours, strict=True):
            frame = torch.where((x - x0 - dx * t) ** 2 + (y - y0 - dy * t) ** 2 < radius**2, colour, frame)
        made.append(frame)
    return torch.stack(made)


class VideoOracle:
    """Sam2VideoModel on a whole video, with what Meta's predictor does otherwise.

    - A mask prompt's pointer comes from the single mask, as in Meta's `_use_mask_as_output`; transformers takes the best of three.
    - A correction sees the mask found before, and its frame becomes a conditioning frame (Meta's
      add_all_frames_to_correct_as_cond=true); transformers starts from points alone and forgets them when it propagates again.
    - Each object's mask is binarised for memory only where that object was prompted; transformers does so for all objects of the call.
    - Objects are prompted in one call each frame: between two calls transformers drops the first one's prompt.
    """

    def __init__(self, network: Sam2Network, frames: torch.Tensor) -> None:
        self.model = twin(network)
        side = network.config.image_size
        self.session = Sam2VideoInferenceSession(video=frames, video_height=side, video_width=side, dtype=torch.float32)
        self._encode_memories_one_by_one()
        self._mend_prompts()

    def _encode_memories_one_by_one(self) -> None:
        encode = self.model._batch_encode_memories

        def encode_each(session, frame_idx, objects, masks, scores, flags):
            for i in range(len(objects)):
                one = slice(i, i + 1)
                encode(session, frame_idx, objects[one], masks[one], scores[one], flags[one])

        def encode_by_name(inference_session, frame_idx, **named):
            encode_each(inference_session, frame_idx, *named.values())

        self.model._batch_encode_memories = encode_by_name

    def _mend_prompts(self) -> None:
        model = self.model
        run, as_output = model._run_single_frame_inference, model._use_mask_as_output

        def run_with_previous(**named):
            session, frame_idx = named["inference_session"], named["frame_idx"]
            outputs = session.output_dict_per_obj[named["obj_idx"]]
            before = outputs["cond_frame_outputs"].get(frame_idx) or outputs["non_cond_frame_outputs"].get(frame_idx)
            if before and named["point_inputs"] is not None:
                named["prev_sam_mask_logits"] = before["pred_masks"].clamp(-32, 32)
            return run(**named)

        def single_mask(*arguments):
            forward = model._single_frame_forward
            model._single_frame_forward = functools.partial(forward, multimask_output=False)
            try:
                return as_output(*arguments)
            finally:
                model._single_frame_forward = forward

        model._run_single_frame_inference, model._use_mask_as_output = run_with_previous, single_mask

    def prompt(self, frame_idx: int, prompts: Sequence[TrackerPrompt], *, reverse: bool = False) -> dict[str, torch.Tensor]:
        session = self.session
        for prompt in prompts:
            idx = session.obj_id_to_idx(prompt.object_id)
            if prompt.mask is not None:
                session.add_mask_inputs(idx, frame_idx, prompt.mask[None, None].float())
                session.remove_point_inputs(idx, frame_idx)
            else:
                inputs = {"point_coords": prompt.points_xy[None, None], "point_labels": prompt.labels[None, None].int()}
                session.add_point_inputs(idx, frame_idx, inputs)
                session.remove_mask_inputs(idx, frame_idx)
        session.obj_with_new_inputs = [prompt.object_id for prompt in prompts]
        found = self.step(frame_idx, reverse=reverse)
        for prompt in prompts:
            outputs = session.output_dict_per_obj[session.obj_id_to_idx(prompt.object_id)]
            corrected = outputs["non_cond_frame_outputs"].pop(frame_idx, None)
            if corrected is not None:
                outputs["cond_frame_outputs"][frame_idx] = corrected
        return found

    def step(self, frame_idx: int, *, reverse: bool = False) -> dict[str, torch.Tensor]:
        out = self.model(self.session, frame_idx=frame_idx, reverse=reverse)
        return dict(zip(out.object_ids, out.pred_masks[:, 0], strict=True))
