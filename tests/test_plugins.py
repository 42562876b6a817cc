"""Plugins: the named modules of the current folder can be imported, others cannot."""

import importlib
import sys

import pytest

from ddpm import plugins
from ddpm.config.registry import build, load_plugins, retargeted
from ddpm.errors import ConfigError


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Current folder, which is not on ``sys.path``."""
    monkeypatch.chdir(tmp_path)
    before = set(sys.modules)
    yield tmp_path
    load_plugins([])
    for name in set(sys.modules) - before:
        if name.partition(".")[0].endswith("_for_a_plugin_test"):
            del sys.modules[name]


def error_of(modules):
    with pytest.raises(ConfigError) as raised:
        plugins.load(modules)
    return str(raised.value)


def test_a_module_and_a_package_in_the_current_folder(folder):
    (folder / "one_for_a_plugin_test.py").write_text("__all__ = ['A']\nclass A: pass\n")
    package = folder / "two_for_a_plugin_test"
    package.mkdir()
    (package / "__init__.py").write_text("from .inner import B\n__all__ = ['B']\n")
    (package / "inner.py").write_text("class B: pass\n")
    path = list(sys.path)
    one, two = plugins.load(["one_for_a_plugin_test", "two_for_a_plugin_test"])
    assert one.A.__module__ == "one_for_a_plugin_test"
    assert two.B.__module__ == "two_for_a_plugin_test.inner"
    assert sys.path == path and str(folder) not in path and "" not in path


def test_other_modules_of_the_folder_cannot_be_imported(folder):
    (folder / "one_for_a_plugin_test.py").write_text("__all__ = []\n")
    (folder / "other_for_a_plugin_test.py").write_text("__all__ = []\n")
    plugins.load(["one_for_a_plugin_test"])
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("other_for_a_plugin_test")
    (folder / "third_for_a_plugin_test.py").write_text("import other_for_a_plugin_test\n")
    line = error_of(["third_for_a_plugin_test"])
    assert line.endswith("install what it imports, or add the folder of that to PYTHONPATH")
    assert plugins.load(["other_for_a_plugin_test"])[0].__name__ == "other_for_a_plugin_test"


def test_installed_modules_precede_those_of_the_folder(folder):
    (folder / "graphlib.py").write_text("__all__ = ['Mine']\nclass Mine: pass\n")
    (module,) = plugins.load(["graphlib"])
    assert not hasattr(module, "Mine")


@pytest.mark.parametrize(
    ("name", "content", "line"),
    [
        ("none_for_a_plugin_test", None, "cannot import none_for_a_plugin_test (No module named "
         "'none_for_a_plugin_test'); run the command in the folder of none_for_a_plugin_test.py, "
         "or add that folder to PYTHONPATH"),
        ("bare_for_a_plugin_test", "", "bare_for_a_plugin_test has no __all__; list the classes "
         "there that configs may name ({folder}/bare_for_a_plugin_test.py)"),
        ("bad_for_a_plugin_test", "1 +\n", "cannot import bad_for_a_plugin_test (SyntaxError: "
         "invalid syntax (bad_for_a_plugin_test.py, line 1)); correct the module"),
        ("my/file_for_a_plugin_test.py", None, "names a file; name the module: "
         "my.file_for_a_plugin_test"),
    ],
)  # fmt: skip
def test_errors(folder, name, content, line):
    if content is not None:
        (folder / f"{name}.py").write_text(content)
    assert error_of([name]) == f"plugins=[{name}]: {line.format(folder=folder)}"


def test_a_typed_class_drops_options_of_the_replaced_class(folder):
    name = "own_for_a_plugin_test"
    (folder / f"{name}.py").write_text(
        "from ddpm.samplers import DDIM\n__all__ = ['Own']\nclass Hidden(DDIM): pass\n"
        "class Own(DDIM):\n    def __init__(self, *, steps: int | None = None): pass\n"
    )
    node = {"_target_": f"{name}.Own", "steps": 3, "eta": 0.0, "clip": "static"}
    with pytest.raises(ConfigError, match=rf"or by a plugin; add plugins=\[{name}\]$"):
        retargeted(node, "sampler", {"sampler._target_"})
    load_plugins([name])
    fitted = retargeted(node, "sampler", {"sampler._target_"})
    assert fitted == {"_target_": f"{name}.Own", "steps": 3}
    assert type(build(fitted, "sampler")).__name__ == "Own"
    fitted = retargeted(node, "sampler", {"sampler._target_", "sampler.eta"})
    with pytest.raises(ConfigError, match=r"^sampler.eta=0.0: unknown option"):
        build(fitted, "sampler")
    node["_target_"] = f"{name}.Hidden"
    with pytest.raises(ConfigError, match=f"is not a class in the __all__ of {name}; add it there"):
        retargeted(node, "sampler", set())
