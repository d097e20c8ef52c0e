"""Which accepted regions become examples of mode `similar`."""

from __future__ import annotations

from backend.config_generator import generate
from backend.examples import choose_examples
from backend.label_config import parse_label_config
from sam2_backend.messages import MediaRef
from sam2_backend.settings import Settings

CONFIG = parse_label_config(generate(["Cat", "Dog"]))


def rectangle(box_id: str, side: float, label: str, **more) -> dict:
    value = {"x": 10, "y": 10, "width": side, "height": side, "rotation": 0, "rectanglelabels": [label]}
    size = {"original_width": 200, "original_height": 100}
    return {"id": box_id, "type": "rectanglelabels", "from_name": "box", "to_name": "image", "value": value} | size | more


def task(task_id: int, *regions: dict, **more) -> dict:
    return {"id": task_id, "data": {"image": f"http://images.test/{task_id}.png"}, "annotations": [{"result": list(regions)} | more]}


def chosen(*tasks: dict, per_label: int = 6) -> list[tuple[str, str, float]]:
    """(label, image, width of the box in per cent)"""
    found = choose_examples(tasks, CONFIG, per_label, MediaRef, Settings())
    return [(example.label, example.media.uri[-5], round(100 * (example.box[2] - example.box[0]))) for example in found]


def test_each_label_gets_its_largest_regions_from_as_many_tasks_as_there_are():
    first = task(1, rectangle("a", 20, "Cat"), rectangle("b", 40, "Cat"), rectangle("c", 30, "Dog"))
    second = task(2, rectangle("d", 10, "Cat"))
    assert chosen(first, second, per_label=2) == [("Cat", "1", 40), ("Cat", "2", 10), ("Dog", "1", 30)]
    assert chosen(first, second, per_label=3)[2] == ("Cat", "1", 20)


def test_what_says_nothing_of_the_object_is_no_example():
    tiny, unlabelled = rectangle("a", 0.7, "Cat"), rectangle("b", 30, "Cat")
    del unlabelled["value"]["rectanglelabels"]
    point = rectangle("c", 30, "Cat", type="keypointlabels")
    elsewhere, broken = rectangle("d", 30, "Cat", to_name="other"), rectangle("e", 30, "Cat", original_width=None)
    skipped = task(2, rectangle("f", 30, "Cat"), was_cancelled=True)
    nowhere = task(3, rectangle("g", 30, "Cat")) | {"data": {}}
    assert chosen(task(1, tiny, unlabelled, point, elsewhere, broken), skipped, nowhere) == []


def test_a_mask_is_an_example_by_its_mask():
    points = [[10, 10], [60, 10], [60, 60]]
    polygon = rectangle("a", 1, "Cat", type="polygonlabels") | {"value": {"points": points, "polygonlabels": ["Cat"]}}
    (example,) = choose_examples([task(1, polygon)], CONFIG, 6, MediaRef, Settings())
    assert example.mask is not None
    assert example.mask.size_hw == (100, 200)
    assert example.box is None
