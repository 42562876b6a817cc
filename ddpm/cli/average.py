"""``ddpm-average``: averages of the weights of other lengths, after the training."""

from __future__ import annotations

from ddpm.cli import app


def main() -> None:
    """Run the console script."""
    app.main("average", lambda: average)


def average(
    *,
    ckpt: str,
    sigma_rel: float | list[float],
    step: int | None,
    max_error: float,
    out: str | None,
    plugins: list[str],
) -> None:
    """Write a run per profile, for all commands that take a checkpoint."""
    from ddpm.console import info
    from ddpm.runs.averaging import average_runs

    sigma_rels = sigma_rel if isinstance(sigma_rel, list) else [sigma_rel]
    for folder in average_runs(ckpt, sigma_rels, step=step, max_error=max_error, out=out):
        info(f"done: {folder}\nsample it with: ddpm-sample ckpt={folder}")


if __name__ == "__main__":
    main()
