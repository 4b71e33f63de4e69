"""The engine in one process; tests/parity covers ZeRO stages, ranks and offloading."""

import math

import pytest
import torch
from plain_training import reset_accelerator
from tables import builtin_table, ready_step

from rm_ray.batches.plan import Plan, PlanSettings
from rm_ray.config.sections.cluster import ResolvedCluster
from rm_ray.config.sections.model import ModelConfig
from rm_ray.config.sections.optimizer import OptimizerConfig
from rm_ray.model.build import build_reward_model
from rm_ray.train.engine import Engine


@pytest.fixture(scope="module")
def table_and_tokenizer(tmp_path_factory):
    return builtin_table(tmp_path_factory.mktemp("engine") / "table", 8)


@pytest.fixture
def engine(table_and_tokenizer) -> Engine:
    return make(table_and_tokenizer[1])


def make(tokenizer, **optimizer) -> Engine:
    reset_accelerator()
    return Engine(
        build_reward_model(ModelConfig(), tokenizer, seed=0),
        OptimizerConfig(**{"max_grad_norm": 0.0, **optimizer}),
        ResolvedCluster(),
        dtype=torch.float32,
        use_gpu=False,
    )


@pytest.fixture
def pairs(table_and_tokenizer):
    table, tokenizer = table_and_tokenizer
    settings = PlanSettings(global_batch_size=8, tokens_per_micro_batch=10_000)
    return ready_step(table, Plan(lengths=table.lengths, settings=settings), 0, tokenizer)[0].groups


def gradients(engine: Engine) -> dict[str, torch.Tensor]:
    return {
        name: parameter.grad.clone()
        for name, parameter in engine.module.named_parameters()
        if parameter.grad is not None
    }


def test_a_single_process_is_rank_0_of_1(engine):
    assert (engine.rank, engine.world_size, engine.zero_stage) == (0, 1, 0)
    assert engine.device == torch.device("cpu")


def test_gradients_of_micro_batches_add_up_until_the_step_clears_them(engine, pairs):
    with engine.micro_batch(is_last=True):
        engine.backward(engine.rewards(pairs).sum())
    once = gradients(engine)
    for is_last in (False, True):
        with engine.micro_batch(is_last=is_last):
            engine.backward(engine.rewards(pairs).sum())
    thrice = gradients(engine)
    assert all(torch.allclose(thrice[name], 3 * one, rtol=1e-5) for name, one in once.items())
    engine.step(0.0, torch.zeros(1, dtype=torch.float64))
    assert gradients(engine) == {}


def test_a_step_returns_its_numbers_and_the_norm_before_clipping(table_and_tokenizer, pairs):
    norms = []
    for limit in (0.0, 1e-3):
        engine = make(table_and_tokenizer[1], max_grad_norm=limit)
        engine.backward(engine.rewards(pairs).sum())
        expected = torch.nn.utils.get_total_norm(list(gradients(engine).values())).item()
        numbers, norm = engine.step(1e-3, torch.tensor([0.1, 2.0**53], dtype=torch.float64))
        assert numbers == [0.1, 2.0**53]
        assert norm == pytest.approx(expected)
        norms.append(norm)
    assert norms[0] == norms[1]


def test_a_gradient_that_is_not_finite_updates_nothing(engine, pairs):
    before = engine.weights()
    before = {name: weight.clone() for name, weight in before.items()}
    engine.backward(engine.rewards(pairs).sum() * math.inf)
    _, norm = engine.step(1e-3, torch.zeros(1, dtype=torch.float64))
    assert not math.isfinite(norm)
    assert engine.num_updates == 0
    assert all(torch.equal(weight, before[name]) for name, weight in engine.weights().items())


def test_a_step_uses_the_learning_rate_of_its_call(engine, pairs):
    before = {name: weight.clone() for name, weight in engine.weights().items()}
    engine.backward(engine.rewards(pairs).sum())
    engine.step(0.0, torch.zeros(1, dtype=torch.float64))
    assert all(torch.equal(weight, before[name]) for name, weight in engine.weights().items())
    engine.backward(engine.rewards(pairs).sum())
    engine.step(1e-3, torch.zeros(1, dtype=torch.float64))
    assert engine.num_updates == 2
    assert not all(torch.equal(weight, before[name]) for name, weight in engine.weights().items())


def test_slices_are_views_of_all_trained_parameters(engine, pairs):
    slices = engine.slices()
    lengths = {part.parameter: len(part.tensors["weight"]) for part in slices}
    assert lengths == {name: p.numel() for name, p in engine.module.named_parameters()}
    assert all(part.is_written and part.start == 0 for part in slices)
    for part in slices:
        part.tensors["weight"].fill_(0.5)
        part.tensors["exp_avg_sq"].fill_(0.25)
    engine.resume(7)
    assert engine.num_updates == 7
    assert all((parameter == 0.5).all() for parameter in engine.module.parameters())
    assert all((state["exp_avg_sq"] == 0.25).all() for state in adamw_states(engine))


def adamw_states(engine: Engine) -> list[dict[str, torch.Tensor]]:
    return list(engine.optimizer.optimizer.state.values())


def test_frozen_parameters_have_no_slices(table_and_tokenizer):
    reset_accelerator()
    model = build_reward_model(ModelConfig(), table_and_tokenizer[1], seed=0)
    embeddings = model.classifier.get_input_embeddings().weight
    embeddings.requires_grad = False
    engine = Engine(model, OptimizerConfig(), ResolvedCluster(), dtype=torch.float32, use_gpu=False)
    names = {part.parameter for part in engine.slices()}
    assert len(names) == len(list(model.parameters())) - 1
    assert not any("embed" in name for name in names)


def test_evaluating_disables_gradients_and_then_returns_to_training(engine, pairs):
    with engine.evaluating():
        assert not engine.module.training
        assert not engine.rewards(pairs).requires_grad
    assert engine.module.training
    assert engine.rewards(pairs).requires_grad
