"""What every recurrent causal-LM of ours promises as a Hugging Face citizen, checked on each of them."""

import itertools

import pytest
import torch
from transformers import AutoModelForCausalLM, pipeline

from newllm_lib.data.tokenizer import build_tokenizer
from newllm_lib.models import ContextCache, NewLLMConfig, NewLLMForCausalLM

NEWLLM_SIZES = {"vocab_size": 41, "hidden_size": 16, "dropout": 0.0, "context_size": 14, "intermediate_size": 24}


def tokens(rows: int, length: int) -> torch.Tensor:
    return torch.randint(1, 40, (rows, length))


@torch.no_grad()
def test_whole_text_equals_step_by_step_equals_ragged_chunks(model):
    input_ids = tokens(3, 63)
    whole = model(input_ids).logits
    for cuts in (list(range(64)), [0, 1, 3, 20, 21, 50, 63]):
        cache, parts = None, []
        for begin, end in itertools.pairwise(cuts):
            output = model(input_ids[:, begin:end], past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            parts.append(output.logits)
        torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=1e-5, atol=1e-5)
        assert cache.get_seq_length() == 63


@pytest.mark.parametrize("side", ["left", "right", "middle"])
@torch.no_grad()
def test_padding_leaves_no_trace(model, side):
    """Padded anywhere, the real tokens' logits and the final context are those of the unpadded text."""
    input_ids = tokens(1, 11)
    plain = model(input_ids, use_cache=True)
    gap = {"left": 0, "right": 11, "middle": 6}[side]
    pad = torch.full((1, 5), 7)
    padded = torch.cat([input_ids[:, :gap], pad, input_ids[:, gap:]], dim=1)
    mask = torch.ones_like(padded)
    mask[:, gap : gap + 5] = 0
    other = tokens(1, 16)  # a second, unpadded row in the batch
    output = model(torch.cat([padded, other]), attention_mask=torch.cat([mask, torch.ones_like(other)]), use_cache=True)
    torch.testing.assert_close(output.logits[:1][mask.bool()][None], plain.logits, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(output.past_key_values.context[:1], plain.past_key_values.context, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(output.logits[1:], model(other).logits, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_document_reset_inside_a_row(model):
    first, second = tokens(1, 6), tokens(1, 9)
    positions = torch.cat([torch.arange(6), torch.arange(9)])[None]
    packed = model(torch.cat([first, second], dim=1), position_ids=positions, use_cache=True)
    alone = model(second, use_cache=True)
    torch.testing.assert_close(packed.logits[:, 6:], alone.logits, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(packed.past_key_values.context, alone.past_key_values.context, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_a_padded_position_zero_does_not_reset(model):
    """Right padding often carries position 0; the context must survive it."""
    input_ids = tokens(1, 8)
    padded = torch.cat([input_ids, torch.zeros(1, 3, dtype=torch.long)], dim=1)
    mask = torch.tensor([[1] * 8 + [0] * 3])
    positions = torch.tensor([[*range(8), 0, 0, 0]])
    context = model(padded, attention_mask=mask, position_ids=positions, use_cache=True).past_key_values.context
    expected = model(input_ids, use_cache=True).past_key_values.context
    torch.testing.assert_close(context, expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_a_token_never_changes_logits_before_it(model):
    input_ids = tokens(2, 20)
    before = model(input_ids).logits
    for t in (1, 7, 19):
        changed = input_ids.clone()
        changed[:, t] = (changed[:, t] % 39) + 1
        after = model(changed).logits
        assert torch.equal(after[:, :t], before[:, :t])
        assert not torch.allclose(after[:, t:], before[:, t:])


@torch.no_grad()
def test_cache_bytes_do_not_grow(model):
    sizes = [model(tokens(2, length), use_cache=True).past_key_values.nbytes for length in (8, 8000)]
    assert sizes[0] == sizes[1] > 0


@pytest.mark.parametrize(
    "options",
    [
        {"do_sample": False},
        {"do_sample": True, "top_k": 10},
        {"num_beams": 4},
        {"num_beams": 3, "num_return_sequences": 2},
    ],
    ids=["greedy", "sampled", "beams", "several beams"],
)
def test_generation_is_the_same_with_and_without_cache(model, options):
    prompt = tokens(3, 6)
    mask = torch.ones_like(prompt)
    prompt[0, :2], mask[0, :2] = 0, 0  # left padding
    outputs = []
    for use_cache in (True, False):
        torch.manual_seed(3)
        outputs.append(model.generate(prompt, attention_mask=mask, max_new_tokens=15, use_cache=use_cache, **options))
    assert torch.equal(*outputs)


def test_padded_prompt_generates_what_it_does_alone(model):
    prompt = tokens(1, 5)
    padded = torch.cat([torch.zeros(1, 4, dtype=torch.long), prompt], dim=1)
    mask = torch.tensor([[0] * 4 + [1] * 5])
    alone = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=12, do_sample=False)
    beside = model.generate(padded, attention_mask=mask, max_new_tokens=12, do_sample=False)
    assert torch.equal(alone[:, 5:], beside[:, 9:])


def test_generation_goes_on_from_a_cache(model):
    prompt = tokens(1, 9)
    whole = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=8, do_sample=False)
    cache = ContextCache()
    with torch.no_grad():
        model(prompt[:, :5], past_key_values=cache)
    rest = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        past_key_values=cache,
        max_new_tokens=8,
        do_sample=False,
    )
    assert torch.equal(whole, rest)


@torch.no_grad()
def test_save_and_load_are_bit_equal(model, tmp_path):
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert type(loaded) is type(model)
    assert (tmp_path / "model.safetensors").exists()
    before, after = model.state_dict(), loaded.state_dict()
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert torch.equal(tensor, after[name]), name
    input_ids = tokens(2, 12)
    assert torch.equal(model(input_ids).logits, loaded.eval()(input_ids).logits)


def test_embeds_in_the_place_of_ids(model):
    input_ids = tokens(2, 7)
    embedded = model(inputs_embeds=model.get_input_embeddings()(input_ids)).logits
    torch.testing.assert_close(embedded, model(input_ids).logits)


def test_half_of_the_logits(model):
    input_ids = tokens(2, 7)
    torch.testing.assert_close(model(input_ids, logits_to_keep=2).logits, model(input_ids).logits[:, -2:])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_under_autocast_the_context_and_the_gradients_stay_fp32(dtype):
    model = NewLLMForCausalLM(NewLLMConfig(**NEWLLM_SIZES))
    input_ids = tokens(2, 30)
    with torch.autocast("cpu", dtype=dtype):
        output = model(input_ids, labels=input_ids, use_cache=True)
    output.loss.backward()
    assert output.past_key_values.context.dtype == torch.float32
    assert {parameter.grad.dtype for parameter in model.parameters()} == {torch.float32}
    assert abs(output.loss.item() - model(input_ids, labels=input_ids).loss.item()) < 0.02


def test_dropout_is_reproducible_from_the_seed():
    model = NewLLMForCausalLM(NewLLMConfig(**{**NEWLLM_SIZES, "dropout": 0.4})).train()
    input_ids = tokens(2, 9)
    losses = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        losses.append(model(input_ids, labels=input_ids).loss.item())
    assert losses[0] == losses[1] != losses[2]


def test_pipeline_writes_text(tmp_path, caplog):
    tokenizer = build_tokenizer("byte", [])
    sizes = {**NEWLLM_SIZES, "vocab_size": len(tokenizer)}
    model = NewLLMForCausalLM(
        NewLLMConfig(**sizes, pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id)
    )
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    generator = pipeline("text-generation", model=str(tmp_path))
    texts = generator(["The ", "A longer beginning"], max_new_tokens=5, batch_size=2, do_sample=False)
    assert [text[0]["generated_text"][:4] for text in texts] == ["The ", "A lo"]
    assert "not supported" not in caplog.text
