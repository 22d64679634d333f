from types import SimpleNamespace

from detectron2.utils.events import EventStorage

from proscale.engine.trainer import MetricHistory


def test_memory_is_bounded():
    hook = MetricHistory()
    with EventStorage() as storage:
        hook.trainer = SimpleNamespace(storage=storage)
        hook.before_train()
        for step in range(1500):
            storage.put_scalar("loss", float(step))
        values = storage.history("loss").values()
        assert [len(values), values[-1][0]] == [1000, 1499.0]
        assert storage.history("loss").median(20) == 1489.5
