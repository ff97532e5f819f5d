"""What `import premask` offers, whatever was imported first, and what it costs."""

import itertools
import subprocess
import sys

import pytest

import premask

HEAVY = {"torch", "transformers", "datasets", "pyarrow", "numpy", "polars", "numba", "tokenizers", "pydantic", "rich"}

IMPORTS = ["import premask.prepare", "from premask import prepare", "from premask.prepare import prepare"]
ORDERS = [
    *map("; ".join, itertools.permutations(IMPORTS)),
    "import premask; premask.prepare; import premask.prepare",
    "import premask.recipe, premask.cli, premask.store.reader; import premask",
]


def python(code: str) -> str:
    """What `code` prints in an interpreter of its own, where warnings are errors."""
    run = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_public_names() -> None:
    assert premask.__all__ == [
        "DataError",
        "MachineError",
        "PackCollator",
        "PremaskError",
        "Prepared",
        "Recipe",
        "ResponseOnlyCollator",
        "UsageError",
        "__version__",
        "find_markers",
        "get_chat_template",
        "mask_responses",
        "open",
        "prepare",
        "train_on_responses_only",
    ]
    assert set(premask.__all__) <= set(dir(premask))


@pytest.mark.parametrize("name", premask.__all__)
def test_every_public_name_loads(name: str) -> None:
    value = getattr(premask, name)
    assert isinstance(value, str) if name == "__version__" else callable(value)


def test_an_unknown_name() -> None:
    with pytest.raises(AttributeError, match="module 'premask' has no attribute 'prepair'"):
        _ = premask.prepair


@pytest.mark.parametrize("imports", ORDERS)
def test_prepare_is_the_function_in_every_order_of_imports(imports: str) -> None:
    """The import system binds the submodule `premask.prepare` in the package; the function must win over it."""
    python(
        f"{imports}\n"
        "import pickle, sys, types\n"
        "import premask\n"
        "assert isinstance(premask.prepare, types.FunctionType), premask.prepare\n"
        "import premask.prepare as again\n"
        "from premask.prepare import prepare as third\n"
        "assert premask.prepare is again is third is sys.modules['premask.prepare'].prepare\n"
        "assert pickle.loads(pickle.dumps(again)) is again\n"
    )


def test_the_module_can_still_be_had() -> None:
    code = (
        "import importlib, premask\nprint(type(importlib.import_module('premask.prepare')).__name__, premask.prepare)"
    )
    kind, kept = python(code).split(" ", 1)
    assert kind == "module"
    assert kept.startswith("<function prepare")


def test_importing_premask_is_light() -> None:
    loaded = set(python("import sys, premask\nprint(*sys.modules)").split())
    assert not loaded & HEAVY


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["view", "--help"]], ids=" ".join)
def test_the_command_starts_light(arguments: list[str]) -> None:
    code = f"import sys\nfrom premask.cli import run\nassert run({arguments}) == 0\nprint('LOADED', *sys.modules)"
    loaded = set(python(code).rpartition("LOADED")[2].split())
    assert not loaded & HEAVY


@pytest.mark.parametrize(
    "module", ["premask.prepare", "premask.store.reader", "premask.feed.collate", "premask.recipe"]
)
def test_nothing_in_the_pipeline_imports_torch_or_transformers(module: str) -> None:
    loaded = set(python(f"import sys, {module}\nprint(*sys.modules)").split())
    assert not loaded & {"torch", "transformers", "datasets"}


def test_python_m_premask() -> None:
    run = subprocess.run([sys.executable, "-m", "premask", "--version"], capture_output=True, text=True, check=True)
    assert run.stdout == f"premask {premask.__version__}\n"
