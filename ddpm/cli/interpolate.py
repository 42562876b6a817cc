"""``ddpm-interpolate``: the frames between two items, or two seeds."""

from __future__ import annotations

from typing import Any, Literal

from ddpm.cli import app
from ddpm.console import info_once, warn_once
from ddpm.errors import require


def main() -> None:
    """Run the console script."""
    app.main("interpolate", lambda: interpolate)


def interpolate(
    *,
    ckpt: str,
    a: int | str,
    b: int | str,
    t: int | None,
    num_frames: int,
    mode: Literal["slerp", "linear", "ddim"],
    sampler: dict[str, Any],
    batch_size: int,
    seed: int,
    classes: list[int | str] | int | str | None,
    guidance: float,
    guidance_rescale: float,
    weights: Literal["ema", "raw"],
    out: str | None,
    device: Literal["auto", "cpu", "cuda"],
    threads: int | Literal["auto"],
    precision: Literal["no", "fp16", "bf16"],
    plugins: list[str],
) -> None:
    """Draw the frames and write them, with a strip that shows all of them."""
    from ddpm import generation
    from ddpm.drawing import Trained, label
    from ddpm.trajectory import on_step

    require(num_frames >= 2, "num_frames", num_frames, "must be at least 2, the two ends")
    require(batch_size >= 1, "batch_size", batch_size, "must be at least 1")
    trained = Trained.load(ckpt, weights, device, precision)
    codec, ends = trained.codec, (trained.end("a", a), trained.end("b", b))
    for path in (end for end in (a, b) if isinstance(end, str)):
        warn_once(trained.accelerator, codec.file_warnings(path))
    t, pair = trained.noised_to(t, ends, mode), trained.class_pair(classes)
    pipeline = trained.pipeline(sampler, guidance=guidance, guidance_rescale=guidance_rescale)
    generation.check_mode(pipeline, ends, mode)
    formats = [codec.default_format, *codec.extra_formats]
    with trained.writing(
        "interpolate",
        [*codec.file_names(formats, num_frames), "strip.png"],
        out=out,
        default=f"interpolation-{label(sampler)}-t-{t}-{mode}-seed-{seed}",
        samples=codec.output_names(formats),
    ) as folder:
        info_once(trained.accelerator, f"drawing {num_frames} frames from t={t} into {folder.path}")
        rounds = -(-num_frames // batch_size)
        if mode == "ddim":
            rounds += (generation.REFINE + 1) * sum(not isinstance(end, int) for end in ends)
        total, size = rounds * pipeline.num_calls(t), min(batch_size, num_frames)
        trained.use_threads(threads, lambda: trained.trial(pipeline, total, size, pair))
        with trained.progress(total, "interpolating") as bar:
            options = {"mode": mode, "seed": seed, "batch_size": batch_size, "classes": pair}
            options |= {"t": t, "num_frames": num_frames, "on_step": on_step(bar)}
            frames = generation.interpolate(pipeline, ends, **options)
        if trained.accelerator.is_main_process:
            for each in formats:
                codec.write(frames, folder.aside, format=each)
            codec.picture(frames, columns=num_frames).save(folder.aside / "strip.png")
            if mode == "ddim":
                _report_ends(trained, ends, frames)
    info_once(trained.accelerator, f"done: {folder.path} (look at strip.png)")
    trained.accelerator.end_training()


def _report_ends(trained: Any, ends: tuple[Any, Any], frames: Any) -> None:
    """Print the error of the reconstruction of each end that is a file."""
    codec = trained.facts.codec
    for key, end, frame in zip("ab", ends, (frames[0], frames[-1]), strict=True):
        if not isinstance(end, int):
            x, y = (codec.encode(raw.unsqueeze(0)) for raw in (end, frame))
            error = float((x - y).square().mean().sqrt()) / 2
            info_once(trained.accelerator, f"{key} came back within {error:.2%} of the range (rms)")


if __name__ == "__main__":
    main()
