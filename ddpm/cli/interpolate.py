"""``ddpm-interpolate``: frames between two items, or two seeds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from ddpm.cli import app
from ddpm.console import info_once, warn_once
from ddpm.errors import require
from ddpm.guidance import GuidanceArguments
from ddpm.model_arguments import ModelArguments

if TYPE_CHECKING:
    from torch import Tensor

    from ddpm.runs.session import Session


def main() -> None:
    """Run the console script."""
    app.main("interpolate", lambda: Interpolate)


@dataclass(frozen=True, kw_only=True)
class Interpolate(GuidanceArguments, ModelArguments):
    """Options of the command; a call draws the frames and writes them."""

    ckpt: str
    a: int | str
    b: int | str
    t: int | None
    num_frames: int
    mode: Literal["slerp", "linear", "ddim"]
    sampler: dict[str, Any]
    batch_size: int
    seed: int
    classes: list[int | str] | int | str | None
    out: str | None

    def __call__(self) -> None:
        """Compute the frames and write them with a strip of all."""
        from ddpm import generation
        from ddpm.runs.session import Session, sampler_name
        from ddpm.runs.tuning import Work, tune
        from ddpm.trajectory import on_step

        count, size, mode = self.num_frames, self.batch_size, self.mode
        require(count >= 2, "num_frames", count, "must be at least 2, the two ends")
        require(size >= 1, "batch_size", size, "must be at least 1")
        session = Session.load(self.ckpt, self.weights, self.device, self.precision)
        codec, inputs = session.model.codec, session.model.inputs
        ends = _ends(session, self.a, self.b)
        t, pair = inputs.timestep(self.t, ends, mode), inputs.class_pair(self.classes)
        pipeline = session.model.pipeline(self.sampler, guidance=self.guidance_options)
        generation.check_mode(pipeline, ends, mode)
        total, frames_per_call = _num_calls(pipeline.num_calls(t), count, size, ends, mode)
        formats = [codec.default_format, *codec.extra_formats]
        with session.writing(
            "interpolate",
            [*codec.file_names(formats, count), "strip.png"],
            out=self.out,
            default=f"interpolation-{sampler_name(self.sampler)}-t-{t}-{mode}-seed-{self.seed}",
            samples=codec.output_names(formats),
        ) as folder:
            info_once(session.accelerator, f"drawing {count} frames from t={t} into {folder.path}")
            work = Work(pipeline, total, frames_per_call, pair)
            tune(session, work, threads=self.threads, compile=self.compile)
            with session.progress(total, "interpolating") as bar:
                frames = generation.interpolate(
                    pipeline, ends, t=t, num_frames=count, mode=mode, seed=self.seed,
                    batch_size=size, classes=pair, on_step=on_step(bar),
                )  # fmt: skip
            if session.accelerator.is_main_process:
                for format in formats:
                    codec.write(frames, folder.aside, format=format)
                codec.picture(frames, columns=count).save(folder.aside / "strip.png")
                if mode == "ddim":
                    _report_reconstruction(session, ends, frames)
        info_once(session.accelerator, f"done: {folder.path} (look at strip.png)")
        session.accelerator.end_training()


def _ends(session: Session, a: int | str, b: int | str) -> tuple[Tensor | int, Tensor | int]:
    """Return both ends, seeds or raw data, and print the warnings about their files."""
    inputs = session.model.inputs
    ends = inputs.end("a", a), inputs.end("b", b)
    for path in (a, b):
        if isinstance(path, str):
            warn_once(session.accelerator, session.model.codec.file_warnings(path))
    return ends


def _num_calls(
    calls: int, num_frames: int, batch_size: int, ends: tuple[Tensor | int, ...], mode: str
) -> tuple[int, int]:
    """Return the number of network calls, and of frames per call.

    Args:
        calls: network calls per trajectory.
        num_frames: number of frames.
        batch_size: frames at once.
        ends: seeds or raw data.
        mode: of the interpolation; ``ddim`` inverts the ends that are data.
    """
    from ddpm.generation import REFINE

    trajectories = -(-num_frames // batch_size)
    if mode == "ddim":
        trajectories += (REFINE + 1) * sum(not isinstance(end, int) for end in ends)
    return trajectories * calls, min(batch_size, num_frames)


def _report_reconstruction(
    session: Session, ends: tuple[Tensor | int, Tensor | int], frames: Tensor
) -> None:
    """Print the distance of the first and last frame from the ends that are data."""
    codec = session.model.codec
    for key, end, frame in zip("ab", ends, (frames[0], frames[-1]), strict=True):
        if not isinstance(end, int):
            x, y = (codec.encode(raw.unsqueeze(0)) for raw in (end, frame))
            rms = float((x - y).square().mean().sqrt()) / 2
            error = f"reconstruction error {rms:.2%} of the range (RMS)"
            info_once(session.accelerator, f"{key}: {error}")


if __name__ == "__main__":
    main()
