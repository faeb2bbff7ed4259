"""What DeepSpeed is told, and what is taken out of a model before it is trained."""

import torch
from transformers import GPT2Config, GPT2LMHeadModel, OPTConfig, OPTForCausalLM, PreTrainedModel

from tokensqueeze.config import TrainingSettings
from tokensqueeze.training.zero import deepspeed_config, remove_dropout


def test_dropout_of_every_name_is_off_in_training_mode() -> None:
    torch.manual_seed(0)
    opt = OPTForCausalLM(
        OPTConfig(
            vocab_size=40,
            hidden_size=16,
            ffn_dim=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            word_embed_proj_dim=16,
            dropout=0.5,
        )
    )
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=40, n_embd=16, n_layer=2, n_head=2, resid_pdrop=0.5, attn_pdrop=0.5))
    for model in (opt, gpt2):
        model.train()
        assert not _same_twice(model)
        remove_dropout(model)
        assert _same_twice(model)


def test_optimiser_states_in_cpu_memory_are_updated_by_deepspeeds_own_adam_where_there_is_a_gpu() -> None:
    def torchs_own(**changes: object) -> bool:
        config = deepspeed_config(TrainingSettings(zero_stage=2, **changes))  # type: ignore[arg-type]
        return config["optimizer"]["params"]["torch_adam"]

    assert not torchs_own(offload="optimizer", gpus_per_worker=1)
    assert torchs_own(offload="optimizer")
    assert torchs_own(gpus_per_worker=1)


def test_bfloat16_without_cuts_still_gets_a_float32_copy_of_the_weights() -> None:
    settings = [
        TrainingSettings(zero_stage=0, dtype="float32"),
        TrainingSettings(zero_stage=0, dtype="bfloat16"),
        TrainingSettings(zero_stage=3, dtype="bfloat16"),
    ]
    stages = [deepspeed_config(each)["zero_optimization"]["stage"] for each in settings]
    assert stages == [0, 1, 3]


def _same_twice(model: PreTrainedModel) -> bool:
    first, second = (model(input_ids=torch.arange(20)[None]).logits for _ in range(2))
    return bool(first.equal(second))
