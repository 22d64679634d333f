"""Published weights by name.

None of these files could be opened when the list was written: addresses and figures are those that
their authors give, and the code that reads them is tested on files of the same form.
"""

from typing import NamedTuple


class PublishedModel(NamedTuple):
    """Weights that others have trained and published.

    Attributes:
        source: ``hf://OWNER/NAME``, or the address of a file.
        config: name of the configuration of the model, and ``overrides`` on top. A repository has
            a configuration of its own, which counts there.
        task, dataset, backbone: for people.
        figure: what its authors report, of one scale.
        paper: where they do.
        sha256: digest of the file; empty where it is not known.
    """

    source: str
    config: str
    task: str
    dataset: str
    backbone: str
    figure: str
    paper: str
    overrides: tuple[str, ...] = ()
    sha256: str = ""


_M2F, _SEGFORMER = "Mask2Former, CVPR 2022", "SegFormer, NeurIPS 2021"
_META = "https://dl.fbaipublicfiles.com/maskformer/mask2former/coco/"
LICENCE = "of the authors, see the source"


def _segformer(variant: str, dataset: str, repository: str, miou: float) -> PublishedModel:
    width = "256" if variant in ("b0", "b1") else "768"
    head = "MODEL.SEM_SEG_HEAD."
    return PublishedModel(
        source=f"hf://nvidia/segformer-{variant}-finetuned-{repository}",
        config=f"{dataset.lower()}/semantic/segformer_{variant}",
        task="semantic",
        dataset=dataset,
        backbone=f"MiT-{variant}",
        figure=f"mIoU {miou}",
        paper=_SEGFORMER,
        overrides=(head + "SEGFORMER_FORM", "nvidia", head + "CONVS_DIM", width),
    )


def _mask2former(data: str, task: str, dataset: str, figure: str) -> PublishedModel:
    return PublishedModel(
        source=f"hf://facebook/mask2former-swin-tiny-{data}-{task}",
        config=f"{dataset.lower()}/{task}/mask2former_swin_tiny",
        task=task,
        dataset=dataset,
        backbone="Swin-T",
        figure=figure,
        paper=_M2F,
    )


CATALOGUE: dict[str, PublishedModel] = {
    "mask2former_r50_coco_panoptic": PublishedModel(
        _META + "panoptic/maskformer2_R50_bs16_50ep/model_final_94dc52.pkl",
        "coco/panoptic/mask2former_r50",
        *("panoptic", "COCO", "ResNet-50", "PQ 51.9", _M2F),
    ),
    "mask2former_r50_coco_instance": PublishedModel(
        _META + "instance/maskformer2_R50_bs16_50ep/model_final_3c8ec9.pkl",
        "coco/instance/mask2former_r50",
        *("instance", "COCO", "ResNet-50", "AP 43.7", _M2F),
    ),
    **{
        f"mask2former_swin_tiny_{dataset.lower()}_{task}": _mask2former(data, task, dataset, figure)
        for data, task, dataset, figure in (
            ("coco", "panoptic", "COCO", "PQ 53.2"),
            ("coco", "instance", "COCO", "AP 45.0"),
            ("ade", "semantic", "ADE20K", "mIoU 47.7"),
            ("cityscapes", "panoptic", "Cityscapes", "PQ 63.9"),
            ("cityscapes", "instance", "Cityscapes", "AP 39.7"),
            ("cityscapes", "semantic", "Cityscapes", "mIoU 82.1"),
        )
    },
    **{
        f"segformer_{variant}_ade20k": _segformer(variant, "ADE20K", f"ade-{side}-{side}", miou)
        for variant, side, miou in (
            *(("b0", 512, 37.4), ("b1", 512, 42.2), ("b2", 512, 46.5)),
            *(("b3", 512, 49.4), ("b4", 512, 50.3), ("b5", 640, 51.0)),
        )
    },
    **{
        f"segformer_{variant}_cityscapes": _segformer(
            variant, "Cityscapes", "cityscapes-1024-1024", miou
        )
        for variant, miou in (
            *(("b0", 76.2), ("b1", 78.5), ("b2", 81.0)),
            *(("b3", 81.7), ("b4", 82.3), ("b5", 82.4)),
        )
    },
}
