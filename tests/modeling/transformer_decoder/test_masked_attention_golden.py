"""Predictions of the masked-attention decoder against the published implementation's."""

import torch

from proscale.modeling.transformer_decoder import MultiScaleMaskedTransformerDecoder


def test_equals_published(golden, fill):
    expected = golden("transformer_decoder")
    args, sizes, batch = (expected.meta[key] for key in ("args", "sizes", "batch"))
    decoder = MultiScaleMaskedTransformerDecoder(
        num_layers=args["dec_layers"],
        **{
            key: args[key]
            for key in (
                "in_channels",
                "num_classes",
                "hidden_dim",
                "num_queries",
                "nheads",
                "dim_feedforward",
                "pre_norm",
                "mask_dim",
                "enforce_input_project",
            )
        },
    )
    assert {k: list(v.shape) for k, v in decoder.state_dict().items()} == expected.meta["state"]
    fill.fill_state_dict(decoder)

    case = "transformer_decoder"
    levels = [
        fill.random_input(f"{case}.ms{i}", (batch, args["in_channels"], *size))
        for i, size in enumerate(sizes[:3])
    ]
    mask_features = fill.random_input(f"{case}.mask", (batch, args["mask_dim"], *sizes[3]))
    outputs = decoder(levels, mask_features)

    assert len(outputs["aux_outputs"]) == args["dec_layers"]
    close = {"rtol": 1e-3, "atol": 1e-4}
    torch.testing.assert_close(outputs["pred_logits"], expected.pred_logits, **close)
    torch.testing.assert_close(outputs["pred_masks"], expected.pred_masks, **close)
    for index, auxiliary in enumerate(outputs["aux_outputs"]):
        reference = getattr(expected, f"aux{index}_logits")
        torch.testing.assert_close(auxiliary["pred_logits"], reference, **close)
