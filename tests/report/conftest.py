"""Fixtures that write pages."""

import pytest

from ddpm.report.pages import write_comparison, write_report
from tests.report.cases import Page


@pytest.fixture
def single_page(tmp_path):
    """Return a function that writes a report and parses its page."""

    def write(report):
        write_report(tmp_path / "of" / "report.html", report)
        return Page(tmp_path / "of" / "report.html")

    return write


@pytest.fixture
def comparison_page(tmp_path):
    """Return a function that writes a comparison of reports and parses its page."""

    def write(reports, **options):
        write_comparison(tmp_path / "report.html", reports, **options)
        return Page(tmp_path / "report.html")

    return write
