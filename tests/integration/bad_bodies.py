"""Bodies that Label Studio never sends, made of those that it was recorded sending: other types, numbers, encodings, hostile XML."""

from __future__ import annotations

import copy
import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures" / "requests"
MOST_BYTES = 30_000
"""Larger recordings hold the same in greater number."""


def recorded(path: str) -> list[dict[str, Any]]:
    """The bodies that came to an endpoint, each once, without the stored masks that no endpoint reads."""
    found: dict[str, dict[str, Any]] = {}
    for file in sorted(FIXTURES.glob("*.json")):
        for step in json.loads(file.read_text()).get("steps", []):
            for exchange in step.get("backend", []):
                if exchange["path"] == path and isinstance(exchange["request"], dict):
                    body = _without_stored(exchange["request"])
                    found.setdefault(json.dumps(body), body)
    return [body for text, body in found.items() if len(text) <= MOST_BYTES]


def _without_stored(body: dict[str, Any]) -> dict[str, Any]:
    body = copy.deepcopy(body)
    for task in body.get("tasks", [])[:]:
        task |= {key: [] for key in ("annotations", "drafts", "predictions") if key in task}
    if "tasks" in body:
        body["tasks"] = body["tasks"][:3]
    return body


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


HOSTILE_TEXTS = (
    "", " ", "\0", "a" * 100_000, "\ud800", "\udfff\ud800", "٣", "１２７.0.0.1", "\u202e/etc/passwd", "🐈" * 300, "%00", "%s%n", "${7*7}{{7*7}}",
    "../../../../etc/passwd", "file:///etc/passwd", "blob:1", "http://[", "http://", "//", "http://169.254.169.254/", "data:", "data:image/png;base64,%%%",
    "data:,", "s3://", "gs://b/\0", "azure-blob://", "/data/local-files/?d=../../etc/passwd", "$image", "$", "1e999", "NaN", "-0", "true", "null", "[]",
    "Infinity", "keypointlabels", "videorectangle", "brush", "image", "1.2.3", "99999999999999999999999", "\r\nX-Injected: 1", "<script>alert(1)</script>",
)  # fmt: skip
HOSTILE_NUMBERS = (
    0, -1, 1, 2, 0.1, 99.999, 100.5, 101, -0.0, 1e308, -1e308, 5e-324, float("nan"), float("inf"), float("-inf"), 2**31, 2**53 + 1, 2**63, 2**64, -(2**64),
    10**400, 16_384, 2**28,
)  # fmt: skip
HOSTILE = (
    *HOSTILE_TEXTS, *HOSTILE_NUMBERS, None, True, False, [], {}, [[]], [None], [{}], {"": None}, {"a": {"b": []}}, nested(60), nested(900), ["x"] * 3_000,
    [0] * 3_000, {str(n): n for n in range(1_000)}, [1, "1", None, True, {}],
)  # fmt: skip

_BRUSH = '<Image name="image" value="$image"/><BrushLabels name="b" toName="image"><Label value="Cat"/></BrushLabels>'
HOSTILE_CONFIGS = (
    "", "<", "<View", "<View/>", "&", "]]>", "<View>&lol;</View>", "\0<View/>", "<a>" * 100_000, "<View>" + "<a>" * 5_000 + "</a>" * 5_000 + "</View>",
    '<!DOCTYPE l [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;"><!ENTITY c "&b;&b;&b;&b;&b;&b;&b;&b;&b;&b;">]><View>&c;</View>',
    '<!DOCTYPE l [<!ENTITY x SYSTEM "file:///etc/passwd">]><View><Header value="&x;"/></View>',
    '<!DOCTYPE l [<!ENTITY % x SYSTEM "http://127.0.0.1:9/x.dtd"> %x;]><View/>', '<!DOCTYPE View SYSTEM "http://127.0.0.1:9/x.dtd"><View/>',
    '<?xml version="1.0" encoding="utf-16"?><View/>', '<?xml version="1.0" encoding="nonsense"?><View/>', '<?xml-stylesheet href="http://127.0.0.1:9/"?><View/>',
    '<View xmlns:xi="http://www.w3.org/2001/XInclude"><xi:include href="/etc/passwd" parse="text"/></View>', f'<View xmlns="urn:x">{_BRUSH}</View>',
    f"<View>{_BRUSH}{_BRUSH}</View>", f'<View>{_BRUSH.replace("$image", "$" * 50)}</View>', f'<View>{_BRUSH.replace("$image", "$a.b[c]{{d}}")}</View>',
    f'<View>{_BRUSH.replace("$image", "x" * 200_000)}</View>', f'<View>{_BRUSH.replace(chr(34) + "Cat", chr(34) + "C" * 50_000)}</View>',
    "<View>" + _BRUSH + "".join(f'<Label value="{n}"/>' for n in range(5_000)) + "</View>", f"<View><!-- {'-' * 1000} -->{_BRUSH}</View>",
    f'<View>{_BRUSH.replace("toName", "model_fill_holes=&quot;1e309&quot; model_epsilon=&quot;nan&quot; toName")}</View>'.replace("&quot;", '"'),
    f'<View>{_BRUSH.replace("<Brush", "<Choices name=&quot;b&quot; toName=&quot;b&quot;/><Brush")}</View>'.replace("&quot;", '"'),
    f'<View>{_BRUSH.replace("<Image", "<Image model_preannotate=&quot;everything&quot; valueList=&quot;$image&quot;")}</View>'.replace("&quot;", '"'),
    '<View><Video name="v" value="$video" framerate="1e-308"/><VideoRectangle name="r" toName="v"/><Labels name="l" toName="v"><Label value="a"/></Labels></View>',
    '<View><Video name="v" value="$video" framerate="$video"/><VideoRectangle name="r" toName="v,v,x"/></View>', "<View>" + "\u202e" * 500 + "</View>",
)  # fmt: skip


@st.composite
def changed_bodies(draw: st.DrawFn, bodies: list[dict[str, Any]]) -> dict[str, Any]:
    """A recorded body with one to four of its values, anywhere in it, replaced, removed, doubled, renamed or wrapped."""
    body = copy.deepcopy(draw(st.sampled_from(bodies)))
    for _ in range(draw(st.integers(1, 4))):
        places = list(_places(body))
        if not places:
            break
        container, key = places[draw(st.sampled_from(range(len(places))))]
        _change(draw, container, key)
    return body


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """(container, key) of every value inside a value."""
    for key, item in list(value.items()) if isinstance(value, dict) else list(enumerate(value)):
        yield value, key
        if isinstance(item, dict | list):
            yield from _places(item)


def _change(draw: st.DrawFn, container: Any, key: Any) -> None:
    way = draw(st.sampled_from(["replace", "replace", "replace", "remove", "double", "wrap", "rename"]))
    if way == "replace":
        choice = HOSTILE_CONFIGS if key in {"label_config", "schema"} and draw(st.booleans()) else HOSTILE
        container[key] = copy.deepcopy(choice[draw(st.sampled_from(range(len(choice))))])
    elif way == "remove":
        del container[key]
    elif way == "wrap":
        container[key] = [container[key]] if draw(st.booleans()) else {"value": container[key]}
    elif way == "double" and isinstance(container, list):
        container += [copy.deepcopy(container[key])] * draw(st.sampled_from([1, 40]))
    elif isinstance(container, dict):
        container[draw(st.sampled_from(HOSTILE_TEXTS[:20]))] = container.pop(key)


def _shapes() -> st.SearchStrategy[dict[str, Any]]:
    """Regions that are nearly right: of every kind, on images of every size, with percentages near the edges and beyond."""
    pct = st.sampled_from([-1, -0.4, 0, 0.01, 33.3, 50, 99.99, 100, 100.4, 101, 200, 1e308]) | st.floats(-10, 210)
    sides = st.sampled_from([0, 1, 2, 64, 200, 16_384, 2**28, 1.5, -7])
    points = st.lists(st.lists(pct, min_size=1, max_size=3), max_size=40)
    rle = st.lists(st.integers(-1, 256), max_size=60)
    png = st.sampled_from(
        ["data:image/png;base64,iVBORw0KGgo=", "data:image/png;base64,", "data:image/png,x", "data:image/gif;base64,R0lGODlh", ""]
    )
    sequence = st.lists(
        st.fixed_dictionaries({}, optional=dict.fromkeys(("frame", "x", "y", "width", "height", "rotation", "enabled", "time"), pct)),
        max_size=5,
    )
    fields = dict.fromkeys(("x", "y", "width", "height", "rotation", "radiusX", "radiusY", "framesCount", "duration"), pct)
    value: dict[str, Any] = fields | {"points": points, "rle": rle, "format": st.just("rle"), "imageDataURL": png, "sequence": sequence}
    value |= {f"{kind}labels": st.just(["Cat"]) | st.just([7]) for kind in ("keypoint", "rectangle", "brush", "polygon", "ellipse")} | {
        "labels": st.just(["Cat"])
    }
    kinds = [kind + ending for kind in ("keypoint", "rectangle", "ellipse", "polygon", "brush", "bitmask") for ending in ("", "labels")]
    return st.fixed_dictionaries(
        {"type": st.sampled_from([*kinds, "videorectangle", "choices"]), "value": st.fixed_dictionaries({}, optional=value)},
        optional={
            "id": st.sampled_from(["a", "b", "", None, 7, "a" * 300]), "to_name": st.sampled_from(["image", "video", "nobody", None]),
            "from_name": st.sampled_from(["brush", "point", "b", None]), "original_width": sides, "original_height": sides,
            "is_positive": st.sampled_from([True, False, None, 1]), "item_index": st.sampled_from([0, 1, -1, 2**31, None, "0"]),
        },
    )  # fmt: skip


@st.composite
def drawn_bodies(draw: st.DrawFn, bodies: list[dict[str, Any]]) -> dict[str, Any]:
    """A recorded /predict with other regions drawn: whole ones of its own among nearly right ones."""
    body = copy.deepcopy(draw(st.sampled_from([body for body in bodies if body["params"]["context"]])))
    regions = draw(st.lists(_shapes(), min_size=1, max_size=4))
    size = {"original_width": 200, "original_height": 100}
    body["params"]["context"]["result"] = [size | {"to_name": "image"} | region for region in regions] + body["params"]["context"][
        "result"
    ][: draw(st.integers(0, 2))]
    return body


@st.composite
def encoded(draw: st.DrawFn, bodies: st.SearchStrategy[dict[str, Any]]) -> tuple[bytes, dict[str, str]]:
    """A body as bytes, and the headers that go with it; half of them as they should be."""
    body = draw(bodies)
    text = json.dumps(body, allow_nan=True)
    plain = text.encode()
    way = draw(
        st.sampled_from(
            ["plain"] * 10 + ["utf-8", "utf-16", "utf-32", "bom", "gzip", "cut", "doubled", "twice", "bytes", "noise", "typed", "chunk"]
        )
    )
    headers = {"Content-Type": "application/json"}
    if way in {"utf-8", "utf-16", "utf-32"}:
        return json.dumps(body, ensure_ascii=False).encode(way, "surrogatepass"), headers
    if way == "gzip":
        return gzip.compress(plain), headers | {"Content-Encoding": "gzip"}
    if way == "typed":
        kinds = ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "application/xml", "x" * 500, ""]
        return plain, {"Content-Type": draw(st.sampled_from(kinds))}
    if way == "bytes":
        at = draw(st.integers(0, len(plain)))
        return plain[:at] + draw(st.binary(max_size=6)) + plain[at:], headers
    first = next(iter(body), "")
    ways = {
        "bom": b"\xef\xbb\xbf" + plain, "cut": plain[: len(plain) * draw(st.integers(0, 9)) // 10], "twice": plain * 2, "chunk": plain + b" " * 100_000,
        "doubled": f'{{{json.dumps(first)}: {draw(st.sampled_from(["null", "1", "[]", "{}", "NaN"]))}, '.encode() + plain[1:],
        "noise": draw(st.binary(max_size=60)) if way == "noise" else b"",
    }  # fmt: skip
    return ways.get(way, plain), headers
