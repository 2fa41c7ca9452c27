"""wire.masks: which names are masked."""

import pytest

from cronium_runner.wire import masks


@pytest.mark.parametrize(
    "globs",
    [masks.DEFAULT_NAMES, (), ("*",), ("?",), ("[AB]*",), ("*x[yz]*", "Key"), ("ß*",), ("a?c*Long",), ("A[B",)],
)
def test_names_are_masked_together_as_one_by_one(globs: tuple[str, ...]) -> None:
    names = ["PATH", "a", "", "B", "KEY", "key", "API_KEY", "db_password_2", "XY", "axyz", "SS", "straße", "abcLONG"]
    assert masks.masked_names(names, globs) == [name for name in names if masks.is_masked_name(name, globs)]
    for name in names:
        assert masks.masked_names([name], globs) == ([name] if masks.is_masked_name(name, globs) else [])
