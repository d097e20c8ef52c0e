"""The life of a click inside a worker, on a small network with random weights; media comes from a dictionary."""

from __future__ import annotations

import io
import logging
from dataclasses import replace

import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given
from hypothesis import strategies as st
from PIL import Image

from sam2_backend import refinement
from sam2_backend import segmenter as segmenter_module
from sam2_backend.embedding_cache import EmbeddingCache
from sam2_backend.engine import Sam2Engine
from sam2_backend.errors import GpuMemoryError, MediaUnreachableError, MediaUnreadableError
from sam2_backend.images import ImageInfo, inspect
from sam2_backend.masks import mask_from_runs, runs_from_mask
from sam2_backend.media import MediaFile
from sam2_backend.messages import ImageJob, ImagePrompt, ImageReply, MaskOptions, MediaRef, Point, WarmJob
from sam2_backend.refinement import LogitsCache, Step
from sam2_backend.segmenter import Segmenter
from sam2_backend.settings import Settings

SIZE_HW = (60, 90)
URI = "http://images.test/1.png"


def jpeg(seed: int, exif_orientation: int = 1) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (*SIZE_HW, 3), dtype=np.uint8)
    image, out = Image.fromarray(pixels), io.BytesIO()
    exif = image.getexif()
    exif[0x0112] = exif_orientation
    image.save(out, "JPEG", exif=exif)
    return out.getvalue()


class NoLongWork:
    is_busy = False

    def step(self, incarnation: str) -> bool: ...
    def put_down(self) -> None: ...


NO_LONG_WORK = NoLongWork()


class Store:
    """A MediaStore over a dictionary that counts what it is asked for."""

    def __init__(self) -> None:
        self.sources: dict[str, bytes] = {URI: jpeg(1)}
        self.index: dict[str, tuple[str, ImageInfo]] = {}
        self.fetches = 0

    def lookup(self, ref: MediaRef) -> tuple[str, ImageInfo] | None:
        return self.index.get(ref.uri)

    def forget(self, ref: MediaRef) -> None:
        self.index.pop(ref.uri, None)

    def fetch(self, ref: MediaRef) -> MediaFile:
        self.fetches += 1
        if ref.uri not in self.sources:
            raise MediaUnreachableError("gone")
        data = self.sources[ref.uri]
        file = MediaFile(f"hash-{hash(data)}", None, data, inspect(data, 10**6))
        self.index[ref.uri] = file.image_hash, file.info
        return file


@pytest.fixture(scope="module")
def engine() -> Sam2Engine:
    return Sam2Engine.load(Settings(model="random:nano", device="cpu", torch_threads=1))


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
def segmenter(engine: Sam2Engine, store: Store) -> Segmenter:
    budgets = {"device_budget_bytes": 1 << 28, "host_budget_bytes": 0, "redis_budget_bytes": 0}
    cache = EmbeddingCache(None, engine.device, engine.dtype, **budgets)
    return Segmenter(engine, store, cache, LogitsCache(16), "w0", 10**6, NO_LONG_WORK, preannotation=None)


def click(*prompts: ImagePrompt, size_hw=SIZE_HW, options=MaskOptions()) -> ImageJob:
    return ImageJob(MediaRef(URI), size_hw, prompts or (ImagePrompt("p", (Point(30.0, 20.0),)),), options)


def pixels(reply) -> list[np.ndarray]:
    return [mask_from_runs(mask.runs) for mask in reply.masks]


def test_a_first_click_fetches_and_encodes_once_and_says_where_the_time_went(segmenter, store, caplog):
    caplog.set_level(logging.INFO)
    reply = segmenter.segment(click(ImagePrompt("a", (Point(30.0, 20.0),)), ImagePrompt("b", box_xyxy_px=(5.0, 5.0, 40.0, 30.0))))
    assert [mask.prompt_id for mask in reply.masks] == ["a", "b"]
    assert [mask.shape for mask in pixels(reply)] == [SIZE_HW, SIZE_HW]
    assert (reply.cache, reply.worker, reply.model_version) == ("none", "w0", segmenter.engine.model_version)
    assert set(reply.timings_ms) == {"media", "embed", "decode", "runs"}
    assert min(reply.timings_ms.values()) > 0
    assert store.fetches == 1
    [line] = [record.getMessage() for record in caplog.records if record.name == "sam2_backend.segmenter"]
    assert line.startswith("job kind=segment image=hash-")
    assert " prompts=2 cache=none media_ms=" in line
    assert "images.test" not in line


def test_a_warm_click_fetches_decodes_and_encodes_nothing_and_gives_the_same_mask(segmenter, store, monkeypatch):
    cold = segmenter.segment(click())

    def never(*_args):
        raise AssertionError("a warm click touched the image")

    store.fetch = never
    monkeypatch.setattr(segmenter_module, "load_rgb", never)
    monkeypatch.setattr(Sam2Engine, "embed", never)
    warm = segmenter.segment(click())
    assert warm.cache == "device"
    assert warm.masks == cold.masks


def test_a_warmed_image_is_ready_for_the_first_click(segmenter, store):
    assert segmenter.warm(WarmJob(MediaRef(URI))).masks == ()
    assert segmenter.segment(click()).cache == "device"
    assert store.fetches == 1


def test_clicks_on_a_ready_image_are_answered_in_the_middle_of_warming_another(segmenter, store):
    store.sources["http://images.test/other.jpg"] = jpeg(2)
    cold = segmenter.segment(click())
    answers = []
    reply = segmenter.warm(WarmJob(MediaRef("http://images.test/other.jpg")), lambda: answers.append(segmenter.segment(click())))
    assert reply.cache == "none"
    assert len(answers) > 1
    assert {answer.cache for answer in answers} == {"device"}
    assert all(answer.masks == cold.masks for answer in answers)


def test_warming_what_is_in_memory_gives_it_to_the_tiers_of_others(segmenter, monkeypatch):
    shared: list[str] = []
    monkeypatch.setattr(segmenter.embeddings, "share", shared.append)
    segmenter.warm(WarmJob(MediaRef(URI)))
    assert shared == [], "a new embedding is given to every tier anyhow"
    segmenter.warm(WarmJob(MediaRef(URI)))
    assert len(shared) == 1


def test_warming_takes_the_orientation_that_a_browser_shows(segmenter, store):
    store.sources[URI] = jpeg(1, exif_orientation=6)
    segmenter.warm(WarmJob(MediaRef(URI)))
    assert segmenter.segment(click(size_hw=SIZE_HW[::-1])).cache == "device"
    assert segmenter.segment(click(size_hw=SIZE_HW)).cache == "none", "shown as stored: another embedding"


def test_a_file_that_vanished_is_fetched_again(segmenter, store):
    segmenter.segment(click())
    segmenter.embeddings.empty_device_tier()
    assert segmenter.segment(click()).cache == "none"
    assert store.fetches == 2


def test_an_image_that_changed_behind_its_address_is_not_kept_under_the_old_ones_name(segmenter, store):
    old = segmenter.segment(click())
    segmenter.embeddings.empty_device_tier()
    store.sources[URI] = jpeg(2)
    new = segmenter.segment(click())
    assert new.image_hash != old.image_hash
    assert segmenter.segment(click()).image_hash == new.image_hash
    store.sources[URI] = jpeg(1)
    store.forget(MediaRef(URI))
    assert segmenter.segment(click()).masks == old.masks


def test_an_image_of_another_shape_than_remembered_is_looked_at_again(segmenter, store):
    segmenter.segment(click())
    store.sources[URI] = _square()
    assert segmenter.segment(click(size_hw=(50, 50))).cache == "none"
    with pytest.raises(MediaUnreadableError):
        segmenter.segment(click())


def _square() -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (50, 50), "red").save(out, "PNG")
    return out.getvalue()


GONE = "http://images.test/gone.png"


def _prompts() -> st.SearchStrategy[ImagePrompt]:
    x, y = st.floats(0, SIZE_HW[1]), st.floats(0, SIZE_HW[0])
    points = st.lists(st.builds(Point, x, y, st.booleans()), max_size=4).map(tuple)
    boxes = st.none() | st.tuples(st.floats(0, 40), st.floats(0, 25), st.floats(45, 90), st.floats(30, 60))
    brush = np.zeros(SIZE_HW, bool)
    brush[10:30, 20:60] = True
    clips = st.sampled_from([(), ((10.0, 10.0), (50.0, 10.0), (50.0, 40.0), (10.0, 40.0))])
    return st.builds(ImagePrompt, st.just("p"), points, boxes, st.sampled_from([None, runs_from_mask(brush)]), clips).filter(
        lambda prompt: prompt.points or prompt.box_xyxy_px or prompt.mask
    )


def _clicks() -> st.SearchStrategy[ImageJob]:
    uris = st.sampled_from([URI, "http://images.test/2.png", "http://images.test/3.png", GONE])
    options = st.sampled_from([MaskOptions(), MaskOptions(multimask=False), MaskOptions(remove_sprinkles_px=3, mask_threshold=0.1)])
    prompts = st.lists(_prompts(), min_size=1, max_size=3).map(tuple)
    return st.builds(ImageJob, uris.map(MediaRef), st.just(SIZE_HW), prompts, options)


def _segmenter(engine: Sam2Engine) -> Segmenter:
    store = Store()
    store.sources |= {f"http://images.test/{n}.png": jpeg(n) for n in (2, 3)}
    budgets = {"device_budget_bytes": 1 << 28, "host_budget_bytes": 0, "redis_budget_bytes": 0}
    cache = EmbeddingCache(None, engine.device, engine.dtype, **budgets)
    return Segmenter(engine, store, cache, LogitsCache(64), "w0", 10**6, NO_LONG_WORK, preannotation=None)


def _alone(segmenter: Segmenter, job: ImageJob) -> ImageReply | None:
    try:
        return segmenter.segment(job)
    except MediaUnreachableError:
        return None


@given(before=st.lists(_clicks(), max_size=3), jobs=st.lists(_clicks(), min_size=1, max_size=6))
@hypothesis.settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_clicks_done_together_get_the_very_bytes_that_each_gets_alone(engine, before, jobs):
    """Several images, points, boxes, masks, refinements of what was clicked `before`, and an image that is gone."""
    together, one_by_one = _segmenter(engine), _segmenter(engine)
    for job in before:
        _alone(together, job)
    found = [answer for answers in together.segment_together(jobs) for answer in answers]
    expected = {place: reply.masks for place, job in enumerate(jobs) if (reply := _alone(one_by_one, job))}
    assert {place: reply.masks for place, reply in found} == expected
    assert len(found) == len(expected)
    for _, reply in found:
        assert set(reply.timings_ms) == {"media", "embed", "decode", "runs"}


def test_what_needs_fewer_steps_is_answered_before_the_rest_is_decoded(segmenter, monkeypatch):
    decoded: list[int] = []
    decode_many = Sam2Engine.decode_many

    def counted(self, asked):
        decoded.append(len(asked))
        return decode_many(self, asked)

    monkeypatch.setattr(Sam2Engine, "decode_many", counted)
    points = tuple(Point(10.0 * n + 5, 20.0) for n in range(3))
    jobs = [click(ImagePrompt("three", points)), click(ImagePrompt("none", (Point(3.0, 3.0, is_positive=False),))), click()]
    rounds = segmenter.segment_together(jobs)
    assert [place for place, _ in next(rounds)] == [1]
    assert decoded == []
    assert [place for place, _ in next(rounds)] == [2]
    assert decoded == [2]
    assert [place for place, _ in next(rounds)] == [0]
    assert decoded == [2, 1, 1]
    assert next(rounds, None) is None


def test_true_batches_give_the_same_masks_but_for_a_few_pixels_on_their_edges(engine, monkeypatch):
    """As on a GPU, where prompts of one shape are one decoder run."""
    segmenter = _segmenter(engine)
    jobs = [replace(click(), media=MediaRef(uri)) for uri in segmenter.store.sources]
    expected = [pixels(segmenter.segment(job)) for job in jobs]
    segmenter.logits._steps.clear()
    monkeypatch.setattr(engine, "prompts_per_batch", 32)
    assert segmenter.prompts_together == 32
    [found] = [dict(answers) for answers in segmenter.segment_together(jobs)]
    for place, [mask] in enumerate(expected):
        assert (pixels(found[place])[0] == mask).mean() > 0.99


def test_a_click_is_ready_while_its_embedding_is_in_the_process(segmenter, store):
    assert not segmenter.is_ready(click())
    segmenter.warm(WarmJob(MediaRef(URI)))
    assert segmenter.is_ready(click())
    assert store.fetches == 1
    segmenter.embeddings.empty_device_tier()
    assert not segmenter.is_ready(click())
    assert segmenter.usage().hits["device"] == 0, "to look is not to use"


def test_the_options_and_the_cut_of_a_prompt_are_applied_to_its_mask(segmenter):
    corners = ((10.0, 10.0), (50.0, 10.0), (50.0, 40.0), (10.0, 40.0))
    everything = MaskOptions(mask_threshold=-1000.0)
    [whole] = pixels(segmenter.segment(click(options=everything)))
    [cut] = pixels(segmenter.segment(click(replace(click().prompts[0], clip_xy_px=corners), options=everything)))
    assert whole.all()
    assert cut.sum() == 40 * 30
    assert cut[10:40, 10:50].all()


def test_small_islands_are_removed_before_the_answer(segmenter, monkeypatch):
    mask = np.zeros(SIZE_HW, dtype=bool)
    mask[10:30, 10:30] = True
    mask[50, 50] = True
    logits = torch.where(torch.from_numpy(mask), 5.0, -5.0)
    monkeypatch.setattr(refinement, "segment", lambda *_args: [Step(logits, 0.5)])
    [raw] = pixels(segmenter.segment(click()))
    [cleaned] = pixels(segmenter.segment(click(options=MaskOptions(remove_sprinkles_px=2))))
    assert raw.sum() == 401
    assert cleaned.sum() == 400


def test_a_full_device_is_emptied_and_tried_once_more(segmenter, monkeypatch):
    segmenter.warm(WarmJob(MediaRef(URI)))
    failures = iter([True, False])
    decode = Sam2Engine.decode_many

    def full_once(*args, **kwargs):
        if next(failures, False):
            raise GpuMemoryError("full")
        return decode(*args, **kwargs)

    monkeypatch.setattr(Sam2Engine, "decode_many", full_once)
    assert segmenter.segment(click()).masks
    assert segmenter.usage().device_cache_bytes == 0
    monkeypatch.setattr(Sam2Engine, "decode_many", lambda *_args, **_kwargs: (_ for _ in ()).throw(GpuMemoryError("full")))
    with pytest.raises(GpuMemoryError):
        segmenter.segment(click(ImagePrompt("new", (Point(1.0, 1.0),))))


def test_usage_tells_bytes_and_hits(segmenter):
    segmenter.segment(click())
    segmenter.segment(click())
    usage = segmenter.usage()
    assert usage.device_cache_bytes > 0
    assert (usage.hits["device"], usage.hits["none"]) == (1.0, 1.0)


def test_a_first_click_gives_way_in_the_middle_of_the_encoder_and_counts_that_as_waiting(segmenter, store):
    store.sources["http://images.test/2.png"] = jpeg(2)
    expected = segmenter.segment(click()).masks
    nested: list[ImageReply] = []
    first = replace(click(), media=MediaRef("http://images.test/2.png"))
    reply = segmenter.segment(first, lambda: nested.append(segmenter.segment(click())))
    assert len(nested) > 2, "between the blocks of the encoder"
    assert {answer.masks for answer in nested} == {expected}
    assert reply.timings_ms["queue"] > 0
    segmenter.embeddings.empty_device_tier()
    assert segmenter.segment(first).masks == reply.masks, "as without others in between"
