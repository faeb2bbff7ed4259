"""What the demo model becomes when it imitates the world's own bare traces: a ceiling and a floor for methods that only have
what the model wrote itself."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from tokensqueeze.config import Settings
from tokensqueeze.demo import world
from tokensqueeze.engines.checkpoint import eos_token_ids
from tokensqueeze.fingerprint import fingerprint
from tokensqueeze.pipeline.plan import RunPlan, plan_run
from tokensqueeze.pipeline.planned_tables import write_problems
from tokensqueeze.schema import EvaluationTrace, PreferencePair, Problem, RefinedTrace
from tokensqueeze.selectors.pairing import chosen_alone
from tokensqueeze.stages.evaluate_model import EvaluateModel
from tokensqueeze.stages.run_stage import run_stage
from tokensqueeze.tables import Table
from tokensqueeze.training.launch import train_model


def evaluate_gold_policy(settings: Settings, policy: world.Policy, store: Path) -> list[EvaluationTrace]:
    """Train the base on one gold trace per training problem, by SFT, and return the evaluation's traces.

    Ray must be running. What the store holds already is not made again.
    """
    plan = plan_run(settings, store)
    assert plan.evaluate_squeezed
    score = replace(
        plan.score,
        inputs={"preference_pairs": _gold_pairs(plan, policy, store)},
        output=Table(store / "scored_pairs" / _name(plan.score.fingerprinted, policy), plan.score.output.row_type),
        fingerprinted={**plan.score.fingerprinted, "gold policy": policy},
    )
    run_stage(score, settings.resources.pool("score"), lambda progress: None)
    training_dir = store / "model" / _name(plan.training_fingerprinted, policy)
    outcome = train_model(
        pairs=score.output,
        settings=settings.training,
        objective=settings.objective,
        model_dir=plan.base.folder,
        output_dir=training_dir,
        dev_problems=[],
        think_end=settings.model.think_end,
        progress=lambda progress: None,
    )
    trained = replace(plan.base, folder=outcome.model_dir)
    evaluate = replace(
        plan.evaluate_squeezed,
        output=Table(store / "evaluation_squeezed" / training_dir.name, EvaluationTrace),
        make_worker=partial(EvaluateModel, trained, settings.evaluation, settings.verifier),
        fingerprinted={**plan.evaluate_squeezed.fingerprinted, "training": training_dir.name},
    )
    write_problems(plan.problem_sets["test"])
    run_stage(evaluate, settings.resources.pool("evaluate"), lambda progress: None)
    return evaluate.output.rows()


def _gold_pairs(plan: RunPlan, policy: world.Policy, store: Path) -> Table[PreferencePair]:
    train = plan.problem_sets["train"]
    table = Table(store / "gold_pairs" / f"{policy}-{train.fingerprint}", PreferencePair)
    if table.is_complete():
        return table
    source = plan.settings.problems.train
    assert source, "this benchmark draws its own traces"
    stories = {story.question: story for story in world.problems("train", len(train.problems), seed=source.seed)}
    for shard, problems in enumerate(train.shards()):
        pairs = [
            pair
            for problem in problems
            for pair in chosen_alone(problem, [_gold_trace(plan, problem, stories[problem.question], policy)])
        ]
        table.write_part(shard, pairs, {"rows": len(pairs)})
    table.complete({"stage": "gold_pairs", "num_shards": len(train.shards())})
    return table


def _gold_trace(plan: RunPlan, problem: Problem, story: world.DemoProblem, policy: world.Policy) -> RefinedTrace:
    text = world.completion(world.gold_trace(story, policy), story.answer)
    (eos,) = eos_token_ids(plan.base.folder)
    token_ids = [*plan.base.tokens.encode(text), eos]
    count = len(token_ids)
    return RefinedTrace(f"{problem.problem_id}/{policy}", problem.problem_id, text, token_ids, count, text, count, decisions=[])


def _name(fingerprinted: Mapping[str, Any], policy: world.Policy) -> str:
    return fingerprint({"gold policy": policy, **fingerprinted})
