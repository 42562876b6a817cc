"""Upload of a checkpoint to the Hugging Face hub, with a model card."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ddpm import hub
from ddpm.config import paths
from ddpm.config.text import to_yaml
from ddpm.errors import require
from ddpm.evaluation import results
from ddpm.files import UNREADABLE
from ddpm.training import checkpoint as checkpoints
from ddpm.training.checkpoint import Checkpoint
from ddpm.version import __version__

FORMATS = ("safetensors", "diffusers")
CARD = "README.md"


def check_push(push: str | None, format: str) -> str | None:
    """Return the repository ``owner/name`` to upload to, or None.

    Raises:
        ConfigError: not the name of a repository, or a format that cannot be uploaded.
    """
    if push is None:
        return None
    problem = f"uploads format={' or '.join(FORMATS)} only"
    require(format in FORMATS, "push", push, problem)
    return hub.repository_of("push", push)


def upload(source: Checkpoint, repository: str, pipeline: Mapping[str, Any] | None) -> str:
    """Upload a checkpoint and return the address of its repository.

    Args:
        source: the checkpoint.
        repository: ``owner/name``.
        pipeline: files of a pipeline of diffusers, bytes by name; None uploads the checkpoint in
            the layout of a run, with averaged and raw weights, without the state of the optimizer.

    Raises:
        ConfigError: the upload failed.
    """
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if pipeline is None:
            _write_run(source, folder)
        for name, content in (pipeline or {}).items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        (folder / CARD).write_text(card(source, repository, pipeline is not None), encoding="utf-8")
        return hub.upload(folder, repository, f"Step {source.step}", key="push")


def _write_run(source: Checkpoint, folder: Path) -> None:
    """Write a run folder with the checkpoint; training resumes from it with a new optimizer."""
    config = _public(source.config)
    (folder / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
    checkpoints.save(
        folder / checkpoints.FOLDER,
        replace(source.metadata, config=config),
        raw=source.weights("raw"),
        ema=source.weights("ema"),
        state=checkpoints.state_without_training(source.step),
    )


def _public(value: Any) -> Any:
    """Return plain data in which absolute paths, places of this machine, are names of files."""
    if isinstance(value, Mapping):
        return {key: _public(each) for key, each in value.items() if key != paths.TYPED}
    if isinstance(value, list | tuple):
        return [_public(each) for each in value]
    return Path(value).name if isinstance(value, str) and value.startswith("/") else value


def card(source: Checkpoint, repository: str, pipeline: bool) -> str:
    """Return the model card: what the checkpoint records, and nothing else.

    Args:
        source: the checkpoint.
        repository: ``owner/name``.
        pipeline: True for a pipeline of diffusers.
    """
    library = "diffusers" if pipeline else "ddpm"
    return "\n".join(
        [
            "---",
            f"library_name: {library}",
            "tags: [diffusion, ddpm]",
            "---",
            f"# {repository.partition('/')[2]}",
            "",
            f"A denoising diffusion model, exported by ddpm {__version__} at step {source.step}.",
            "",
            *_sampling(repository, pipeline),
            *_training(source),
            *_metrics(source),
        ]
    )


def _sampling(repository: str, pipeline: bool) -> list[str]:
    """Return the section on sampling."""
    code = (
        [
            "```python",
            "from diffusers import DDPMPipeline",
            "",
            f'images = DDPMPipeline.from_pretrained("{repository}")().images',
            "```",
        ]
        if pipeline
        else ["```bash", f"ddpm-sample ckpt=hf://{repository}", "```"]
    )
    return ["## Sampling", "", *code, ""]


def _training(source: Checkpoint) -> list[str]:
    """Return the sections on the data and the recipe."""
    metadata, config = source.metadata, _public(source.config)
    shape = "x".join(map(str, metadata.data.get("shape", []))) or "unknown"
    classes = metadata.data.get("num_classes")
    data = [f"- items of shape {shape} (channels first)"]
    if metadata.num_samples is not None:
        data.append(f"- {metadata.num_samples:,} items for training")
    data.append("- no classes" if classes is None else f"- {classes} classes")
    if metadata.came is not None:
        data.append(
            f"- weights imported from {metadata.came.get('source')} "
            f"({metadata.came.get('file')}); their training data are not recorded"
        )
    if metadata.average is not None:
        profile = f"sigma_rel={metadata.average.get('sigma_rel')}"
        data.append(f"- weights averaged after the training by a power function, {profile}")
    recipe = {
        key: config[key]
        for key in ("data", "model", "schedule", "objective", "diffusion", "timesteps", "trainer")
        if key in config
    }
    return [
        "## Data",
        "",
        *data,
        "",
        "## Recipe",
        "",
        f"{source.step} optimizer steps with this config:",
        "",
        "```yaml",
        to_yaml(recipe).rstrip(),
        "```",
        "",
    ]


def _metrics(source: Checkpoint) -> list[str]:
    """Return the section on metrics with their provenance, if the checkpoint was evaluated."""
    rows = list(_measured(source.folder))
    if not rows:
        return ["## Metrics", "", "This checkpoint was not evaluated.", ""]
    table = ["| metric | value | provenance |", "|---|---|---|", *rows]
    return ["## Metrics", "", "Measured during training.", "", *table, ""]


def _measured(folder: Path) -> Iterator[str]:
    """Yield a row per metric of the evaluation of a checkpoint."""
    try:
        metrics, _, _ = results.read(folder)
    except UNREADABLE:
        return
    for metric in metrics:
        provenance = json.dumps(_public(metric.provenance), default=str).replace("|", "\\|")
        yield f"| {metric.name} | {metric.value:.6g} | `{provenance}` |"
