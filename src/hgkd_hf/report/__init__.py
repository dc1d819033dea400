"""A run as one self-contained HTML page."""

from .page import REPORT_FILE, write_report
from .record import RunRecord

__all__ = ["REPORT_FILE", "RunRecord", "write_report"]
