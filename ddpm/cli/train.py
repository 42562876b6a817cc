"""``ddpm-train``: begin a run, or resume one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from ddpm.cli import app, invocation
from ddpm.config import values
from ddpm.errors import require

if TYPE_CHECKING:
    from pathlib import Path

    from ddpm.runs.request import Request
    from ddpm.trained import TrainedModel

Node = dict[str, Any]


def main() -> None:
    """Run the command."""
    app.main("train", _command)


def _command() -> app.Command:
    """Return the function below by its name in this module: launchers pickle it."""
    from ddpm.cli.train import train

    return train


def train(
    *,
    name: str | None,
    out: str,
    seed: int,
    resume: str | None,
    override: bool,
    init: Node,
    device: Literal["auto", "cpu", "cuda"],
    threads: int | Literal["auto"],
    plugins: list[str],
    data: Node,
    model: Node,
    schedule: Node,
    objective: Node,
    diffusion: Node,
    timesteps: Node,
    sampler: Node,
    trainer: Node,
    evaluation: Node,
) -> float | None:
    """Train; return the number that sweeps compare, see :class:`ddpm.runs.training.Outcome`."""
    from ddpm.runs import training

    request = _request(
        invocation.overrides(),
        invocation.choices(),
        name=name,
        out=out,
        resume=resume,
        override=override,
        init=init,
        plugins=plugins,
        job_folder=invocation.job_folder(),
        seed=seed,
        data=data,
        model=model,
        schedule=schedule,
        objective=objective,
        diffusion=diffusion,
        timesteps=timesteps,
        sampler=sampler,
        trainer=trainer,
        evaluation=evaluation,
    )
    return training.train(request, device=device, threads=threads).value


def train_model(config: Mapping[str, Any] | Sequence[str]) -> TrainedModel:
    """Train on this process, without a command line; see :func:`ddpm.train`."""
    from ddpm import trained
    from ddpm.cli.composition import compose
    from ddpm.cli.system_errors import converted
    from ddpm.config.registry import load_plugins, with_typed_classes
    from ddpm.config.schema import check
    from ddpm.runs import training

    options, overrides, choices = compose("train", config)
    launch = options.pop("launch")
    problem = "cannot start processes from Python; use ddpm-train, torchrun or accelerate launch"
    require(launch["processes"] in (1, "auto"), "launch.processes", launch["processes"], problem)
    options = check(options, train)
    load_plugins(options["plugins"])
    options |= with_typed_classes(options, set(map(values.option_key, overrides)))
    device, threads = options.pop("device"), options.pop("threads")
    request = _request(overrides, choices, **options)

    def work() -> TrainedModel:
        outcome = training.train(request, device=device, threads=threads)
        return trained.load(outcome.path, device=device)

    return converted(work, options)


def _request(
    overrides: Sequence[str],
    choices: Mapping[str, str],
    *,
    name: str | None,
    out: str,
    resume: str | None,
    override: bool,
    plugins: Sequence[str],
    job_folder: Path | None = None,
    **config: Any,
) -> Request:
    """Return the request of checked options; what is left of them is the config."""
    from ddpm.runs.request import Request

    return Request(
        config=config,
        name=name,
        out=out,
        resume=resume,
        override=override,
        overrides=tuple(overrides),
        job_folder=job_folder,
        label=choices["experiment"] or f"{choices['model']}-{choices['data']}",
        plugins=tuple(plugins),
    )


if __name__ == "__main__":
    main()
