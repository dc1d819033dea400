"""A run as one self-contained HTML page."""

from .drawing import draw_evaluation
from .page import REPORT_FILE, write_report
from .record import RunRecord

__all__ = ["REPORT_FILE", "RunRecord", "draw_evaluation", "write_report"]
