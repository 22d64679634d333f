"""Images as they are evaluated."""

from typing import Any

from detectron2.data import DatasetMapper

from proscale.data.image_file import naming_faults


class EvaluationMapper(DatasetMapper):
    """Detectron2's, for the image alone: evaluators read the truth themselves."""

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        """
        Raises:
            FileNotFoundError: the image is not there.
            ValueError: the image cannot be read; names the file.
        """
        entry = {key: value for key, value in dataset_dict.items() if key != "sem_seg_file_name"}
        with naming_faults(entry["file_name"]):
            return super().__call__(entry)
