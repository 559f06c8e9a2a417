"""What a run leaves behind: its files, its TensorBoard events and the page that shows both."""

from tlx.report.events import EventWriter
from tlx.report.folder import MetricsLog, read_json, write_json
from tlx.report.page import write_report

__all__ = ['EventWriter', 'MetricsLog', 'read_json', 'write_json', 'write_report']
