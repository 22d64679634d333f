"""Optimisers as Mask2Former trains with them, and the clipping of gradients.

The backbone learns at a fraction of the learning rate; norms and embeddings do not decay
(Cheng et al., Masked-attention Mask Transformer, CVPR 2022, §4.1). Parameters of equal settings
share a group, because PyTorch's multi-tensor optimisers are fast on few, large groups.
"""

import torch
from detectron2.config import CfgNode
from detectron2.solver.build import maybe_add_gradient_clipping
from torch import nn

_OPTIMIZERS = {"ADAMW": torch.optim.AdamW, "SGD": torch.optim.SGD}
_NORMS = (
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm),
    *(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d),
    *(nn.GroupNorm, nn.LayerNorm),
)
# Swin's position tables are parameters of other modules.
_POSITION_TABLES = ("relative_position_bias_table", "absolute_pos_embed")
# MiT's depth-wise convolutions, by their name, take the place of position encodings (Xie et al.,
# SegFormer, NeurIPS 2021).
_POSITION_CONVOLUTION = "dwconv"


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """Build the optimiser that ``SOLVER.OPTIMIZER`` names, on the groups of ``parameter_groups``.

    With ``CLIP_GRADIENTS.CLIP_TYPE`` value or norm its ``step`` clips every parameter by itself, as
    Detectron2 does; full_model is left to the training step, see ``full_model_clip_norm``.
    """
    solver = cfg.SOLVER
    optimizer_class = _OPTIMIZERS[solver.OPTIMIZER]
    # The rates and decays of the groups take precedence over these.
    settings = {"lr": solver.BASE_LR}
    if optimizer_class is torch.optim.SGD:
        settings |= {"momentum": solver.MOMENTUM, "nesterov": solver.NESTEROV}
    # Detectron2 clips every parameter by itself; the norm of all together is the step's to clip.
    if full_model_clip_norm(cfg) is None:
        optimizer_class = maybe_add_gradient_clipping(cfg, optimizer_class)
    return optimizer_class(parameter_groups(cfg, model), **settings)


def parameter_groups(cfg: CfgNode, model: nn.Module) -> list[dict]:
    """Sort the trainable parameters of ``model`` into groups of equal settings.

    The learning rate is ``SOLVER.BASE_LR``, times ``BACKBONE_MULTIPLIER`` in modules called
    ``backbone`` and ``HEAD_MULTIPLIER`` in ``sem_seg_head``. The weight decay is
    ``SOLVER.WEIGHT_DECAY``; ``WEIGHT_DECAY_NORM`` in norms, ``WEIGHT_DECAY_EMBED`` in
    ``nn.Embedding``, ``WEIGHT_DECAY_POSITION`` in position tables of Swin and position convolutions
    of MiT. Detectron2's ``BIAS_LR_FACTOR`` and ``WEIGHT_DECAY_BIAS`` apply to parameters called
    ``bias``.

    Returns:
        groups with ``params``, ``lr``, ``weight_decay`` and, for debugging, ``param_names`` in the
        order of ``params``. Every parameter that requires a gradient, shared ones too, is in
        exactly one.
    """
    solver = cfg.SOLVER
    groups: dict[tuple[float, float], dict] = {}
    seen: set[nn.Parameter] = set()
    for module_name, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            # A shared parameter belongs to the first module that has it.
            if not parameter.requires_grad or parameter in seen:
                continue
            seen.add(parameter)
            path = f"{module_name}.{name}" if module_name else name
            module_names = module_name.split(".")
            lr, weight_decay = solver.BASE_LR, solver.WEIGHT_DECAY
            # A pretrained backbone is fine-tuned at a tenth of the rate (Mask2Former, §4.1).
            if "backbone" in module_names:
                lr *= solver.BACKBONE_MULTIPLIER
            elif "sem_seg_head" in module_names:
                lr *= solver.HEAD_MULTIPLIER
            # Weight decay acts on weights of linear layers and convolutions alone.
            if isinstance(module, _NORMS):
                weight_decay = solver.WEIGHT_DECAY_NORM
            elif isinstance(module, nn.Embedding):
                weight_decay = solver.WEIGHT_DECAY_EMBED
            elif name in _POSITION_TABLES or _POSITION_CONVOLUTION in module_names:
                weight_decay = solver.WEIGHT_DECAY_POSITION
            # Detectron2's settings of biases, which also hold in norms.
            if name == "bias":
                lr *= solver.BIAS_LR_FACTOR
                if solver.WEIGHT_DECAY_BIAS is not None:
                    weight_decay = solver.WEIGHT_DECAY_BIAS
            group = groups.setdefault(
                (lr, weight_decay),
                {"params": [], "param_names": [], "lr": lr, "weight_decay": weight_decay},
            )
            group["params"].append(parameter)
            group["param_names"].append(path)
    return list(groups.values())


def full_model_clip_norm(cfg: CfgNode) -> float | None:
    """The bound on the norm of all gradients together; None if they are not clipped that way."""
    clip = cfg.SOLVER.CLIP_GRADIENTS
    is_used = clip.ENABLED and clip.CLIP_TYPE == "full_model"
    return float(clip.CLIP_VALUE) if is_used else None
