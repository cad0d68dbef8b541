"""The types that cross folders."""

import json
from types import SimpleNamespace

from ldmae.contracts import Autoencoder, Result


def test_a_result_is_plain_json():
    result = Result(
        name="PSNR", value=21.9, unit="dB", better="higher", counts={"images": 12}, note="held out"
    )
    assert Result(**json.loads(json.dumps(result.to_dict()))) == result


def test_an_autoencoder_is_whatever_encodes_decodes_and_has_a_config():
    parts = {"config": {}, "encode": print, "decode": print}
    assert isinstance(SimpleNamespace(**parts), Autoencoder)
    for missing in parts:
        lacking = SimpleNamespace(**{name: part for name, part in parts.items() if name != missing})
        assert not isinstance(lacking, Autoencoder)
