"""What the doctor says of a folder and a bucket, by using them."""

from __future__ import annotations

import os
import socket
from dataclasses import replace
from pathlib import Path

import boto3
import pytest
from moto.server import ThreadedMotoServer

from backend.doctor_tiers import tiers
from sam2_backend.embedding_disk import EmbeddingFolder
from sam2_backend.errors import SettingsError
from sam2_backend.settings import Settings

AWS = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "hidden", "AWS_DEFAULT_REGION": "us-east-1"}


@pytest.fixture
def told(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path, disk_cache_bytes=1 << 20)


def found(settings: Settings) -> list[tuple[str, str]]:
    return [(finding.state, finding.sentence) for finding in tiers(settings)]


def test_a_folder_is_tried_and_counted_and_nothing_is_put_out(told, tmp_path):
    folder = EmbeddingFolder(tmp_path / "embeddings", 1 << 20)
    for number in range(10):
        folder.put(f"{number}", bytes(100_000))
    [(state, sentence)] = found(told)
    assert state == "ok"
    assert sentence.startswith("10 images, 0.0 of 0.0 GiB at ")
    assert folder.count()[0] == 10


def test_a_folder_that_cannot_be_used_is_wrong(told, tmp_path):
    (tmp_path / "embeddings").write_bytes(b"")
    [(state, sentence)] = found(told)
    assert state == "wrong"
    assert "SAM2_EMBEDDING_DIR" in sentence


def test_a_disk_with_less_room_than_was_promised_is_wrong(told):
    [(state, sentence)] = found(replace(told, disk_cache_bytes=1 << 60))
    assert state == "wrong"
    assert "lower SAM2_DISK_CACHE_BYTES" in sentence


def test_what_is_not_set_is_not_mentioned_nor_where_no_worker_can_run(told, monkeypatch):
    assert found(replace(told, disk_cache_bytes=0)) == []
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    assert found(replace(told, embedding_bucket="s3://examined/x")) == []


def test_a_bucket_is_ok_missing_or_out_of_reach(told, monkeypatch):
    asked = replace(told, disk_cache_bytes=0, embedding_bucket="s3://examined/x")
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        nowhere = {"AWS_CONFIG_FILE": os.devnull, "AWS_SHARED_CREDENTIALS_FILE": os.devnull}
        for name, value in (AWS | nowhere | {"AWS_ENDPOINT_URL_S3": f"http://{host}:{port}"}).items():
            monkeypatch.setenv(name, value)
        [(state, sentence)] = found(asked)
        assert state == "wrong"
        assert "NoSuchBucket" in sentence
        assert "s3:ListBucket" in sentence
        s3 = boto3.client("s3")
        s3.create_bucket(Bucket="examined")
        assert found(asked) == [("ok", "s3://examined/x can be read and written")]
        assert "Contents" not in s3.list_objects_v2(Bucket="examined")
        s3.close()
    finally:
        server.stop()
    with socket.create_server(("127.0.0.1", 0)) as closing:
        port = closing.getsockname()[1]
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{port}")
    [(state, sentence)] = found(asked)
    assert state == "wrong"
    assert "hidden" not in sentence


def test_a_bucket_that_cannot_be_one_is_told_by_its_setting(told):
    with pytest.raises(SettingsError, match="SAM2_EMBEDDING_BUCKET"):
        found(replace(told, disk_cache_bytes=0, embedding_bucket="bucket"))
