"""Keeps the files that an annotation file names inside the folder that it belongs to.

Annotation files come from elsewhere; a ``file_name`` of ``../../.ssh/id_rsa`` in one of them would
otherwise be opened, and a prediction be written beside it. Links are followed: they are made on
the machine, by data managers for every single image.
"""

import os
from typing import Any

from proscale.errors import DataError, shown


class DataFolder:
    """A folder whose files are named by an annotation file.

    Args:
        root: the folder.
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self._root = os.fspath(root)

    def file(self, name: Any, where: str) -> str:
        """The path of the file ``name``, which need not be there.

        Args:
            name: relative to the folder.
            where: the file and entry that has the name, for the message.

        Raises:
            DataError: ``name`` is no text, or is a path that leaves the folder.
        """
        if not isinstance(name, str) or not name or "\0" in name:
            raise DataError(f"{where} is {shown(name)}: expected the name of a file")
        if os.path.isabs(name) or ".." in name.replace("\\", "/").split("/"):
            raise DataError(
                f"{where} is {shown(name)}, which leaves {self._root}: expected names of files "
                "in that folder, without '..'"
            )
        return os.path.join(self._root, name)
