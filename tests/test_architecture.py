"""What holds the package together: imports, public names, sizes, no trace of a machine."""

import ast
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import diffusers
import pytest

import ldmae

from .scripts import load_script

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "ldmae"
LEAVES = {"config", "contracts", "core", "perception"}
STAGES = {"autoencoders", "diffusion", "evaluation", "images", "latents", "report", "training"}
MODELS = {"autoencoders", "diffusion"}
ANY = {path.stem for path in SOURCE.iterdir() if path.name[0] not in "_."}

MAY_IMPORT = {
    "contracts": set(),
    "core": {"contracts"},
    "config": {"core", "perception"},
    "perception": {"contracts", "core"},
    **dict.fromkeys(STAGES, LEAVES),
    "evaluation": LEAVES | {"images"},  # what is measured on
    "conversion": LEAVES | MODELS,
    "loading": LEAVES | MODELS | {"conversion"},
    "run": ANY - {"app", "cli"},
    "cli": {"app", "config", "core", "images", "run"},
    "app": LEAVES | {"autoencoders", "diffusion", "evaluation", "images", "loading", "run", "report"},
    "__main__": {"cli"},
    "__init__": ANY,
}
"""By folder or module; whoever joins stages is named here, and nobody else does."""

EXCEPTIONS = {("diffusion/pipeline_ldmae.py", "ldmae.autoencoders.vmae")}
"""A saved pipeline can only be loaded once its classes are imported."""


@cache
def modules():
    return [path for path in sorted(SOURCE.rglob("*.py")) if "shipped" not in path.parts]


def name_of(path):
    return path.relative_to(SOURCE).as_posix()


@cache
def imported(path):
    """Returns the modules of the package that a file imports, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name_of(path)}: write imports in full"
            whole = {f"{node.module}.{alias.name}" for alias in node.names}
            is_package = node.module == "ldmae"
            found |= {name for name in whole if name.split(".")[1] in ANY} if is_package else {node.module}
    return {name for name in found if name.split(".")[0] == "ldmae" and name != "ldmae"}


def test_imports_form_a_star():
    strays = []
    for path in modules():
        home = path.relative_to(SOURCE).parts[0].removesuffix(".py")
        assert home in MAY_IMPORT, f"say in this test what {home} may import"
        for name in imported(path):
            part = name.split(".")[1]
            if part != home and part not in MAY_IMPORT[home] and (name_of(path), name) not in EXCEPTIONS:
                strays.append(f"{name_of(path)} imports {name}")
    assert not strays


def test_no_module_is_imported_in_a_circle():
    assert not load_script(ROOT / "tools" / "measure_code.py").cycles()


def test_stage_folders_are_all_named_here():
    folders = {path.name for path in SOURCE.iterdir() if (path / "__init__.py").exists()}
    assert folders == STAGES | {"app", "cli", "config", "core", "perception", "conversion", "run"}


# ---- public names

PUBLIC = {
    "AutoencoderVMAE": "ldmae.autoencoders.vmae",
    "LightningDiTTransformer2DModel": "ldmae.diffusion.lightningdit",
    "LDMAEPipeline": "ldmae.diffusion.pipeline_ldmae",
}


@pytest.mark.parametrize(("name", "module"), PUBLIC.items())
def test_a_public_class_stays_where_saved_files_look_for_it(name, module):
    kind = getattr(ldmae, name)
    assert (kind.__module__, kind.__qualname__) == (module, name)
    assert name in ldmae.__all__
    assert name in dir(ldmae)


def test_models_live_beside_the_name_that_diffusers_loads_by():
    for module in ("ldmae.autoencoders.vmae", "ldmae.diffusion.lightningdit"):
        assert sys.modules[module].ModelMixin is diffusers.ModelMixin


def test_no_folder_bears_the_name_of_a_diffusers_pipeline():
    folders = {path.name for path in SOURCE.rglob("*") if path.is_dir()} | {"ldmae"}
    assert not [name for name in folders if hasattr(diffusers.pipelines, name)]


def test_an_unknown_public_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'ldmae' has no attribute 'Nothing'"):
        _ = ldmae.Nothing  # type: ignore[attr-defined]


def test_the_converters_are_public():
    assert callable(ldmae.conversion.load_official_vmae)
    assert callable(ldmae.conversion.load_official_lightningdit)
    with pytest.raises(AttributeError):
        _ = ldmae.conversion.nothing


IMPORT = """
import sys, time
before, began = set(sys.modules), time.perf_counter()
import ldmae
assert dir(ldmae) and ldmae.__version__
print(time.perf_counter() - began)
print(*sorted({name.split(".")[0] for name in set(sys.modules) - before}))
"""


def test_import_ldmae_is_fast_and_imports_no_framework():
    done = subprocess.run([sys.executable, "-c", IMPORT], capture_output=True, text=True, check=True)
    seconds, names = done.stdout.splitlines()
    assert not {"torch", "diffusers", "numpy", "PIL", "omegaconf", "typer"} & set(names.split())
    assert float(seconds) < 1  # some 0.02 s where nothing else runs


# ---- habits


def test_files_and_functions_keep_their_sizes():
    whole_models = {"autoencoders/vmae.py", "diffusion/lightningdit.py"}
    large = []
    for path in modules():
        text = path.read_text(encoding="utf-8")
        lines = len(text.splitlines())
        if lines > (600 if name_of(path) in whole_models else 400):
            large.append(f"{name_of(path)}: {lines} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef) and node.body:
                documented = ast.get_docstring(node) is not None and len(node.body) > 1
                first = node.body[1 if documented else 0].lineno
                if (node.end_lineno or first) - first + 1 > 55:  # "about 50", its docstring aside
                    large.append(f"{name_of(path)}: {node.name}")
    assert not large


def texts():
    tops = ("README.md", "Makefile", "pyproject.toml", ".ci", "docs", "benchmarks", "src", "tests")
    kinds = {".md", ".py", ".toml", ".yaml", ".yml", ".j2", ".html", ".json", ".sh", ""}
    for top in tops:
        for path in [ROOT / top, *(ROOT / top).rglob("*")]:
            if path.is_file() and path.suffix in kinds and "__pycache__" not in path.parts:
                yield path, path.read_text(encoding="utf-8")


def test_no_file_names_a_path_of_the_machine_it_was_written_on():
    absolute = re.compile(r"(?<![\w.}*])/(home|root|Users|mnt|work|workspace|scratch)/\w")
    found = [
        f"{path.relative_to(ROOT)}: {match[0]}" for path, text in texts() for match in absolute.finditer(text)
    ]
    assert not found


def test_foreign_checkpoints_are_opened_without_running_their_code():
    unsafe = []
    for path in modules():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                options = {word.arg: ast.unparse(word.value) for word in node.keywords}
                plain = called in ("pickle.load", "pickle.loads", "yaml.load", "yaml.unsafe_load")
                loads = called == "torch.load" and options.get("weights_only") != "True"
                if plain or loads or options.get("allow_pickle") == "True":
                    unsafe.append(f"{name_of(path)}: {ast.unparse(node)}")
    assert not unsafe


def test_no_function_that_run_exports_is_hidden_by_a_module_of_that_name():
    from ldmae.run import __all__ as exported

    assert not {*exported} & {path.stem for path in (SOURCE / "run").glob("*.py")}
