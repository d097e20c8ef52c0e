"""Compiled for the shapes of clicks, everything else as it is; the real compiler is met in tests/integration/test_compile.py."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch

from sam2_backend import checkpoints
from sam2_backend.compilation import CLICK_SHAPES, CompiledNetwork
from sam2_backend.devices import dtype_of
from sam2_backend.engine import Sam2Engine
from sam2_backend.errors import SettingsError
from sam2_backend.settings import Settings

# torch's own, when its compiler is imported.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def checkpoint():
    return checkpoints.load(Settings(model="random:nano"))


@pytest.fixture
def compiled(checkpoint):
    return CompiledNetwork(checkpoint.network(), torch.float32, backend="eager")


@torch.inference_mode()
def test_only_the_shapes_of_the_start_are_compiled_and_no_request_compiles(compiled, checkpoint, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    compiled.compile(encoder=True, click_shapes=((1, False), (2, True)))
    assert len(compiled) == 3
    lines = [record.getMessage() for record in caplog.records]
    assert [line.split(" in ")[0] for line in lines] == [
        "compiled the image encoder (1 of 3)",
        "compiled prompts of 1 points (2 of 3)",
        "compiled prompts of 2 points and a mask (3 of 3)",
    ]

    def never(*_args, **_kwargs):
        raise AssertionError("compiled on a request")

    monkeypatch.setattr(torch, "compile", never)
    network = checkpoint.network()
    maps = compiled.encode(torch.randn(1, 3, 256, 256))
    for n_points, has_mask in [*CLICK_SHAPES, (9, False)]:
        prompt = (
            torch.rand(1, n_points, 2) * 256,
            torch.ones(1, n_points, dtype=torch.long),
            torch.randn(1, 1, 64, 64) if has_mask else None,
        )
        found, expected = compiled.decode(maps, *prompt), network.decode(maps, *prompt)
        torch.testing.assert_close(found.mask_logits, expected.mask_logits, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found.scores, expected.scores, rtol=1e-4, atol=1e-5)


@torch.inference_mode()
def test_where_torch_cannot_compile_one_line_says_so_and_clicks_are_answered(checkpoint, monkeypatch, caplog):
    def broken(*_args, **_kwargs):
        raise RuntimeError("no C++ compiler was found\nand much more")

    monkeypatch.setattr(torch, "compile", broken)
    engine = Sam2Engine(checkpoint, CPU, compile_what="all")
    engine.warm_up()
    lines = [record.getMessage() for record in caplog.records if record.name == "sam2_backend.compilation"]
    assert lines == ["torch cannot compile here (RuntimeError: no C++ compiler was found); the model runs uncompiled"]


def test_compiled_embeddings_have_a_key_of_their_own(checkpoint):
    tags = {Sam2Engine(checkpoint, CPU, compile_what=what).preprocessing for what in ("off", "decoder", "all")}
    assert tags == {"antialias-uint8-256", "antialias-uint8-256-compiled"}


def test_the_precision_is_the_devices_or_the_one_asked_for():
    assert dtype_of("auto", CPU) == dtype_of("fp32", CPU) == torch.float32
    assert dtype_of("auto", torch.device("cuda")) == torch.float16
    assert dtype_of("bf16", CPU) == torch.bfloat16
    with pytest.raises(SettingsError, match="SAM2_PRECISION=fp16 is for GPUs"):
        dtype_of("fp16", CPU)


def test_a_bf16_encoder_gives_nearly_the_same_masks_and_embeddings_that_survive_storage(checkpoint):
    image = np.random.default_rng(0).integers(0, 256, (50, 200, 3), dtype=np.uint8)
    click = {"points_xy_px": np.array([[150.0, 10.0]]), "is_positive": np.array([True]), "size_hw": (50, 200), "multimask": False}
    full, half = (Sam2Engine(checkpoint, CPU, dtype) for dtype in (torch.float32, torch.bfloat16))
    embedding = half.embed(image)
    assert {t.dtype for t in embedding.maps} == {torch.bfloat16}
    back = type(embedding).from_bytes(embedding.to_bytes(), CPU, half.dtype)
    assert all(torch.equal(a, b) for a, b in zip(embedding.maps, back.maps, strict=True))
    a, b = half.decode(embedding, **click).logits > 0, full.decode(full.embed(image), **click).logits > 0
    assert (a == b).float().mean() > 0.95


@pytest.mark.parametrize("name", ["SAM2_COMPILE", "SAM2_PRECISION"])
def test_other_values_are_refused(name):
    with pytest.raises(SettingsError, match=f"{name}=fast must be one of"):
        Settings.from_env({name: "fast"})
