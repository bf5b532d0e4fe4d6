"""The planted faults of tests/faults.py are worth nothing if what they change has moved."""

import pytest
from faults import FAULTS, REPOSITORY


@pytest.mark.parametrize("name", FAULTS)
def test_what_a_fault_changes_stands_in_its_file_once(name):
    file, right, wrong, _ = FAULTS[name]
    assert right != wrong and (REPOSITORY / "polyspace" / file).read_text().count(right) == 1
