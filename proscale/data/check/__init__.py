"""Looks at every image and mask of a data set before hours of training are spent on it."""

from proscale.data.check.report import as_document, histogram, summary
from proscale.data.check.run import Report, check_datasets

__all__ = ["Report", "as_document", "check_datasets", "histogram", "summary"]
