"""Names of the options of a command, read from the files, beside those that Hydra composes."""

from itertools import zip_longest

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from ddpm.config.comments import Groups, read
from ddpm.config.location import config_dir

INNER = {"evaluation": ["sampler@evaluation.sampler", "extractor@evaluation.extractor"]}


def cases():
    """Yield commands with choices, so that each choice of each group is made once."""
    groups = Groups()
    for command in ("train", "sample", "interpolate", "evaluate", "import", "export"):
        yield command, ()
        names = [each.key for each in read(config_dir() / f"{command}.yaml").groups]
        if command in ("train", "evaluate", "import"):
            names += [name for group in names for name in INNER.get(group, [])]
            others = [name for name in names if name != "experiment"]
            choices = [[f"{name}={each}" for each in groups.choices(name)] for name in others]
            for together in zip_longest(*choices):
                yield command, tuple(each for each in together if each is not None)
        if "experiment" in names:
            for recipe in groups.choices("experiment"):
                yield command, (f"experiment={recipe}",)


def composed(command, choices):
    """Return the names of the options in Hydra's composition."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(config_dir=str(config_dir()), version_base="1.3"):
        return set(paths(OmegaConf.to_container(compose(command, overrides=list(choices)))))


def paths(node, prefix=""):
    for key, value in node.items():
        yield f"{prefix}{key}"
        if isinstance(value, dict):
            yield from paths(value, f"{prefix}{key}.")


@pytest.mark.parametrize(("command", "choices"), list(cases()))
def test_names_are_those_of_the_composition(command, choices):
    typed = dict(each.split("=") for each in choices)
    names = Groups().keys(read(config_dir() / f"{command}.yaml"), typed)
    assert len(names) == len(set(names))
    assert set(names) == composed(command, choices)
