import itertools

import torch

from newllm_lib.data.text import collate_rows
from newllm_lib.stages.pretrain import PretrainArguments, prepare
from newllm_lib.training.samplers import LaneSampler
from newllm_lib.training.trainer import ContextCarrier


def test_every_update_takes_the_next_row_of_every_lane():
    sampler = LaneSampler(num_rows=23, lanes=4, seed=1)
    rows = list(sampler)
    assert len(rows) == len(sampler) == 20
    assert len(set(rows)) == 20
    updates = [rows[begin : begin + 4] for begin in range(0, 20, 4)]
    for before, after in itertools.pairwise(updates):
        assert [(row + 1) % 23 for row in before] == after


def test_epochs_begin_elsewhere_and_are_reproducible():
    sampler = LaneSampler(100, 8, seed=1)
    epochs = []
    for epoch in (0, 1, 0):
        sampler.set_epoch(epoch)
        epochs.append(list(sampler))
    assert epochs[0] == epochs[2] != epochs[1]


def test_fewer_rows_than_lanes():
    assert sorted(LaneSampler(3, 32, seed=0)) == [0, 1, 2]


def test_the_context_follows_its_row():
    carrier = ContextCarrier(lanes=4)
    assert carrier.take(torch.tensor([0, 10])).context is None
    # Two micro-batches of one update, then the next update in the same order.
    carrier.keep(torch.tensor([0, 10]), torch.tensor([[1.0], [2.0]]))
    carrier.keep(torch.tensor([20, 30]), torch.tensor([[3.0], [4.0]]))
    assert carrier.take(torch.tensor([1, 11])).context.tolist() == [[1.0], [2.0]]
    carrier.keep(torch.tensor([1, 11]), torch.tensor([[5.0], [6.0]]))
    assert carrier.take(torch.tensor([21, 31])).context.tolist() == [[3.0], [4.0]]
    # A seam: nothing follows row 11 here, so this row starts from zero.
    assert carrier.take(torch.tensor([2, 50])).context.tolist() == [[5.0], [0.0]]


def test_no_gradient_flows_into_the_row_before():
    carrier = ContextCarrier(lanes=1)
    carrier.keep(torch.tensor([0]), torch.ones(1, 2, requires_grad=True) * 2)
    assert not carrier.take(torch.tensor([1])).context.requires_grad


def test_saved_and_loaded(tmp_path):
    carrier = ContextCarrier(lanes=2)
    carrier.keep(torch.tensor([4, 9]), torch.tensor([[0.1], [0.2]]))
    carrier.save(tmp_path)
    other = ContextCarrier(lanes=2)
    other.load(tmp_path, torch.device("cpu"))
    assert torch.equal(other.take(torch.tensor([10, 5])).context, torch.tensor([[0.2], [0.1]]))


def test_a_batch_that_is_read_at_once_holds_its_rows_in_their_order(text_file):
    args = PretrainArguments(data=str(text_file), tokenizer="byte", max_length=8, num_parameters=60_000)
    rows, indices = prepare(args).train_rows, [5, 0, 17, 5]
    batch, alone = collate_rows(rows.__getitems__(indices)), [rows[index] for index in indices]
    assert batch.keys() == {*alone[0], "shift_labels"} and batch["row"].tolist() == indices
    for name in alone[0]:
        assert batch[name].tolist() == [row[name].tolist() for row in alone]
