"""The tracker's own promises, on noise in place of feature maps; that it is SAM 2's is shown against the reference in integration."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import Sam2VideoModel

from sam2_backend.checkpoints import RANDOM_CONFIGS
from sam2_backend.network import FeatureMaps, Sam2Network, random_network
from sam2_backend.tracker import FrameLogits, Tracker, TrackerOptions, TrackerPrompt
from sam2_backend.tracker_memory import MAX_PROMPTED_FRAMES, closest

CPU = torch.device("cpu")
SIDE = 64
CONFIG = dataclasses.replace(RANDOM_CONFIGS["nano"], image_size=SIDE)


@pytest.fixture(scope="module")
def network() -> Sam2Network:
    made = random_network(CONFIG, 1)
    made.sam_mask_decoder.pred_obj_score_head.layers[-1].bias.data.fill_(2.0)  # most objects are there
    return made.fold()


def features(frame_idx: int) -> FeatureMaps:
    generator = torch.Generator().manual_seed(frame_idx)
    d, s = CONFIG.hidden_dim, SIDE
    shapes = [(1, d // 8, s // 4, s // 4), (1, d // 4, s // 8, s // 8), (1, d, s // 16, s // 16)]
    high_res_0, high_res_1, image = (torch.randn(shape, generator=generator) for shape in shapes)
    return high_res_0, high_res_1, image


def click(object_id: str, x: float, y: float = 20.0) -> TrackerPrompt:
    return TrackerPrompt(object_id, torch.tensor([[x, y]]), torch.tensor([1]))


def run(tracker: Tracker, frames: range, *, reverse: bool = False) -> list[FrameLogits]:
    return [tracker.step(i, features(i), reverse=reverse) for i in frames]


def of(found: FrameLogits, object_id: str) -> torch.Tensor:
    return found.logits[found.object_ids.index(object_id)]


def assert_identical(found: list[FrameLogits], expected: list[FrameLogits]) -> None:
    for a, b in zip(found, expected, strict=True):
        assert a.object_ids == b.object_ids
        assert torch.equal(a.logits, b.logits)
        assert torch.equal(a.object_scores, b.object_scores)
        assert torch.equal(a.ious, b.ious)


def test_a_batch_of_objects_is_each_alone(network):
    """Also where they were prompted on different frames, and so are not of one batch at first."""
    together, ids = Tracker(network, CPU), ["a", "b", "c"]
    alone = {object_id: Tracker(network, CPU) for object_id in ids}
    for place, (object_id, start) in enumerate(zip(ids, (0, 0, 5), strict=True)):
        alone[object_id].prompt(start, features(start), [click(object_id, 10.0 + 20 * place)])
    together.prompt(0, features(0), [click("a", 10.0), click("b", 30.0)])
    for i in range(1, 30):
        found = together.step(i, features(i))
        if i == 5:
            together.prompt(5, features(5), [click("c", 50.0)])
        for object_id in found.object_ids:
            torch.testing.assert_close(of(found, object_id), alone[object_id].step(i, features(i)).logits[0], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("after", [0, 3, 20])
def test_a_tracker_made_of_bytes_goes_on_bit_by_bit(network, reverse, after):
    sign = -1 if reverse else 1
    tracker = Tracker(network, CPU)
    tracker.prompt(100, features(100), [click("a", 10.0), click("b", 30.0)])
    run(tracker, range(100 + sign, 100 + sign * (after + 1), sign), reverse=reverse)
    data = tracker.to_bytes()
    other = Tracker.from_bytes(data, network, CPU)
    assert other.object_ids == ("a", "b")
    assert other.to_bytes() == data
    rest = range(100 + sign * (after + 1), 100 + sign * (after + 12), sign)
    assert_identical(run(other, rest, reverse=reverse), run(tracker, rest, reverse=reverse))
    assert other.to_bytes() == tracker.to_bytes()


def test_a_correction_after_a_restart_is_the_one_without(network):
    tracker = Tracker(network, CPU)
    tracker.prompt(0, features(0), [click("a", 10.0)])
    run(tracker, range(1, 9))
    other = Tracker.from_bytes(tracker.to_bytes(), network, CPU)
    corrected = [t.prompt(8, features(8), [click("a", 40.0)]) for t in (tracker, other)]
    assert_identical([corrected[0]], [corrected[1]])
    assert_identical(run(other, range(9, 14)), run(tracker, range(9, 14)))


def test_a_step_that_is_done_again_gives_the_same_and_leaves_the_same(network):
    """As after a device that was full in the middle of it."""
    tracker = Tracker(network, CPU)
    tracker.prompt(0, features(0), [click("a", 10.0), click("b", 30.0)])
    run(tracker, range(1, 18))
    first, left = tracker.step(18, features(18)), tracker.to_bytes()
    assert_identical([tracker.step(18, features(18))], [first])
    assert tracker.to_bytes() == left


def test_bytes_that_are_damaged_foreign_or_of_another_network_are_refused(network):
    tracker = Tracker(network, CPU)
    tracker.prompt(0, features(0), [click("a", 10.0)])
    data = tracker.to_bytes()
    for broken in (b"", b"nonsense" * 9, data[:-1], data[:60] + b"\0" + data[61:], data[:-9] + bytes([data[-9] ^ 1]) + data[-8:]):
        with pytest.raises(ValueError, match=r"not the memory of a tracker|damaged"):
            Tracker.from_bytes(broken, network, CPU)
    with pytest.raises(ValueError, match="network of other sizes"):
        Tracker.from_bytes(data, Sam2Network(dataclasses.replace(CONFIG, image_size=128)), CPU)


def test_memory_does_not_grow_with_the_video(network):
    tracker = Tracker(network, CPU)
    tracker.prompt(0, features(0), [click("a", 10.0), click("b", 30.0)])
    run(tracker, range(1, 51))
    after_50, packed_50 = tracker.nbytes, len(tracker.to_bytes())
    run(tracker, range(51, 501))
    assert tracker.nbytes == after_50
    assert abs(len(tracker.to_bytes()) - packed_50) < 100  # frame numbers have more digits


def test_memory_does_not_grow_with_the_number_of_keyframes(network):
    tracker = Tracker(network, CPU)
    for i in range(MAX_PROMPTED_FRAMES):
        tracker.prompt(i, features(0), [click("a", 10.0)])
    full = tracker.nbytes
    for i in range(MAX_PROMPTED_FRAMES, 3 * MAX_PROMPTED_FRAMES):
        tracker.prompt(i, features(0), [click("a", 10.0)])
    assert tracker.nbytes == full


def test_what_one_object_keeps_does_not_hold_on_to_its_batch(network):
    tracker = Tracker(network, CPU)
    tracker.prompt(0, features(0), [click(str(i), 5.0 * i) for i in range(8)])
    run(tracker, range(1, 20))
    for i in range(1, 8):
        tracker.remove(str(i))
    held = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tracker._objects["0"].tensors()}
    assert sum(held.values()) == tracker.nbytes


def test_a_corrected_frame_stays_as_it_was_corrected_and_moves_only_what_comes_after(network):
    tracker, undisturbed = Tracker(network, CPU), Tracker(network, CPU)
    for t in (tracker, undisturbed):
        t.prompt(0, features(0), [click("a", 10.0), click("b", 30.0)])
        run(t, range(1, 6))
    corrected = tracker.prompt(5, features(5), [click("a", 60.0, 60.0)])
    again = tracker.step(5, features(5))
    assert torch.equal(of(again, "a"), corrected.logits[0])
    (after,), (expected,) = run(tracker, range(6, 7)), run(undisturbed, range(6, 7))
    assert not torch.equal(of(after, "a"), of(expected, "a"))
    torch.testing.assert_close(of(after, "b"), of(expected, "b"), rtol=1e-3, atol=1e-3)


def test_a_correction_sees_the_mask_found_before_and_the_memory(network):
    found = []
    for n_steps in (0, 4):  # frame 4 prompted out of nothing, and after it was tracked
        tracker = Tracker(network, CPU)
        tracker.prompt(0, features(0), [click("a", 10.0)])
        run(tracker, range(1, n_steps + 1))
        found.append(tracker.prompt(4, features(4), [click("a", 40.0)]).logits)
    assert not torch.equal(*found)


def test_a_mask_prompt_is_taken_as_it_is(network):
    mask = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    mask[8:32, 16:48] = True
    for drawn in (mask, mask.repeat_interleave(2, 0).repeat_interleave(3, 1)):  # any size
        found = Tracker(network, CPU).prompt(0, features(0), [TrackerPrompt("a", mask=drawn)])
        assert torch.equal(found.logits[0] > 0, mask[::4, ::4])
        assert found.object_scores.item() > 0
    empty = Tracker(network, CPU).prompt(0, features(0), [TrackerPrompt("a", mask=torch.zeros_like(mask))])
    assert empty.object_scores.item() < 0
    assert not (empty.logits > 0).any()


def test_a_prompt_of_nothing_is_refused(network):
    with pytest.raises(ValueError, match="neither points with labels nor a mask"):
        Tracker(network, CPU).prompt(0, features(0), [TrackerPrompt("a")])


def test_objects_answer_in_the_order_of_their_first_prompts(network):
    tracker = Tracker(network, CPU)
    tracker.prompt(3, features(3), [click("late", 10.0)])
    tracker.prompt(4, features(4), [click("b", 30.0), click("a", 50.0)])
    assert tracker.step(4, features(4)).object_ids == ("late", "b", "a")
    assert tracker.step(5, features(5)).object_ids == ("late", "b", "a")
    assert tracker.step(6, features(6), object_ids={"a", "late"}).object_ids == ("late", "a")
    tracker.remove("late")
    assert tracker.step(7, features(7)).object_ids == ("b", "a")


def test_no_objects_give_an_empty_answer(network):
    found = Tracker(network, CPU).step(0, features(0))
    assert found.object_ids == ()
    assert found.logits.shape == (0, SIDE // 4, SIDE // 4)
    assert found.object_scores.shape == found.ious.shape == (0,)


def test_forgetting_what_was_tracked_starts_from_the_keyframes_alone(network):
    tracker, fresh = Tracker(network, CPU), Tracker(network, CPU)
    for t in (tracker, fresh):
        t.prompt(10, features(10), [click("a", 10.0)])
    run(tracker, range(11, 15))
    tracker.forget_tracked()
    back = range(9, 4, -1)
    assert_identical(run(tracker, back, reverse=True), run(fresh, back, reverse=True))


def test_without_overlap_each_pixel_has_one_owner_and_memories_stay(network):
    apart, plain = Tracker(network, CPU, options=TrackerOptions(non_overlap=True)), Tracker(network, CPU)
    for t in (apart, plain):
        t.prompt(0, features(0), [click("a", 10.0), click("b", 30.0), click("c", 50.0)])
    for found, expected in zip(run(apart, range(1, 6)), run(plain, range(1, 6)), strict=True):
        assert ((found.logits > 0).sum(0) <= 1).all()
        assert torch.equal(found.logits.amax(0), expected.logits.amax(0))
    assert apart.to_bytes() == plain.to_bytes()


def test_an_object_whose_score_says_that_it_is_gone_has_no_mask_unless_that_is_switched_off(network):
    network.sam_mask_decoder.pred_obj_score_head.layers[-1].bias.data.fill_(-50.0)
    try:
        for detects_lost in (True, False):
            tracker = Tracker(network, CPU, options=TrackerOptions(detects_lost=detects_lost))
            tracker.prompt(0, features(0), [click("a", 10.0)])
            found = tracker.step(1, features(1))
            assert (found.logits == -1024).all().item() is detects_lost
            assert (found.object_scores < 0).all().item() is detects_lost
    finally:
        network.sam_mask_decoder.pred_obj_score_head.layers[-1].bias.data.fill_(2.0)


def test_half_precision_moves_logits_a_little(network):
    exact, half = Tracker(network, CPU), Tracker(network, CPU, torch.bfloat16)
    for t in (exact, half):
        t.prompt(0, features(0), [click("a", 10.0)])
    a, b = exact.step(1, features(1)), half.step(1, features(1))
    assert b.logits.dtype == torch.float32
    assert 0 < (a.logits - b.logits).abs().max() < 0.2 * a.logits.std()


@given(st.lists(st.integers(0, 60), unique=True, max_size=12), st.integers(0, 60), st.integers(2, 8))
def test_the_prompted_frames_that_are_read_are_those_of_the_reference(prompted, frame_idx, count):
    theirs, _ = Sam2VideoModel._select_closest_cond_frames(None, frame_idx, dict.fromkeys(prompted), count)
    assert set(closest(frame_idx, prompted, count)) == set(theirs)
