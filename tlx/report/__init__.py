"""The output of a run: its files, TensorBoard events and the HTML report."""

from tlx.report.events import EventWriter
from tlx.report.folder import MetricsLog, read_json, write_json
from tlx.report.page import write_report

__all__ = ['EventWriter', 'MetricsLog', 'read_json', 'write_json', 'write_report']
