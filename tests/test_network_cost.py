"""Network costs in docs/choosing.md equal those of scripts/network_cost.py."""

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


def test_multiplications_and_additions_are_counted():
    """The CIFAR-10 network of improved-diffusion has 50.3 GFLOP in the literature."""
    parameters, operations = cost(CASES[11])
    assert operations / 1e9 == pytest.approx(50.3, abs=0.05) and parameters == 52_546_438
