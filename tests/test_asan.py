"""A few native programs under AddressSanitizer; `python -m tests.asan --thorough` runs all."""

import pytest

from tests import asan


@pytest.mark.skipif(asan.preloads() is None, reason="gcc has no libasan here")
@pytest.mark.parametrize(
    "names", [["ids scatter"], pytest.param(["net batch norm", "drawn 0"], marks=pytest.mark.thorough)]
)
def test_native_programs_stay_in_their_memory(names):
    """Nothing is read or written beside what is there, also where ids are out of range."""
    done = asan.campaign(names, 1)
    assert done.keys() == {*names}
    assert set(done.values()) == {"held"}, done
