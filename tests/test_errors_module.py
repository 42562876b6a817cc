"""The one error: one line, as it is typed on a command line."""

import pytest

from ddpm.errors import ConfigError, did_you_mean, render, require


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "null"),
        (True, "true"),
        (False, "false"),
        (0, "0"),
        (1e-4, "0.0001"),
        ("a b", "a b"),
        ([1, [True, None]], "[1,[true,null]]"),
        ((1, 2), "[1,2]"),
        ([], "[]"),
    ],
)
def test_render(value, text):
    assert render(value) == text


def test_the_line():
    error = ConfigError("dim", 7, "must be\n   even;  take 8")
    assert str(error) == "dim=7: must be even; take 8"
    assert str(error.under("model").under("a")) == "a.model.dim=7: must be even; take 8"
    assert str(ConfigError("dim", None, "is missing")) == "dim: is missing"
    assert str(ConfigError("dim", 0, "is zero")) == "dim=0: is zero"


def test_require():
    require(True, "a", 1, "never told")
    with pytest.raises(ConfigError) as caught:
        require(False, "a", [1, None], "no")
    assert (caught.value.key, caught.value.value, caught.value.problem) == ("a", [1, None], "no")
    assert str(caught.value) == "a=[1,null]: no"


@pytest.mark.parametrize(
    ("word", "known", "hint"),
    [
        ("max_step", ["min_steps", "max_steps"], "; did you mean 'max_steps'?"),
        ("zzz", ["b", "a", "b"], " (there are: a, b)"),
        ("zzz", [], ""),
    ],
)
def test_did_you_mean(word, known, hint):
    assert did_you_mean(word, iter(known)) == hint
