"""`tokensqueeze verify`: its options checked, its progress and its summary on standard error."""

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast, get_args

from pydantic import ValidationError

from tokensqueeze.config import VerifierSettings
from tokensqueeze.errors import SettingsError
from tokensqueeze.pipeline.verify_file import VerifyProgress, VerifyRequest, VerifySummary, default_output, verify_file
from tokensqueeze.schema import AnswerKind, Verdict

STDOUT = "-"
_FIRST_LINE_SECONDS = 3
_LINE_SECONDS = 10
_CAUSES_SHOWN = 12
_DEFAULT_FORMS = {"choice": ("boxed", "choice_phrase")}
"""Where they are others than the settings' own: who is asked for a letter rarely boxes it."""


def verify_from_shell(
    source: Path,
    *,
    output: str | None,
    gold_column: str,
    response_column: str,
    finish_reason_column: str | None,
    kind: str,
    answer_forms: Sequence[str] | None,
    think_end: str,
    timeout_seconds: float | None,
    min_isolation: str | None,
    workers: int | None,
    overwrite_columns: bool,
) -> None:
    """Judge a file and say what came out. Raises `TokenSqueezeError` for options, files and rows that can't be used."""
    if kind not in get_args(AnswerKind):
        raise SettingsError(f"--kind {kind}: no such kind; choose from {', '.join(get_args(AnswerKind))}")
    if not think_end:
        raise SettingsError("--think-end: it is empty; leave it out where responses have no thinking block")
    target = None if output == STDOUT else Path(output) if output else default_output(source)
    request = VerifyRequest(
        source,
        gold_column=gold_column,
        response_column=response_column,
        output=target,
        finish_reason_column=finish_reason_column,
        answer_kind=cast(AnswerKind, kind),
        verifier=_settings(
            answer_forms=answer_forms or _DEFAULT_FORMS.get(kind),
            timeout_seconds=timeout_seconds,
            min_isolation=min_isolation,
        ),
        think_end=think_end,
        processes=workers or len(os.sched_getaffinity(0)),
        overwrite_columns=overwrite_columns,
    )
    summary = verify_file(request, stream=sys.stdout.buffer, on_progress=_ProgressLines())
    print(summary_text(summary, target), file=sys.stderr)


def summary_text(summary: VerifySummary, target: Path | None) -> str:
    """Return the counts by verdict and by cause, and how fast it went."""
    kept = summary.rows - summary.fresh
    parts = [f"{summary.rows:,} rows"]
    if kept:
        parts.append(f"{kept:,} of them judged by an earlier call")
    if summary.fresh:
        parts.append(f"{summary.fresh:,} in {summary.seconds:.1f} s, {summary.fresh / summary.seconds:,.0f} verdicts/s")
    lines = [", ".join(parts)]
    lines += [f"  {verdict:13} {summary.verdicts.get(verdict, 0):9,}" for verdict in get_args(Verdict)]
    causes = list(summary.causes.items())
    if causes:
        lines.append("causes:")
        lines += [f"  {count:9,}  {cause}" for cause, count in causes[:_CAUSES_SHOWN]]
    if len(causes) > _CAUSES_SHOWN:
        lines.append(f"  {sum(count for _, count in causes[_CAUSES_SHOWN:]):9,}  of {len(causes) - _CAUSES_SHOWN} more kinds")
    if target:
        lines.append(f"written: {target}")
    return "\n".join(lines)


class _ProgressLines:
    """Prints a line after the first seconds, and then now and again."""

    def __init__(self) -> None:
        self._next = time.monotonic() + _FIRST_LINE_SECONDS

    def __call__(self, progress: VerifyProgress) -> None:
        if time.monotonic() < self._next or progress.done == progress.rows:
            return
        self._next = time.monotonic() + _LINE_SECONDS
        rate = progress.fresh / progress.seconds
        left = (progress.rows - progress.done) / rate
        print(f"{progress.done:,} of {progress.rows:,} rows, {rate:,.0f} verdicts/s, {left:,.0f} s left", file=sys.stderr)


def _settings(
    *, answer_forms: Sequence[str] | None, timeout_seconds: float | None, min_isolation: str | None
) -> VerifierSettings:
    given: dict[str, Any] = {"answer_forms": list(answer_forms) if answer_forms else None, "timeout_seconds": timeout_seconds}
    given["code"] = {"min_isolation": min_isolation} if min_isolation else None
    try:
        return VerifierSettings.model_validate({name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        options = {"answer_forms": "--answer-form", "timeout_seconds": "--timeout-seconds", "code": "--min-isolation"}
        [first, *_] = error.errors()
        option = options[str(first["loc"][0])]
        raise SettingsError(f"{option} {first['input']}: {first['msg'][0].lower()}{first['msg'][1:]}") from None
