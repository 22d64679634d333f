"""What the evaluators add to the time of a model's inference over a data set.

The model has random weights and class scores such as a trained model gives, so that its results are
as many as those are. Inference alone and inference with the evaluators that the configuration
switches on are called in turns, on images that were read before.
"""

import argparse
from dataclasses import replace

import torch

from proscale.benchmark.latency import measure
from proscale.benchmark.machine import print_header
from proscale.benchmark.models import ModelRun, ModelSettings
from proscale.cli.arguments import add_json, add_overrides, naming, positive
from proscale.config import setup_cfg
from proscale.cost.tables import markdown_table, write_json
from proscale.engine.trainer import Trainer
from proscale.errors import DataError
from proscale.evaluation.build import build_evaluator
from proscale_cli import errors_in_one_sentence

INFERENCE, EVALUATED = "inference and results", "with evaluation"


class EvaluatedRun:
    """Inference over the images of the first of ``DATASETS.TEST``, with and without evaluation.

    Raises:
        DataError: the data set has no images.
        ConfigError: see ``build_evaluator``.
    """

    def __init__(self, run: ModelRun):
        dataset = run.cfg.DATASETS.TEST[0]
        self._run = run
        self._batches = list(Trainer.build_test_loader(run.cfg, dataset))
        if not self._batches:
            raise DataError(f"data set {dataset} has no images")
        self.count = len(self._batches)
        self._evaluators = build_evaluator(run.cfg, dataset)

    def infer(self) -> None:
        """Predict all images."""
        for batch in self._batches:
            self._run.batch = batch
            self._run.results()

    def evaluate(self) -> None:
        """Predict and evaluate all images."""
        self._evaluators.reset()
        for batch in self._batches:
            self._run.batch = batch
            self._evaluators.process(batch, self._run.results())
        self._evaluators.evaluate()


def main(arguments: list[str] | None = None) -> None:
    """Run the benchmark; ``arguments`` are those of the command line when None."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--config-file", required=True, metavar="FILE", help="the model")
    parser.add_argument("--repeats", type=positive, default=3, help="calls that count")
    add_overrides(parser)
    add_json(parser)
    with errors_in_one_sentence("benchmarks/whole_evaluation.py"):
        run(parser.parse_args(arguments))


def run(options: argparse.Namespace) -> None:
    """Measure and print."""
    device = torch.device("cpu")
    with naming(options.config_file):
        cfg = setup_cfg(options.config_file, [*options.opts, "MODEL.DEVICE", device.type])
        size = (cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MIN_SIZE_TEST)
        evaluated = EvaluatedRun(ModelRun(cfg, ModelSettings(size, batch=1)))
    shown = {"model": options.config_file, "images": evaluated.count, "repeats": options.repeats}
    header = print_header(device, {**shown, "overrides": " ".join(options.opts) or "none"})
    calls = {INFERENCE: evaluated.infer, EVALUATED: evaluated.evaluate}
    times = measure(calls, repeats=options.repeats, warmup=0)
    rows = []
    for name, timing in times.items():
        share = 1 - times[INFERENCE].median / timing.median
        per_image = replace(timing, samples=tuple(s / evaluated.count for s in timing.samples))
        rows.append([name, *per_image.milliseconds, f"{100 * share:.1f} %"])
    headers = ["", "ms per image", "quartiles", "share of evaluation"]
    print(markdown_table(rows, headers, text=headers[:1]))
    runs = {name: timing.as_dict() for name, timing in times.items()}
    write_json(options.json, {**header, "runs": runs})


if __name__ == "__main__":
    main()
