from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sam2_backend.checkpoints import MODELS, RANDOM_CONFIGS, choose, load, verify
from sam2_backend.checkpoints import loading as loading_module
from sam2_backend.errors import BadCheckpointError
from sam2_backend.network import OFFICIAL_CONFIGS, NetworkConfig, Sam2Network, infer_config
from sam2_backend.settings import Settings


@pytest.fixture(autouse=True)
def _no_shipped_demo(monkeypatch, tmp_path):
    monkeypatch.setattr(loading_module, "DEFAULT_CHECKPOINTS_DIR", tmp_path / "nothing ships here")


@pytest.fixture
def folder(tmp_path):
    return tmp_path


@pytest.fixture(scope="module")
def nano():
    return load(Settings(model="random:nano"))


def save_nano(nano, path: Path, **metadata: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in nano.state_dict.items()}, path, metadata)


def settings_of(folder: Path, model: str = "auto", device: str = "cpu") -> Settings:
    return Settings(model=model, checkpoints_dir=folder, device=device)


@pytest.mark.parametrize("name", OFFICIAL_CONFIGS)
def test_an_official_size_is_told_by_its_tensors_alone(name):
    with torch.device("meta"):
        network = Sam2Network(OFFICIAL_CONFIGS[name])
    assert infer_config(network.state_dict()) == OFFICIAL_CONFIGS[name]


def test_every_official_size_is_published_with_address_size_and_digest():
    assert MODELS.keys() == OFFICIAL_CONFIGS.keys()
    for name, spec in MODELS.items():
        with torch.device("meta"):
            n_weights = sum(t.numel() for t in Sam2Network(OFFICIAL_CONFIGS[name]).state_dict().values())
        assert 0 <= spec.n_bytes - 4 * n_weights < 0.003 * spec.n_bytes  # float32 and an index, nothing else
        assert re.fullmatch("[0-9a-f]{64}", spec.sha256)
        assert spec.url == f"https://dl.fbaipublicfiles.com/segment_anything_2/{'092824' if '2.1' in name else '072824'}/{name}.pt"
    assert len({spec.sha256 for spec in MODELS.values()}) == 8


def test_a_config_survives_json():
    for config in RANDOM_CONFIGS.values():
        assert NetworkConfig.from_json(json.loads(json.dumps(config.to_json()))) == config
    with pytest.raises(ValueError, match="depth"):
        NetworkConfig.from_json({"depth": 3})


def test_random_weights_are_seeded_and_say_so(nano):
    again = load(Settings(model="random:nano"))
    assert again.model_id == nano.model_id
    assert nano.model_version.startswith("random-weights-nano@")
    assert all(torch.equal(again.state_dict[name], tensor) for name, tensor in nano.state_dict.items())
    with pytest.raises(BadCheckpointError, match=r"no network giant.*sam2_hiera_tiny.*nano"):
        load(Settings(model="random:giant"))


def test_auto_takes_the_demo_and_without_one_random_weights(folder, nano):
    assert choose(settings_of(folder)) == "random:nano"
    save_nano(nano, folder / "demo" / "any.safetensors", config=json.dumps(nano.config.to_json()))
    assert choose(settings_of(folder)) == "demo"
    demo = load(settings_of(folder))
    assert demo.name == "demo"
    assert demo.config == nano.config
    assert demo.model_id == demo.model_version == f"demo@{demo.sha256[:12]}"


@pytest.mark.parametrize(
    ("fetched", "on_cpu", "on_gpu"),
    [
        (["sam2.1_hiera_large"], "sam2.1_hiera_large", "sam2.1_hiera_large"),
        (["sam2.1_hiera_large", "sam2.1_hiera_small", "sam2_hiera_tiny"], "sam2.1_hiera_small", "sam2.1_hiera_large"),
        (["sam2_hiera_base_plus", "sam2_hiera_small"], "sam2_hiera_small", "sam2_hiera_base_plus"),
    ],
)
def test_auto_takes_the_newer_family_smallest_on_a_cpu_largest_on_a_gpu(folder, fetched, on_cpu, on_gpu):
    for name in fetched:
        (folder / MODELS[name].file).touch()
    assert choose(settings_of(folder)) == on_cpu
    assert choose(settings_of(folder, device="cuda:0")) == on_gpu


def test_a_demo_can_ship_beside_an_empty_checkpoints_folder(folder, nano, monkeypatch):
    monkeypatch.setattr(loading_module, "DEFAULT_CHECKPOINTS_DIR", folder / "shipped")
    save_nano(nano, folder / "shipped" / "demo" / "demo.safetensors", config=json.dumps(nano.config.to_json()))
    assert load(settings_of(folder / "empty")).name == "demo"


def test_a_missing_checkpoint_names_the_command_the_address_and_the_folder(folder):
    with pytest.raises(BadCheckpointError) as caught:
        load(settings_of(folder, "sam2.1_hiera_tiny"))
    for part in ("checkpoints fetch sam2.1_hiera_tiny", MODELS["sam2.1_hiera_tiny"].url, str(folder)):
        assert part in caught.value.message
    with pytest.raises(BadCheckpointError, match="demo"):
        load(settings_of(folder, "demo"))


def test_a_misspelt_name_gets_the_nearest(folder):
    with pytest.raises(BadCheckpointError, match=r"Did you mean sam2\.1_hiera_tiny\?"):
        load(settings_of(folder, "sam2.1-hiera-tiny"))
    with pytest.raises(BadCheckpointError, match="neither a name nor a file"):
        load(settings_of(folder, str(folder / "gone.pt")))


def test_a_fine_tuned_file_is_named_by_itself_and_its_digest(folder, nano):
    path = folder / "cells.safetensors"
    save_nano(nano, path, config=json.dumps(nano.config.to_json()))
    checkpoint = load(settings_of(folder, str(path)))
    assert checkpoint.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert checkpoint.model_id == f"cells@{checkpoint.sha256[:12]}"
    assert "sha256 " + checkpoint.sha256 in verify(path, folder)
    assert checkpoint.network().no_mem_embed.equal(nano.state_dict["no_mem_embed"])


def test_half_precision_weights_are_read_as_float32(folder, nano):
    half = dataclasses.replace(nano, state_dict={name: tensor.half() for name, tensor in nano.state_dict.items()})
    save_nano(half, folder / "half.safetensors", config=json.dumps(nano.config.to_json()))
    assert {t.dtype for t in load(settings_of(folder, str(folder / "half.safetensors"))).state_dict.values()} == {torch.float32}


def test_a_published_name_over_other_bytes_is_refused(folder, nano, monkeypatch):
    spec = MODELS["sam2.1_hiera_tiny"]
    monkeypatch.setitem(MODELS, "sam2.1_hiera_tiny", dataclasses.replace(spec, file="tiny.safetensors"))
    save_nano(nano, folder / "tiny.safetensors", config=json.dumps(nano.config.to_json()))
    with pytest.raises(BadCheckpointError, match=f"damaged or not the published.*not {spec.sha256}"):
        verify("sam2.1_hiera_tiny", folder)


class Attack:
    def __reduce__(self):
        return Path.touch, (Path("touched"),)


@pytest.mark.parametrize("kind", ["not a checkpoint", "empty", "truncated", "attack", "list", "other network", "html as safetensors"])
def test_what_is_no_checkpoint_is_refused_and_never_run(folder, nano, monkeypatch, kind):
    monkeypatch.chdir(folder)
    path = folder / ("bad.safetensors" if "safetensors" in kind else "bad.pt")
    match kind:
        case "not a checkpoint" | "html as safetensors":
            path.write_bytes(b"<html>proxy</html>")
        case "empty":
            path.touch()
        case "truncated":
            torch.save({"model": nano.state_dict}, path)
            path.write_bytes(path.read_bytes()[:-1000])
        case "attack":
            torch.save({"model": Attack()}, path)
        case "list":
            torch.save([1, 2], path)
        case "other network":
            torch.save({"layer.weight": torch.zeros(3)}, path)
    with pytest.raises(BadCheckpointError, match=r"bad\.(pt|safetensors) cannot be read as a SAM 2 checkpoint: .+\."):
        load(settings_of(folder, str(path)))
    assert not (folder / "touched").exists()


def test_an_unofficial_size_without_its_config_says_what_is_lacking(folder, nano):
    torch.save({"model": nano.state_dict}, folder / "small.pt")
    with pytest.raises(BadCheckpointError, match=r"not an official size.*global_blocks"):
        load(settings_of(folder, str(folder / "small.pt")))


def test_missing_and_misshapen_tensors_are_named(folder, nano):
    tensors = {name: tensor for name, tensor in nano.state_dict.items() if name != "no_mem_embed"}
    with pytest.raises(BadCheckpointError, match="no_mem_embed"):
        dataclasses.replace(nano, state_dict=tensors).network()
    tensors["no_mem_embed"] = torch.zeros(3)
    with pytest.raises(BadCheckpointError, match="no_mem_embed"):
        dataclasses.replace(nano, state_dict=tensors).network()


def test_a_folder_without_weights_is_refused(folder):
    with pytest.raises(BadCheckpointError, match="holds no"):
        load(settings_of(folder, str(folder)))


def test_a_hub_id_is_taken_from_the_hub_and_a_refusal_says_what_to_do(folder, nano, monkeypatch):
    save_nano(nano, folder / "snapshot" / "model.safetensors", config=json.dumps(nano.config.to_json()))
    asked = []

    def snapshot_download(hub_id, allow_patterns):
        asked.append((hub_id, allow_patterns))
        return str(folder / "snapshot")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    assert load(settings_of(folder, "someone/sam2-cells")).model_id.startswith("someone/sam2-cells@")
    assert asked == [("someone/sam2-cells", ["*.safetensors", "config.json"])]

    def refuse(*_args, **_kwargs):
        raise ConnectionError("no network, token=secret")

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    with pytest.raises(BadCheckpointError, match=r"https://huggingface\.co/someone/sam2-cells elsewhere") as caught:
        load(settings_of(folder, "someone/sam2-cells"))
    assert "secret" not in caught.value.message
