"""`pretrained:NAME` as a source: what ships is sampled and measured with its own settings and images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ldmae import LDMAEPipeline, loading, pretrained
from ldmae.cli.options import name_of
from ldmae.core.errors import UserError
from ldmae.loading import load_autoencoder, load_pipeline
from ldmae.run import evaluate_samples, evaluate_with, sample_from

from ..tiny import tiny_pipeline, tiny_transformer, tiny_vmae

pytestmark = pytest.mark.usefixtures("blank")

SETTINGS = """\
data: {{source: {pictures}, val: "0.4"}}
image_size: 24
sampling: {{per_class: 1, num_inference_steps: 2, guidance_scale: 2.0, batch_size: 8}}
evaluation: {{samples: 12, images: 9, perceptual: st-lpips-alex}}
"""


@pytest.fixture
def shipped(tmp_path, monkeypatch, pictures) -> Path:
    """Puts an untrained pipeline where the package has its own, and returns its folder."""
    folder = tmp_path / "shipped" / "tiny"
    parts = tiny_vmae(sample_size=24), tiny_transformer(sample_size=6, num_classes=3)
    tiny_pipeline(*parts, id2label=dict(enumerate(("bars", "discs", "waves")))).save_pretrained(folder)
    (tmp_path / "tiny-long.yaml").write_text(SETTINGS.format(pictures=pictures))
    monkeypatch.setattr(loading, "SHIPPED", {"tiny": str(tmp_path / "tiny-long.yaml"), "lost": "emoji"})
    monkeypatch.setattr(loading, "SHIPPED_FOLDER", tmp_path / "shipped")
    monkeypatch.chdir(tmp_path)
    return folder


def results(folder: str) -> dict[str, list[dict[str, Any]]]:
    entries = json.loads(Path(folder, "results.json").read_text())["results"]
    return {
        name: [e for e in entries if e["measurement"] == name] for name in {e["measurement"] for e in entries}
    }


def test_its_folder_is_what_every_loader_opens(shipped):
    assert pretrained("tiny") == shipped
    assert load_autoencoder("pretrained:tiny").config.sample_size == 24
    assert load_pipeline("pretrained:tiny").transformer.config.num_classes == 3


def test_what_does_not_ship_and_what_is_missing_are_told_apart(shipped):
    with pytest.raises(UserError, match="ldmae has no pretrained model 'tinny'; did you mean 'tiny'"):
        load_pipeline("pretrained:tinny")
    with pytest.raises(UserError, match=r"this copy of ldmae has no trained lost.*`ldmae run emoji`"):
        load_autoencoder("pretrained:lost")


def test_its_samples_are_made_as_its_preset_says(shipped):
    sample_from("pretrained:tiny", ["discs"], {"seed": 3}, Path("made"), "cpu")
    made = json.loads(Path("made/samples.json").read_text())
    assert (made["num_inference_steps"], made["guidance_scale"], made["seed"]) == (2, 2.0, 3)
    assert made["labels"] == [1]


def test_it_is_measured_on_the_images_held_out_from_it_and_its_samples_beside_the_others(shipped):
    evaluate_with("pretrained:tiny", [], Path("figures"), ["reconstruction", "generation"])
    found = results("figures")
    assert set(found) == {"reconstruction", "samples", "copies", "floor"}
    assert found["reconstruction"][0]["counts"] == {"images": 9}
    generated, training = next(e["counts"].values() for e in found["samples"] if len(e["counts"]) == 2)
    assert generated == 12
    assert training < 60  # of all pictures, those that were not held out
    counts = {"generated": 12, "held out": 60 - training, "training": training}
    assert found["copies"][0]["counts"] == counts
    evaluate_with("pretrained:tiny", [], Path("figures"), ["reconstruction"])  # not refused as another's
    assert json.loads(Path("figures/measured.json").read_text())["settings"]["source"] == "pretrained:tiny"


def test_on_other_images_only_its_autoencoder_is_measured(shipped, pictures):
    with pytest.raises(UserError, match="no measurement 'generation'"):
        evaluate_with("pretrained:tiny", [f"data={pictures}"], Path("others"), ["generation"])
    evaluate_with("pretrained:tiny", [f"data={pictures}"], Path("others"), ["reconstruction"])
    assert set(results("others")) == {"reconstruction"}


def test_copies_of_an_earlier_measurement_do_not_stay_beside_other_figures(shipped, pictures):
    evaluate_samples("pretrained:tiny", [], Path("figures"))
    assert Path("figures/results/copies.npz").exists()
    assert "copies" in results("figures")
    evaluate_samples("pretrained:tiny", [], Path("figures"), reference=pictures / "bars")
    assert set(results("figures")) == {"samples", "floor"}
    assert not Path("figures/results/copies.npz").exists()


def test_its_results_have_a_folder_of_a_name_that_every_system_takes():
    assert name_of("pretrained:emoji") == "pretrained-emoji"


def test_what_was_generated_before_an_interruption_is_not_generated_again(shipped, monkeypatch):
    evaluate_samples("pretrained:tiny", ["sampling.batch_size=4"], Path("whole"))
    made: list[int] = []
    generate = LDMAEPipeline.__call__

    def counted(pipeline: LDMAEPipeline, labels: list[int], **settings: Any) -> Any:
        if len(made) == 2:
            raise KeyboardInterrupt
        made.append(len(labels))
        return generate(pipeline, labels, **settings)

    monkeypatch.setattr(LDMAEPipeline, "__call__", counted)
    with pytest.raises(KeyboardInterrupt):
        evaluate_samples("pretrained:tiny", ["sampling.batch_size=4"], Path("broken"))
    assert len(list(Path("broken/.generated").glob("*.npy"))) == 2
    made.clear()
    evaluate_samples("pretrained:tiny", ["sampling.batch_size=4"], Path("broken"))
    assert made == [4]
    assert results("broken") == results("whole")
    assert not Path("broken/.generated").exists()


def test_batches_of_other_settings_are_not_taken_up(shipped):
    steps = "sampling.num_inference_steps=3"
    evaluate_samples("pretrained:tiny", [steps], Path("whole"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ldmae.run.external_samples.judged", interrupted)
        with pytest.raises(KeyboardInterrupt):
            evaluate_samples("pretrained:tiny", [], Path("other"))
    assert len(list(Path("other/.generated").glob("*.npy"))) == 2
    evaluate_samples("pretrained:tiny", [steps], Path("other"))
    assert results("other") == results("whole")


def interrupted(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt
