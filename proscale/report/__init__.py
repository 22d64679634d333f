"""From the folder of a training to one HTML page that shows how it went."""

from proscale.errors import RunFolderError
from proscale.report.page import write_report

__all__ = ["RunFolderError", "write_report"]
