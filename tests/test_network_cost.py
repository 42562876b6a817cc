"""docs/choosing.md has the numbers of scripts/network_cost.py."""

from pathlib import Path

import pytest

from scripts.network_cost import CASES, cost

PAGE = Path(__file__).resolve().parent.parent / "docs" / "choosing.md"


@pytest.mark.parametrize("case", [CASES[1], CASES[3], CASES[11]], ids=["cpu", "unet", "iddpm_unet"])
def test_the_page_has_the_cost_of_a_network(case):
    parameters, operations = cost(case)
    row = next(
        line for line in PAGE.read_text().splitlines()
        if line.startswith(f"| {case.options} | {'x'.join(map(str, case.shape))} |")
    )  # fmt: skip
    assert row.endswith(f"| {parameters / 1e6:.1f} M | {operations / 1e9:.1f} |")


def test_a_convolution_is_counted_as_a_multiplication_and_an_addition():
    """Of improved-diffusion's CIFAR-10 network the field counts 50.3 GFLOP, both ways."""
    parameters, operations = cost(CASES[11])
    assert operations / 1e9 == pytest.approx(50.3, abs=0.05) and parameters == 52_546_438
