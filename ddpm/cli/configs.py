"""The config files: where they are, and what --help says of them."""

from __future__ import annotations

import re

from ddpm.config.location import config_dir


def usage(config_name: str) -> str:
    """The text of ``--help``: the root config, which explains itself, and what the groups hold."""
    place = config_dir()
    lines = (place / f"{config_name}.yaml").read_text(encoding="utf-8").splitlines()
    about = [line.removeprefix("# ") for line in lines if line.startswith("#")]
    groups = {name for line in lines if (name := line.strip(" -").partition(":")[0])}
    parts = [
        f"  {folder.name}={'|'.join(sorted(path.stem for path in folder.glob('*.yaml')))}"
        for folder in sorted(place.iterdir())
        if folder.name in groups and folder.is_dir()
    ]
    options = [f"  {line}" for line in lines if re.match(r"[a-z]\w*: ", line)]
    return "\n".join(
        [
            f"usage: ddpm-{config_name} [option=value | group=choice | group.option=value] ...",
            "",
            *about,
            "",
            "groups, and the choices in them:",
            *parts,
            "",
            "options at their defaults:",
            *options,
            "",
            "--cfg job shows all options of the groups as composed; -m runs a sweep over values",
            "given with commas; --hydra-help lists the flags of Hydra.",
        ]
    )
