"""The README.md of an exported checkpoint: what it is, from what and how it was made, what it scores, how to run it."""

import json
import re
from collections.abc import Mapping
from typing import Any

from tokensqueeze.config import Settings, TrainingSettings
from tokensqueeze.reporting.headline import headline
from tokensqueeze.reporting.summary import evaluation_markdown
from tokensqueeze.reporting.wording import counted, plain
from tokensqueeze.settings_file import Section

DEMO_CAVEAT = (
    "This is the demo model: a tiny model that was trained to be verbose, so that there is something to squeeze. "
    "Its percentages predict nothing about other models."
)
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def model_card(
    *,
    model_name: str,
    base_model: str,
    method_name: str,
    method_summary: str,
    settings: Settings,
    counts: Mapping[str, int],
    evaluation: Mapping[str, Any] | None,
    versions: Mapping[str, str],
) -> str:
    """Return Markdown with Hugging Face's YAML front matter.

    `base_model` enters the front matter if it is a Hub name (`owner/name`); a path on somebody's disk does not.
    `counts` are figures to list under "Data", such as problems, traces and pairs, by name.
    """
    sections = [
        _front_matter(base_model, settings, evaluation),
        f"# {_one_line(model_name)}",
        f"{_article(base_model)}, fine-tuned with [TokenSqueeze](https://arxiv.org/abs/2511.13223) to reason in fewer "
        f"tokens, on its own traces. Method `{method_name}`: {method_summary}",
        *([f"> {DEMO_CAVEAT}"] if settings.model.path == "demo" else []),
        "## Evaluation",
        _evaluation(evaluation),
        "## Use",
        _usage(settings),
        "## How it was made",
        _parts(settings),
        "## Data",
        "\n".join(f"- {plain(name)}: {count:,}" for name, count in counts.items()) or "No counts were recorded.",
        "## Limits",
        "Whatever was evaluated is above: accuracy on other problems, and on longer reasoning, is not known. "
        "Standard errors leave out what another draw of traces or another training seed would change. "
        "The base model's licence and its own limits hold here too.",
        "## Versions",
        "\n".join(f"- {name} {version}" for name, version in sorted(versions.items())) or "Not recorded.",
    ]
    return "\n\n".join(sections) + "\n"


def _front_matter(base_model: str, settings: Settings, evaluation: Mapping[str, Any] | None) -> str:
    # JSON strings are YAML strings, whatever they contain.
    lines = ["library_name: transformers", "pipeline_tag: text-generation"]
    if _HUB_NAME.fullmatch(base_model):
        lines += [f"base_model: {json.dumps(base_model)}", "base_model_relation: finetune"]
    objective = settings.objective.name if settings.objective.name in ("sft", "simpo") else "dpo"
    tags = ["tokensqueeze", "reasoning", "efficient-reasoning", objective]
    measured = _measured(evaluation) if evaluation else {}
    if measured:
        # `tokensqueeze serve` counts what it saves by these.
        lines += ["tokensqueeze:", *(f"  {name}: {json.dumps(value)}" for name, value in measured.items())]
    return "\n".join(["---", *lines, "tags:", *(f"- {tag}" for tag in tags), "---"])


def _measured(evaluation: Mapping[str, Any]) -> dict[str, float | str]:
    """Return mean tokens of all answers, and the accuracies, of both models; of the decoding that the headline goes by."""
    decoding = headline(evaluation).decoding
    measured: dict[str, float | str] = {"decoding": decoding}
    for model in ("base", "squeezed"):
        figures = evaluation[model][decoding]
        measured[f"{model}_length"] = round(figures["length_all"], 2)
        measured[f"{model}_accuracy"] = round(figures["accuracy"], 4)
    return measured


def _article(base_model: str) -> str:
    return "The demo's base model" if base_model == "demo" else f"`{_one_line(base_model)}`"


def _evaluation(evaluation: Mapping[str, Any] | None) -> str:
    if evaluation is None:
        return "Not evaluated: the run had no held-out problems (`problems.test`) or stopped before it reached them."
    said = headline(evaluation)
    return f"**{said.figure} ({said.decoding}).** {said.verdict}\n\n{evaluation_markdown(evaluation).strip()}"


def _usage(settings: Settings) -> str:
    sampling = settings.evaluation
    return f"""```python
from transformers import AutoModelForCausalLM, AutoTokenizer

path = "."  # this folder
tokenizer = AutoTokenizer.from_pretrained(path)
model = AutoModelForCausalLM.from_pretrained(path)
question = [{{"role": "user", "content": "Tom has 12 apples. Tom buys 7 apples. How many apples?"}}]
prompt = tokenizer.apply_chat_template(question, add_generation_prompt=True, tokenize=False)
tokens = tokenizer(prompt, add_special_tokens=False, return_tensors="pt")
output = model.generate(
    **tokens, do_sample=True, temperature={sampling.temperature:g}, top_p={sampling.top_p:g}, max_new_tokens=1024
)
print(tokenizer.decode(output[0, tokens.input_ids.shape[1]:], skip_special_tokens=True))
```

Served with an OpenAI-compatible API, from this folder:

```shell
tokensqueeze serve .    # with thinking budgets; or: vllm serve .
```"""


def _parts(settings: Settings) -> str:
    sampling, training = settings.sampling, settings.training
    sampled = (
        f"{sampling.num_samples} traces per problem, temperature {sampling.temperature:g}, top_p {sampling.top_p:g}, "
        f"{sampling.max_tokens:,} tokens at most"
    )
    lines = [
        f"- sampling: {'none, the traces were made elsewhere' if sampling.traces else sampled}",
        *(
            f"- {kind}: `{part.name}`{_values(part)}"
            for kind, part in (
                ("selector", settings.selector),
                ("rewriter", settings.rewriter),
                ("objective", settings.objective),
            )
        ),
        f"- training: learning rate {training.learning_rate:g}, {training.batch_size} pairs a step, "
        f"{counted(training.epochs, 'epoch')}, {training.schedule} schedule, {training.dtype}, {_trained(training)}",
    ]
    return "\n".join(lines)


def _trained(training: TrainingSettings) -> str:
    """Say which of the parameters were trained."""
    lora = training.lora
    if lora is None:
        return "all parameters"
    layers = (
        "all linear layers" if lora.target_modules == "all-linear" else ", ".join(f"`{name}`" for name in lora.target_modules)
    )
    return f"LoRA of rank {lora.rank} and alpha {lora.alpha:g} on {layers}, merged into these weights"


def _values(part: Section) -> str:
    values = {key: value for key, value in part.model_dump().items() if key != "name"}
    return f" ({', '.join(f'{plain(key)} {value}' for key, value in values.items())})" if values else ""


def _one_line(text: str) -> str:
    return " ".join(text.split())
