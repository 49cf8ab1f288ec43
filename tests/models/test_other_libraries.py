"""What other libraries do to a model's layers works on New-LLM as it does on any model of plain linear layers."""

import pytest
import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, Trainer, TrainingArguments

from newllm_lib.adapters.lora import allow_old_torchao
from newllm_lib.models import NewLLMConfig, NewLLMForCausalLM

SIZES = {"vocab_size": 64, "hidden_size": 32, "context_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
LINEAR = {"forget_gate", "delta", "output_gate", "context_out", "mlp_gate", "mlp_in", "mlp_out", "projection"}


@pytest.fixture
def peft():
    module = pytest.importorskip("peft")
    allow_old_torchao()
    return module


def small_model() -> NewLLMForCausalLM:
    torch.manual_seed(0)
    return NewLLMForCausalLM(NewLLMConfig(**SIZES, dropout=0.0))


def tokens(rows: int = 2, length: int = 12) -> torch.Tensor:
    return torch.randint(0, 64, (rows, length), generator=torch.Generator().manual_seed(1))


def train_a_step(model, rate: float = 0.05) -> set[str]:
    """One step of SGD; gives the names of the parameters that moved."""
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.SGD([parameter for parameter in model.parameters() if parameter.requires_grad], rate)
    input_ids = tokens().to(model.device)
    model.train()(input_ids=input_ids, labels=input_ids).loss.backward()
    optimizer.step()
    model.eval()
    return {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}


@pytest.mark.parametrize("variant", [{}, {"use_dora": True}, {"use_rslora": True}])
def test_lora_and_its_variants_learn_and_merge(peft, variant):
    settings = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", **variant}
    model = peft.get_peft_model(small_model(), peft.LoraConfig(**settings)).eval()
    assert {name.rsplit(".", 1)[-1] for name in model.targeted_module_names} == LINEAR
    torch.testing.assert_close(model(tokens()).logits, small_model().eval()(tokens()).logits)
    for _ in range(2):  # the first step moves one of the two matrices alone
        moved = train_a_step(model)
    assert all("lora_" in name for name in moved)
    assert {name.split(".lora_")[0].rsplit(".", 1)[-1] for name in moved} == LINEAR
    adapted = model(tokens()).logits
    torch.testing.assert_close(model.merge_and_unload()(tokens()).logits, adapted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("variant", [{}, {"use_dora": True}, {"lora_dropout": 0.3}], ids=["lora", "dora", "dropout"])
def test_adapters_learn_on_a_half_precision_base_without_autocast(peft, variant):
    settings = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "init_lora_weights": False, **variant}
    model = peft.get_peft_model(small_model().to(torch.bfloat16), peft.LoraConfig(**settings))
    moved = train_a_step(model)
    assert {name.split(".lora_")[0].rsplit(".", 1)[-1] for name in moved} == LINEAR
    output = model(input_ids=tokens(), use_cache=True)
    assert output.logits.dtype == torch.bfloat16 and output.past_key_values.context.dtype == torch.float32
    full = model.float()(input_ids=tokens()).logits
    assert (output.logits - full).norm() < 0.05 * full.norm()


def test_dropout_of_adapters_drops(peft):
    settings = {"r": 4, "target_modules": "all-linear", "init_lora_weights": False, "lora_dropout": 0.5}
    model = peft.get_peft_model(small_model(), peft.LoraConfig(**settings))
    losses = [model.train(mode)(input_ids=tokens(), labels=tokens()).loss for mode in (True, True, False, False)]
    assert losses[0] != losses[1] and losses[2] == losses[3]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"target_modules": ["embed_tokens", "delta"]}, {"embed_tokens", "delta"}),
        ({"target_modules": ["delta"], "modules_to_save": ["norm"]}, {"norm", "delta"}),
        ({"target_modules": ["delta"], "modules_to_save": ["embed_tokens"]}, {"embed_tokens", "delta"}),
        ({"target_modules": ["delta"], "trainable_token_indices": [3, 5]}, {"embed_tokens", "delta"}),
    ],
    ids=["embedding adapter", "whole norm", "whole embedding", "single tokens"],
)
def test_embeddings_and_norms_take_adapters(peft, settings, expected):
    model = peft.get_peft_model(small_model(), peft.LoraConfig(r=4, **settings))
    torch.testing.assert_close(model.eval()(input_ids=tokens()).logits, small_model().eval()(tokens()).logits)
    for _ in range(2):
        moved = train_a_step(model)
    found = {part for name in moved for part in name.split(".") if part in ("embed_tokens", "delta", "norm")}
    assert found == expected
    adapted = model(input_ids=tokens()).logits
    assert not torch.allclose(adapted, small_model().eval()(tokens()).logits)
    if "embed_tokens" not in settings["target_modules"]:  # PEFT merges no adapter of a table that the head shares
        torch.testing.assert_close(model.merge_and_unload()(tokens()).logits, adapted, rtol=1e-4, atol=1e-5)


def test_single_tokens_are_learned_and_no_others(peft):
    settings = peft.LoraConfig(r=4, target_modules=["delta"], trainable_token_indices=[3, 5])
    model = peft.get_peft_model(small_model(), settings)
    train_a_step(model, rate=1.0)
    moved = (model.merge_and_unload().model.embed_tokens.weight != small_model().model.embed_tokens.weight).any(dim=1)
    assert moved.nonzero().flatten().tolist() == [3, 5]


def test_every_row_can_have_an_adapter_of_its_own(peft):
    settings = peft.LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    model = peft.get_peft_model(small_model(), settings, adapter_name="first")
    model.add_adapter("second", settings)
    model.eval()
    alone = {}
    for name in ("first", "second"):
        model.set_adapter(name)
        alone[name] = model(tokens()).logits
    mixed = model(tokens(), adapter_names=["second", "first"]).logits
    torch.testing.assert_close(mixed[0], alone["second"][0])
    torch.testing.assert_close(mixed[1], alone["first"][1])
    assert not torch.allclose(alone["first"], alone["second"])


def test_norms_alone_can_be_tuned(peft):
    norms = ["input_norm", "mlp_norm", "norm", "head_norm"]
    model = peft.get_peft_model(small_model(), peft.LNTuningConfig(target_modules=norms))
    moved = train_a_step(model)
    assert len(moved) == 2 * 2 + 2
    assert all("norm" in name for name in moved)


@pytest.mark.parametrize(
    ("settings", "kind", "error"),
    [
        (
            {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": torch.float32},
            "Linear4bit",
            0.3,
        ),
        ({"load_in_8bit": True}, "Linear8bitLt", 0.05),
    ],
)
def test_loaded_in_few_bits_it_speaks_alike_and_takes_adapters(peft, tmp_path, settings, kind, error):
    pytest.importorskip("bitsandbytes")
    model = small_model().eval()
    model.save_pretrained(tmp_path)
    expected = model(tokens()).logits
    few = AutoModelForCausalLM.from_pretrained(
        tmp_path, dtype=torch.float32, quantization_config=BitsAndBytesConfig(**settings)
    )
    layers = {name.rsplit(".", 1)[-1] for name, module in few.named_modules() if type(module).__name__ == kind}
    assert layers == LINEAR
    found = few.eval()(tokens().to(few.device)).logits.cpu()  # bitsandbytes takes a GPU if there is one
    assert (found - expected).norm() < error * expected.norm()
    adapted = peft.get_peft_model(few, peft.LoraConfig(r=4, target_modules="all-linear"))
    assert all("lora_" in name for name in train_a_step(adapted))


def test_neftune_adds_noise_to_the_embeddings(tmp_path):
    losses = []
    for alpha in (None, None, 50.0):
        arguments = TrainingArguments(
            output_dir=str(tmp_path), max_steps=1, neftune_noise_alpha=alpha, report_to="none", use_cpu=True, seed=3
        )
        rows = [{"input_ids": row, "labels": row} for row in tokens()]
        losses.append(Trainer(small_model(), arguments, train_dataset=rows).train().training_loss)
    assert losses[0] == losses[1] != losses[2]


def test_sharded_it_learns_what_it_learns_whole(tmp_path):
    """FSDP2 over a group of one process: layers are gathered and freed around their calls."""
    fsdp = pytest.importorskip("torch.distributed.fsdp")
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    try:
        mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (1,))
        whole, sharded = small_model(), small_model()
        for layer in sharded.model.layers:
            fsdp.fully_shard(layer, mesh=mesh)
        fsdp.fully_shard(sharded, mesh=mesh)
        for model in (whole, sharded):
            model(input_ids=tokens(), labels=tokens()).loss.backward()
        for (name, one), other in zip(whole.named_parameters(), sharded.parameters(), strict=True):
            torch.testing.assert_close(other.grad.full_tensor(), one.grad, msg=name)
    finally:
        torch.distributed.destroy_process_group()
