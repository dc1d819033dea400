"""A run as one self-contained HTML page, and its pictures for trackers."""

from .drawing import draw_evaluation
from .page import REPORT_FILE, write_report
from .record import RunRecord
from .trackers import settle_trackers

__all__ = ["REPORT_FILE", "RunRecord", "draw_evaluation", "settle_trackers", "write_report"]
