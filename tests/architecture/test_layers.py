"""The shape of the code: imports go down only, heavy libraries stay in their places, every module has its docstring."""

import ast
import io
import os
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# From the top down: a part imports what stands in the rows below it, never what stands beside or above it.
LAYERS: list[set[str]] = [
    {"ray_jobs"},
    {"cli"},
    {"pipeline", "console"},
    {"stages", "training", "serving", "reporting"},
    {"methods"},
    {"rewriters", "selectors", "objectives", "metrics", "problems", "verifiers"},
    {"scoring"},
    {"engines"},
    {"traces", "demo"},
    {"fingerprint"},
    {"tables"},
    {"config", "code_problem"},
    {"schema"},
    {"settings_file"},
    {"errors", "ray_token", "ray_words"},
]

# The folders and files that may load each heavy library; annotations may name it anywhere.
PLACES: dict[str, tuple[str, ...]] = {
    "ray": (
        "tokensqueeze/stages/",
        "tokensqueeze/training/",
        "tokensqueeze/serving/",
        "tokensqueeze/reporting/",
        "tokensqueeze/pipeline/",
        "tokensqueeze/cli.py",
        "ray_jobs/",
    ),
    "torch": (
        "tokensqueeze/objectives/",
        "tokensqueeze/training/",
        "tokensqueeze/scoring/",
        "tokensqueeze/engines/",
        "tokensqueeze/demo/pretrain.py",
    ),
    "deepspeed": ("tokensqueeze/training/",),
    "vllm": ("tokensqueeze/engines/vllm_engine.py",),
}


@dataclass(frozen=True)
class Import:
    module: str
    line: int
    type_only: bool
    """Under `if TYPE_CHECKING`: read by the type checker, never loaded."""


def test_imports_go_down_only():
    broken = [violation for path in package_files() for violation in upward_imports(path, source(path))]
    assert not broken, "\n".join(broken)


def test_heavy_libraries_are_loaded_in_their_places_only():
    broken = [violation for path in package_files() for violation in misplaced_imports(path, source(path))]
    assert not broken, "\n".join(broken)


@pytest.mark.parametrize(
    ("path", "code", "found"),
    [
        ("tokensqueeze/traces/steps.py", "from tokensqueeze.selectors import pairing", 1),
        ("tokensqueeze/traces/steps.py", "from tokensqueeze import pipeline", 1),
        ("tokensqueeze/metrics/lengths.py", "def f():\n    import tokensqueeze.selectors.pairing", 1),
        ("tokensqueeze/schema.py", "from tokensqueeze.tables import Table", 1),
        ("tokensqueeze/tables.py", "from tokensqueeze.schema import Row", 0),
        ("tokensqueeze/stages/sample_traces.py", "from tokensqueeze.stages.shards import shard_of", 0),
        ("ray_jobs/run_pipeline.py", "from tokensqueeze.pipeline import run", 0),
        ("tokensqueeze/helpers/misc.py", "", 1),
    ],
)
def test_the_layer_check_sees_what_it_should(path: str, code: str, found: int):
    assert len(list(upward_imports(path, code))) == found


@pytest.mark.parametrize(
    ("path", "code", "found"),
    [
        ("tokensqueeze/selectors/pairing.py", "import torch.nn.functional as F", 1),
        ("tokensqueeze/selectors/pairing.py", "if True:\n    from ray.data import Dataset", 1),
        ("tokensqueeze/engines/build.py", "import vllm", 1),
        ("tokensqueeze/engines/vllm_engine.py", "def f():\n    from vllm import LLM", 0),
        (
            "tokensqueeze/metrics/a.py",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch\nelse:\n    import ray",
            1,
        ),
    ],
)
def test_the_library_check_sees_what_it_should(path: str, code: str, found: int):
    assert len(list(misplaced_imports(path, code))) == found


def test_schema_and_config_load_neither_ray_nor_torch_nor_transformers():
    loaded = modules_after("import tokensqueeze.schema, tokensqueeze.config")
    assert "pydantic" in loaded
    assert not loaded & {"ray", "torch", "transformers", "deepspeed", "vllm", "pandas"}


def test_plain_modules_load_without_ray():
    loaded = modules_after("import tokensqueeze.tables, tokensqueeze.methods, tokensqueeze.engines.transformers_engine")
    assert "torch" in loaded
    assert not loaded & {"ray", "deepspeed", "vllm"}


def test_importing_the_package_changes_no_environment_variable():
    code = "import os; before = dict(os.environ); import tokensqueeze.config, tokensqueeze.tables, tokensqueeze.methods"
    in_subprocess(f"{code}; assert dict(os.environ) == before")


def test_every_module_says_what_it_is_about():
    silent = [path for path in package_files() if source(path).strip() and not ast.get_docstring(ast.parse(source(path)))]
    assert not silent, f"no docstring: {', '.join(silent)}"


def test_no_module_is_named_after_nothing():
    vague = {"utils", "util", "common", "misc", "helpers", "helper", "manager", "base2"}
    assert not [path for path in package_files() if vague & set(Path(path).with_suffix("").parts)]


def test_every_ray_job_has_at_most_thirty_lines_of_code():
    jobs = [path for path in package_files() if path.startswith("ray_jobs/")]
    assert jobs, "ray_jobs/ holds no job"
    long = {path: lines_of_code(source(path)) for path in jobs if lines_of_code(source(path)) > 30}
    assert not long


def test_lines_of_code_leave_out_docstrings_comments_and_blank_lines():
    code = '"""What it is.\n\nMore."""\n\n# why\nx = [\n    1,  # one\n]\n\n'
    code += 'def f():\n    """Say so."""\n    return """a\nb"""\n'
    assert lines_of_code(code) == 6  # x = [, 1, ], def, and the two lines of the returned text


def package_files() -> list[str]:
    """Return the paths, from the root, of all modules that ship."""
    return sorted(
        str(path.relative_to(ROOT)) for folder in ("tokensqueeze", "ray_jobs") for path in (ROOT / folder).rglob("*.py")
    )


def source(path: str) -> str:
    return (ROOT / path).read_text()


def upward_imports(path: str, code: str) -> Iterator[str]:
    """Yield every import of a part that stands beside or above the file's own."""
    part = part_of(".".join(Path(path).with_suffix("").parts))
    if part is None:
        return
    if rank(part) is None:
        yield f"{path}: {part!r} has no place among the layers; add it to LAYERS, and to the picture in CONTRIBUTING.md"
        return
    for found in imports_of(code):
        target = part_of(found.module)
        if target is None or target == part:
            continue
        own, other = rank(part), rank(target)
        if other is None or own is None or other <= own:
            yield f"{path}:{found.line}: {part} imports {found.module}, which is not below it"


def misplaced_imports(path: str, code: str) -> Iterator[str]:
    """Yield every import that loads a heavy library outside of its places."""
    for found in imports_of(code):
        library = found.module.partition(".")[0]
        if library in PLACES and not found.type_only and not path.startswith(PLACES[library]):
            yield f"{path}:{found.line}: imports {found.module}; {library} belongs in {', '.join(PLACES[library])}"


def imports_of(code: str) -> list[Import]:
    tree = ast.parse(code)
    type_only = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and ast.unparse(block.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")
        for statement in block.body
        for node in ast.walk(statement)
    }
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: a relative import; imports are absolute here"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        found += [Import(name, node.lineno, id(node) in type_only) for name in names]
    return found


def part_of(module: str) -> str | None:
    """Return the part of the project that a dotted name belongs to; none for the package itself and for others."""
    package, _, rest = module.partition(".")
    if package == "ray_jobs":
        return package
    part = rest.partition(".")[0]
    return part if package == "tokensqueeze" and part not in ("", "__init__", "__version__") else None


def rank(part: str) -> int | None:
    return next((index for index, row in enumerate(LAYERS) if part in row), None)


def lines_of_code(code: str) -> int:
    """Count the lines that hold more than a docstring, a comment or nothing."""
    lines: set[int] = set()
    skipped = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
    for token in tokenize.generate_tokens(io.StringIO(code).readline):
        if token.type not in skipped:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef) and ast.get_docstring(node) is not None:
            lines.difference_update(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
    return len(lines)


def modules_after(code: str) -> set[str]:
    """Return the top-level modules a fresh interpreter has loaded after running some code."""
    return set(in_subprocess(f"{code}; import sys; print(*{{name.partition('.')[0] for name in sys.modules}})").split())


def in_subprocess(code: str) -> str:
    finished = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout
