"""Build the wheel, install it away from the checkout, and use it from an empty folder.

The new environment borrows the dependencies of the running one through a ``.pth`` file. Python
does not follow the ``.pth`` files of a borrowed folder, so the editable install stays behind and
the wheel's own files run, which the check verifies.

    .venv/bin/python scripts/check_wheel.py
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
COMMANDS = {
    "train": "train",
    "sample": "sample",
    "interpolate": "interpolate",
    "evaluate": "evaluate",
    "average": "average",
    "import": "importing",
    "export": "exporting",
}
TRAIN = ["name=wheel", "trainer.max_steps=2", "trainer.batch_size=4", "trainer.preview_samples=4"]
MORE = [
    *("resume=outputs/wheel", "trainer.max_steps=3", "launch.processes=2", "device=cpu"),
    "trainer.posthoc_ema=[0.05,0.1]",
]
RECIPE = ["experiment=digits", *TRAIN[1:], "name=recipe"]
SWEEP = ["-m", *TRAIN[1:], "name=sweep", "seed=1,2"]
SAMPLE = ["ckpt=outputs/wheel", "num_samples=2", "steps=2"]
INTERPOLATE = ["ckpt=outputs/wheel", "a=1", "b=2", "steps=2"]
EVALUATE = ["ckpt=outputs/wheel", "extractor=pixels", "num_samples=4", "steps=2"]
AVERAGE = ["ckpt=outputs/wheel", "sigma_rel=0.1"]
EXPORT = ["ckpt=outputs/wheel", "format=denoising-diffusion-pytorch", "out=net.pt"]
IMPORT = [
    *("source=denoising-diffusion-pytorch", "file=net.pt", "size=8", "name=back"),
    *("network.attn_heads=2", "network.attn_dim_head=16"),
]


def run(command: list[str | Path], folder: Path) -> str:
    """Run ``command`` in ``folder`` and return its standard output; exit if it fails."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    ended = subprocess.run(
        [str(word) for word in command], cwd=folder, env=environment, text=True, capture_output=True
    )
    print(
        f"{'ok  ' if ended.returncode == 0 else 'FAIL'} {' '.join(map(str, command))}", flush=True
    )
    if ended.returncode != 0:
        sys.exit(f"{ended.stdout}\n{ended.stderr}")
    return ended.stdout


def build(folder: Path) -> Path:
    """Build the source archive and, from that one, the wheel, as an upload would."""
    run([sys.executable, "-m", "build", "--outdir", folder, ROOT], folder)
    (wheel,) = folder.glob("*.whl")
    return wheel


def check_files(wheel: Path) -> None:
    """Exit unless the wheel has every source and every config, and nothing else."""
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    sources = {
        file.relative_to(ROOT).as_posix()
        for folder in ("ddpm", "hydra_plugins")
        for pattern in ("*.py", "*.j2", "*.css")
        for file in (ROOT / folder).rglob(pattern)
    }
    configs = {
        f"ddpm/{file.relative_to(ROOT).as_posix()}" for file in (ROOT / "configs").rglob("*.yaml")
    }
    if wrong := packed ^ (sources | configs):
        sys.exit(f"FAIL files that are not in both the checkout and the wheel: {sorted(wrong)}")
    print(f"ok   {wheel.name}: {len(sources)} sources, {len(configs)} configs")


def install(wheel: Path, folder: Path) -> Path:
    """Install the wheel with borrowed dependencies; return the folder of programs."""
    venv.create(folder, with_pip=True)
    programs = folder / ("Scripts" if os.name == "nt" else "bin")
    run([programs / "python", "-m", "pip", "install", "-q", "--no-deps", wheel], folder)
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site_packages = Path(run([programs / "python", "-c", code], folder).strip())
    borrowed = dict.fromkeys(sysconfig.get_path(name) for name in ("purelib", "platlib"))
    (site_packages / "borrowed.pth").write_text("\n".join(borrowed) + "\n")
    return programs


def use(programs: Path, folder: Path) -> None:
    """Run every command: its help, its config, and two steps of its work."""
    code = "import ddpm; print(ddpm.__file__)"
    origin = Path(run([programs / "python", "-c", code], folder).strip())
    if programs.parent.resolve() not in origin.resolve().parents:
        sys.exit(f"FAIL ddpm comes from {origin}, not from the wheel")
    for command, module in COMMANDS.items():
        run([programs / f"ddpm-{command}", "--help"], folder)
        run([programs / "python", "-m", f"ddpm.cli.{module}", "--cfg", "job"], folder)
    for options in (TRAIN, MORE, RECIPE, SWEEP):
        run([programs / "ddpm-train", *options], folder)
    run([programs / "ddpm-sample", *SAMPLE], folder)
    run([programs / "ddpm-interpolate", *INTERPOLATE], folder)
    run([programs / "ddpm-evaluate", *EVALUATE], folder)
    run([programs / "ddpm-average", *AVERAGE], folder)
    run([programs / "ddpm-export", *EXPORT], folder)
    run([programs / "ddpm-import", *IMPORT], folder)
    if not list(folder.glob("outputs/wheel/**/*.png")):
        sys.exit("FAIL no picture in outputs/wheel")


def main() -> None:
    """Check the wheel; the exit status is 1 if something does not work."""
    with tempfile.TemporaryDirectory(prefix="ddpm-wheel-") as name:
        folder = Path(name)
        for part in ("dist", "empty"):
            (folder / part).mkdir()
        wheel = build(folder / "dist")
        check_files(wheel)
        use(install(wheel, folder / "venv"), folder / "empty")
    print("the wheel works")


if __name__ == "__main__":
    main()
