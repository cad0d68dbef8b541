"""What a user's own component gets wrong is found before the first stage, by the run and the dry run."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ldmae.config import load_config
from ldmae.config.diffusion import DiffusionConfig
from ldmae.core.errors import UserError
from ldmae.diffusion.backbones import build_backbone
from ldmae.run.plan import describe_plan
from ldmae.run.preflight import check_guidance, check_models
from ldmae.training.engine import checked_output

EXTEND = Path(__file__).resolve().parents[2] / "examples" / "extend"


def write(folder: Path, example: str, module: str, *changes: tuple[str, str]) -> None:
    text = (EXTEND / f"{example}.py").read_text(encoding="utf-8")
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    (folder / f"{module}.py").write_text(text)


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


ENCODE, DECODE = "EncoderOutput(latent=self.encoder(x))", "DecoderOutput(sample=self.decoder(z))"
SUBCLASS = "class Sub(MyAutoencoder):\n    pass\n\n\nclass Abs"
NO_CONFIG = ("(ModelMixin, ConfigMixin)", "(nn.Module)"), ("@register_to_config", "")


@pytest.mark.parametrize(
    ("module", "changes", "told"),
    [
        ("flux", (), "diffusers has pipelines called flux, .*rename the module"),
        (
            "ae_no_config",
            (("(ModelMixin, ConfigMixin)", "(ModelMixin)"), ("@register_to_config", "")),
            "MyAutoencoder must extend diffusers' ModelMixin and ConfigMixin",
        ),
        ("ae_plain", NO_CONFIG, "MyAutoencoder must extend diffusers' ModelMixin and ConfigMixin"),
        (
            "ae_json",
            (("latent_channels: int = 4) ->", "latent_channels: int = 4, act: type = nn.SiLU) ->"),),
            r"the arguments of MyAutoencoder go into its config.json, and one can't \(Object of type type",
        ),
        (
            "ae_tied",
            (("    def encode(", "        self.same = self.encoder[0].weight\n\n    def encode("),),
            "two parameters of MyAutoencoder are the same tensor",
        ),
        (
            "ae_other",
            (("AbsoluteError(MyAutoencoder(", "AbsoluteError(Sub("), ("class Abs", SUBCLASS)),
            "train a Sub, which would be loaded as a MyAutoencoder",
        ),
        ("ae_wide", ((ENCODE, ENCODE.replace("(x)", "(x)[..., ::2]")),), "8 x 4 cells of a square image"),
        ("ae_half", ((DECODE, DECODE.replace("(z)", "(z)[..., ::2, ::2]")),), "expected the same shape"),
    ],
)  # fmt: skip
def test_an_autoencoder_that_later_stages_could_not_use_is_refused(here, module, changes, told):
    write(here, "my_ae", module, *changes)
    config = load_config("smoke", [f"autoencoder.kind={module}:MyAutoencoder"])
    state = torch.random.get_rng_state()
    for refused in (lambda: check_models(config, None), lambda: describe_plan(config, here / "run")):
        with pytest.raises(UserError, match=told):
            refused()
    assert torch.equal(torch.random.get_rng_state(), state)


def test_an_autoencoder_that_saves_itself_is_taken_and_tried_as_it_is_used(here):
    saves = "    def save_pretrained(self, folder): ...\n\n    def encode("
    finite = (ENCODE, ENCODE.replace("(x)", "(x / (not self.training))"))
    write(here, "my_ae", "ae_itself", *NO_CONFIG, ("    def encode(", saves), finite)
    config = load_config("smoke", ["autoencoder.kind=ae_itself:MyAutoencoder"])
    check_models(config, None)


@pytest.mark.parametrize(
    ("module", "changes", "told"),
    [
        ("dit", (), "diffusers has pipelines called dit"),
        ("dit_patchless", (("patch_size: int", "patch: int"), ("patch_size", "patch")), "patch_size"),
    ],
)
def test_a_diffusion_model_that_no_pipeline_could_use_is_refused(here, module, changes, told):
    write(here, "my_dit", module, *changes)
    with pytest.raises(UserError, match=told):
        build_backbone(DiffusionConfig(kind=f"{module}:TinySiT"), 4, 2, num_classes=3)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (("* model_output,)", "* model_output)[:0],"), r"must return a tuple of latents of shape \(1, 3"),
        (("**_: Any\n", "\n"), "unexpected keyword argument 'generator'"),
        (("(self, *args: Any, **kwargs: Any)", "(self, steps)"), "fails at its first step: .*argument"),
    ],
)  # fmt: skip
def test_a_solver_that_fails_does_so_before_the_run(here, change, told):
    write(here, "my_solver", f"solver_{len(told)}", change)
    config = load_config("smoke", [f"sampling.solver=solver_{len(told)}:Midpoint"])
    with pytest.raises(UserError, match=told):
        check_models(config, None)


def test_guidance_without_a_null_class_is_refused_where_there_are_classes(here):
    write(here, "my_dit", "dit_free", ("self.null_class = num_classes", "self.null_class = None"))
    words = ["diffusion.kind=dit_free:TinySiT", "sampling.guidance_scale=1", "evaluation.guidance_scale=1"]
    for scale in words[1:]:
        config = load_config("smoke", [*words, scale.replace("=1", "=2")])
        run: Any = SimpleNamespace(config=config, train=SimpleNamespace(classes=["a", "b"]))
        with pytest.raises(UserError, match=r"guidance needs a null class, which TinySiT does not have"):
            check_guidance(run)
        run.train.classes = ["a"]
        check_guidance(run)
    run = SimpleNamespace(config=load_config("smoke", words), train=SimpleNamespace(classes=["a", "b"]))
    check_guidance(run)


def test_losses_and_terms_are_tensors_of_one_number():
    loss = torch.zeros((), requires_grad=True)
    output = SimpleNamespace(loss=loss, terms={"a": loss.detach()})
    assert checked_output(output, "training") is output
    for changes, told in (
        ({"loss": loss.expand(3)}, r"with loss tensor\(\[0\., 0\., 0\.\]"),
        ({"loss": 1.0}, r"with loss 1\.0; expected"),
        ({"terms": {"a": 0.5}}, r"with a 0\.5; expected"),
        ({"loss": loss.detach()}, "the loss of training has no gradient"),
    ):
        with pytest.raises(UserError, match=told):
            checked_output(SimpleNamespace(**{**vars(output), **changes}), "training")
    with torch.no_grad():
        checked_output(SimpleNamespace(loss=loss.detach(), terms={}), "training")
