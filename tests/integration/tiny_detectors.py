"""Detectors of both kinds with random weights, in folders as the hub has them: small enough to be made by a test, without a network."""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch
from transformers import BertConfig, GroundingDinoConfig, GroundingDinoForObjectDetection, Owlv2Config, Owlv2ForObjectDetection, SwinConfig

WORDS = ["a", "cat", "coffee", "cup", "rocket", "dog"]
CLS, SEP, STOP = 101, 102, 1012  # as in BERT's vocabulary; Grounding DINO knows them by number


def grounding_dino(folder: Path) -> Path:
    vocabulary = [f"[unused{i}]" for i in range(1030)]
    vocabulary[0], vocabulary[100], vocabulary[CLS], vocabulary[SEP], vocabulary[STOP] = "[PAD]", "[UNK]", "[CLS]", "[SEP]", "."
    vocabulary += WORDS
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer", "do_lower_case": True}))
    sizes = {"d_model": 32, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "encoder_layers": 1, "decoder_layers": 2, "num_queries": 30}
    text = BertConfig(vocab_size=len(vocabulary), hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    backbone = SwinConfig(
        image_size=64, embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 1, 1], window_size=4, out_features=["stage2", "stage3", "stage4"]
    )
    config = GroundingDinoConfig(
        backbone_config=backbone, text_config=text, encoder_attention_heads=2, decoder_attention_heads=2, max_text_len=64, **sizes
    )
    model = GroundingDinoForObjectDetection(config).eval()
    noise(model, 1)
    model.save_pretrained(folder)
    return folder


def owlv2(folder: Path) -> Path:
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    entries = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({entry: i for i, entry in enumerate(entries)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    special = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>", "pad_token": "!"}
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "CLIPTokenizer"} | special | {"pad_token": "<|endoftext|>"})
    )
    text = {"vocab_size": len(entries), "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text |= {"max_position_embeddings": 16, "bos_token_id": 52, "eos_token_id": 53, "pad_token_id": 53}
    vision = {
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 96,
        "patch_size": 16,
    }
    model = Owlv2ForObjectDetection(Owlv2Config(text_config=text, vision_config=vision, projection_dim=32)).eval()
    noise(model, 2)
    model.save_pretrained(folder)
    return folder


def noise(model: torch.nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        fan_in = parameter[0].numel() if parameter.ndim > 1 else 4
        parameter.data.normal_(0, 1.5 / math.sqrt(max(fan_in, 1)), generator=generator)
