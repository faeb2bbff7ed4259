"""The model card: front matter that YAML reads, the figures it was given, code that is code."""

import ast
import re
from typing import Any

import yaml

from tokensqueeze.config import LoRASettings, Settings, TrainingSettings
from tokensqueeze.methods import METHODS, settings_from
from tokensqueeze.reporting.model_card import model_card

EVALUATION = {
    "base": {"greedy": {"accuracy": 0.928, "accuracy_se": 0.012, "length_all": 4190.0, "length_all_se": 120.0}},
    "squeezed": {"greedy": {"accuracy": 0.924, "accuracy_se": 0.012, "length_all": 2045.0, "length_all_se": 80.0}},
    "change": {
        "greedy": {
            "accuracy": -0.004,
            "accuracy_se": 0.009,
            "length_ratio": 0.488,
            "length_ratio_se": 0.01,
            "auc": 0.039,
            "auc_se": 0.008,
            "accuracy_p": 0.66,
            "length_p": 0.0001,
            "auc_p": 0.0001,
        }
    },
}
for model in ("base", "squeezed"):
    EVALUATION[model]["greedy"] |= {  # type: ignore[arg-type]
        "length_correct": 3638.0,
        "length_correct_se": 90.0,
        "thinking_length": 3900.0,
        "thinking_length_se": 110.0,
        "answer_length": 290.0,
        "answer_length_se": 5.0,
        "auc": 0.836,
        "auc_se": 0.01,
        "num_problems": 500,
        "num_samples": 500,
    }


def card(base_model: str = "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B", **replaced: Any) -> str:
    values: dict[str, Any] = {
        "model_name": "Qwen 7B, squeezed",
        "base_model": base_model,
        "method_name": "tokensqueeze",
        "method_summary": METHODS["tokensqueeze"].summary,
        "settings": settings("models/qwen-7b"),
        "counts": {"problems": 7500, "traces": 480_000, "pairs": 31_207},
        "evaluation": EVALUATION,
        "versions": {"tokensqueeze": "0.1.0", "torch": "2.13.0"},
    }
    return model_card(**values | replaced)


def settings(path: str, method: str = "tokensqueeze", objective: str = "") -> Settings:
    values = {"method": method, "model": {"path": path}, "problems": {"train": {"path": "train.jsonl"}}}
    return settings_from(values | ({"objective": {"name": objective}} if objective else {}))


def front_matter(text: str) -> dict[str, Any]:
    opening, block, _ = text.split("---\n", 2)
    assert opening == ""
    return yaml.safe_load(block)


def test_front_matter_says_what_the_hub_asks_for() -> None:
    matter = front_matter(card())
    assert matter["library_name"] == "transformers"
    assert matter["base_model"] == "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B"
    assert {"tokensqueeze", "dpo"} <= set(matter["tags"])


def test_a_server_can_read_what_the_squeezing_saved() -> None:
    assert front_matter(card())["tokensqueeze"] == {
        "decoding": "greedy",
        "base_length": 4190.0,
        "base_accuracy": 0.928,
        "squeezed_length": 2045.0,
        "squeezed_accuracy": 0.924,
    }
    assert "tokensqueeze" not in front_matter(card(evaluation=None))


def test_a_path_on_somebodys_disk_does_not_enter_the_front_matter() -> None:
    for path in ("/home/ann/models/own", "demo", "C:\\models\\own", "a: b/c", "../models"):
        assert "base_model" not in front_matter(card(path))


def test_names_the_objective_that_was_used() -> None:
    text = card(settings=settings("models/own", "shortest_sft"))
    assert "sft" in front_matter(text)["tags"] and "dpo" not in front_matter(text)["tags"]
    assert "- rewriter: `none`\n" in text
    assert "simpo" in front_matter(card(settings=settings("models/own", objective="simpo")))["tags"]


def test_says_which_parameters_were_trained() -> None:
    assert "bfloat16, all parameters\n" in card()
    lora = TrainingSettings(lora=LoRASettings(rank=8, alpha=16, target_modules=["q_proj", "v_proj"]))
    text = card(settings=settings("models/own").model_copy(update={"training": lora}))
    assert "bfloat16, LoRA of rank 8 and alpha 16 on `q_proj`, `v_proj`, merged into these weights\n" in text


def test_holds_the_figures_of_the_evaluation_and_the_counts() -> None:
    text = card()
    assert "49 % of the tokens, −0.4 points (±0.9)" in text
    assert "| base, greedy | 92.8 ± 1.2 | 3,638 ± 90 | 4,190 ± 120 |" in text
    assert "- traces: 480,000" in text
    assert "kl bound 0.005" in text and "beta 0.1" in text and "length weight 1.0" in text


def test_says_so_where_there_was_no_evaluation() -> None:
    text = card(evaluation=None)
    assert "Not evaluated" in text
    assert "of the tokens" not in text


def test_the_loading_code_parses_and_the_serving_command_is_there() -> None:
    blocks = dict(re.findall(r"```(\w+)\n(.*?)```", card(), flags=re.DOTALL))
    ast.parse(blocks["python"])
    assert blocks["shell"].startswith("tokensqueeze serve . ") and blocks["shell"].strip().endswith("vllm serve .")


def test_the_demo_says_that_it_predicts_nothing() -> None:
    caveat = "was trained to be verbose"
    assert caveat in card("demo", settings=settings("demo"))
    assert caveat not in card()


def test_a_line_break_in_a_name_can_not_open_a_second_heading() -> None:
    assert "\n# evil" not in card(model_name="mine\n# evil")
