import copy
import logging

import pytest
import torch
from detectron2.utils.events import EventStorage
from torch import nn

from proscale.engine.train_loop import TrainLoop, split_evenly
from proscale.errors import ConfigError

ITERATION = 7


@pytest.fixture
def model(toy_cfg, toy_trainer):
    return toy_trainer(toy_cfg()).model


def make_loop(model: nn.Module, batch: list[dict], **arguments) -> TrainLoop:
    """A loop on a copy of ``model`` whose only batch is ``batch``."""
    model = copy.deepcopy(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loop = TrainLoop(model, [batch], optimizer, **arguments)
    loop.iter = ITERATION
    return loop


def run_step(loop: TrainLoop) -> dict[str, float]:
    """Run one step; returns the figures logged."""
    with EventStorage(ITERATION) as storage:
        loop.run_step()
    return {name: value for name, (value, _) in storage.latest().items()}


@pytest.mark.parametrize(
    ("size", "parts", "lengths"), [(4, 1, [4]), (4, 4, [1] * 4), (5, 2, [3, 2]), (7, 3, [3, 2, 2])]
)
def test_split_evenly(size, parts, lengths):
    split = split_evenly(list(range(size)), parts)
    assert [len(part) for part in split] == lengths
    assert [sample for part in split for sample in part] == list(range(size))


@pytest.mark.parametrize("parts", [0, 3])
def test_split_needs_an_image_per_part(parts):
    with pytest.raises(ValueError, match=f"2 images cannot be split into {parts} parts"):
        split_evenly([1, 2], parts)


@pytest.mark.parametrize(("size", "steps"), [(4, 2), (4, 4), (5, 2), (7, 4)])
def test_accumulated_step_equals_whole_batch(model, make_batch, size, steps):
    whole = make_loop(model, make_batch(size))
    parts = make_loop(model, make_batch(size), accumulation_steps=steps)
    expected_figures, figures = run_step(whole), run_step(parts)
    for name, expected in whole.model.named_parameters():
        actual = parts.model.get_parameter(name)
        torch.testing.assert_close(actual.grad, expected.grad)
        torch.testing.assert_close(actual, expected)
        assert expected.grad.abs().sum() > 0
    for name in ("loss_ce", "loss_mask", "total_loss", "grad_norm"):
        assert figures[name] == pytest.approx(expected_figures[name], rel=1e-5)


def test_every_part_is_told_the_targets_of_the_step(model, make_batch):
    calls = []

    def record(module, arguments, keywords):
        calls.append(([sample["file_name"] for sample in arguments[0]], keywords))

    model.register_forward_pre_hook(record, with_kwargs=True)
    run_step(make_loop(model, make_batch(3), accumulation_steps=2))
    counts = {"target_counts": [2, 3, 1]}
    assert calls == [(["1.jpg", "2.jpg"], counts), (["3.jpg"], counts)]


class PerImageModel(nn.Module):
    """Like many models, knows nothing of ``target_counts``."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(2.0))

    def forward(self, batch):
        return {"loss": torch.stack([self.weight * s["image"].sum() for s in batch]).mean()}


def test_model_without_target_counts(make_batch, caplog):
    whole = make_loop(PerImageModel(), make_batch(3))
    assert "target_counts" not in caplog.text
    with caplog.at_level(logging.WARNING):
        parts = make_loop(PerImageModel(), make_batch(3), accumulation_steps=2)
    assert "SOLVER.ACCUMULATION_STEPS 2" in caplog.text
    run_step(whole)
    run_step(parts)
    torch.testing.assert_close(parts.model.weight, whole.model.weight)


@pytest.mark.parametrize("norm_type", [2.0, 1.0])
def test_clipping_bounds_the_norm_of_all_gradients(model, make_batch, norm_type):
    def norm(loop):
        gradients = torch.cat([p.grad.flatten() for p in loop.model.parameters()])
        return torch.linalg.vector_norm(gradients, norm_type).item()

    free = make_loop(model, make_batch(2), norm_type=norm_type)
    free_figures = run_step(free)
    bound = norm(free) / 2
    clipped = make_loop(model, make_batch(2), clip_norm=bound, norm_type=norm_type)
    clipped_figures = run_step(clipped)
    assert norm(clipped) == pytest.approx(bound, rel=1e-4)
    assert clipped_figures["grad_norm"] == pytest.approx(norm(free))
    assert free_figures["grad_norm"] == pytest.approx(norm(free))


def test_clipping_leaves_small_gradients(model, make_batch):
    free, clipped = make_loop(model, make_batch(2)), make_loop(model, make_batch(2), clip_norm=1e3)
    run_step(free)
    run_step(clipped)
    for expected, actual in zip(free.model.parameters(), clipped.model.parameters(), strict=True):
        assert torch.equal(actual.grad, expected.grad)


def test_bfloat16(model, make_batch):
    dtypes = []
    model.head.register_forward_hook(lambda module, arguments, output: dtypes.append(output.dtype))
    full = make_loop(model, make_batch(2))
    mixed = make_loop(model, make_batch(2), amp_dtype=torch.bfloat16, accumulation_steps=2)
    full_figures, mixed_figures = run_step(full), run_step(mixed)
    assert dtypes == [torch.float32] * 2 + [torch.bfloat16] * 2
    assert {p.dtype for p in mixed.model.parameters()} == {torch.float32}
    assert {p.grad.dtype for p in mixed.model.parameters()} == {torch.float32}
    assert mixed_figures["total_loss"] == pytest.approx(full_figures["total_loss"], rel=0.05)
    assert not mixed.grad_scaler.is_enabled()


def test_float16_scales_losses_and_not_gradients(model, make_batch):
    full = make_loop(model, make_batch(4))
    mixed = make_loop(model, make_batch(4), amp_dtype=torch.float16, accumulation_steps=2)
    assert mixed.grad_scaler.is_enabled()
    mixed.grad_scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    full_figures, mixed_figures = run_step(full), run_step(mixed)
    assert mixed.grad_scaler.get_scale() == 256.0
    assert mixed_figures["grad_norm"] == pytest.approx(full_figures["grad_norm"], rel=0.05)
    for expected, actual in zip(full.model.parameters(), mixed.model.parameters(), strict=True):
        torch.testing.assert_close(actual, expected, atol=1e-2, rtol=1e-2)


def test_float16_overflow_leaves_the_step_out(model, make_batch):
    loop = make_loop(model, make_batch(2), amp_dtype=torch.float16)
    loop.grad_scaler = torch.amp.GradScaler("cpu", init_scale=2.0**120)
    before = copy.deepcopy(loop.model.state_dict())
    figures = run_step(loop)
    assert loop.grad_scaler.get_scale() == 2.0**119
    assert "grad_norm" not in figures
    assert all(torch.equal(value, before[name]) for name, value in loop.model.state_dict().items())


def test_loss_scale_survives_saving(model, make_batch):
    saved = make_loop(model, make_batch(2), amp_dtype=torch.float16)
    saved.grad_scaler = torch.amp.GradScaler("cpu", init_scale=512.0)
    restored = make_loop(model, make_batch(2), amp_dtype=torch.float16)
    restored.load_state_dict(saved.state_dict())
    assert restored.grad_scaler.get_scale() == 512.0
    assert restored.iter == ITERATION


def test_loss_scale_starts_afresh_after_another_format(model, make_batch):
    saved = make_loop(model, make_batch(2), amp_dtype=torch.bfloat16)
    restored = make_loop(model, make_batch(2), amp_dtype=torch.float16)
    scale = restored.grad_scaler.get_scale()
    restored.load_state_dict(saved.state_dict())
    assert restored.grad_scaler.get_scale() == scale
    saved.load_state_dict(restored.state_dict())


@pytest.mark.parametrize("steps", [1, 2])
def test_infinite_loss_names_iteration_loss_and_images(model, make_batch, steps):
    batch = make_batch(2)
    batch[1]["image"][0, 0, 0] = float("nan")
    loop = make_loop(model, batch, accumulation_steps=steps)
    before = copy.deepcopy(loop.model.state_dict())
    with pytest.raises(FloatingPointError, match=r"iteration 7: .*loss_ce = nan.*: 1\.jpg, 2\.jpg"):
        run_step(loop)
    assert all(torch.equal(value, before[name]) for name, value in loop.model.state_dict().items())


class InfiniteGradient(PerImageModel):
    def forward(self, batch):
        return {"loss": (self.weight - 2).abs().sqrt()}


def test_infinite_gradient_is_refused(make_batch):
    with pytest.raises(FloatingPointError, match=r"iteration 7: norm of the gradients = .*1\.jpg"):
        run_step(make_loop(InfiniteGradient(), make_batch(1)))


def test_model_left_in_evaluation_mode_is_refused(model, make_batch):
    loop = make_loop(model, make_batch(1))
    loop.model.eval()
    with pytest.raises(AssertionError, match="evaluation mode"):
        run_step(loop)


def test_time_of_the_data_is_logged(model, make_batch):
    assert run_step(make_loop(model, make_batch(1)))["data_time"] >= 0


def test_batch_norm_of_one_value_tells_what_is_accepted():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm2d(3)

        def forward(self, batch):
            images = torch.stack([sample["image"] for sample in batch])
            return {"loss": self.norm(images[..., ::32, ::32]).square().mean()}

    batch = [{"image": torch.rand(3, 32, 20)}] * 2
    run_step(make_loop(Model(), batch))
    expected = r"^batch norm has .* of images of 32x20 pixels .* expected .*SOLVER.IMS_PER_BATCH"
    with pytest.raises(ConfigError, match=expected):
        run_step(make_loop(Model(), batch, accumulation_steps=2))
