"""A few native programs under AddressSanitizer; `python -m tests.asan --thorough` runs all."""

import pytest

from tests import asan


@pytest.mark.skipif(asan.preloads() is None, reason="gcc has no libasan here")
def test_native_programs_stay_in_their_memory():
    """Nothing is read or written beside what is there, also where ids are out of range."""
    done = asan.campaign(["drawn 0", "ids scatter"], 1)
    assert set(done.values()) == {"held"}, done
