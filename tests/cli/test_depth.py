"""A model of 16-bit pictures, from the folder to the evaluation."""

import json
from pathlib import Path

import numpy as np
from PIL import Image


def values(folder):
    return {
        x["name"]: x["value"]
        for x in json.loads(Path(folder, "evaluation.json").read_text())["metrics"]
    }


def test_sixteen_bit_pictures_in_every_command(command, tiny):
    Path("imgs").mkdir()
    for number in range(12):
        levels = np.random.default_rng(number).integers(0, 4096, (8, 8)).astype(np.uint16)
        Image.fromarray(levels).save(f"imgs/{number:02}.png")
    options = ("data=folder", "data.path=imgs", "trainer.max_steps=1", *tiny)
    ended = command("train", "name=dark", *options)
    assert ended.status == 0, ended.err
    (warning,) = [x for x in ended.err.splitlines() if x.startswith("warning: ")]
    assert warning.startswith("warning: imgs: the values of the 16-bit pictures lie between ")
    assert warning.endswith("from 0 to 65535; set data.high=4095 to use all of it")
    ended = command("train", "name=a", "data.high=4095", *options)
    assert ended.status == 0 and "warning" not in ended.err, ended.err
    few = ("steps=2", "num_samples=12")
    ended = command("sample", "ckpt=outputs/a", "out=s", "trajectory=true", *few)
    assert ended.status == 0, ended.err
    with Image.open("s/images/00003.png") as image:
        assert image.mode == "I;16" and np.asarray(image).max() <= 4095
    pixels = ("extractor=pixels", "metrics=[fid]")
    ended = command("evaluate", "ckpt=outputs/a", "out=model", *few, *pixels)
    assert ended.status == 0, ended.err
    folders = ("samples=s/images", "reference=imgs", "high=4095", "out=folders")
    ended = command("evaluate", *folders, *pixels)
    assert ended.status == 0, ended.err
    assert values("folders") == values("model")
    ended = command("evaluate", *folders[:2], "out=dark", *pixels)
    assert "set high=4095 to use all of it" in ended.err
    ends = ("a=imgs/00.png", "b=s/images/00000.png", "t=0", "num_frames=2", "out=i")
    ended = command("interpolate", "ckpt=outputs/a", *ends)
    assert ended.status == 0, ended.err
    ended = command("train", "name=a", *options)
    assert ended.status == 1 and "data.high (4095 there, null here)" in ended.line
