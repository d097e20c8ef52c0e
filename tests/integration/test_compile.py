"""What torch's compiler makes of a click gives the masks of the uncompiled network. Takes a C++ compiler, and about a minute."""

from __future__ import annotations

import shutil

import pytest
import torch

from sam2_backend import checkpoints
from sam2_backend.compilation import CompiledNetwork
from sam2_backend.settings import Settings


# torch's own, when its compiler is imported.
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.skipif(shutil.which("c++") is None, reason="there is no C++ compiler")
@torch.inference_mode()
def test_a_compiled_click_gives_the_uncompiled_mask():
    network = checkpoints.load(Settings(model="random:nano")).network()
    compiled = CompiledNetwork(network, torch.float32)
    compiled.compile(encoder=False, click_shapes=((1, False),))
    assert len(compiled) == 1
    maps = network.encode(torch.randn(1, 3, 256, 256, generator=torch.Generator().manual_seed(0)))
    maps = tuple(m.contiguous(memory_format=torch.channels_last) for m in maps)
    for x in (10.0, 200.0):
        prompt = torch.tensor([[[x, 30.0]]]), torch.ones(1, 1, dtype=torch.long)
        found, expected = compiled.decode(maps, *prompt), network.decode(maps, *prompt)
        torch.testing.assert_close(found.mask_logits, expected.mask_logits, rtol=1e-4, atol=1e-4)
        assert ((found.mask_logits > 0) == (expected.mask_logits > 0)).float().mean() >= 0.9999
