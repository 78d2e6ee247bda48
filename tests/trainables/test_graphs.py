"""A step as a CUDA graph, and as compiled code: what it does is what the eager step does.

Without a GPU the recorder is a stand-in that plays a recorded step again on the buffers that it was recorded with, as a
graph does; what is tested is what surrounds it.
"""

import contextlib
import shutil

import pytest
import torch
from torch import nn

from trainables import data, engine, splits
from trainables.graphs import GraphedStep
from trainables.protocol import resolve

DIGITS = data.load("digits")
TRAIN = splits.stratified(DIGITS.train_labels, 150, seed=0)


class Stream:
    def wait_stream(self, other):
        pass


@pytest.fixture
def recorder(monkeypatch):
    """Steps that were recorded, and how often each was replayed."""
    recorded = []

    class Graph:
        replays = 0

        def replay(self):
            self.replays += 1
            self.again()

    @contextlib.contextmanager
    def record(graph):
        recorded.append(graph)
        yield

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", record)
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: None)
    return recorded


class Step:
    """Adds what it is given to a state; recorded, it does so with the buffers of the recording."""

    def __init__(self, recorded, fails=False):
        self.recorded, self.fails = recorded, fails
        self.state, self.output, self.seen = torch.zeros(2), torch.zeros(2), []

    def __call__(self, given, absent):
        assert absent is None
        graph = self.recorded[-1] if self.recorded and not hasattr(self.recorded[-1], "again") else None
        if graph is not None:
            if self.fails:
                graph.again = None
                raise RuntimeError("operation not permitted when stream is capturing")
            graph.again = lambda: self._do(given)
            return self.output
        return self._do(given).clone()

    def _do(self, given):
        self.seen.append(given.tolist())
        self.state += given.sum()
        self.output.copy_(self.state)
        return self.output


def inputs(n, size=2):
    return [torch.full((size,), float(i)) for i in range(n)]


def test_from_the_fourth_call_on_a_step_is_replayed_on_what_it_is_given(recorder):
    step = Step(recorder)
    run = GraphedStep(step)
    ends = [run(given, None).clone().tolist() for given in inputs(8)]
    assert ends == [[2.0 * sum(range(i + 1))] * 2 for i in range(8)]
    assert step.seen == [[float(i)] * 2 for i in range(8)]  # each input once: recording trains nothing
    assert [graph.replays for graph in recorder] == [5]


def test_a_batch_of_another_size_is_run_eagerly_and_the_graph_stays(recorder):
    step = Step(recorder)
    run = GraphedStep(step)
    for given in [*inputs(5), torch.ones(1), *inputs(2)]:
        run(given, None)
    assert step.state.tolist() == [20.0 + 1.0 + 2.0] * 2
    assert [graph.replays for graph in recorder] == [4]


def test_a_step_that_cannot_be_recorded_goes_on_eagerly_and_says_so_once(recorder, caplog):
    step = Step(recorder, fails=True)
    run = GraphedStep(step)
    ends = [run(given, None)[0].item() for given in inputs(8)]
    assert ends == [2.0 * sum(range(i + 1)) for i in range(8)]
    assert len(recorder) == 1
    assert caplog.text.count("cannot be recorded") == 1


def trained(execution, device="cpu"):
    protocol = resolve("digits-quick", epochs=2, batch_size=32, milestones=())
    run = engine.RunSpec("cnn3", "tf_kd", {}, protocol, seed=0)
    trainer = engine.Trainer(run, DIGITS, TRAIN, TRAIN[:0], None, True, device=device, execution=execution)
    history = [trainer.train_epoch() for _ in range(2)]
    return history, trainer.student_state()


def test_an_unknown_execution_is_one_line():
    with pytest.raises(ValueError, match="execution is 'fast'; it must be one of eager, graphs, compiled"):
        trained("fast")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="compiling needs a C++ compiler")
def test_a_compiled_run_differs_from_an_eager_one_by_rounding_only():
    (eager, state), (compiled, its) = trained("eager"), trained("compiled")
    for one, other in zip(eager, compiled, strict=True):
        assert other["train_loss"] == pytest.approx(one["train_loss"], rel=1e-3)
        assert other["test_top1"] == pytest.approx(one["test_top1"], abs=2.0)
    assert state.keys() == its.keys()  # nothing of the compiler in a checkpoint
    largest = max(float((state[key].float() - its[key].float()).abs().max()) for key in state)
    assert largest < 1e-2


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an accelerator")
def test_a_graphed_run_ends_as_an_eager_one():
    with torch.backends.cudnn.flags(deterministic=True):
        (eager, _), (graphed, _) = trained("eager", "cuda"), trained("graphs", "cuda")
    for one, other in zip(eager, graphed, strict=True):
        assert other["train_loss"] == pytest.approx(one["train_loss"], rel=1e-4)


def test_the_output_of_a_step_is_a_tensor_that_sums(recorder):
    """The engine adds outputs up before the next replay overwrites them."""
    layer, total = nn.Linear(2, 1), None
    run = GraphedStep(lambda given: layer(given).detach().sum())
    for _ in range(3):
        output = run(torch.ones(1, 2))
        total = output if total is None else total + output
    assert total == pytest.approx(3 * float(layer(torch.ones(1, 2)).detach()), rel=1e-6)
