"""Curves that say whether a unit's trainings were long enough."""

import json

import pytest

from ldmae.run.flatness import _last_quarter_gain, describe_flatness


def test_the_gain_is_taken_over_the_last_quarter_of_the_steps():
    assert _last_quarter_gain([[25, 9.0], [50, 2.0], [75, 1.0], [100, 0.99]], 100) == pytest.approx(0.01)
    assert _last_quarter_gain([[80, 1.0], [100, 1.1]], 100) == pytest.approx(-0.1)
    assert _last_quarter_gain([[50, 2.0], [100, 1.0]], 100) is None


def test_curves_are_of_pixels_on_held_out_images_and_of_kid(tmp_path, capsys):
    lines = [
        {"stage": "autoencoder.pretraining", "step": s, "validation": {"loss": 5, "terms": {"visible": v}}}
        for s, v in ((2, 0.5), (3, 0.4), (4, 0.396))
    ]
    lines.append({"stage": "diffusion", "step": 4, "loss": 1.0})
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    points = [{"step": 6, "name": "KID-x", "value": 0.2}, {"step": 8, "name": "KID-x", "value": 0.15}]
    (tmp_path / "kid_curve.json").write_text(json.dumps(points))
    found = describe_flatness(tmp_path, {"autoencoder.pretraining": 4, "diffusion": 8})
    assert found["autoencoder.pretraining"]["points"] == [[2, 0.5], [3, 0.4], [4, 0.396]]
    assert found["autoencoder.pretraining"]["gain"] == pytest.approx(0.01)
    assert (found["diffusion"]["name"], found["diffusion"]["gain"]) == ("KID-x", pytest.approx(0.25))
    printed = " ".join(capsys.readouterr().err.split())
    assert "gained 1.0% over the last quarter, flat" in printed
    assert "gained 25.0% over the last quarter, not flat yet" in printed
