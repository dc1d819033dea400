"""A run as one self-contained HTML page, and its pictures for trackers."""

from .callback import ReportCallback
from .page import REPORT_FILE, write_report
from .record import RunRecord

__all__ = ["REPORT_FILE", "ReportCallback", "RunRecord", "write_report"]
