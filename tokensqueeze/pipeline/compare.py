"""Bring several evaluations together: the same problems, the same limits, and a word where more than the model differs."""

from collections import Counter
from collections.abc import Sequence

from tokensqueeze import __version__
from tokensqueeze.errors import SettingsError, TableError
from tokensqueeze.metrics.comparison import cut_at, samples_per_problem
from tokensqueeze.pipeline.evaluated import Evaluated, evaluated_in
from tokensqueeze.reporting.comparison_data import ComparedModel, Comparison, Section
from tokensqueeze.reporting.wording import counted, percent
from tokensqueeze.schema import Decoding, EvaluationTrace

# Fewer problems than this leave bootstrap intervals too narrow to be called 95 %.
_FEW_PROBLEMS = 15
_NOTABLE_UNVERIFIABLE = 0.01


def compare_models(
    arguments: Sequence[str], *, benchmark: str | None = None, token_budget: int | None = None, common: bool = False
) -> Comparison:
    """Compare what the folders hold, the first model being what the others are held against.

    Raises `SettingsError` for arguments, and `TableError` for evaluations, that can't be compared.
    """
    models = _models(arguments)
    names = list(models)
    if len(names) < 2:
        raise SettingsError(f"compare {' '.join(arguments)}: one model ({names[0]}); name at least two to compare")
    notes: list[str] = []
    sections = []
    for title, own in _shared_benchmarks(models, benchmark, notes):
        sections += _sections(title, own, token_budget, common=common)
    return Comparison(sections, __version__, notes)


def _models(arguments: Sequence[str]) -> dict[str, list[Evaluated]]:
    """Return the evaluations of every model, by a name of its own."""
    found = [(argument, each) for argument in arguments for each in evaluated_in(argument)]
    tables = Counter((each.model, each.evaluation_table.path.resolve()) for _, each in found)
    twice = [name for (name, _), times in tables.items() if times > 1]
    if twice:
        raise SettingsError(f"compare: {twice[0]} is named twice; NAME=FOLDER gives it another name, if that is meant")
    models: dict[str, list[Evaluated]] = {}
    for argument, each in found:
        ambiguous = len({other for other, same in found if same.model == each.model}) > 1
        name = argument if ambiguous else each.model
        models.setdefault(name, []).append(each.named(name))
    return models


def _shared_benchmarks(
    models: dict[str, list[Evaluated]], wanted: str | None, notes: list[str]
) -> list[tuple[str, list[Evaluated]]]:
    by_benchmark = {name: {each.benchmark: each for each in own} for name, own in models.items()}
    first, *others = by_benchmark.values()
    if wanted is not None:
        lacking = [f"{name} has {', '.join(own)}" for name, own in by_benchmark.items() if wanted not in own]
        if lacking:
            raise TableError(f"--benchmark {wanted}: not evaluated; {'; '.join(lacking)}")
        return [(wanted, [own[wanted] for own in by_benchmark.values()])]
    if all(len(own) == 1 for own in by_benchmark.values()):
        # One benchmark each: whether it is the same one its problems will tell, whatever it was called.
        alone = [next(iter(own.values())) for own in by_benchmark.values()]
        return [(" / ".join(dict.fromkeys(each.benchmark for each in alone)), alone)]
    shared = [name for name in first if all(name in own for own in others)]
    if not shared:
        has = "; ".join(f"{name}: {', '.join(own)}" for name, own in by_benchmark.items())
        raise TableError(f"no benchmark that all models were evaluated on ({has}); evaluate them on the same one")
    for left_out in sorted({name for own in by_benchmark.values() for name in own} - set(shared)):
        lacking = ", ".join(model for model, own in by_benchmark.items() if left_out not in own)
        notes.append(f"{left_out} is left out: not evaluated for {lacking}.")
    return [(name, [own[name] for own in by_benchmark.values()]) for name in shared]


def _sections(benchmark: str, models: Sequence[Evaluated], token_budget: int | None, *, common: bool) -> list[Section]:
    """Return a section per decoding that all models share."""
    problem_ids, warnings = _same_problems(benchmark, models, common=common)
    shared: list[Decoding] = [own for own in models[0].decodings if all(own in each.decodings for each in models)]
    by_section: dict[str, list[Decoding]] = {f"{benchmark}, {decoding}": [decoding] * len(models) for decoding in shared}
    if not shared:
        by_section = {benchmark: [each.decodings[0] for each in models]}
        had = "; ".join(f"{each.model}: {each.decodings[0]}" for each in models)
        warnings.append(f"The models were decoded differently ({had}): a difference may be that of the decoding.")
    return [_section(title, models, decodings, problem_ids, warnings, token_budget) for title, decodings in by_section.items()]


def _section(
    title: str,
    models: Sequence[Evaluated],
    decodings: Sequence[Decoding],
    problem_ids: set[str],
    warnings: Sequence[str],
    token_budget: int | None,
) -> Section:
    warnings = list(warnings)
    limit = _shared_limit(title, models, token_budget, warnings)
    budget = _shared_budget(models, token_budget, warnings)
    compared = []
    for each, decoding in zip(models, decodings, strict=True):
        traces = [trace for trace in each.traces(decoding) if trace.problem_id in problem_ids]
        traces = cut_at(traces, limit) if limit else traces
        forced = [trace for trace in each.forced(decoding) if trace.problem_id in problem_ids]
        forced = cut_at(forced, limit) if limit else forced
        compared.append(ComparedModel(each.model, traces, forced, _settings(each, decoding, traces)))
    warnings += _sampling_warnings(models, decodings) + _trace_warnings(compared, len(problem_ids))
    problems = next((each.problems for each in models if each.problems is not None), None)
    return Section(title, budget, compared, problems, warnings)


def _same_problems(benchmark: str, models: Sequence[Evaluated], *, common: bool) -> tuple[set[str], list[str]]:
    """Return the problems to compare on. Raises `TableError` where they differ and that was not asked for."""
    warnings = []
    unknown = [each.model for each in models if each.problems is None]
    if unknown:
        warnings.append(
            f"{', '.join(unknown)} has no table of problems, so only their ids could be checked: run again to have one."
        )
    first, *others = models
    shared = set(_problem_ids(first))
    for other in others:
        differing = _differing(first, other)
        shared -= differing
        if differing and not common:
            ids, other_ids = _problem_ids(first), _problem_ids(other)
            left = len((ids & other_ids) - differing)
            way_out = f"give --common to compare on the {left:,} that they share" if left else "evaluate both on the same file"
            raise TableError(
                f"{benchmark}: the problems of {first.model} and {other.model} differ: {len(ids - other_ids):,} only in "
                f"{first.model}, {len(other_ids - ids):,} only in {other.model}, {len(differing & ids & other_ids):,} with "
                f"another question or gold answer, such as {min(differing)!r}; {way_out}"
            )
    if not shared:
        raise TableError(f"{benchmark}: no problem in common; evaluate all models on the same file")
    most = max(len(_problem_ids(each)) for each in models)
    if len(shared) < most:
        warnings.append(f"Compared on the {counted(len(shared), 'problem')} that all models share, of {most:,}.")
    return shared, warnings


def _problem_ids(model: Evaluated) -> set[str]:
    return {trace.problem_id for decoding in model.decodings for trace in model.traces(decoding)}


def _differing(first: Evaluated, other: Evaluated) -> set[str]:
    """Return the problems that only one has, or that ask or want something else."""
    ids, other_ids = _problem_ids(first), _problem_ids(other)
    differing = ids ^ other_ids
    if first.problems is None or other.problems is None:
        return differing
    for problem_id in ids & other_ids:
        one, same = first.problems.get(problem_id), other.problems.get(problem_id)
        if one is None or same is None or (one.question, one.gold_answer) != (same.question, same.gold_answer):
            differing.add(problem_id)
    return differing


def _shared_limit(title: str, models: Sequence[Evaluated], token_budget: int | None, warnings: list[str]) -> int | None:
    """Return the limit to cut completions at where the models had different ones; None where they had the same."""
    unknown = [each.model for each in models if each.max_tokens is None]
    if unknown:
        warnings.append(
            f"Not known with which max_tokens {', '.join(unknown)} was sampled; lengths compare only if it was the same."
        )
    lowest = min((each.max_tokens for each in models if each.max_tokens is not None), default=0)
    if all(each.max_tokens in (lowest, None) for each in models):
        return None
    had = ", ".join(f"{each.model} {_number(each.max_tokens)}" for each in models)
    if token_budget is None or token_budget > lowest:
        raise TableError(
            f"{title}: sampled with different max_tokens ({had}), so accuracies and lengths can't be compared; give "
            f"--budget {lowest} or less, which cuts every completion there"
        )
    warnings.append(
        f"Sampled with different max_tokens ({had}): every completion is cut at {token_budget:,} tokens, and counts as wrong "
        "where it is longer."
    )
    return token_budget


def _shared_budget(models: Sequence[Evaluated], token_budget: int | None, warnings: list[str]) -> int:
    if token_budget is not None:
        return token_budget
    lowest = min(each.token_budget for each in models)
    if any(each.token_budget != lowest for each in models):
        had = ", ".join(f"{each.model} {each.token_budget:,}" for each in models)
        warnings.append(
            f"Evaluated with different token budgets ({had}): the AUC is over {lowest:,} for all; --budget sets another."
        )
    return lowest


def _sampling_warnings(models: Sequence[Evaluated], decodings: Sequence[Decoding]) -> list[str]:
    sampled = [each for each, decoding in zip(models, decodings, strict=True) if decoding == "sampled"]
    if len({(each.temperature, each.top_p) for each in sampled}) < 2:
        return []
    had = "; ".join(f"{each.model}: {each.sampling}" for each in sampled)
    return [f"Sampled differently ({had}): a difference may be that of the sampling."]


def _trace_warnings(models: Sequence[ComparedModel], num_problems: int) -> list[str]:
    warnings = []
    samples = {model.name: _samples(model.traces) for model in models}
    if len(set(samples.values())) > 1:
        had = ", ".join(f"{name} {number}" for name, number in samples.items())
        warnings.append(f"Samples per problem differ ({had}): fair on average, but the fewer are, the more chance is in them.")
    if num_problems < _FEW_PROBLEMS:
        warnings.append(f"Only {counted(num_problems, 'problem')}: intervals are rough, and only large differences can show.")
    for model in models:
        share = sum(trace.verdict == "unverifiable" for trace in model.traces) / len(model.traces)
        if share > _NOTABLE_UNVERIFIABLE:
            warnings.append(f"{percent(share)} of {model.name}'s completions could not be verified, and count as not correct.")
    return warnings


def _settings(model: Evaluated, decoding: Decoding, traces: Sequence[EvaluationTrace]) -> dict[str, str]:
    return {
        **model.origin,
        "decoding": "greedy" if decoding == "greedy" else model.sampling,
        "max_tokens": _number(model.max_tokens),
        "token budget": f"{model.token_budget:,}",
        "samples per problem": _samples(traces),
    }


def _number(value: int | None) -> str:
    return "not known" if value is None else f"{value:,}"


def _samples(traces: Sequence[EvaluationTrace]) -> str:
    numbers = samples_per_problem(traces).values()
    least, most = min(numbers), max(numbers)
    return f"{least}" if least == most else f"{least} to {most}"
