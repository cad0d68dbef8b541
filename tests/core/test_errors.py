"""The error class that is meant for users."""

import pickle

import pytest
from torch._utils import ExceptionWrapper

from ldmae.core.errors import UserError, check_enough, check_known, check_range, closest, nearest


def test_a_loading_process_hands_on_the_message_without_its_traceback():
    try:
        raise UserError("cannot read a.png; put it back")
    except UserError:
        # what a DataLoader keeps of a worker's exception and raises in the training process
        handed_on = ExceptionWrapper(where="in DataLoader worker process 0")
    with pytest.raises(UserError) as caught:
        handed_on.reraise()
    assert str(caught.value) == "cannot read a.png; put it back"


def test_the_error_survives_pickling():
    assert str(pickle.loads(pickle.dumps(UserError("what; next move")))) == "what; next move"


def test_nearest_names_what_was_probably_meant_or_nothing():
    assert nearest("emojy", ["emoji", "digits"]) == "; did you mean 'emoji'?"
    assert nearest("qqq", ["emoji", "digits"]) == ""
    assert closest("qqq", ["emoji", "digits"], cutoff=0) in ("emoji", "digits")
    assert closest("x", []) is None
    assert closest("mae", ["vmae", "mae:Mine"]) == "mae:Mine"


def test_values_counts_and_names_are_refused_in_the_same_words_everywhere():
    check_range("t", 1.0, 0, 1, "try 0.5")
    with pytest.raises(UserError, match=r"^t must be from 0 to 1, got nan; try 0\.5$"):
        check_range("t", float("nan"), 0, 1, "try 0.5")
    with pytest.raises(UserError, match=r"^iFID needs at least 2 images, got 1; hold out more$"):
        check_enough("iFID", 2, 1, "images", "hold out more")
    with pytest.raises(
        UserError, match=r"^there is no set 'emojy'; did you mean 'emoji'\?; there are: emoji$"
    ):
        check_known("set", "emojy", ["emoji"])
