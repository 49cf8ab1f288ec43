"""What transformers lets anyone pass to a causal-LM and its `generate` works on every recurrent one, or is refused."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional
from transformers import AutoModel, AutoModelForCausalLM, PreTrainedModel

from newllm_lib.models import ContextCache, LSTMConfig, LSTMForCausalLM


def tokens(rows: int, length: int) -> torch.Tensor:
    return torch.randint(1, 40, (rows, length))


@pytest.mark.parametrize("name", ["past_key_values", "cache"])
@torch.no_grad()
def test_the_state_has_both_of_transformers_names(model, name):
    input_ids = tokens(2, 12)
    whole, cache = model(input_ids), ContextCache()
    parts = [model(piece, **{name: cache}) for piece in input_ids.split(5, dim=1)]
    torch.testing.assert_close(torch.cat([part.logits for part in parts], dim=1), whole.logits, rtol=1e-5, atol=1e-5)
    assert parts[-1].past_key_values is cache
    assert cache.get_seq_length() == 12

    options = {"attention_mask": torch.ones_like(input_ids), "max_new_tokens": 6, "do_sample": False}
    cache = ContextCache()
    model(input_ids[:, :7], past_key_values=cache)
    assert torch.equal(model.generate(input_ids, **options), model.generate(input_ids, **options, **{name: cache}))


def test_the_state_cannot_have_both_names_at_once(model):
    with pytest.raises(ValueError, match="two names of one argument"):
        model(tokens(1, 3), past_key_values=ContextCache(), cache=ContextCache())


@pytest.mark.parametrize("unknown", ["cahce", "past_key_value", "token_type_ids", "cu_seq_lens_q"])
def test_an_unknown_argument_is_an_error(model, unknown):
    for network in (model, model.base_model):
        with pytest.raises(TypeError, match=unknown):
            network(tokens(1, 3), **{unknown: torch.zeros(1)})


def test_generate_names_an_argument_that_it_does_not_know(model):
    with pytest.raises(ValueError, match="temprature"):
        model.generate(tokens(1, 3), max_new_tokens=2, temprature=0.5)


@torch.no_grad()
def test_guided_generation_reads_the_cache(model):
    """Classifier-free guidance asks the model itself, and goes on from the cache of its own answers."""
    prompt, scale = tokens(1, 5), 1.5
    options = {"attention_mask": torch.ones_like(prompt), "max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False}
    found = model.generate(prompt, guidance_scale=scale, **options)[:, 5:]
    expected = prompt[:, :0]
    for _ in range(8):
        with_prompt = model(torch.cat([prompt, expected], dim=1)).logits[:, -1]
        without = model(torch.cat([prompt[:, -1:], expected], dim=1)).logits[:, -1]
        with_prompt, without = with_prompt.log_softmax(-1), without.log_softmax(-1)
        guided = without + scale * (with_prompt - without)
        guided[:, 40] = -torch.inf  # min_new_tokens
        expected = torch.cat([expected, guided.argmax(-1, keepdim=True)], dim=1)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("options", [{"num_beams": 1}, {"num_beams": 3, "num_return_sequences": 2}])
def test_generation_begins_with_embeddings(model, options):
    prompt = tokens(2, 6)
    mask = torch.ones_like(prompt)
    mask[0, :2] = 0
    options = {"attention_mask": mask, "max_new_tokens": 7, "do_sample": False, **options}
    embeddings = model.get_input_embeddings()(prompt)
    expected = model.generate(prompt, **options)
    assert torch.equal(model.generate(inputs_embeds=embeddings, **options), expected[:, 6:])
    assert torch.equal(model.generate(prompt, inputs_embeds=embeddings, **options), expected)


@pytest.mark.parametrize("chunk", [1, 4, 50])
def test_a_long_prompt_is_read_in_chunks(model, chunk):
    prompt = tokens(2, 11)
    mask = torch.ones_like(prompt)
    mask[0, :5] = 0
    options = {"attention_mask": mask, "max_new_tokens": 7, "do_sample": False}
    assert torch.equal(model.generate(prompt, prefill_chunk_size=chunk, **options), model.generate(prompt, **options))


def test_a_prompt_may_say_where_its_documents_begin(model):
    first, second = tokens(1, 5), tokens(1, 6)
    positions = torch.cat([torch.arange(5), torch.arange(6)])[None]
    options = {"max_new_tokens": 7, "do_sample": False}
    alone = model.generate(second, attention_mask=torch.ones_like(second), **options)
    both = torch.cat([first, second], dim=1)
    after = model.generate(both, attention_mask=torch.ones_like(both), position_ids=positions, **options)
    assert torch.equal(after[:, 11:], alone[:, 6:])


def test_a_prompt_goes_on_from_a_context_of_unknown_length(model):
    """No document starts at its first token, although it stands at position 0."""
    before, prompt = tokens(1, 9), tokens(1, 4)
    options = {"max_new_tokens": 7, "do_sample": False}
    whole = torch.cat([before, prompt], dim=1)
    with torch.no_grad():
        context = model(before, use_cache=True).past_key_values.context
    expected = model.generate(whole, attention_mask=torch.ones_like(whole), **options)
    mask = torch.ones_like(prompt)
    found = model.generate(prompt, attention_mask=mask, past_key_values=ContextCache(context), **options)
    assert torch.equal(found[:, 4:], expected[:, 13:])


@torch.no_grad()
def test_a_tuple_is_returned_if_asked_for(model):
    input_ids = tokens(2, 5)
    expected = model(input_ids, labels=input_ids, use_cache=True)
    found = model(input_ids, labels=input_ids, use_cache=True, return_dict=False)
    assert isinstance(found, tuple) and len(found) == 3
    assert torch.equal(found[0], expected.loss) and torch.equal(found[1], expected.logits)
    assert isinstance(found[2], ContextCache)
    hidden = model.base_model(input_ids, use_cache=False, return_dict=False)
    assert torch.equal(model.lm_head(hidden[0]), expected.logits)
    model.config.return_dict = False
    assert isinstance(model(input_ids), tuple)


@torch.no_grad()
def test_hidden_states_are_shown_or_refused(model):
    input_ids = tokens(2, 5)
    layers = model.config.num_hidden_layers
    if layers > 1 and type(model).__name__ != "NewLLMForCausalLM":
        with pytest.raises(ValueError, match="no hidden states between its layers"):
            model(input_ids, output_hidden_states=True)
        return
    output = model(input_ids, output_hidden_states=True)
    assert len(output.hidden_states) == layers + 1
    assert torch.equal(model.lm_head(output.hidden_states[-1]), output.logits)
    embedded = model.get_input_embeddings()(input_ids)
    torch.testing.assert_close(functional.normalize(output.hidden_states[0]), functional.normalize(embedded))
    assert model(input_ids).hidden_states is None
    model.config.output_hidden_states = True
    assert len(model(input_ids).hidden_states) == layers + 1


def test_there_are_no_attentions_to_show(model):
    with pytest.raises(ValueError, match="no attention"):
        model(tokens(1, 3), output_attentions=True)


@pytest.mark.parametrize("how", ["assistant", "prompt lookup"])
def test_assisted_decoding_is_refused_with_a_sentence(model, how):
    options = {"assistant_model": model} if how == "assistant" else {"prompt_lookup_num_tokens": 2}
    with pytest.raises(ValueError, match=f"not supported with stateful models, such as {type(model).__name__}"):
        model.generate(tokens(1, 6), max_new_tokens=4, **options)


def test_other_libraries_find_the_network_below_the_head(model, tmp_path):
    assert isinstance(model.base_model, PreTrainedModel)
    assert type(model.get_decoder()) is type(model.base_model)
    assert model.config.auto_map == {}  # TRL reads it of every model that transformers' own package lacks
    model.save_pretrained(tmp_path)
    assert "auto_map" not in (tmp_path / "config.json").read_text()
    network = AutoModel.from_pretrained(tmp_path).eval()
    input_ids = tokens(1, 5)
    assert torch.equal(network(input_ids).last_hidden_state, model.base_model(input_ids).last_hidden_state)


def test_an_lstm_saved_before_its_network_was_a_module_still_opens(tmp_path):
    model = LSTMForCausalLM(LSTMConfig(vocab_size=41, embedding_size=12, hidden_size=16))
    model.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    earlier = {name.removeprefix("model."): tensor for name, tensor in load_file(path).items()}
    assert "embed_tokens.weight" in earlier
    save_file(earlier, path, metadata={"format": "pt"})
    resumed = LSTMForCausalLM(model.config)
    missing, unexpected = resumed.load_state_dict(earlier, strict=False)  # as the Trainer does
    assert unexpected == [] and missing == ["lm_head.weight"]  # which is tied
    for opened in (AutoModelForCausalLM.from_pretrained(tmp_path), resumed):
        for name, tensor in opened.state_dict().items():
            assert torch.equal(tensor, model.state_dict()[name]), name


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpoints_of_activations_change_nothing(model, reentrant):
    input_ids, mask = tokens(2, 150), torch.ones(2, 150, dtype=torch.long)
    mask[0, 70:75] = 0
    positions = torch.arange(150).repeat(2, 1) % 47
    found = []
    for checkpoints in (False, True):
        if checkpoints:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
            assert model.is_gradient_checkpointing
        model.train().zero_grad()
        options = {"attention_mask": mask, "position_ids": positions, "use_cache": True}
        output = model(input_ids, labels=input_ids, **options)
        output.loss.backward()
        context = output.past_key_values.context
        found.append([output.loss, context, *(parameter.grad for parameter in model.parameters())])
    for plain, checkpointed in zip(*found, strict=True):
        torch.testing.assert_close(plain, checkpointed, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a compiler on a CPU")
@pytest.mark.parametrize("model", ["newllm"], indirect=True)
def test_compiled_for_a_cpu_it_learns_the_same(model):
    input_ids = tokens(2, 6)
    found = []
    for forward in (model, torch.compile(model)):
        model.zero_grad()
        loss = forward(input_ids, labels=input_ids, use_cache=False, skip_logits=True).loss
        loss.backward()
        found.append([loss, *(parameter.grad for parameter in model.parameters())])
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-5)
