"""LiveCodeBench's format (Jain et al. 2024, arXiv 2403.07974): contest problems with their dates, tested on what they print or
return.

The private tests are JSON, or that as base64 of zlib of a pickled text. Unpickling can run any code, so nothing is: the text is
read out of the pickle. Questions say where input comes from as upstream's prompt does, in words of our own.
"""

import base64
import binascii
import pickletools
import zlib
from collections.abc import Mapping
from datetime import date, datetime

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from tokensqueeze.code_problem import LEETCODE_PREFIX, CodeTest, CodeTests
from tokensqueeze.errors import ProblemsError
from tokensqueeze.problems.raw_problem import RawProblem
from tokensqueeze.problems.row_values import optional_text, parsed, text, text_or_blank
from tokensqueeze.problems.table_file import FileRow

MAX_TEST_BYTES = 2**30
"""Private tests may not unpack to more: a few kilobytes of zlib can hold terabytes."""
_TEXT_OPERATIONS = ("SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "UNICODE")
_IDLE_OPERATIONS = ("PROTO", "FRAME", "MEMOIZE", "BINPUT", "LONG_BINPUT", "PUT", "STOP")
_WAY_OUT = "name a file in LiveCodeBench's format"
_READS_INPUT = "The program has to read its input from standard input and print the answer to standard output."
_HAS_STARTER = "Begin with this code, and keep the names in it:"


class _Case(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)

    input: str
    output: str
    testtype: str


_CASES = TypeAdapter(list[_Case])


def contest_day(row: FileRow) -> date:
    value = row.values.get("contest_date")
    if isinstance(value, datetime):
        return value.date()
    if isinstance(value, date):
        return value
    written = text(row, "contest_date", way_out=_WAY_OUT)
    try:
        return datetime.fromisoformat(written.strip()).date()
    except ValueError:
        raise ProblemsError(
            f'{row.where}: "contest_date" is {written!r}, no date such as 2024-08-01T00:00:00; mend the row'
        ) from None


def problem(row: FileRow, problem_id: str) -> RawProblem:
    content = text(row, "question_content", way_out=_WAY_OUT).strip()
    starter = text_or_blank(row, "starter_code", way_out=_WAY_OUT)
    form = f"{_HAS_STARTER}\n\n```python\n{starter.strip()}\n```" if starter else _READS_INPUT
    return RawProblem(problem_id, f"{content}\n\n{form}", _tests(row).to_json(), "code", optional_text(row, "difficulty"))


def _tests(row: FileRow) -> CodeTests:
    cases = _public_cases(row) + _private_cases(row)
    kinds = {case.testtype for case in cases}
    tests = tuple(CodeTest(input=case.input, output=case.output) for case in cases)
    if not tests:
        raise ProblemsError(f"{row.where}: no test, public or private; mend the row, or take it out")
    if kinds == {"stdin"}:
        return CodeTests(stdin=tests, prefix=LEETCODE_PREFIX)
    if kinds == {"functional"}:
        return CodeTests(functional=tests, fn_name=_function_name(row), prefix=LEETCODE_PREFIX)
    raise ProblemsError(
        f'{row.where}: "testtype" is {" and ".join(sorted(kinds))}, not stdin or functional alone; mend the row'
    )


def _public_cases(row: FileRow) -> list[_Case]:
    written = text_or_blank(row, "public_test_cases", way_out=_WAY_OUT)
    return _cases(row, "public_test_cases", parsed(row, "public_test_cases", written)) if written else []


def _private_cases(row: FileRow) -> list[_Case]:
    column = "private_test_cases"
    written = text(row, column, way_out=_WAY_OUT)
    return _cases(row, column, parsed(row, column, written if written.lstrip()[:1] == "[" else _unpacked(row, column, written)))


def _cases(row: FileRow, column: str, value: object) -> list[_Case]:
    try:
        return _CASES.validate_python(value)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"])) or "all of it"
        raise ProblemsError(
            f'{row.where}: "{column}" is no list of tests with input, output and testtype ({place}: {first["msg"]}); '
            "mend the row"
        ) from None


def _unpacked(row: FileRow, column: str, written: str) -> str:
    """Return the JSON text inside of base64 of zlib of a pickle."""
    unpacker = zlib.decompressobj()
    try:
        pickled = unpacker.decompress(base64.b64decode(written, validate=True), MAX_TEST_BYTES)
    except binascii.Error as error:
        raise _broken(row, column, f"neither JSON nor base64 ({error})") from error
    except zlib.error as error:
        raise _broken(row, column, f"base64 of no zlib stream ({error})") from error
    if unpacker.unconsumed_tail:
        raise ProblemsError(f'{row.where}: "{column}" unpacks to more than {MAX_TEST_BYTES} bytes; take the row out')
    if not unpacker.eof:
        raise _broken(row, column, "base64 of no zlib stream (it ends too early)")
    return _pickled_text(row, column, pickled)


def _pickled_text(row: FileRow, column: str, pickled: bytes) -> str:
    """Return the one text that a pickle holds. Nothing is unpickled: its operations are read, and all but a text's refused."""
    texts: list[str] = []
    try:
        for operation, argument, _ in pickletools.genops(pickled):
            if operation.name in _TEXT_OPERATIONS:
                texts.append(str(argument))
            elif operation.name not in _IDLE_OPERATIONS:
                raise _broken(row, column, f"a pickle of more than a text (it has {operation.name})")
    except ProblemsError:
        raise
    except ValueError as error:
        raise _broken(row, column, f"no pickle ({error})") from error
    if len(texts) != 1:
        raise _broken(row, column, f"a pickle of {len(texts)} texts, not of one")
    return texts[0]


def _broken(row: FileRow, column: str, what: str) -> ProblemsError:
    return ProblemsError(f'{row.where}: "{column}" is {what}; fetch the file anew')


def _function_name(row: FileRow) -> str:
    metadata = row.values.get("metadata")
    if isinstance(metadata, str):
        metadata = parsed(row, "metadata", metadata)
    name = metadata.get("func_name") if isinstance(metadata, Mapping) else None
    if not isinstance(name, str) or not name.isidentifier():
        raise ProblemsError(f'{row.where}: "metadata" names no "func_name", which the functional tests call; mend the row')
    return name
