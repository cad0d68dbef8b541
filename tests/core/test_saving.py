"""What is saved loads as diffusers' users load things, where nothing of this package was imported."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

import ldmae
from ldmae.core.errors import UserError
from ldmae.core.saving import PLACES

from ..tiny import tiny_pipeline, tiny_transformer, tiny_vmae

SOURCE = Path(__file__).resolve().parents[2] / "src"


def pipeline_of(vae=None):
    return tiny_pipeline(vae, tiny_transformer(num_classes=3), id2label={0: "hen", 1: "cat", 2: "dog"})


FRESH = """
import sys
import torch
from diffusers import AutoModel, DiffusionPipeline
folder, foreign = sys.argv[1:]
trusted = {"trust_remote_code": True}
assert "ldmae" not in sys.modules
for place, subfolder in ((folder, "vae"), (folder, "transformer"), (folder + "/vae", None), (foreign, "vae")):
    print(type(AutoModel.from_pretrained(place, subfolder=subfolder, **trusted)).__name__)
pipe = DiffusionPipeline.from_pretrained(folder, **trusted)
print(type(pipe).__name__, type(pipe.vae).__name__, type(pipe.transformer).__name__)
settings = {"num_inference_steps": 2, "generator": torch.Generator().manual_seed(0), "output_type": "pt"}
image = pipe("cat", **settings).images
torch.save(image, folder + "/image.pt")
"""


def test_a_process_without_the_package_loads_pipeline_and_models_of_a_folder(tmp_path):
    folder, foreign = tmp_path / "pipe", tmp_path / "foreign"
    pipe = pipeline_of()
    pipe.save_pretrained(folder)
    kl = AutoencoderKL(latent_channels=4, norm_num_groups=4, block_out_channels=(8,))
    pipeline_of(kl).save_pretrained(foreign)
    environment = {**os.environ, "PYTHONPATH": str(SOURCE), "HF_HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", FRESH, folder, foreign], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        *("AutoencoderVMAE", "LightningDiTTransformer2DModel", "AutoencoderVMAE", "AutoencoderKL"),
        "LDMAEPipeline AutoencoderVMAE LightningDiTTransformer2DModel",
    ]
    assert "are not expected" not in done.stderr
    made = pipe("cat", num_inference_steps=2, generator=torch.Generator().manual_seed(0), output_type="pt")
    torch.testing.assert_close(torch.load(folder / "image.pt", weights_only=True), made.images)


def test_the_folder_s_code_says_what_to_install_where_the_package_lacks(tmp_path, monkeypatch):
    tiny_vmae().save_pretrained(tmp_path)
    assert runpy.run_path(str(tmp_path / "pipeline.py"))["AutoencoderVMAE"] is ldmae.AutoencoderVMAE
    monkeypatch.setitem(sys.modules, "ldmae", None)
    with pytest.raises(ModuleNotFoundError, match=r"package ldmae, .*in a clone of it type: pip install \.$"):
        runpy.run_path(str(tmp_path / "pipeline.py"))


def test_the_package_s_own_classes_run_no_code_of_a_folder(tmp_path):
    pipeline_of().save_pretrained(tmp_path)
    for path in tmp_path.rglob("pipeline.py"):
        path.write_text("raise RuntimeError('was run')")
    assert isinstance(ldmae.LDMAEPipeline.from_pretrained(tmp_path).vae, ldmae.AutoencoderVMAE)


def test_a_pipeline_that_extends_the_package_s_loads_what_that_one_saved(tmp_path):
    class Extended(ldmae.LDMAEPipeline):
        pass

    pipeline_of().save_pretrained(tmp_path)
    for options in ({}, {"trust_remote_code": True}):
        assert type(Extended.from_pretrained(tmp_path, **options)) is Extended


def test_a_class_that_extends_one_of_the_package_s_is_not_said_to_be_that_one(tmp_path):
    class Wider(ldmae.AutoencoderVMAE):
        pass

    Wider.from_config(tiny_vmae().config).save_pretrained(tmp_path)
    assert "auto_map" not in json.loads((tmp_path / "config.json").read_text())
    assert not (tmp_path / "pipeline.py").exists()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "has no _class_name in its config.json"),
        ({"_class_name": "Own"}, "a model of the class Own"),
    ],
)
def test_a_folder_of_no_known_class_is_said_to_be_one(config, message, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=message):
        ldmae.AnyModel.from_pretrained(str(tmp_path))


def test_the_classes_of_saved_parts_are_where_saved_files_say():
    for name, module in PLACES.items():
        assert getattr(ldmae, name).__module__ == module
