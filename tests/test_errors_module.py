"""Config errors: one line with the option as typed on the command line."""

import pickle

import pytest

from ddpm.errors import ConfigError, did_you_mean, render, require, shortened


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
    error = ConfigError("dim", 7, "must be\n   even", "use  8")
    assert str(error) == "dim=7: must be even; use 8"
    assert str(error.under("model").under("a")) == "a.model.dim=7: must be even; use 8"
    assert str(ConfigError("dim", None, "is missing")) == "dim: is missing"
    assert str(ConfigError("dim", 0, "is zero")) == "dim=0: is zero"


def test_the_parts_of_an_error_are_data():
    require(True, "a", 1, "not raised")
    with pytest.raises(ConfigError) as caught:
        require(False, "a", [1, None], "is wrong", "use 2")
    error = caught.value
    assert (error.key, error.value, error.problem) == ("a", [1, None], "is wrong")
    assert (error.remedy, error.message) == ("use 2", "is wrong; use 2")
    assert str(error) == "a=[1,null]: is wrong; use 2"
    changed = error.replaced("is absent", "add it").under("b")
    assert str(changed) == "b.a=[1,null]: is absent; add it" and error.problem == "is wrong"


def test_an_absolute_key_keeps_its_name():
    error = ConfigError("schedule.snr", True, "leaves no signal", absolute=True)
    assert str(error.under("diffusion")) == "schedule.snr=true: leaves no signal"
    assert str(pickle.loads(pickle.dumps(error)).under("diffusion")) == str(error)


@pytest.mark.parametrize(
    ("word", "names", "hint"),
    [
        ("max_step", ["min_steps", "max_steps"], "; did you mean 'max_steps'?"),
        ("zzz", ["b", "a", "b"], " (there are: a, b)"),
        ("zzz", [], ""),
    ],
)
def test_did_you_mean(word, names, hint):
    assert did_you_mean(word, iter(names)) == hint


def test_options_in_a_remedy_have_the_prefix_of_the_error():
    remedy = "set {color}=rgb or {color}=grey"
    error = ConfigError("color", "auto", "a{b}.png is grey", remedy)
    assert str(error) == "color=auto: a{b}.png is grey; set data.color=rgb or data.color=grey"
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
    assert str(error.under("data")) == f"data.{error}"
    renamed = error.renamed("samples", "x")
    assert str(renamed) == "samples=x: a{b}.png is grey; set color=rgb or color=grey"
    message = (
        "evaluation.samples=x: a{b}.png is grey; set evaluation.color=rgb or evaluation.color=grey"
    )
    assert str(renamed.under("evaluation")) == message
    path = ConfigError("path", "x", "no such folder", "set {path} to a folder")
    assert str(path.renamed("reference", "x")) == (
        "reference=x: no such folder; set reference to a folder"
    )
    plain = ConfigError("path", "{x}", "is {odd}").renamed("samples", "{x}")
    assert str(plain) == "samples={x}: is {odd}"


def test_many_names_are_shortened():
    assert shortened(["cat", "dog"]) == "cat, dog"
    assert shortened(range(12)) == "0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11"
    assert shortened(range(1000)) == "0, 1, 2, 3, 4, 5, 6, 7, 8, 9, ..., 999"
    assert shortened(["a\nb", "c" * 30]) == "a\\nb, ccccccccccccccccccccc..."
