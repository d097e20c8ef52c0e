"""Nothing that comes from outside is ever run: no pickle, no dynamic import of its names, no shell; and what is written is not executable either."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted(path for folder in ("backend", "sam2_backend") for path in (ROOT / folder).rglob("*.py"))

UNPICKLERS = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "jsonpickle", "dbm"}
NEVER_CALLED = {
    "eval", "exec", "compile", "__import__", "os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput", "yaml.load", "yaml.unsafe_load",
    "pandas.read_pickle", "importlib.import_module", "rq.utils.import_attribute", "import_attribute", "numpy.fromfile", "asyncio.create_subprocess_shell",
}  # fmt: skip
ONLY_WITH = {"torch.load": ("weights_only", True), "np.load": ("allow_pickle", False), "numpy.load": ("allow_pickle", False)}
NEVER_WITH = {
    "shell": True,
    "trust_remote_code": True,
    "allow_pickle": True,
    "verify": False,
    "check_hostname": False,
    "resolve_entities": True,
}


def _name(node: ast.expr) -> str:
    """`a.b.c` of an attribute, or a plain name."""
    if isinstance(node, ast.Attribute):
        return f"{_name(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else "?"


def _problems(text: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (f"import {alias.name}" for alias in node.names if alias.name.partition(".")[0] in UNPICKLERS - {"pickle"})
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in UNPICKLERS:
            yield f"from {node.module} import"
        if isinstance(node, ast.Call):
            yield from _problems_of_call(node)


def _problems_of_call(node: ast.Call) -> Iterator[str]:
    name = _name(node.func)
    given = {keyword.arg: keyword.value.value for keyword in node.keywords if isinstance(keyword.value, ast.Constant)}
    if name in NEVER_CALLED or name.startswith("pickle."):
        yield name
    if name in ONLY_WITH and given.get(ONLY_WITH[name][0]) is not ONLY_WITH[name][1]:
        yield f"{name} without {ONLY_WITH[name]}"
    yield from (f"{name}({key}={value})" for key, value in NEVER_WITH.items() if key in given and given[key] is value)
    serializers = {_name(keyword.value) for keyword in node.keywords if keyword.arg == "serializer"}
    if (
        name.rpartition(".")[2] == "Queue"
        and any(keyword.arg == "connection" for keyword in node.keywords)
        and serializers != {"JSONSerializer"}
    ):
        yield f"{name} with rq's pickle"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_file_runs_what_it_reads(path):
    assert list(_problems(path.read_text())) == []


@pytest.mark.parametrize(
    "text",
    [
        "import pickle\npickle.loads(data)", "from pickle import loads", "import dill", "torch.load(f)", "torch.load(f, weights_only=False)", "np.load(f)",
        "np.load(f, allow_pickle=True)", "eval(x)", "exec(x)", "os.system(x)", "subprocess.run(x, shell=True)", "yaml.load(x)", "importlib.import_module(job.name)",
        "AutoModel.from_pretrained(x, trust_remote_code=True)", "requests.get(x, verify=False)", "Queue('q', connection=c)",
    ],
)  # fmt: skip
def test_the_search_finds_what_it_is_for(text):
    assert list(_problems(text))


def test_what_is_in_use_is_found_harmless():
    assert list(_problems("import pickle\ntry: torch.load(f, weights_only=True)\nexcept pickle.UnpicklingError: pass")) == []
    assert list(_problems("Queue('q', connection=c, serializer=JSONSerializer)\nqueue.Queue(5)")) == []
