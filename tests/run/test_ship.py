"""`tools/ship.py`: a whole tiny run becomes a shipped pipeline, of the best of its training states."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ldmae import loading
from ldmae.diffusion.pipeline_ldmae import LDMAEPipeline
from ldmae.training.checkpoint import list_checkpoints

pytestmark = pytest.mark.usefixtures("blank")


@pytest.fixture
def tool(tmp_path, preset, monkeypatch) -> Any:
    """The tool, with a package folder of the test's own, where `tiny` is what ships."""
    settings = tmp_path / "tiny-long.yaml"
    settings.write_text(preset.read_text())
    monkeypatch.setattr(loading, "SHIPPED", {"tiny": str(settings)})
    monkeypatch.setattr(loading, "SHIPPED_FOLDER", tmp_path / "shipped")
    tools = Path(__file__).parents[2] / "tools"
    (tmp_path / "limits-tiny.md").write_text("- It knows nothing but noise.\n")
    spec = importlib.util.spec_from_file_location("ship", tools / "ship.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "TEXTS", tmp_path)
    monkeypatch.setattr(module, "KEPT", tmp_path / "kept")
    monkeypatch.setitem(module.DATA, "tiny", "noise")
    return module


def test_the_best_training_states_ship_with_a_card_of_what_they_are(tool, tmp_path, finished):
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    folder = tool.ship(run, "tiny")
    card, figures = (folder / "README.md").read_text(), json.loads((folder / "figures.json").read_text())
    shipped = LDMAEPipeline.from_pretrained(folder)
    assert "- It knows nothing but noise.\n" in card
    near = 1 - figures["copies/authenticity"]
    assert f"{near:.0%} of " in card
    written = [path.read_text() for path in folder.rglob("*") if path.suffix in (".json", ".md")]
    assert len(written) >= 5
    assert not any(str(run) in text or str(folder) in text for text in written)
    few = json.loads((tmp_path / "kept" / "tiny.json").read_text())["figures"]
    assert "smoothness/PSNR(eps=0.2)" in few
    assert few.items() <= figures.items()  # fewer images than 256 are held out
    with np.load(tmp_path / "kept" / "tiny.npz") as kept:
        assert kept["images"].shape == (12, 24, 24, 3)
        assert kept["generated"].shape == (12, 1280)
        assert kept["generated"].max() == 255 or kept["real"].max() == 255
        assert len(kept["real"]) == json.loads((run / "data.json").read_text())["train"]
    for stage, model, figure in (
        ("autoencoder.tuning", shipped.vae, "reconstruction/ST-LPIPS-alex"),
        ("diffusion", shipped.transformer, "samples/KID-efficientnet_lite0"),
    ):
        states = dict(list_checkpoints(run / "checkpoints" / stage))
        line = next(line for line in card.splitlines() if line.startswith(f"- {stage}, by"))
        tried = {int(step): float(value) for value, step in re.findall(r"(-?[\d.]+) after (\d+) steps", line)}
        assert set(tried) == set(states)
        assert len(tried) == 2
        taken = int(line.split("taken: ")[1].strip("."))
        assert tried[taken] == min(tried.values())
        assert figures[figure] == pytest.approx(tried[taken], abs=1e-4)
        kept = tool._weights(states[taken])
        for name, value in model.state_dict().items():
            assert value.float().equal(kept[name].half().float()), name
