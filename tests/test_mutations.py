"""The list of edits that `make mutations` tries stays usable while the code around it changes."""

from collections import Counter

import pytest
from mutations import MUTATIONS
from try_mutations import ROOT


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: f"{mutation.file}-{mutation.old.strip()[:40]}")
def test_text_to_edit_stands_once_and_its_tests_exist(mutation):
    source = (ROOT / mutation.file).read_text(encoding="utf-8")
    assert source.count(mutation.old) == 1
    assert mutation.new != mutation.old
    for test in mutation.tests.split():
        file, _, name = test.partition("::")
        assert f"def {name.partition('[')[0].rpartition('::')[2]}(" in (ROOT / file).read_text(encoding="utf-8")


def test_no_edit_is_listed_twice():
    assert max(Counter((m.file, m.old, m.new) for m in MUTATIONS).values(), default=1) == 1
