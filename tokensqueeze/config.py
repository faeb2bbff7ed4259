"""The settings of a run and of an evaluation: every one with its default, and what clashes between them.

Defaults are the paper's (TokenSqueeze, arXiv 2511.13223), and where the paper is silent the value named in the README. A
`method` bundles a selector, a rewriter and an objective (`tokensqueeze.methods`); a section of its own overrides its part.
"""

from collections.abc import Iterable
from datetime import date
from typing import Annotated, Any, Literal, get_args
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, PlainSerializer, field_validator

from tokensqueeze.errors import SettingsError
from tokensqueeze.schema import AnswerKind
from tokensqueeze.settings_file import Section, check_section, mistakes_text

StageName = Literal["sample", "verify", "select", "propose", "accept", "pair", "score", "evaluate"]
"""The stages that run on a pool of actors, by the names that `--until` takes."""


class ModelSettings(Section):
    path: str = "demo"
    """A Hugging Face causal LM directory with tokenizer and chat template, or `demo` for the model that ships."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Number type of inference; `auto` is float32 on a CPU and the checkpoint's own elsewhere."""
    think_end: str = "</think>"
    """Text that ends the thinking block; a completion without it is all thinking."""


ProblemFormat = Literal[
    "auto", "jsonl", "parquet", "gsm8k", "math", "aime", "humaneval", "mbpp", "livecodebench", "mmlu_pro", "gpqa", "choice"
]

Day = Annotated[date, PlainSerializer(date.isoformat)]
"""Written as text, so that settings stay JSON."""


class ProblemSource(Section):
    path: str
    """A JSONL, Parquet, CSV or JSON file, gzipped or not; `hf:OWNER/NAME[@REVISION][:CONFIG][/SPLIT]`, such as
    `hf:openai/gsm8k:main/test`, for a Hugging Face data set; or `demo:train`, `demo:dev`, `demo:test` for the problems that
    ship."""
    allow_download: bool = False
    """Fetch an `hf:` data set that is not in the local Hugging Face cache; else nothing is asked of any other machine."""
    format: ProblemFormat = "auto"
    """`auto` goes by the first row's columns. `gsm8k`: the answer follows `####`; `math`: it is the last `\\boxed{}` of
    `solution`, or `answer`; `aime`: a whole number below 1,000; `choice`: columns question, options and answer, a letter;
    `jsonl`, `parquet`: question and answer word for word; the others are the benchmarks' own files."""
    question_column: str | None = None
    """Defaults to the first of question, problem, prompt that the file has."""
    answer_column: str | None = None
    """Defaults to the first of answer, gold_answer, solution that the file has."""
    id_column: str | None = None
    """Defaults to `id` or `problem_id` where the file has it, else the row's number."""
    limit: int | None = Field(default=None, ge=1)
    """Keep the first this many."""
    unanswered: Literal["error", "drop"] = "error"
    """What to do with a problem that has no gold answer."""
    first_date: Day | None = None
    """For `livecodebench`: leave out problems of contests before this day."""
    last_date: Day | None = None
    """And those of contests after this one."""
    seed: int = 0
    """Which problems to draw, for `demo:` sources."""
    per_shard: int = Field(default=16, ge=1)
    """Problems handled, and redone after a kill, together."""


class ProblemsSettings(Section):
    train: ProblemSource | None = None
    """Problems to draw traces of; none where `sampling.traces` brings traces and problems along."""
    dev: ProblemSource | None = None
    """Problems on which training watches its accuracy; none: it watches its loss alone."""
    test: ProblemSource | None = None
    """Held-out problems for the evaluation; none: the run ends with the model."""
    instruction: str = ""
    """Text put behind every question, after a blank line."""
    too_long: Literal["error", "drop"] = "error"
    """What to do with a problem whose prompt leaves no room in the model's context."""


class TraceSource(Section):
    """Traces that were made elsewhere, one response a row, with its question and the question's gold answer."""

    path: str
    """A JSONL or Parquet file. A problem's rows may stand anywhere in it, and problems may have different numbers of them."""
    question_column: str | None = None
    """Defaults to the first of question, problem, prompt that the file has."""
    response_column: str | None = None
    """Thinking and answer together; defaults to the first of response, completion, output, generation."""
    gold_column: str | None = None
    """Defaults to the first of gold_answer, expected_answer, answer, gold."""
    id_column: str | None = None
    """Names the row's problem; defaults to `problem_id` where the file has it, else the question does."""
    sample_column: str | None = None
    """Numbers the row among its problem's samples; defaults to `sample_index` where the file has it, else rows are counted."""
    finish_reason_column: str | None = None
    """Defaults to `finish_reason` where the file has it; a response without one is taken to have ended by itself."""
    answer_kind: AnswerKind = "math"
    per_shard: int = Field(default=16, ge=1)
    """Problems handled, and redone after a kill, together."""


class SamplingSettings(Section):
    num_samples: int = Field(default=64, ge=1)
    """Traces drawn per problem."""
    temperature: float = Field(default=0.9, gt=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    max_tokens: int = Field(default=8192, ge=1)
    seed: int = 0
    traces: TraceSource | None = None
    """Traces to take instead of drawing any, with their problems in place of `problems.train`."""


class CodeSettings(Section):
    """Programs that a model wrote, and what they may take while their tests run."""

    min_isolation: Literal["rlimits", "namespaces"] = "namespaces"
    """The least that must stand between a program and the machine: `namespaces` (bubblewrap or user namespaces: no network, no
    files but its own), or resource limits alone, for programs you would run yourself. With less at hand, nothing is run."""
    wall_seconds: float = Field(default=10.0, gt=0)
    """One test that runs the program or calls its function; asserts, all together, are one."""
    cpu_seconds: float = Field(default=10.0, gt=0)
    """The same, for each process of the program."""
    program_seconds: float = Field(default=60.0, gt=0)
    """All tests of one program together."""
    memory_mib: int = Field(default=1024, ge=64)
    max_processes: int = Field(default=16, ge=1)
    """Processes and threads of a program at a time."""
    output_kib: int = Field(default=1024, ge=1)
    """What a program may print to each of its two streams."""
    file_kib: int = Field(default=10_240, ge=1)
    """Largest file a program may write, in a folder of its own that holds four times that and goes with it."""


AnswerForm = Literal["boxed", "answer_tag", "hash", "last_number", "choice_phrase"]


class VerifierSettings(Section):
    """How answers are judged; a problem's own kind says by which verifier."""

    answer_forms: list[AnswerForm] = Field(default=["boxed"], min_length=1)
    """Where the answer is looked for behind the thinking block, first found counts: the last `\\boxed{}`, the last
    `<answer>…</answer>`, what follows the last `####`, the last number, a choice's closing phrase
    ("the answer is B") or last line."""
    timeout_seconds: float = Field(default=5.0, gt=0)
    """Longest time one comparison of answers may take; its clock starts when its work starts."""
    code: CodeSettings = CodeSettings()


class AdaptiveDepth(Section):
    name: Literal["adaptive_depth"] = "adaptive_depth"
    alpha: float = Field(default=0.2, ge=0, le=1)
    """Share of the correct traces kept is alpha·(1 − pass rate)."""


class Shortest(Section):
    name: Literal["shortest"] = "shortest"


class FixedQuantile(Section):
    name: Literal["fixed_quantile"] = "fixed_quantile"
    quantile: float = Field(default=0.2, ge=0, le=1)
    """Share of the correct traces kept, whatever the pass rate."""


class ReliableShortest(Section):
    name: Literal["reliable_shortest"] = "reliable_shortest"
    min_reliability: float = Field(default=0.8, ge=0, le=1)
    """Share of the samples no longer than the chosen one that must be correct."""


class RandomCorrect(Section):
    name: Literal["random_correct"] = "random_correct"


SelectorSettings = Annotated[
    AdaptiveDepth | Shortest | FixedQuantile | ReliableShortest | RandomCorrect, Field(discriminator="name")
]


class NoRewrite(Section):
    name: Literal["none"] = "none"


class StepRewriter(Section):
    num_candidates: int = Field(default=64, ge=1)
    """K: draws per step."""
    temperature: float = Field(default=1.0, gt=0)
    kl_bound: float = Field(default=0.005, gt=0)
    """ε, in nats: per token where `kl_reduction` is `mean`, over the window where it is `sum`."""
    kl_reduction: Literal["mean", "sum"] = "mean"
    bound_scale: Literal["constant", "entropy"] = "constant"
    """`constant`: ε is the bound; `entropy`: ε times the entropy of the original's predictions is, so that a candidate may
    change more where the model is unsure anyway."""
    window_tokens: int = Field(default=512, ge=1)
    """T: how many of the trace's following tokens the KL is taken on."""
    check_rest: bool = False
    """Also take the KL of what was accepted over the whole rest of the trace, for the report; changes no decision."""
    seed: int = 0


class KLBound(StepRewriter):
    name: Literal["kl_bound"] = "kl_bound"


class Reliable(StepRewriter):
    name: Literal["reliable"] = "reliable"
    num_candidates: int = Field(default=32, ge=1)
    min_reliability: float = Field(default=0.9, ge=0, le=1)
    """ρ: smoothed share of a form's draws that must pass the bound."""
    form: Literal["masked_numbers", "masked_content", "length_class", "edit_cluster"] = "masked_numbers"
    """What makes two draws the same form: equal once numbers are masked, or variables, names and formulas too; of about the
    same length; or few edits apart."""
    max_edit_distance: float = Field(default=0.5, ge=0, le=1)
    """For `edit_cluster`: the share of words and signs that may differ, numbers masked, for texts to be one form; those with
    different numbers of equations never are."""
    min_form_draws: int = Field(default=4, ge=1)
    """A form drawn less often proves nothing by itself; its texts are judged with all others such, no longer than they are."""
    unit: Literal["step", "corrected_step"] = "corrected_step"
    """`corrected_step`: a step that is wrong and the steps that take it back and mend it are rewritten as one."""
    max_step_tokens: int = Field(default=512, ge=1)
    """Draws are not cut at the original's length, but here."""


RewriterSettings = Annotated[NoRewrite | KLBound | Reliable, Field(discriminator="name")]


class PairingSettings(Section):
    max_pairs_per_problem: int = Field(default=64, ge=1)
    """M: where a problem has more, M are drawn by a seed from its id."""
    longer_correct_ratio: float | None = Field(default=None, gt=1)
    """Also reject correct traces longer than this times the chosen one (the paper's ablation: 1.5); off by default."""


class SFT(Section):
    name: Literal["sft"] = "sft"


class DPO(Section):
    name: Literal["dpo"] = "dpo"
    beta: float = Field(default=0.1, gt=0)


class LengthMargin(Section):
    beta: float = Field(default=0.1, gt=0)
    length_weight: float = Field(default=1.0, ge=0)
    """λ, the weight of log(ℓ(rejected)/ℓ(chosen)) in the margin."""
    length_margin: Literal["target", "bonus"] = "target"
    """`target`: the margin is demanded (−λ·log ratio, as derived); `bonus`: it is granted (+)."""


class DPOLength(LengthMargin):
    name: Literal["dpo_length"] = "dpo_length"


class DPOLengthSFT(LengthMargin):
    name: Literal["dpo_length_sft"] = "dpo_length_sft"
    dpo_weight: float = Field(default=0.5, ge=0, le=1)
    """η: the loss is η·DPO-L + (1 − η)·SFT."""


class SimPO(Section):
    name: Literal["simpo"] = "simpo"
    beta: float = Field(default=2.0, gt=0)
    """Of the reward β·(mean log-probability per token)."""
    gamma: float = Field(default=1.0, ge=0)
    """γ, by how much the chosen reward should exceed the rejected one."""


ObjectiveSettings = Annotated[SFT | DPO | DPOLength | DPOLengthSFT | SimPO, Field(discriminator="name")]


class LoRASettings(Section):
    rank: int = Field(default=16, ge=1)
    alpha: float = Field(default=32, gt=0)
    """An adapter's product is added alpha/rank times."""
    target_modules: str | list[str] = "all-linear"
    """Names of the linear layers that get adapters, such as q_proj; `all-linear`: all of them but the LM head."""

    @field_validator("target_modules")
    @classmethod
    def _all_or_some(cls, value: str | list[str]) -> str | list[str]:
        if not value or (isinstance(value, str) and value != "all-linear"):
            raise ValueError('write "all-linear", or a list of names')
        return value


class TrainingSettings(Section):
    learning_rate: float = Field(default=5e-6, gt=0)
    batch_size: int = Field(default=128, ge=1)
    """Pairs per optimiser step, over all workers."""
    micro_batch_tokens: int = Field(default=20_000, ge=1)
    """Tokens that one worker reads in one forward pass, both sides of its pairs with their prompt once; a longer pair is
    read alone. Less takes less memory and, up to rounding, gives the same model."""
    epochs: int = Field(default=1, ge=1)
    warmup_ratio: float = Field(default=0.03, ge=0, lt=1)
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    weight_decay: float = Field(default=0.0, ge=0)
    max_grad_norm: float = Field(default=1.0, gt=0)
    max_length: int = Field(default=9000, ge=1)
    """Prompt and completion together; a pair with a side longer than this, or than the model's context, is left out whole, and
    counted."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    lora: LoRASettings | None = None
    """Train low-rank adapters alone, merged at export; without a section [training.lora], all parameters are trained."""
    zero_stage: Literal[0, 1, 2, 3] = 2
    """What DeepSpeed cuts by the number of workers: nothing; optimiser states (1); gradients too (2); parameters too (3)."""
    offload: Literal["none", "optimizer", "optimizer_and_parameters"] = "none"
    """What waits in the CPU's memory while the GPU has no use for it: optimiser states from stage 1, parameters at 3."""
    gradient_checkpointing: bool = True
    """Keep each layer's input alone and compute the rest again in the backward pass: a third more work for most of the
    activations' memory."""
    activation_gib: float = Field(default=0, ge=0)
    """With gradient checkpointing: about how much of each worker's memory activations may fill, in GiB, before they are
    computed again. Short passes then keep many layers' and long ones few."""
    num_workers: int = Field(default=1, ge=1)
    min_workers: int | None = Field(default=None, ge=1)
    """Start, or go on after a loss, with as few workers as this where the cluster has no more. Once a minute Ray Train looks
    whether it has, and starts again with up to `num_workers` from the newest checkpoint. None: wait for all."""
    max_failures: int = Field(default=3, ge=0)
    """How often workers that died are replaced before training gives up. Nodes that are taken away don't count."""
    gpus_per_worker: float = Field(default=0, ge=0)
    checkpoint_every: int = Field(default=50, ge=1)
    """Optimiser steps between checkpoints."""
    keep_checkpoints: int = Field(default=2, ge=1)
    """How many of the last checkpoints are kept, beside the one of the best dev accuracy."""
    export: Literal["last", "best"] = "last"
    """Which step's weights become the model: the last one's, or those of the best dev accuracy. `best` also saves a checkpoint
    wherever dev accuracy is measured."""
    dev_every: int = Field(default=50, ge=1)
    """Optimiser steps between looks at the dev accuracy."""
    dev_problems: int = Field(default=64, ge=1)
    """Dev problems decoded, greedily, at each look."""
    dev_max_tokens: int = Field(default=8192, ge=1)
    max_dev_accuracy_drop: float = Field(default=0.2, gt=0, le=1)
    """Training stops when dev accuracy falls this far below the base model's; it warns at half of it, as the next two do."""
    max_chosen_drop: float = Field(default=0.2, gt=0)
    """Training stops when the chosen completions' log-probability, averaged over eight steps, has fallen this far below the
    base model's, in nats per token: text that should become likely becomes unlikely."""
    max_rejected_drop: float = Field(default=1.0, gt=0)
    """The same for rejected completions, which are meant to fall, but not without end; a small objective.beta wants more."""
    trackers: Literal["auto"] | list[Literal["tensorboard", "wandb", "mlflow"]] = "auto"
    """Who else gets the training log's figures. TensorBoard finds them in `tensorboard` beside the log; `auto` adds Weights &
    Biases and MLflow where they are installed."""
    seed: int = 0

    def decisive(self) -> dict[str, Any]:
        """Return the settings that weights and figures depend on: the rest says what is saved, shown or watched, and where."""
        watching = {"max_dev_accuracy_drop", "max_chosen_drop", "max_rejected_drop", "trackers"}
        saving = {"checkpoint_every", "keep_checkpoints"}
        spreading = {"num_workers", "min_workers", "max_failures", "gpus_per_worker"}
        # Nor how the work is cut up, which is a matter of rounding.
        cutting = {"micro_batch_tokens", "gradient_checkpointing", "activation_gib"}
        return self.model_dump(exclude=watching | saving | spreading | cutting)


class EvaluationSettings(Section):
    num_samples: int = Field(default=16, ge=0)
    """Sampled traces per problem; 0: greedy decoding alone."""
    greedy: bool = True
    """Decode each problem greedily too."""
    temperature: float = Field(default=0.6, gt=0)
    top_p: float = Field(default=0.95, gt=0, le=1)
    max_tokens: int = Field(default=32768, ge=1)
    token_budget: int = Field(default=32768, ge=1)
    """B of the area under accuracy against token budget."""
    seed: int = 0


class DecodingSettings(Section):
    """What a benchmark is evaluated with, where it is to be otherwise than the benchmark's own (`problems/benchmarks.py`)."""

    num_samples: int | None = Field(default=None, ge=0)
    """Sampled traces per problem; 0: greedy decoding alone."""
    greedy: bool = False
    """Decode each problem greedily too."""
    temperature: float | None = Field(default=None, gt=0)
    top_p: float | None = Field(default=None, gt=0, le=1)
    max_tokens: int | None = Field(default=None, ge=1)
    token_budget: int | None = Field(default=None, ge=1)
    """B of the area under accuracy against token budget."""
    seed: int = 0


def _closes(text: str) -> str:
    if "{think_end}" not in text:
        raise ValueError("write {think_end} where the thinking is to end")
    return text


CloseText = Annotated[str, AfterValidator(_closes)]
"""What closes thinking at a budget, with `{think_end}` in place of the model's tag."""


class ForcingSettings(Section):
    """Budget forcing: thinking is closed at a budget, and the answer asked for (Muennighoff et al. 2025, arXiv 2501.19393)."""

    thinking_budgets: list[Annotated[int, Field(ge=0)]] = Field(default=[])
    """In tokens; each is one point of the curve of accuracy against thinking."""
    close_text: CloseText = "\n{think_end}\n\n"
    """What is put behind the budget's last token; `{think_end}` stands for model.think_end, and has to be in it."""
    answer_tokens: int = Field(default=1024, ge=1)
    """Tokens the answer may take behind a forced close."""

    @field_validator("thinking_budgets")
    @classmethod
    def _distinct(cls, value: list[int]) -> list[int]:
        # A budget given twice would count every trace twice.
        return sorted(set(value))


class EndpointSettings(Section):
    """An OpenAI-compatible server that is evaluated instead of a model directory."""

    url: str | None = None
    """Such as http://127.0.0.1:8000/v1."""
    model: str | None = None
    """The name it serves the model under; none: the only one it has."""
    api_key_variable: str = "OPENAI_API_KEY"
    """The environment variable that holds the key, if the server wants one."""
    tokenizer: str | None = None
    """The model's own tokenizer, a directory: tells thinking from answer where the server's `usage` does not."""
    concurrency: int = Field(default=16, ge=1)
    """Requests a worker has open at once."""
    timeout_seconds: float = Field(default=3600, gt=0)
    """Longest time one request may take."""
    max_retries: int = Field(default=5, ge=0)
    """How often a request is sent again after a lost connection, a 429 or a 5xx."""

    @field_validator("url")
    @classmethod
    def _plain_url(cls, value: str | None) -> str | None:
        parts = urlsplit(value or "http://none")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("write it as http://host:port/v1")
        if parts.username or parts.password or parts.query:
            raise ValueError("a key in an address ends up in logs; put it into the variable that api_key_variable names")
        return value


class EngineSettings(Section):
    kind: Literal["transformers", "vllm"] = "transformers"
    max_batch_size: int = Field(default=64, ge=1)
    """Rows decoded at once; what waits takes the place of what has finished."""
    threads: int = Field(default=1, ge=1)
    """Threads of one worker. More than one may change the last bits of a float, and so a draw."""
    tensor_parallel_size: int = Field(default=1, ge=1)
    """GPUs one vLLM engine spans."""
    gpu_memory_utilization: float = Field(default=0.9, gt=0, le=1)


class PoolSettings(Section):
    workers: int = Field(default=1, ge=1)
    """Actors that a stage starts with."""
    max_workers: int | None = Field(default=None, ge=1)
    """Actors that a stage may grow to while shards wait and the cluster has room; default: `workers`."""
    cpus_per_worker: float = Field(default=1, gt=0)
    gpus_per_worker: float = Field(default=0, ge=0)
    """For stages that run the model."""


class StagePool(Section):
    """What one stage has otherwise than `[resources]` says."""

    workers: int | None = Field(default=None, ge=1)
    max_workers: int | None = Field(default=None, ge=1)
    cpus_per_worker: float | None = Field(default=None, gt=0)
    gpus_per_worker: float | None = Field(default=None, ge=0)


class ResourcesSettings(PoolSettings):
    """The actors of every stage, and tables such as `[resources.propose]` for one alone."""

    sample: StagePool = StagePool()
    verify: StagePool = StagePool()
    select: StagePool = StagePool()
    propose: StagePool = StagePool()
    """Streams its shards into `accept` where the cluster has, or may grow to, the CPUs and GPUs of both stages' `workers` at
    once; elsewhere, as on two cores with two workers each, accepting begins when all is proposed."""
    accept: StagePool = StagePool()
    pair: StagePool = StagePool()
    score: StagePool = StagePool()
    evaluate: StagePool = StagePool()

    def pool(self, stage: StageName) -> PoolSettings:
        """Return one stage's actors."""
        shared = self.model_dump(include=set(PoolSettings.model_fields))
        return PoolSettings(**shared | getattr(self, stage).model_dump(exclude_none=True))


class Settings(Section):
    method: str = "tokensqueeze"
    """A named bundle of selector, rewriter and objective; see `tokensqueeze methods`."""
    model: ModelSettings = ModelSettings()
    problems: ProblemsSettings = ProblemsSettings()
    sampling: SamplingSettings = SamplingSettings()
    verifier: VerifierSettings = VerifierSettings()
    selector: SelectorSettings
    rewriter: RewriterSettings
    pairing: PairingSettings = PairingSettings()
    objective: ObjectiveSettings
    training: TrainingSettings = TrainingSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    engine: EngineSettings = EngineSettings()
    resources: ResourcesSettings = ResourcesSettings()


class OwnProblems(Section):
    """How to read a problem file of one's own; see `ProblemSource`."""

    format: ProblemFormat = "auto"
    question_column: str | None = None
    answer_column: str | None = None
    id_column: str | None = None
    unanswered: Literal["error", "drop"] = "error"


class EvaluateSettings(Section):
    """Settings of `tokensqueeze evaluate`: one model, any benchmarks."""

    model: ModelSettings = ModelSettings()
    endpoint: EndpointSettings = EndpointSettings()
    problems: OwnProblems = OwnProblems()
    instruction: str | None = None
    """Text put behind every question; none: the benchmark's own."""
    too_long: Literal["error", "drop"] = "error"
    """What to do with a problem whose prompt leaves no room in the model's context."""
    per_shard: int = Field(default=16, ge=1)
    """Problems handled, and redone after a kill, together."""
    traces: TraceSource | None = None
    """Traces to measure instead of drawing any, with their problems in place of a benchmark's."""
    decoding: DecodingSettings = DecodingSettings()
    forcing: ForcingSettings = ForcingSettings()
    verifier: VerifierSettings = VerifierSettings()
    engine: EngineSettings = EngineSettings()
    resources: PoolSettings = PoolSettings()


def check_settings(values: dict[str, Any]) -> Settings:
    """Check all settings of a run. Raises `SettingsError` that lists every mistake with its key."""
    settings = check_section(Settings, values)
    # Several stages may share one.
    clashes = list(dict.fromkeys(_clashes(settings)))
    if clashes:
        raise SettingsError(mistakes_text(clashes))
    return settings


def check_evaluate_settings(values: dict[str, Any]) -> EvaluateSettings:
    """Check all settings of an evaluation. Raises `SettingsError` that lists every mistake with its key."""
    settings = check_section(EvaluateSettings, values)
    clashes = list(_evaluate_clashes(settings))
    if clashes:
        raise SettingsError(mistakes_text(clashes))
    return settings


def _clashes(settings: Settings) -> Iterable[str]:
    """Yield what is wrong between settings that are each right."""
    training, engine, resources = settings.training, settings.engine, settings.resources
    needed = {"none": 0, "optimizer": 1, "optimizer_and_parameters": 3}[training.offload]
    if training.zero_stage < needed:
        yield f"training.offload: {training.offload!r} needs training.zero_stage = {needed} or more"
    if training.min_workers and training.min_workers > training.num_workers:
        yield f"training.min_workers: {training.min_workers} is over training.num_workers = {training.num_workers}"
    if settings.problems.train is None and settings.sampling.traces is None:
        yield "problems.train: missing; this setting has no default"
    if settings.problems.train and settings.sampling.traces:
        yield "problems.train: sampling.traces brings its own problems; take one of the two out"
    if training.export == "best" and settings.problems.dev is None:
        yield 'training.export: "best" needs dev problems to tell by; set problems.dev, or export the last'
    if settings.evaluation.max_tokens > settings.evaluation.token_budget:
        yield (
            f"evaluation.max_tokens: {settings.evaluation.max_tokens} is over evaluation.token_budget = "
            f"{settings.evaluation.token_budget}; a trace longer than the budget has no place under the curve"
        )
    if settings.evaluation.num_samples == 0 and not settings.evaluation.greedy:
        yield "evaluation.num_samples: 0, and evaluation.greedy is off: nothing would be decoded"
    for stage in get_args(StageName):
        pool = resources.pool(stage)
        if pool.max_workers and pool.workers > pool.max_workers:
            yield (
                f"{_pool_key(resources, stage, 'workers')}: {pool.workers} is over "
                f"{_pool_key(resources, stage, 'max_workers')} = {pool.max_workers}"
            )
    generating: dict[StageName, bool] = {
        "sample": settings.sampling.traces is None,
        "propose": not isinstance(settings.rewriter, NoRewrite),
        "evaluate": settings.problems.test is not None,
    }
    for stage, generates in generating.items():
        gpus = resources.pool(stage).gpus_per_worker
        if generates and engine.kind == "vllm" and engine.tensor_parallel_size > max(1, gpus):
            key = _pool_key(resources, stage, "gpus_per_worker")
            yield f"engine.tensor_parallel_size: {engine.tensor_parallel_size} GPUs, but {key} = {gpus:g}"


def _evaluate_clashes(settings: EvaluateSettings) -> Iterable[str]:
    decoding, resources = settings.decoding, settings.resources
    if decoding.num_samples == 0 and not decoding.greedy:
        yield "decoding.num_samples: 0, and decoding.greedy is off: nothing would be decoded"
    if resources.max_workers and resources.workers > resources.max_workers:
        yield f"resources.workers: {resources.workers} is over resources.max_workers = {resources.max_workers}"
    if settings.endpoint.url and settings.forcing.thinking_budgets:
        yield (
            "forcing.thinking_budgets: a chat endpoint can't go on from a given thought; evaluate the model's directory, or "
            "let the server hold the budget itself"
        )
    if settings.endpoint.url and settings.traces:
        yield "traces: a server is not asked for traces that are there; name the model's directory, for its tokenizer"
    if settings.traces and settings.forcing.thinking_budgets:
        yield "forcing.thinking_budgets: traces that are there are not gone on with; take it out, or name a --benchmark instead"
    engine = settings.engine
    if not settings.endpoint.url and engine.kind == "vllm" and engine.tensor_parallel_size > max(1, resources.gpus_per_worker):
        yield (
            f"engine.tensor_parallel_size: {engine.tensor_parallel_size} GPUs, but resources.gpus_per_worker = "
            f"{resources.gpus_per_worker:g}"
        )


def _pool_key(resources: ResourcesSettings, stage: StageName, name: str) -> str:
    """Return the key that a stage's setting comes from: its own table's, or that of all stages."""
    return f"resources.{name}" if getattr(getattr(resources, stage), name) is None else f"resources.{stage}.{name}"
