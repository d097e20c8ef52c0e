"""A propagation in one process, on a small network with random weights and frames from memory: against the tracker driven by hand, against
itself cut anywhere, and against itself with a correction. With random weights every frame's scores depend on all that is remembered."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest

from sam2_backend import masks as mask_tools
from sam2_backend.embedding_cache import EmbeddingCache
from sam2_backend.engine import Sam2Engine
from sam2_backend.errors import BadCheckpointError, VideoFrameError, VideoTooLargeError
from sam2_backend.messages import ImagePrompt, MaskOptions, MediaRef, Point
from sam2_backend.propagation import Propagation
from sam2_backend.propagation_format import PackedMask, tracks_of, unpack_masks, unpack_rows
from sam2_backend.propagation_prompts import tracker_prompt
from sam2_backend.settings import Settings
from sam2_backend.tracker import Tracker, TrackerOptions
from sam2_backend.video_messages import FrameSource, Keyframe, PropagateJob, VideoOptions

SIZE_HW = (40, 60)
N_FRAMES = 36  # more than the image cache is shared for
BOX_A, BOX_B = (8.0, 6.0, 24.0, 20.0), (30.0, 10.0, 55.0, 34.0)


class ArrayFrames:
    """The `Frames` of a video in memory; frame i is shown at `places_per_frame` places, or every 1 / `places_per_frame`-th frame at one."""

    def __init__(self, n_frames: int = N_FRAMES, places_per_frame: float = 1.0) -> None:
        self.size_hw, self.n_frames, self.image_hash = SIZE_HW, n_frames, f"hash-of-{n_frames}"
        self._places_per_frame = places_per_frame
        self.n_grid = int(n_frames * places_per_frame)
        self.streamed: list[int] = []

    def frame_of_grid(self, grid_idx: int) -> int:
        return int(grid_idx / self._places_per_frame)

    def grid_of_frame(self, frame_idx: int) -> range:
        shown = [g for g in range(self.n_grid) if self.frame_of_grid(g) == frame_idx]
        return range(shown[0], shown[-1] + 1) if shown else range(0)

    def frame_hash(self, frame_idx: int) -> str:
        return f"{self.image_hash}-{frame_idx}"

    def read(self, frame_idx: int) -> np.ndarray:
        image = np.random.default_rng(frame_idx).integers(0, 120, (*SIZE_HW, 3), dtype=np.uint8)
        image[6:20, 8 + frame_idx // 2 : 24 + frame_idx // 2] += 100
        return image

    def stream(self, first, last, *, reverse=False):
        for frame_idx in range(last, first - 1, -1) if reverse else range(first, last + 1):
            self.streamed.append(frame_idx)
            yield frame_idx, self.read(frame_idx)

    def close(self) -> None: ...


@pytest.fixture(scope="module")
def engine() -> Sam2Engine:
    """It remembers what it encoded, for the tests' sake."""
    loaded = Sam2Engine.load(Settings(model="random:nano", device="cpu", torch_threads=1))
    embed, known = loaded.embed, {}

    def remembered(image: np.ndarray):
        if (name := image.tobytes()) not in known:
            known[name] = embed(image)
        return known[name]

    loaded.embed = remembered
    return loaded


@pytest.fixture
def cache(engine: Sam2Engine) -> EmbeddingCache:
    return EmbeddingCache(None, engine.device, engine.dtype, device_budget_bytes=1 << 28, host_budget_bytes=0, redis_budget_bytes=0)


def box(*corners: float, name: str = "a") -> ImagePrompt:
    return ImagePrompt(name, box_xyxy_px=corners)


def asked(*keys: tuple[str, int, ImagePrompt | None], **options) -> PropagateJob:
    source = FrameSource((MediaRef("http://v.test/1.mp4"),), "video", 24.0)
    return PropagateJob("s", source, SIZE_HW, tuple(Keyframe(*key) for key in keys), VideoOptions(**options))


A10, B0 = ("a", 10, box(*BOX_A)), ("b", 0, box(*BOX_B))


@dataclass
class Filled:
    """grid_idx (n,), boxes (n, 4) and scores (n,) by object, as bytes would show every difference; and the masks."""

    tracks: dict[str, tuple[bytes, bytes, bytes]]
    masks: list[PackedMask]

    def grid_idx(self, name: str) -> list[int]:
        return np.frombuffer(self.tracks[name][0], "<i4").tolist()

    def boxes(self, name: str) -> np.ndarray:
        return np.frombuffer(self.tracks[name][1], "<f4").reshape(-1, 4)

    def scores(self, name: str) -> np.ndarray:
        return np.frombuffer(self.tracks[name][2], "<f4")


def filled(job: PropagateJob, rows: bytes, chunks) -> Filled:
    ids = list(dict.fromkeys(k.object_id for k in job.keyframes))
    tracks = {t.object_id: (t.grid_idx, t.boxes, t.scores) for t in tracks_of(unpack_rows(rows), ids)}
    return Filled(tracks, [mask for chunk in chunks for mask in unpack_masks(chunk)])


def run(engine, cache, job: PropagateJob, frames: ArrayFrames | None = None) -> Filled:
    propagation = Propagation(job, frames or ArrayFrames(), engine, cache, 10**6)
    for _ in propagation.work():
        pass
    rows, chunks = propagation.take_found()
    assert len(unpack_rows(rows)) == propagation.n_results
    return filled(job, rows, chunks)


def test_it_finds_what_the_tracker_finds_by_hand(engine, cache):
    found = run(engine, cache, asked(A10, direction="both"))
    frames = ArrayFrames()

    def by_hand(order: range, *, reverse: bool) -> dict[int, float]:
        tracker = Tracker(engine.network, engine.device, options=TrackerOptions(n_frames=N_FRAMES))
        prompt = tracker_prompt("x", box(*BOX_A), SIZE_HW, engine)
        tracker.prompt(10, engine.embed(frames.read(10)).maps, [prompt], reverse=reverse)
        answers = {t: tracker.step(t, engine.embed(frames.read(t)).maps, reverse=reverse) for t in order}
        return {t: float(a.ious[0].clamp(0, 1) * a.object_scores[0].sigmoid()) for t, a in answers.items()}

    expected = by_hand(range(10, N_FRAMES), reverse=False) | by_hand(range(9, -1, -1), reverse=True)
    assert found.grid_idx("a") == list(range(N_FRAMES))
    np.testing.assert_array_equal(found.scores("a"), np.float32([expected[t] for t in range(N_FRAMES)]))
    assert len(set(found.scores("a").tolist())) > N_FRAMES / 2, "or else nothing was tested"


@pytest.mark.parametrize("options", [{}, {"between_only": True, "wants_masks": True}, {"direction": "backward"}, {"non_overlap": True}])
def test_cut_anywhere_and_continued_elsewhere_the_result_is_the_same_bit_by_bit(options, engine, cache):
    job = asked(A10, B0, ("b", 20, None), ("b", 26, box(*BOX_B)), ("a", 30, box(*BOX_A)), **options)
    whole = run(engine, cache, job)
    propagation = Propagation(job, ArrayFrames(), engine, cache, 10**6)
    rows, chunks, pieces, n_cuts = b"", (), propagation.work(), 0
    for _ in range(10**4):
        if next(pieces, "over") == "over":
            break
        if propagation.is_at_boundary and (n_cuts := n_cuts + 1) % 3 == 0:
            new_rows, new_chunks = propagation.take_found()
            rows, chunks, bank = rows + new_rows, chunks + new_chunks, propagation.bank()
            pieces.close()
            propagation = Propagation(job, ArrayFrames(), engine, cache, 10**6)
            assert propagation.go_on_with(bank)
            pieces = propagation.work()
    new_rows, new_chunks = propagation.take_found()
    assert n_cuts > 20
    assert filled(job, rows + new_rows, chunks + new_chunks) == whole


def test_a_bank_of_another_file_or_a_damaged_one_is_not_gone_on_with(engine, cache):
    bank = Propagation(asked(A10), ArrayFrames(), engine, cache, 10**6).bank()
    assert not Propagation(asked(A10), ArrayFrames(30), engine, cache, 10**6).go_on_with(bank)
    propagation = Propagation(asked(A10), ArrayFrames(), engine, cache, 10**6)
    assert not propagation.go_on_with(bank[:-3])
    assert not propagation.go_on_with(b"")
    assert propagation.go_on_with(bank)


def test_a_correction_changes_its_object_from_there_on_and_nothing_else(engine, cache):
    before, after = (run(engine, cache, asked(A10, B0, *more)) for more in ((), [("a", 25, box(12.0, 8.0, 26.0, 22.0))]))
    assert (before.scores("a")[:25] == after.scores("a")[:25]).all()
    assert (before.boxes("a")[:25] == after.boxes("a")[:25]).all()
    assert (before.scores("a")[25:] != after.scores("a")[25:]).mean() > 0.8
    np.testing.assert_allclose(before.scores("b"), after.scores("b"), atol=1e-5)


def test_between_only_a_correction_changes_what_lies_between_its_neighbours(engine, cache):
    keys = A10, ("a", 20, box(*BOX_A)), ("a", 35, box(*BOX_A))
    before, after = (run(engine, cache, asked(*keys, *more, between_only=True)) for more in ((), [("a", 28, box(*BOX_B))]))
    same = before.scores("a") == after.scores("a")
    assert same[:20].all()
    assert same[35:].all()
    assert same[21:35].mean() < 0.3


def test_what_went_wrong_before_a_correction_is_not_remembered_after_it(engine, cache):
    late = "a", 25, box(12.0, 8.0, 26.0, 22.0)
    tracked, skipped = run(engine, cache, asked(A10, late)), run(engine, cache, asked(A10, late, first_grid_idx=25))
    assert (tracked.scores("a")[25:] == skipped.scores("a")).all()


def test_the_names_of_objects_and_runs_elsewhere_do_not_name_a_run(engine, cache):
    def digests(*keys, frames=None, **options) -> dict[tuple, str]:
        propagation = Propagation(asked(*keys, **options), frames or ArrayFrames(), engine, cache, 10**6)
        return {(r.object_idx, r.first_grid_idx, r.reverse): propagation.run_digest(r) for r in propagation.runs}

    base = digests(A10)
    assert digests(("renamed", 10, replace(box(*BOX_A), prompt_id="renamed"))) == base
    corrected = digests(A10, ("a", 25, box(*BOX_A)))
    assert corrected[0, 10, False] == base[0, 10, False], "it ends earlier, no more"
    assert corrected[0, 25, False] not in base.values()
    assert digests(A10, frames=ArrayFrames(30)) != base
    assert digests(A10, wants_masks=True) != base
    assert digests(("a", 10, box(8.0, 6.0, 24.0, 21.0))) != base
    assert set(digests(A10, non_overlap=True).values()) == {""}


def test_where_the_person_said_gone_nothing_is_seen(engine, cache):
    found = run(engine, cache, asked(A10, ("a", 20, None), ("a", 30, box(*BOX_A)), wants_masks=True))
    assert np.isnan(found.boxes("a")[20:30]).all()
    assert (found.scores("a")[20:30] == 0).all()
    assert not np.isnan(found.boxes("a")[[10, 30]]).any()
    assert not {place for mask in found.masks for place in range(mask.first_grid_idx, mask.last_grid_idx + 1)} & set(range(20, 30))


def test_what_was_drawn_is_reported_as_it_was_drawn(engine, cache):
    drawn = np.zeros(SIZE_HW, bool)
    drawn[5:15, 10:30] = True
    keys = A10, ("m", 3, ImagePrompt("m", mask=mask_tools.runs_from_mask(drawn)))
    found = run(engine, cache, asked(*keys, direction="forward", wants_masks=True))
    np.testing.assert_allclose(found.boxes("a")[0], np.array(BOX_A) / [60, 40, 60, 40], rtol=1e-6)
    np.testing.assert_allclose(found.boxes("m")[0], np.array([10, 5, 30, 15]) / [60, 40, 60, 40], rtol=1e-6)
    [mask] = [m for m in found.masks if m.object_idx == 1 and m.first_grid_idx == 3]
    assert mask.counts == mask_tools.runs_from_mask(drawn).counts


def test_shares_mean_what_pixels_mean(engine, cache):
    shares = replace(asked(("a", 10, box(*(np.array(BOX_A) / [60, 40, 60, 40])))), size_hw=(1, 1))
    pixels, others = run(engine, cache, asked(A10)), run(engine, cache, shares)
    np.testing.assert_allclose(pixels.scores("a"), others.scores("a"), atol=1e-4)
    np.testing.assert_allclose(pixels.boxes("a")[10], others.boxes("a")[10], rtol=1e-6)


def test_points_and_a_mask_beside_points_are_prompts_too(engine, cache):
    mask = mask_tools.runs_from_mask(np.ones(SIZE_HW, bool))
    clicks = (Point(15.0, 12.0), Point(50.0, 30.0, is_positive=False))
    found = run(engine, cache, asked(("a", 0, ImagePrompt("a", clicks)), ("b", 0, ImagePrompt("b", clicks, mask=mask)), last_grid_idx=2))
    assert found.grid_idx("a") == found.grid_idx("b") == [0, 1, 2]
    assert (found.scores("a") != found.scores("b")).all()


@pytest.mark.parametrize(("places_per_frame", "start"), [(3.0, 4), (0.5, 3)])
def test_each_frame_is_tracked_once_and_told_at_every_place_that_shows_it(places_per_frame, start, engine, cache):
    frames = ArrayFrames(20, places_per_frame)
    found = run(engine, cache, asked(("a", start, box(*BOX_A))), frames)
    assert found.grid_idx("a") == list(range(frames.n_grid))
    first = frames.frame_of_grid(start)
    reference = run(engine, cache, asked(("a", first, box(*BOX_A))), ArrayFrames(20))
    onwards = [(g, frames.frame_of_grid(g)) for g in range(start, frames.n_grid)]
    np.testing.assert_array_equal(found.scores("a")[[g for g, _ in onwards]], reference.scores("a")[[f for _, f in onwards]])
    forward = frames.streamed[: frames.streamed.index(frames.frame_of_grid(frames.n_grid - 1)) + 1]
    assert forward == list(range(first, frames.frame_of_grid(frames.n_grid - 1) + 1))


def test_frames_that_no_run_needs_are_not_read(engine, cache):
    frames = ArrayFrames()
    run(engine, cache, asked(("a", 2, box(*BOX_A)), ("a", 5, None), ("b", 30, box(*BOX_B)), direction="forward"), frames)
    assert frames.streamed == [2, 3, 4, *range(30, N_FRAMES)]


def test_a_frame_is_encoded_once_for_all_objects(engine, cache, monkeypatch):
    encoded = []
    embed = engine.embed
    monkeypatch.setattr(engine, "embed", lambda image: encoded.append(image) or embed(image))
    run(engine, cache, asked(("a", 0, box(*BOX_A)), ("b", 0, box(*BOX_B)), ("c", 0, box(*BOX_A)), direction="forward"))
    assert len(encoded) == N_FRAMES
    assert cache.stats().device_bytes == 0, "a long video does not flush the cache of the images"


def test_a_few_pages_share_the_cache_of_the_images(engine, cache):
    for _ in range(2):
        run(engine, cache, asked(("a", 5, box(*BOX_A))), ArrayFrames(12))
    hits = cache.stats().hits
    assert hits["none"] == 12
    assert hits["device"] >= 12


def test_masks_do_not_overlap_where_that_is_asked_for(engine, cache):
    keys = ("a", 0, box(*BOX_A)), ("b", 0, box(10.0, 8.0, 40.0, 30.0)), ("c", 0, box(0.0, 0.0, 60.0, 40.0))

    def n_shared(*, non_overlap: bool) -> int:
        job = asked(*keys, wants_masks=True, non_overlap=non_overlap, last_grid_idx=5)
        cover = np.zeros((6, *SIZE_HW), int)
        for mask in run(engine, cache, job).masks:
            cover[mask.first_grid_idx] += mask_tools.mask_from_runs(mask_tools.RunLengths(SIZE_HW, mask.counts))
        return int((cover[1:] > 1).sum())

    assert n_shared(non_overlap=False) > 0
    assert n_shared(non_overlap=True) <= 0.02 * n_shared(non_overlap=False), "but for seams of the bilinear resize"


def test_holes_and_sprinkles_are_taken_off_every_mask(engine, cache):
    found = run(engine, cache, asked(A10, wants_masks=True, mask=MaskOptions(fill_holes_px=10**4, remove_sprinkles_px=10**4)))
    for mask in found.masks:
        cleaned = mask_tools.mask_from_runs(mask_tools.RunLengths(SIZE_HW, mask.counts))
        assert (mask_tools.clean(cleaned, 10**4, 10**4) == cleaned).all()


def test_what_is_needed_to_go_on_does_not_grow_with_the_video(engine, cache):
    propagation = Propagation(asked(("a", 0, box(*BOX_A)), direction="forward"), ArrayFrames(50), engine, cache, 10**6)
    sizes = [len(propagation.bank()) for _ in propagation.work() if propagation.is_at_boundary]
    assert max(sizes[20:-1]) - min(sizes[20:-1]) < 200, "digits of numbers"
    assert sizes[-1] < sizes[-2] / 10, "a run that has ended is forgotten"


def test_what_cannot_be_done_is_told_when_the_video_is_open(engine, cache, monkeypatch):
    with pytest.raises(VideoFrameError, match="Frame 37 lies past the end: the video has 36 frames"):
        Propagation(asked(("a", N_FRAMES, box(*BOX_A))), ArrayFrames(), engine, cache, 10**6)
    with pytest.raises(VideoTooLargeError, match="72 frames times objects are more than the 71"):
        Propagation(asked(A10, B0), ArrayFrames(), engine, cache, 71)
    images_only = replace(engine.network.config, has_memory=False)
    monkeypatch.setattr(engine.network, "config", images_only)
    with pytest.raises(BadCheckpointError, match="cannot follow objects"):
        Propagation(asked(A10), ArrayFrames(), engine, cache, 10**6)
