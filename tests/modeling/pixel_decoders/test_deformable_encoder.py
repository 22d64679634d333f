"""The sine encoding against its definition, written as loops."""

import math

import torch

from proscale.modeling.pixel_decoders.deformable_encoder import sine_position_encoding


def test_equals_definition():
    height, width, channels = 3, 5, 12
    encoding = sine_position_encoding(height, width, channels).view(height, width, channels)
    half = channels // 2
    for row in range(height):
        for column in range(width):
            for place, (cell, length) in enumerate(((row, height), (column, width))):
                angle = 2 * math.pi * (cell + 1) / length
                for i in range(half):
                    wave = math.sin if i % 2 == 0 else math.cos
                    expected = wave(angle / 10000 ** (i // 2 * 2 / half))
                    found = encoding[row, column, place * half + i].item()
                    assert abs(found - expected) < 1e-5
    assert encoding.dtype == torch.float32
