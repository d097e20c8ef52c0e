"""The image encoder: Hiera, and the neck that brings its stages to one width. Parameter names are Meta's.

Source: Hiera (arXiv 2306.00989); SAM 2 (arXiv 2408.00714), section 4; sam2/modeling/backbones at 2b90b9f.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn import Parameter

from sam2_backend.network.config import NetworkConfig
from sam2_backend.network.layers import Mlp


class _PatchEmbed(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, channels, kernel_size=7, stride=4, padding=3)


class _WindowAttention(nn.Module):
    """Attention among the tokens of one window; pooled queries halve its sides."""

    def __init__(self, dim_in: int, dim_out: int, heads: int, *, pools: bool) -> None:
        super().__init__()
        self.qkv = nn.Linear(dim_in, 3 * dim_out)
        self.proj = nn.Linear(dim_out, dim_out)
        self.heads, self.pools = heads, pools

    def forward(self, x: Tensor) -> Tensor:
        batch, height, width, _ = x.shape
        q, k, v = self.qkv(x).view(batch, height * width, 3, self.heads, -1).unbind(2)
        if self.pools:
            q = _pool(q.reshape(batch, height, width, -1).contiguous())  # Apple's max_pool2d has misread strided views
            height, width = height // 2, width // 2
            q = q.reshape(batch, height * width, self.heads, -1)
        out = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
        attended: Tensor = self.proj(out.transpose(1, 2).reshape(batch, height, width, -1))
        return attended


class _Block(nn.Module):
    """One Hiera block on tokens (B, H, W, C); the first of a stage pools 2 × 2 and widens."""

    def __init__(self, dim_in: int, dim_out: int, heads: int, window: int) -> None:
        super().__init__()
        self.pools, self.window = dim_in != dim_out, window
        self.norm1 = nn.LayerNorm(dim_in, eps=1e-6)
        self.attn = _WindowAttention(dim_in, dim_out, heads, pools=self.pools)
        self.norm2 = nn.LayerNorm(dim_out, eps=1e-6)
        self.mlp = Mlp((dim_out, 4 * dim_out, dim_out), F.gelu)
        if self.pools:
            self.proj = nn.Linear(dim_in, dim_out)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm1(x)
        x = (_pool(self.proj(normed)) if self.pools else x) + (self._attend_in_windows(normed) if self.window else self.attn(normed))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out

    def _attend_in_windows(self, x: Tensor) -> Tensor:
        batch, height, width, channels = x.shape
        side = self.window
        pad_h, pad_w = -height % side, -width % side
        if pad_h or pad_w:
            x = F.pad(x, (0, 0, 0, pad_w, 0, pad_h))
        rows, columns = (height + pad_h) // side, (width + pad_w) // side
        x = self.attn(x.view(batch, rows, side, columns, side, channels).transpose(2, 3).reshape(-1, side, side, channels))
        if self.pools:
            height, width, side = height // 2, width // 2, side // 2
        x = x.view(batch, rows, columns, side, side, -1).transpose(2, 3).reshape(batch, rows * side, columns * side, -1)
        return x[:, :height, :width]


def _pool(x: Tensor) -> Tensor:
    return F.max_pool2d(x.permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1)


class ImageTrunk(nn.Module):
    """What stands before the neck: images → four maps, channels last."""

    def positions(self, side: int) -> Tensor:
        """What `forward` adds to a side × side token grid; constant for given weights."""
        raise NotImplementedError

    def steps(self) -> Iterator[nn.Module]:
        """Modules that `forward` goes through one after the other: between them it may pause."""
        raise NotImplementedError

    def forward(self, x: Tensor, positions: Tensor | None = None) -> list[Tensor]:
        """(B, 3, S, S) → (B, S/4, S/4, C), (B, S/8, S/8, 2 C), (B, S/16, S/16, 4 C), (B, S/32, S/32, 8 C)."""
        raise NotImplementedError


class Trunk(ImageTrunk):
    """Hiera: (B, 3, S, S) → four maps (B, S/4, S/4, C), (B, S/8, S/8, 2 C), (B, S/16, S/16, 4 C), (B, S/32, S/32, 8 C)."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        channels, side = config.embed_dim, config.background_size
        self.patch_embed = _PatchEmbed(channels)
        self.pos_embed = Parameter(self.patch_embed.proj.weight.new_zeros(1, channels, side, side))
        self.pos_embed_window = Parameter(self.pos_embed.new_zeros(1, channels, config.windows[0], config.windows[0]))
        self.blocks = nn.ModuleList()
        self.stage_ends: list[int] = []
        for stage, n_blocks in enumerate(config.stages):
            for i in range(n_blocks):
                enters = stage > 0 and i == 0
                window = 0 if len(self.blocks) in config.global_blocks else config.windows[stage - enters]
                self.blocks.append(_Block(channels << (stage - enters), channels << stage, config.heads << stage, window))
            self.stage_ends.append(len(self.blocks) - 1)

    def positions(self, side: int) -> Tensor:
        """Background and window positions of a side × side token grid → (1, side, side, C). Constant for given weights."""
        background = F.interpolate(self.pos_embed, size=(side, side), mode="bicubic")
        n_windows = side // self.pos_embed_window.shape[-1]
        return (background + self.pos_embed_window.tile(1, 1, n_windows, n_windows)).permute(0, 2, 3, 1)

    def steps(self) -> Iterator[nn.Module]:
        yield from self.blocks

    def forward(self, x: Tensor, positions: Tensor | None = None) -> list[Tensor]:
        """Encode x; `positions` are those of `positions(S/4)` if they were made before."""
        x = self.patch_embed.proj(x).permute(0, 2, 3, 1)
        x = x + (self.positions(x.shape[1]) if positions is None else positions)
        maps = []
        for i, block in enumerate(self.blocks):
            x = block(x)
            if i in self.stage_ends:
                maps.append(x)
        return maps


class _Lateral(nn.Module):
    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, out, kernel_size=1)


class Neck(nn.Module):
    """One 1 × 1 convolution per stage, the lowest resolution first."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.convs = nn.ModuleList(_Lateral(config.embed_dim << stage, config.hidden_dim) for stage in (3, 2, 1, 0))

    def lateral(self, stage: int) -> nn.Conv2d:
        """The convolution behind a stage, counted from 0 at the highest resolution."""
        conv = self.convs[3 - stage].conv
        assert isinstance(conv, nn.Conv2d)
        return conv


class ImageEncoder(nn.Module):
    """Trunk and neck under Meta's names; `Sam2Network.encode` joins them."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.trunk: ImageTrunk = Trunk(config)
        self.neck = Neck(config)
