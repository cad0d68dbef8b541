"""The types that cross folders."""

import json
from types import SimpleNamespace

from ldmae.contracts import Autoencoder, Metric


def test_a_metric_is_plain_json():
    metric = Metric(
        name="PSNR", value=21.9, unit="dB", better="higher", counts={"images": 12}, note="held out"
    )
    assert Metric(**json.loads(json.dumps(metric.to_dict()))) == metric


def test_an_autoencoder_is_whatever_encodes_decodes_and_has_a_config():
    parts = {"config": {}, "encode": print, "decode": print}
    assert isinstance(SimpleNamespace(**parts), Autoencoder)
    for missing in parts:
        lacking = SimpleNamespace(**{name: part for name, part in parts.items() if name != missing})
        assert not isinstance(lacking, Autoencoder)
