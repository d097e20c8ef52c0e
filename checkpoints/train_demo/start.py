"""Where training starts: random weights, arranged so that a click already says where it is."""

import torch
from torch import Tensor
from torch.nn import functional as F

from checkpoints.train_demo.configuration import DEMO_CONFIG
from checkpoints.train_demo.interact import DRAWN_LOGIT, Prompts, box_around, click_on, drawn_mask
from checkpoints.train_demo.losses import decoder_loss
from sam2_backend.network import Sam2Network, random_network

QUIET = 0.1


@torch.no_grad()
def starting_network(seed: int) -> Sam2Network:
    """Fan-in initialisation with three changes, each of which shortens the time in which the network answers every click alike.

    The image embedding starts below the position encoding instead of drowning it; where prompt and image meet, keys start as the
    queries' projection, so that attention is strongest at the click; masks start undecided.
    """
    network = random_network(DEMO_CONFIG, seed)
    for stage, scale in enumerate((0.5, 0.35, 0.2, 0.2)):
        network.image_encoder.neck.lateral(stage).weight.mul_(scale)
    network.sam_prompt_encoder.no_mask_embed.weight.mul_(0.1)
    decoder = network.sam_mask_decoder
    for mlp in decoder.output_hypernetworks_mlps:
        mlp.layers[-1].weight.mul_(0.3)
    meetings = [decoder.transformer.final_attn_token_to_image]
    for layer in decoder.transformer.layers:
        meetings += [layer.cross_attn_token_to_image, layer.cross_attn_image_to_token]
    for attention in meetings:
        attention.k_proj.weight.copy_(attention.q_proj.weight)
        attention.q_proj.weight.mul_(3.0)
    return network


def teach_where(network: Sam2Network, seed: int, steps: int, batch: int = 48, side_px: int = 128) -> float:
    """Train prompt encoder and decoder on noise in place of an image: a click means the disc around it, a box its inside, a mask itself.

    A network that starts with real pictures first learns to ignore the prompt and to find whatever stands out, and takes very long to
    unlearn it. Returns the last loss.
    """
    generator = torch.Generator().manual_seed(seed)
    network.sam_prompt_encoder.image_size = side_px
    parameters = [*network.sam_prompt_encoder.parameters(), *network.sam_mask_decoder.parameters(), network.no_mem_embed]
    optimiser = torch.optim.AdamW(parameters, betas=(0.9, 0.99), foreach=True)
    loss = torch.zeros(())
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = 1e-3 * min(1.0, (step + 1) / 50)
        masks = _blobs(batch, side_px, generator, boxes=step % 3 == 1)
        prompts = (click_on_center, box_exactly, drawn_mask)[step % 3](masks, generator)
        features = tuple(
            torch.randn(batch, dim, side_px // cut, side_px // cut, generator=generator) * 0.6
            for dim, cut in ((network.config.hidden_dim // 8, 4), (network.config.hidden_dim // 4, 8), (network.config.hidden_dim, 16))
        )
        out = network.decode(features, prompts.points_xy_px, prompts.labels, prompts.mask_logits)  # type: ignore[arg-type]
        loss = decoder_loss(out.mask_logits, out.scores, F.avg_pool2d(masks[:, None].float(), 4)[:, 0])
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
    return float(loss.detach())


def _blobs(batch: int, side_px: int, generator: torch.Generator, *, boxes: bool) -> Tensor:
    """(batch, S, S) bool: rectangles of any size, or discs of 0.15 S radius."""
    centers = torch.rand(batch, 2, 1, generator=generator) * side_px
    halves = (0.08 + 0.3 * torch.rand(batch, 2, 1, generator=generator)) * side_px if boxes else torch.full((batch, 2, 1), 0.15 * side_px)
    apart = (torch.arange(side_px).expand(batch, 2, side_px) - centers) / halves
    y, x = apart[:, 0, :, None], apart[:, 1, None, :]
    return (y.abs() < 1) & (x.abs() < 1) if boxes else x.square() + y.square() < 1


def click_on_center(masks: Tensor, generator: torch.Generator) -> Prompts:
    return click_on(masks, generator, centered=True)


def box_exactly(masks: Tensor, generator: torch.Generator) -> Prompts:
    return box_around(masks, generator, jitter=0.0)


@torch.no_grad()
def with_memory(network: Sam2Network, images: Tensor) -> Sam2Network:
    """Arrange an untrained memory so that at first it hands the image on: what the decoder gets is nearly what it knows.

    The memory attention ends in a layer norm, whose scale and shift are fitted on IMAGES (B, 3, S, S); attention starts quiet; a given
    mask enters as the ±10 that the prompt encoder learnt; the memory encoder's fuser, whose branches start shut, is opened a little.
    """
    attention = network.memory_attention
    for layer in attention.layers:
        for last in (layer.self_attn.out_proj, layer.cross_attn_image.out_proj, layer.linear2):
            last.weight.mul_(QUIET)
    for block in network.memory_encoder.fuser.layers:
        block.gamma.fill_(QUIET)
    network.mask_downsample.weight.fill_(2 * DRAWN_LOGIT / network.mask_downsample.weight.numel())
    network.mask_downsample.bias.fill_(-DRAWN_LOGIT)
    cells = network.encode(images)[2].flatten(2).transpose(1, 2).flatten(0, 1)
    wanted, normed = cells + network.no_mem_embed[0], F.layer_norm(cells, cells.shape[1:])
    scale = ((normed - normed.mean(0)) * (wanted - wanted.mean(0))).mean(0) / normed.var(0, correction=0)
    attention.norm.weight.copy_(scale)
    attention.norm.bias.copy_(wanted.mean(0) - scale * normed.mean(0))
    return network
