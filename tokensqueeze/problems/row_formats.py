"""The formats whose rows tell by their columns which benchmark they are of."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tokensqueeze.problems import choice, gpqa, humaneval, livecodebench, mbpp, mmlu_pro
from tokensqueeze.problems.raw_problem import RawProblem
from tokensqueeze.problems.row_values import is_missing
from tokensqueeze.problems.table_file import FileRow


@dataclass(frozen=True)
class RowFormat:
    title: str
    columns: tuple[str, ...]
    """Those that each of its rows has, and that tell it from the others."""
    problem: Callable[[FileRow, str], RawProblem]
    """From a row and the problem's id. Raises `ProblemsError` where the row is not as it should be."""

    def fits(self, row: FileRow) -> bool:
        return all(column in row.values and not is_missing(row, column) for column in self.columns)


ROW_FORMATS: Mapping[str, RowFormat] = {
    "humaneval": RowFormat("HumanEval", ("prompt", "entry_point", "test"), humaneval.problem),
    "mbpp": RowFormat("MBPP", ("task_id", "code", "test_list"), mbpp.problem),
    "livecodebench": RowFormat("LiveCodeBench", ("question_content", "private_test_cases"), livecodebench.problem),
    "mmlu_pro": RowFormat("MMLU-Pro", ("question", "options", "answer", "answer_index"), mmlu_pro.problem),
    "gpqa": RowFormat("GPQA", ("Question", "Correct Answer", "Incorrect Answer 1"), gpqa.problem),
    "choice": RowFormat("multiple choice", ("question", "options", "answer"), choice.problem),
}


def format_of(row: FileRow) -> str | None:
    """Return the format whose columns a row has, the most particular first."""
    return next((name for name, known in ROW_FORMATS.items() if known.fits(row)), None)
