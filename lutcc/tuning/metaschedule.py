"""TVM's MetaSchedule over a declared space.

MetaSchedule searches over schedules of a PrimFunc. Ours is a stand-in with one block; a schedule of
it draws each knob as a categorical choice and writes it on the block as an annotation, so that
traces, database, mutators, cost model and search strategies work on configs as they are.

Which strategy decides, the size of the space says. Where every config can be listed, all untried
ones are ranked by the cost model: MetaSchedule's evolutionary search finds
configs no better, takes nine times as long and more, and often ends with none that is untried
(``python -m lutcc.bench.search`` measures this). Larger spaces are left to it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np

from lutcc.codegen.tvm_setup import import_tvm
from lutcc.schedules.space import Config, KnobValue, Space
from lutcc.tuning.costmodel import CostModel
from lutcc.tuning.pool import Pool

tvm = import_tvm()

from tvm import te  # noqa: E402 - after TVM is set up
from tvm.ir.utils import derived_object  # noqa: E402
from tvm.s_tir import Schedule, meta_schedule  # noqa: E402

#: Configs -> rows of the cost model.
Encode: TypeAlias = Callable[[Sequence[Config]], np.ndarray]

_BLOCK = "config"
#: Seconds that a failed config is stored with: what MetaSchedule gives them.
_FAILED_S = 1e10
_EVOLUTION = {"population_size": 128, "init_min_unmeasured": 32, "genetic_num_iters": 3}
_SURPLUS = 2  # evolution may come back with configs that were tried


class Surrogate:
    """The stand-in PrimFunc, and the way between its schedules and configs.

    Parameters
    ----------
    space
        Its knobs become the choices.
    """

    def __init__(self, space: Space) -> None:
        self.space = space
        source = te.placeholder((1,), name="source")
        result = te.compute((1,), lambda i: source[i] + 1.0, name=_BLOCK)
        function = te.create_prim_func([source, result]).with_attr("global_symbol", "main")
        self.module = tvm.IRModule({"main": function})
        self.arguments = meta_schedule.arg_info.ArgInfo.from_entry_func(self.module)

    def draw(self, schedule: Any, choices: Sequence[int] | None = None) -> None:
        """Choose every knob of a schedule: as told, or by MetaSchedule's dice."""
        block = schedule.get_sblock(_BLOCK)
        for position, knob in enumerate(self.space.knobs):
            count = len(knob.values)
            choice = schedule.sample_categorical(
                list(range(count)),
                [1.0 / count] * count,
                decision=None if choices is None else choices[position],
            )
            schedule.annotate(block, f"lutcc.{position}", choice)

    def config(self, schedule: Any) -> dict[str, KnobValue]:
        """Return the config that a schedule stands for."""
        written = schedule.get(schedule.get_sblock(_BLOCK)).annotations
        return self.space.at([int(written[f"lutcc.{i}"]) for i in range(len(self.space.knobs))])

    def candidate(self, config: Config) -> Any:
        """Return MetaSchedule's candidate for a config."""
        schedule = Schedule(self.module)
        self.draw(schedule, self.space.indices(config))
        return meta_schedule.MeasureCandidate(schedule, self.arguments)


@derived_object
class _Valid(meta_schedule.postproc.PyPostproc):
    """Refuses combinations that the space refuses."""

    def __init__(self, surrogate: Surrogate) -> None:
        super().__init__()
        self.surrogate = surrogate

    def _initialize_with_tune_context(self, context: Any) -> None:
        pass

    def apply(self, sch: Any) -> bool:
        return self.surrogate.config(sch) in self.surrogate.space

    def clone(self) -> Any:
        return _Valid(self.surrogate)


@derived_object
class _Step(meta_schedule.mutator.PyMutator):
    """Moves one knob to the next value: neighbours behave alike."""

    def __init__(self, rng: random.Random) -> None:
        super().__init__()
        self.rng = rng

    def _initialize_with_tune_context(self, context: Any) -> None:
        pass

    def apply(self, trace: Any, _: Any) -> Any | None:
        draws = [i for i in trace.insts if i.kind.name == "SampleCategorical"]
        draw = self.rng.choice(draws)
        moved = int(trace.decisions[draw]) + self.rng.choice((-1, 1))
        if not 0 <= moved < len(draw.attrs[0]):
            return None
        return trace.with_decision(draw, moved, True)

    def clone(self) -> Any:
        return _Step(self.rng)


@derived_object
class _BoostedTrees(meta_schedule.cost_model.PyCostModel):
    """:class:`lutcc.tuning.costmodel.CostModel` in MetaSchedule's terms.

    TVM's own XGBModel gives failed configs the weight 0 (and so learns nothing from them), trains
    only when a fifth is new, draws its first guesses from NumPy's global generator, and takes no
    prior; its deep trees need a few trials more and four times as long.
    """

    def __init__(self, surrogate: Surrogate, model: CostModel, encode: Encode) -> None:
        super().__init__()
        self.surrogate, self.model, self.encode = surrogate, model, encode
        self.configs: list[Config] = []
        self.scores: list[float | None] = []

    def update(self, context: Any, candidates: Sequence[Any], results: Sequence[Any]) -> None:
        """Learn results, with all that were told before."""
        for candidate, result in zip(candidates, results, strict=True):
            self.configs.append(self.surrogate.config(candidate.sch))
            self.scores.append(1 / float(result.run_secs[0]) if result.run_secs else None)
        self.model.fit(self.encode(self.configs), self.scores)

    def predict(self, context: Any, candidates: Sequence[Any]) -> np.ndarray:
        """Return the scores (candidates,) float64 expected of them, 1 for the best told."""
        configs = [self.surrogate.config(candidate.sch) for candidate in candidates]
        return np.exp(self.model.predict(self.encode(configs)))

    def load(self, path: str) -> None:
        raise NotImplementedError("what it learns from is kept in the tuning log")

    def save(self, path: str) -> None:
        raise NotImplementedError("what it learns from is kept in the tuning log")


@derived_object
class _RankedSearch(meta_schedule.search_strategy.PySearchStrategy):
    """Proposes the untried configs that the cost model prefers."""

    def __init__(self, surrogate: Surrogate, pool: Pool, model: CostModel, encode: Encode) -> None:
        super().__init__()
        self.surrogate, self.pool, self.model, self.encode = surrogate, pool, model, encode
        self.count = 0

    def _initialize_with_tune_context(self, context: Any) -> None:
        pass

    def pre_tuning(
        self,
        max_trials: int,
        num_trials_per_iter: int,
        design_spaces: Sequence[Any],
        database: Any = None,
        cost_model: Any = None,
    ) -> None:
        self.count = int(num_trials_per_iter)

    def post_tuning(self) -> None:
        self.count = 0

    def generate_measure_candidates(self) -> list[Any] | None:
        rest = self.pool.rest()
        if not rest:
            return None
        order = np.argsort(-self.model.predict(self.encode(rest)), kind="stable")
        return [self.surrogate.candidate(rest[i]) for i in order[: self.count]]

    def notify_runner_results(self, measure_candidates: Any, results: Any) -> None:
        pass

    def clone(self) -> Any:
        return _RankedSearch(self.surrogate, self.pool, self.model, self.encode)


class MetaSchedule:
    """A tuning context over a space, with database, cost model and strategy.

    Parameters
    ----------
    pool
        The space, and what of it is untried.
    model
        Guides the search.
    encode
        Makes the model's rows of configs.
    seed
        Of everything random.
    evolve
        Use MetaSchedule's evolutionary search; the default is by the size of the space.
    """

    def __init__(
        self,
        pool: Pool,
        model: CostModel,
        encode: Encode,
        *,
        seed: int,
        evolve: bool | None = None,
    ) -> None:
        self.pool = pool
        self.surrogate = Surrogate(pool.space)
        self._evolve = not pool.listed if evolve is None else evolve
        if self._evolve:
            strategy = meta_schedule.search_strategy.EvolutionarySearch(**_EVOLUTION)
        else:
            strategy = _RankedSearch(self.surrogate, pool, model, encode)
        generator = meta_schedule.space_generator.ScheduleFn(
            self.surrogate.draw,
            sch_rules=[],
            postprocs=[_Valid(self.surrogate)],
            mutator_probs={_Step(random.Random(seed)): 1.0},
        )
        self.target = tvm.target.Target({"kind": "llvm", "num-cores": 1})
        self.context = meta_schedule.TuneContext(
            self.surrogate.module,
            target=self.target,
            space_generator=generator,
            search_strategy=strategy,
            task_name="lutcc",
            rand_state=seed % (2**31 - 2) + 1,
            num_threads=1,
        )
        self.database = meta_schedule.database.MemoryDatabase()
        self._workload = self.database.commit_workload(self.surrogate.module)
        self._designs = self.context.generate_design_space()
        self._cost_model = _BoostedTrees(self.surrogate, model, encode)

    def learn(self, results: Sequence[tuple[Config, float | None]]) -> None:
        """Store results (config, score or None) and train the cost model with them."""
        candidates, outcomes = [], []
        for config, score in results:
            candidate = self.surrogate.candidate(config)
            candidates.append(candidate)
            seconds = None if score is None else [1 / score]
            error = "the config failed" if score is None else None
            outcomes.append(meta_schedule.runner.RunnerResult(seconds, error))
            record = meta_schedule.database.TuningRecord(
                candidate.sch.trace,
                self._workload,
                seconds or [_FAILED_S],
                self.target,
                candidate.args_info,
            )
            self.database.commit_tuning_record(record)
        self._cost_model.update(self.context, candidates, outcomes)

    def propose(self, count: int) -> list[dict[str, KnobValue]]:
        """Return up to ``count`` untried configs; evolution may find none though there are some."""
        wanted = _SURPLUS * count if self._evolve else count
        self.context.pre_tuning(wanted, wanted, self._designs, self.database, self._cost_model)
        try:
            candidates = self.context.generate_measure_candidates() or []
        finally:
            self.context.post_tuning()
        configs = [self.surrogate.config(candidate.sch) for candidate in candidates]
        return [config for config in configs if config in self.pool][:count]
