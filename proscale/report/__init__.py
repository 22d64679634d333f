"""From the folder of a training to one HTML page that shows how it went."""

from proscale.report.page import write_report
from proscale.report.run_folder import NotARun

__all__ = ["NotARun", "write_report"]
