"""Many runs at a glance: a page that needs nothing but itself, and a table for other programs."""

from doodl_cli.report.collect import Row, collect, find_runs
from doodl_cli.report.page import draw_page
from doodl_cli.report.results import write_results

__all__ = ["Row", "collect", "draw_page", "find_runs", "write_results"]
