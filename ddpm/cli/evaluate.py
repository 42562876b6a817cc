"""``ddpm-evaluate``: numbers that say how good a model is, with what they depend on."""

from __future__ import annotations

from typing import Any, Literal

from ddpm.cli import app


def main() -> None:
    """The console script."""
    app.main("evaluate", lambda: evaluate)


def evaluate(
    *,
    ckpt: str | None,
    samples: str | None,
    metrics: list[str],
    extractor: dict[str, Any],
    reference: str | None,
    sampler: dict[str, Any],
    num_samples: int | None,
    num_images: int,
    steps: int | None,
    batch_size: int,
    seed: int,
    guidance: float,
    guidance_rescale: float,
    weights: Literal["ema", "raw"],
    cache: str | None,
    out: str | None,
    device: Literal["auto", "cpu", "cuda"],
    precision: Literal["no", "fp16", "bf16"],
    plugins: list[str],
) -> float:
    """Measure, and write ``evaluation.json`` and ``report.html``; returns the first number."""
    from ddpm.cli.evaluation import Asked, Evaluation

    asked = Asked(
        metrics=metrics,
        reference=reference,
        num_samples=num_samples,
        num_images=num_images,
        steps=steps,
        batch_size=batch_size,
        seed=seed,
        guidance=guidance,
        guidance_rescale=guidance_rescale,
        weights=weights,
        cache=cache,
        out=out,
    )
    todo = Evaluation.of(asked, ckpt, samples, extractor, sampler, device, precision)
    return todo.run()


if __name__ == "__main__":
    main()
