"""Arguments that both pixel decoders read from the same configuration keys."""

from detectron2.config import CfgNode


def encoder_arguments(cfg: CfgNode) -> dict:
    """Arguments of every deformable encoder layer but its number of levels.

    Raises:
        ValueError: naming the key whose value no layer can be built from.
    """
    head = cfg.MODEL.SEM_SEG_HEAD
    key = "DEFORMABLE_TRANSFORMER_ENCODER_"
    n_heads = head[key + "N_HEADS"] or cfg.MODEL.MASK_FORMER.NHEADS
    n_points, d_ffn = head[key + "N_POINTS"], head[key + "DIM_FEEDFORWARD"]
    for name, value in (("N_HEADS", n_heads), ("N_POINTS", n_points), ("DIM_FEEDFORWARD", d_ffn)):
        if value < 1:
            raise ValueError(f"MODEL.SEM_SEG_HEAD.{key}{name} is {value}: expected 1, 2, 3, …")
    if head.CONVS_DIM % n_heads:
        raise ValueError(
            f"MODEL.SEM_SEG_HEAD.CONVS_DIM is {head.CONVS_DIM}: expected multiples of the "
            f"encoder's heads, {n_heads} "
            f"(MODEL.SEM_SEG_HEAD.{key}N_HEADS, or MODEL.MASK_FORMER.NHEADS)"
        )
    return {
        "d_model": head.CONVS_DIM,
        "d_ffn": d_ffn,
        "dropout": cfg.MODEL.MASK_FORMER.DROPOUT,
        "n_heads": n_heads,
        "n_points": n_points,
    }


def frame_arguments(cfg: CfgNode) -> dict:
    """Arguments of :class:`~proscale.modeling.pixel_decoders.base.PixelDecoder`."""
    head = cfg.MODEL.SEM_SEG_HEAD
    return {
        "conv_dim": head.CONVS_DIM,
        "mask_dim": head.MASK_DIM,
        "norm": head.NORM,
        "transformer_in_features": head.DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES,
        "common_stride": head.COMMON_STRIDE,
    }
