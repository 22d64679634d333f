"""Types that many modules share."""

Size = tuple[int, int]
"""(height, width), pixels or cells."""
