"""Instructions: a causal model's logits on the tokens of responses, one row a token; measured by ROUGE-L.

Students are teacher-forced: each token of a response is foretold from what comes before it in the response that is
given, or, for SeqKD, in the one that the teacher generated. The tokens of prompts do not count. Losses are means over
the counted tokens of a batch, whatever micro-batches it is taken in.
"""

from __future__ import annotations

import json
import logging
import math
import os
import random
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from trainables import objectives
from trainables.data import DataError
from trainables.lessons import PARTS, RunSpec, batch_sizes
from trainables.objectives import chunks
from trainables.out_of_memory import is_host_out_of_memory, is_out_of_memory
from trainables.precision import autocast
from trainables.protocol import Protocol
from trainables.splits import stratified
from trainables.streams import drawing_from, generator
from trainables.text import models
from trainables.text.answers import AnswerKey, AnswerStore, Kept, dense, keep_largest, lost_at
from trainables.text.corpora import Example, TextDataset
from trainables.text.encoding import Batch, Encoded, Encoder, collate
from trainables.text.group import Group
from trainables.text.network import Network
from trainables.text.responses import Responses
from trainables.text.scoring import Decoding, Scorer, respond
from trainables.text.store import TextStore
from trainables.text.teacher import TextTeacher, put_back, stamped

log = logging.getLogger("kdstudy.text")

GENERATIONS = "generations.jsonl"
"""The artifact that holds what a student responded to the evaluation sets after its last epoch."""

EVALUATION_ROWS = 8


class TextLessons:
    """Lessons on text; `trainables.engine.Trainer` has the arguments and `trainables.lessons.Lessons` the methods."""

    def __init__(
        self,
        run: RunSpec,
        dataset: TextDataset,
        *,
        train: Tensor,
        validation: Tensor,
        teacher: TextTeacher | None,
        evaluate_test: bool,
        test_indices: Tensor | None,
        device: torch.device,
        workers: int,
        store: TextStore | None,
        execution: str | None,
        group: Group | None = None,
    ) -> None:
        self._group = group
        self._run, self._dataset, self._device, self._teacher, self._store = run, dataset, device, teacher, store
        self._method = objectives.get(run.method)
        protocol = run.protocol
        if "text" not in self._method.tasks:
            raise ValueError(f"method {run.method} is not for text")
        if protocol.task != "text":
            raise ValueError(f"protocol {protocol.base} is one of {protocol.task}; text needs one of its own")
        if teacher is not None:
            models.require_same_tokens(teacher.record.model, run.student, dataset.models, dataset.cache)
        self.encoder = encoder_of(run.student, dataset, protocol)
        with drawing_from(device, run.seed, "init"):
            model = models.build(run.student, dataset.models, dataset.cache)
            self.network = Network(model, protocol.lora_rank)
        self.network.model.to(device)
        self._base = models.base_hash(run.student, dataset.models)
        self._measured: dict[str, list[Example]] = {}
        if len(validation):
            self._measured["val"] = [dataset.train[index] for index in validation.tolist()]
        if evaluate_test:
            self._measured |= _tests(dataset, test_indices)
        self._tokens: dict[int, Encoded | None] = {}
        self._train = [index for index in train.tolist() if self._encoded(index) is not None]
        self._left_out = len(train) - len(self._train)
        if not self._train:
            raise DataError(
                f"data set {dataset.name}: protocol.max_tokens: {protocol.max_tokens} leaves none of the "
                f"{len(train):,} responses a token, since the prompts take all; raise it"
            )
        if self._left_out:
            gone = next(index for index, tokens in self._tokens.items() if tokens is None)
            log.warning(
                "%d of %d responses are cut to nothing by protocol.max_tokens; the first is of example %d: %.60s",
                *(self._left_out, len(train), gone, dataset.train[gone].instruction),
            )
        self._micro = protocol.batch_size
        self._responses: dict[int, list[int]] | None = None
        self._answers = self._answer_store()
        self._generations: list[dict[str, Any]] = []
        self._scorer = Scorer()

    @property
    def teacher_hash(self) -> str | None:
        return None if self._teacher is None else self._teacher.record.hash

    def parameters(self) -> Iterator[nn.Parameter]:
        return iter(self.network.trained().values())

    def state(self) -> dict[str, Tensor]:
        return stamped(self.network, self._base)

    def load_state(self, state: dict[str, Tensor]) -> None:
        put_back(self.network, state, self._base, f"model {self._run.student}")

    def artifacts(self) -> dict[str, bytes]:
        """What was responded to each evaluation set, a line each: set, index, seed, prompt's parts, response, score."""
        if not self._generations:
            return {}
        return {GENERATIONS: "".join(f"{json.dumps(row)}\n" for row in self._generations).encode()}

    # Training

    def train(self, epoch: int, objective: nn.Module, optimiser: torch.optim.Optimizer) -> dict[str, float]:
        """Train an epoch; `Lessons.train` says more.

        Returns:
            `train_loss`, `train_top1` (percent of tokens), the ratios, the objective's own parts; `tokens`, how many
            counted; `left_out_examples`, where the length limit left responses no token; `micro_batch`, where memory
            did not take the whole batch at once; `lost_teacher_mass`, where not all of its logits are kept.
        """
        totals: dict[str, Tensor] = {}
        order = torch.randperm(len(self._train), generator=generator(self._run.seed, "order", epoch)).tolist()
        protocol = self._run.protocol
        sizes = batch_sizes(len(order), protocol.batch_size, protocol.drop_last)
        if self._method.from_responses and self._responses is None:
            self._responses = self._generated()
        if self._answers is not None and epoch == 1:
            self._fill()
        begin = 0
        self.network.model.train()
        with drawing_from(self._device, self._run.seed, "noise", epoch):
            for size in sizes:
                batch = [self._train[place] for place in order[begin : begin + size]]
                begin += size
                for name, value in self._step(batch, epoch, objective, optimiser).items():
                    # Summed where it is: reading a number in each step would make a GPU wait for Python.
                    totals[name] = value.double() + totals[name] if name in totals else value.double()
        sums = {name: float(value) for name, value in totals.items()}
        n = sums.pop("tokens")
        found = {name: value / n for name, value in sums.items() if name not in (*PARTS, "hits", "hits5")}
        metrics = found | {"train_loss": sums["loss"] / n, "train_top1": 100 * sums["hits"] / n, "tokens": n}
        if self._teacher is not None and not self._method.from_responses:
            metrics |= {name: sums[name] / n for name in ("mis_instruction_ratio", "capped_ratio")}
        if self._left_out:
            metrics["left_out_examples"] = float(self._left_out)
        if self._micro < protocol.batch_size:
            metrics["micro_batch"] = float(self._micro)
        return metrics

    def _step(
        self, indices: Sequence[int], epoch: int, objective: nn.Module, optimiser: torch.optim.Optimizer
    ) -> dict[str, Tensor]:
        """Train on a batch, in micro-batches that are halved when memory does not take them."""
        while True:
            optimiser.zero_grad()
            try:
                sums = self._accumulated(indices, epoch, objective)
                break  # what follows waits for the other devices, which may have halved theirs
            except (RuntimeError, MemoryError) as error:
                found = is_out_of_memory(error) or is_host_out_of_memory(error)
                if not found or self._micro == 1 or not chunks.is_mean_over_rows(objective):
                    raise
                self._micro = max(1, min(self._micro, len(indices)) // 2)
                log.warning("out of memory: from now on %d examples at a time, accumulated", self._micro)
            if self._device.type == "cuda":
                torch.cuda.empty_cache()
        if self._group is not None:
            trained = [*self.parameters(), *objective.parameters()]
            self._group.add_up(value.grad for value in trained if value.grad is not None)
            sums = self._group.add_up_named(sums, self._device)
        optimiser.step()
        return sums

    def _accumulated(self, indices: Sequence[int], epoch: int, objective: nn.Module) -> dict[str, Tensor]:
        of: float = sum(self._lesson(index).counted for index in indices)
        weight = 1.0
        if self._group is not None:
            mine = self._group.part(indices)
            # A batch may have fewer examples than there are devices: who has none takes part with a weight of 0.
            indices, weight, of = (mine, 1.0, of) if mine else (indices[:1], 0.0, math.inf)
        examples = [self._lesson(index) for index in indices]
        total: dict[str, Tensor] = {}
        for begin in range(0, len(indices), self._micro):
            some = slice(begin, begin + self._micro)
            batch = self._collated(examples[some])
            with self._autocast():
                features = self.network.features(batch)
                answers = self._teacher_answers(indices[some], batch)
                sums = chunks.accumulate(
                    objective, features, self.network.project, answers, batch.target, epoch=epoch, of=of
                )
            sums["tokens"] = torch.tensor(float(len(batch.target)))
            if isinstance(answers, _FromStore):
                sums["lost_teacher_mass"] = answers.lost(self._tau).sum()
            total = {name: value + total[name] if total else value for name, value in sums.items()}
        return {name: value * weight for name, value in total.items()}

    def _collated(self, examples: Sequence[Encoded]) -> Batch:
        row = self._run.protocol.max_tokens if self._run.protocol.packing else None
        return collate(examples, self.encoder.tokenizer.pad_token_id, row).to(self._device)

    def _encoded(self, index: int) -> Encoded | None:
        """An example's tokens; they are made once, since each epoch asks for them."""
        if index not in self._tokens:
            example = self._dataset.train[index]
            self._tokens[index] = self.encoder.example(example) if example.outputs else None
        return self._tokens[index]

    def _lesson(self, index: int) -> Encoded:
        """What the student learns of an example: the given response, or the teacher's."""
        if self._responses is not None:
            prompt = self.encoder.prompt(self._dataset.train[index])
            # What the teacher left without a word it says nothing in: the end alone.
            own = self.encoder.joined(prompt, self._responses[index] or [self.encoder.tokenizer.eos_token_id])
            assert own is not None
            return own
        found = self._encoded(index)
        assert found is not None
        return found

    # What the teacher says

    def _asked(self) -> Network:
        assert self._teacher is not None
        return self._teacher.network(self._dataset.models, self._dataset.cache, self._device)

    def _teacher_answers(self, indices: Sequence[int], batch: Batch) -> Any:
        """The teacher's logits on a batch's counted tokens, by slices of them."""
        if self._teacher is None or self._method.from_responses:
            return lambda part: None
        if self._answers is not None:
            kept = [self._kept(index) for index in indices]
            return _FromStore(kept, batch.target, self._vocabulary)
        teacher = self._asked()
        with torch.no_grad():
            features = teacher.features(batch)

        def answers(part: slice) -> Tensor:
            with torch.no_grad():
                return teacher.project(features[part]).float()

        return answers

    @property
    def _tau(self) -> float:
        return float(self._run.parameters.get("tau", self._run.protocol.tau))

    @cached_property
    def _vocabulary(self) -> int:
        return models.vocabulary(self._run.student, self._dataset.models, self._dataset.cache)

    def _answer_store(self) -> AnswerStore | None:
        store, protocol = self._store, self._run.protocol
        if self._teacher is None or store is None or store.top_k is None or self._method.from_responses:
            return None
        key = AnswerKey(
            teacher=self._teacher.record.hash,
            data=self._dataset.hash,
            tokens=f"{protocol.max_tokens} {protocol.template}",
            top_k=store.top_k,
            dtype=store.dtype,
            precision=protocol.precision,
            device=self._device.type,
        )
        return AnswerStore(store.root, key)

    def _fill(self) -> None:
        """Have the teacher's answers to all examples kept, in an order of this process's own.

        Processes that need the same at the same time so share the work, but for what they happen to do at once.
        """
        assert self._answers is not None
        order = list(self._train)
        random.Random(os.getpid()).shuffle(order)
        for index in order:
            if not self._answers.has(index):
                self._kept(index)

    def _kept(self, index: int) -> Kept:
        assert self._answers is not None
        kept = self._answers.read(index)
        if kept is None:
            # Alone in its batch, so that what is kept does not depend on who was beside it.
            example = self._encoded(index)
            assert example is not None
            batch = collate([example], self.encoder.tokenizer.pad_token_id).to(self._device)
            teacher, key = self._asked(), self._answers.key
            dtype = torch.float16 if key.dtype == "float16" else torch.float32
            with torch.no_grad(), self._autocast():
                said = teacher.logits(batch)
                parts = [keep_largest(logits, target, key.top_k, dtype) for logits, target in said]
            kept = Kept(*(torch.cat(columns).cpu() for columns in zip(*parts, strict=True)))
            self._answers.write(index, kept)
        return Kept(*(column.to(self._device) for column in kept))

    def _generated(self) -> dict[int, list[int]]:
        """The teacher's responses to the training instructions."""
        assert self._teacher is not None
        protocol = self._run.protocol
        decoding = Decoding("greedy", 1, 1.0, protocol.max_response)

        def generate(missing: list[int]) -> Iterable[tuple[int, list[int]]]:
            examples = [self._dataset.train[index] for index in missing]
            with self._autocast():
                for place, tokens, _ in respond(self._asked(), self.encoder, examples, decoding, self._device, 0):
                    yield missing[place], tokens

        root = self._store.root if self._store is not None else self._dataset.cache
        decides = {
            "teacher": self._teacher.record.hash,
            "data": self._dataset.hash,
            "template": protocol.template,
            "max_tokens": protocol.max_tokens,
            "max_response": protocol.max_response,
            "precision": protocol.precision,
            "device": self._device.type,
        }
        return Responses(root, decides).of(self._train, generate)

    # Measuring

    @torch.inference_mode()
    def measure(self, epoch: int) -> dict[str, float]:
        """`…_loss`, `…_top1`, `…_top5` (teacher-forced, of tokens) and, every so many epochs and after the last,
        `…_rouge_l` (0 to 100) of each evaluation set; `test_rouge_l` is that of the first, `test_rouge_l.NAME` of NAME.
        """
        metrics: dict[str, float] = {}
        if self._group is not None and self._group.rank > 0:
            return metrics  # the first of them measures
        self.network.model.eval()
        protocol = self._run.protocol
        last = epoch >= protocol.epochs
        self._generations = []
        for name, examples in self._measured.items():
            part, _, other = name.partition(":")
            if not other:
                metrics |= self._forced(part, examples)
            if last or epoch % protocol.score_every == 0:
                metrics[f"{part}_rouge_l{'.' if other else ''}{other}"] = self._rouge(name, examples, keep=last)
        return metrics

    def _forced(self, part: str, examples: Sequence[Example]) -> dict[str, float]:
        encoded = [found for found in map(self.encoder.example, examples) if found is not None]
        encoded.sort(key=lambda example: len(example.ids))
        loss = hits = hits5 = n = 0.0
        for begin in range(0, len(encoded), EVALUATION_ROWS):
            some = encoded[begin : begin + EVALUATION_ROWS]
            batch = collate(some, self.encoder.tokenizer.pad_token_id).to(self._device)
            with self._autocast():
                for logits, target in self.network.logits(batch):
                    found = chunks.hits(logits, target)
                    loss += float(nn.functional.cross_entropy(logits, target, reduction="sum"))
                    hits, hits5, n = hits + float(found["hits"]), hits5 + float(found["hits5"]), n + len(target)
        if not n:
            raise DataError(f"{part}: protocol.max_tokens leaves none of its {len(examples)} responses a token")
        return {f"{part}_loss": loss / n, f"{part}_top1": 100 * hits / n, f"{part}_top5": 100 * hits5 / n}

    def _rouge(self, name: str, examples: Sequence[Example], keep: bool) -> float:
        protocol = self._run.protocol
        decoding = Decoding(protocol.decoding, protocol.decoding_seeds, protocol.top_p, protocol.max_response)
        seeds = range(1 if decoding.kind == "greedy" else decoding.seeds)
        total = 0.0
        for seed in seeds:
            with self._autocast():
                said = list(respond(self.network, self.encoder, examples, decoding, self._device, seed))
            for index, _, text in said:
                score = self._scorer.score(examples[index].outputs, text)
                total += score
                if keep and name != "val":
                    self._generations.append(
                        {
                            "set": name.partition(":")[2] or self._dataset.name,
                            "index": index,
                            "decoding_seed": seed,
                            "instruction": examples[index].instruction,
                            "input": examples[index].input,
                            "reference": examples[index].outputs[0],
                            "response": text,
                            "rouge_l": round(score, 4),
                        }
                    )
        self._generations.sort(key=lambda row: (row["set"], row["index"], row["decoding_seed"]))
        return total / (len(seeds) * len(examples))

    def _autocast(self) -> torch.autocast:
        return autocast(self._run.protocol.precision, self._device)


class _FromStore:
    """The teacher's logits on a batch's counted tokens, from what was kept of them."""

    def __init__(self, kept: Sequence[Kept], target: Tensor, vocabulary: int) -> None:
        self._kept = Kept(*(torch.cat(columns) for columns in zip(*kept, strict=True)))
        self._target, self._vocabulary = target, vocabulary

    def lost(self, tau: float) -> Tensor:
        """(n,) how far the read distributions are from the teacher's own at a temperature."""
        return lost_at(self._kept, tau)

    def __call__(self, part: slice) -> Tensor:
        return dense(Kept(*(column[part] for column in self._kept)), self._target[part], self._vocabulary)


def encoder_of(model: str, dataset: TextDataset, protocol: Protocol) -> Encoder:
    """The encoder of a model's tokens under a protocol."""
    return Encoder(models.tokenizer(model, dataset.models, dataset.cache), protocol.template, protocol.max_tokens)


def _tests(dataset: TextDataset, indices: Tensor | None) -> dict[str, list[Example]]:
    """The evaluation sets by the name of what is measured: `test` for the data set's own, `test:NAME` for others.

    A limit holds for each; of the others it is a sample that is always the same.
    """
    own, *others = dataset.tests.items()
    members = range(len(own[1])) if indices is None else indices.tolist()
    found = {"test": [own[1][index] for index in members if own[1][index].outputs]}
    for name, examples in others:
        labels = torch.tensor([0 if each.outputs else -1 for each in examples])
        limit = len(labels) if indices is None else len(indices)
        found[f"test:{name}"] = [examples[index] for index in stratified(labels, limit, 0).tolist()]
    return found
