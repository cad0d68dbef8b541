"""What is imported, and when: a command that computes nothing answers before torch could be imported."""

import subprocess
import sys

import typer

from ldmae.cli.main import app

HEAVY = {
    *("accelerate", "datasets", "diffusers", "gradio", "jinja2", "matplotlib", "numpy", "pandas", "PIL"),
    *("scipy", "skimage", "sklearn", "tensorboard", "torch", "torch_fidelity"),
    *("torchvision", "transformers"),
}
# not jinja2, which transformers imports where it is installed
MEASURING = {"matplotlib", "pandas", "skimage", "sklearn", "torch_fidelity"}

IMPORTED = """
import sys

def imported(heavy):
    return sorted(name for name in sys.modules if name.split(".")[0] in heavy and "." not in name)
"""

COMMANDS = """
import contextlib, io
from ldmae.cli.main import app
from ldmae.cli.output import run_app

def answer(*words):
    sys.argv = ["ldmae", *words]
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
        code = run_app(app)
    assert not imported(HEAVY), f"ldmae {' '.join(words)} imports {imported(HEAVY)}"
    return code, text.getvalue()
"""


def run(code):
    """Runs code in a fresh interpreter, in which this process's imports do not count."""
    script = f"{IMPORTED}HEAVY = {HEAVY!r}\nMEASURING = {MEASURING!r}\n{code}"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def verbs(group, *words):
    """Returns the words of every command, groups included, so that no verb is forgotten here."""
    found = [words]
    for name, command in getattr(group, "commands", {}).items():
        found += verbs(command, *words, name)
    return found


def test_settings_are_resolved_without_torch():
    run(
        """
from ldmae.config import load_config, preset_names
for name in preset_names():
    load_config(name, ["seed=3"])
assert not imported(HEAVY), imported(HEAVY)
"""
    )


def test_help_of_every_verb_presets_and_schema_need_no_torch():
    every = verbs(typer.main.get_command(app))
    assert ("train", "diffusion") in every
    assert ("evaluate-samples",) in every
    run(
        f"""{COMMANDS}
for words in {every!r}:
    code, text = answer(*words, "--help")
    assert code == 0 and "Usage:" in text
code, text = answer("schema")
assert code == 0 and "image_size" in text
code, text = answer("presets")
assert code == 0 and "imagenet-256" in text
"""
    )


def test_a_mistyped_setting_is_answered_before_torch_is_imported():
    presets = ("run emoji", "train diffusion emoji", "compare compare-photos")
    run(
        f"""{COMMANDS}
for command in {(*presets, "encode NAME", "evaluate NAME")!r}:
    code, text = answer(*command.split(), "data=PATH", "image_sise=64")
    assert code == 2 and "did you mean 'image_size'" in text, (command, text)
    code, text = answer(*command.split(), "data=PATH", "image_size=wide")
    assert code == 2 and "image_size" in text, (command, text)
"""
    )


def test_a_model_is_imported_without_evaluation_and_report():
    run(
        """
import ldmae.diffusion.lightningdit
from ldmae import AutoencoderVMAE, LDMAEPipeline
rooms = ("ldmae.evaluation", "ldmae.report", "ldmae.run")
ours = [name for name in sys.modules if name.startswith(rooms)]
assert not ours, ours
assert not imported(MEASURING), imported(MEASURING)
"""
    )
