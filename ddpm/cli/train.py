"""``ddpm-train``: begin a run, or resume one."""

from __future__ import annotations

from typing import Any, Literal

from ddpm.cli import app, invocation

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
    from ddpm.runs.request import Request

    config = {
        "seed": seed,
        "data": data,
        "model": model,
        "schedule": schedule,
        "objective": objective,
        "diffusion": diffusion,
        "timesteps": timesteps,
        "sampler": sampler,
        "trainer": trainer,
        "evaluation": evaluation,
    }
    groups = invocation.choices()
    request = Request(
        config=config,
        name=name,
        out=out,
        resume=resume,
        override=override,
        overrides=tuple(invocation.overrides()),
        job_folder=invocation.job_folder(),
        label=f"{groups['model']}-{groups['data']}",
    )
    return training.train(request, device=device, threads=threads).value


if __name__ == "__main__":
    main()
