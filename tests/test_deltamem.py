"""δ-mem on tiny random models: the method against a plain reference, and what serving many streams asks of it."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from memory.deltamem import AdapterConfig, Attachment, attach, hooks, new_adapter, save_adapter
from memory.deltamem.adapter_io import CONFIG_FILE, PUBLISHED_FILE, SAFETENSORS_FILE, read_tensors, write_adapter
from memory.deltamem.config import ARCHIVED, HEADS
from memory.errors import ConfigurationError
from memory.state_pool import StatePool

VOCABULARY = 61
SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "vocab_size": VOCABULARY,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "max_position_embeddings": 128,
}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen3": ("Qwen3", {"head_dim": 12}),
    "smollm3": ("SmolLM3", {"no_rope_layers": [1, 0, 1]}),
    "llama": ("Llama", {"attention_bias": True}),
    "mistral": ("Mistral", {"sliding_window": 6}),
    "gemma": ("Gemma", {"head_dim": 12}),
}
"""Kind → what its classes begin with, and what it is given besides the sizes."""


def build(kind: str = "qwen3", *, seed: int = 0, **more: Any) -> Any:
    """A tiny random model, evaluated in float32; weights large enough that attention is not flat."""
    import transformers  # only where models are built: each process that collects the tests would spend seconds on it

    name, own = MODELS[kind]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = getattr(transformers, f"{name}Config")(**SIZES, **own, **more)
        model = getattr(transformers, f"{name}ForCausalLM")(config)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 2:
                    parameter.normal_(0, 0.3)
    return model.eval()


def random_adapter(model: nn.Module, folder: Path, seed: int = 0, **config: Any) -> Path:
    """An adapter whose every tensor is random, as after training: gates and corrections all do something."""
    config = {"rank": 4, **config}
    new_adapter(model, config, folder, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    spread = {"memory": 0.3, "delta_": 0.3, "beta_p": 0.3, "lambda": 0.5}
    tensors = {
        name: tensor + torch.randn(tensor.shape, generator=generator) * spread.get(name.rpartition(".")[2][:6], 0.3)
        for name, tensor in read_tensors(folder).items()
    }
    return write_adapter(folder, AdapterConfig(**config), tensors)


def tokens(batch: int, length: int, seed: int = 0) -> Tensor:
    return torch.randint(3, VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(seed))


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Models this small only lose by a second thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def model() -> Any:
    return build()


@pytest.fixture
def adapter(model: Any, tmp_path: Path) -> Path:
    return random_adapter(model, tmp_path / "adapter")


@contextmanager
def attached(model: Any, adapter: Path, batch: int | None = None) -> Iterator[Attachment]:
    with attach(model, adapter) as memory, torch.no_grad():
        if batch is not None:
            memory.reset(batch)
        yield memory


# The method, against a reference that follows the paper token by token in float64.


def reference(
    tensors: dict[str, Tensor], config: AdapterConfig, hidden: Tensor, state: Tensor, real: Tensor, ids: Tensor | None
) -> tuple[Tensor, Tensor]:
    """One layer over one stream: hidden `[T, D]`, state `[H, R, R]`, real `[T]` → state after, reads `[T, H·R]`."""
    R, H = config.rank, config.num_state_heads
    weights = {name: tensor.double() for name, tensor in tensors.items()}
    hidden, S = hidden.double(), state.double().clone()

    def project(x: Tensor) -> tuple[Tensor, ...]:
        q, k, v = ((weights[f"memory_{letter}_proj"] @ x).view(H, R) for letter in "qkv")
        if config.normalize_qk:
            q, k = (F.normalize(torch.tanh(part), dim=-1, eps=1e-6) for part in (q, k))
        beta = torch.sigmoid(weights["beta_proj"] @ x + weights["beta_bias"]).view(H, -1).expand(H, R)
        if config.state_update_mode == "no_lambda":
            lam = torch.ones_like(beta)
        elif config.couple_lambda:
            lam = 1 - beta
        else:
            lam = torch.sigmoid(weights["lambda_proj"] @ x + weights["lambda_bias"]).view(H, -1).expand(H, R)
        return q, k, v, beta, lam

    def write(S: Tensor, x: Tensor) -> Tensor:
        _, k, v, beta, lam = project(x)
        erase = lam * beta if config.state_update_mode == "lambda_outside" else beta
        predicted = torch.einsum("hij,hj->hi", S, k)
        return lam[..., None] * S + (beta * v - erase * predicted)[..., None] * k[:, None, :]

    before, reads = S, []
    for t, x in enumerate(hidden):
        read = torch.einsum("hij,hj->hi", S if ids is None else before, project(x)[0]).flatten()
        reads.append(read if real[t] else torch.zeros_like(read))
        if ids is None and real[t]:
            S = write(S, x)
    if ids is not None:
        for segment in sorted(set(ids[(ids >= 0) & real].tolist())):
            S = write(S, hidden[(ids == segment) & real].mean(0))
    return S, torch.stack(reads)


def multiplier(tensors: dict[str, Tensor], config: AdapterConfig, head: str) -> float:
    scale = config.alpha / config.rank
    if config.trainable_delta_scale:
        raw = tensors["delta_scale_raw"]
        scale *= config.delta_scale_max * float(torch.sigmoid(raw[HEADS.index(head) if len(raw) > 1 else 0]))
    return scale


class Tap:
    """Keeps what goes into and comes out of the attention's projections, as the model sees it."""

    def __init__(self, model: nn.Module, names: list[str]):
        self.seen: dict[str, tuple[Tensor, Tensor]] = {}
        self.handles = []
        for name in names:
            for letter in "qkvo":
                key, module = f"{name}.{letter}", model.get_submodule(f"{name}.{letter}_proj")
                self.handles.append(module.register_forward_hook(self._keeper(key)))

    def _keeper(self, key: str) -> Callable[..., None]:
        def keep(module: nn.Module, inputs: Any, output: Tensor) -> None:
            self.seen[key] = (inputs[0].clone(), output.clone())

        return keep


def check_against_reference(
    model: Any,
    folder: Path,
    config: AdapterConfig,
    *,
    real: Tensor | None = None,
    ids: Tensor | None = None,
    rounds: int = 2,
) -> None:
    """Run the model twice over two streams; compare every layer's state and corrected projections."""
    tensors = read_tensors(folder)
    segment = config.memory_write_granularity.removesuffix("_mean")
    with attached(model, folder, 2) as memory:
        tap = Tap(model, list(memory.module_names))
        for turn in range(rounds):
            x = tokens(2, 7, seed=turn)
            before = memory.states
            if segment != "token":
                memory.set_segments(**{f"{segment}_ids": ids})
            model(x, attention_mask=None if real is None else real.long())
            visible = torch.ones(x.shape, dtype=torch.bool) if real is None else real
            for name in memory.module_names:
                own = {
                    key.removeprefix(f"{name}."): value for key, value in tensors.items() if key.startswith(f"{name}.")
                }
                hidden = tap.seen[f"{name}.q"][0]
                rows = [None, None] if ids is None or segment == "token" else list(ids)
                pairs = [reference(own, config, hidden[b], before[name][b], visible[b], rows[b]) for b in range(2)]
                torch.testing.assert_close(
                    memory.states[name], torch.stack([pair[0] for pair in pairs]).float(), atol=2e-5, rtol=1e-4
                )
                reads = torch.stack([pair[1] for pair in pairs])
                for head in HEADS:
                    layer_input, output = tap.seen[f"{name}.{head}"]
                    projection = model.get_submodule(f"{name}.{head}_proj")
                    expected = F.linear(layer_input.double(), projection.weight.double())
                    if projection.bias is not None:
                        expected = expected + projection.bias.double()
                    if head in config.delta_heads:
                        delta = reads @ own[f"delta_{head}_proj"].double().t() * multiplier(own, config, head)
                        if head == "o" and config.delta_o_rmsnorm:
                            root = (delta.square().mean(-1, keepdim=True) + config.delta_o_rmsnorm_eps).sqrt()
                            delta = delta / root * own["delta_o_rmsnorm_weight"].double()
                        assert float(delta[visible].abs().max()) > 1e-4 or turn == 0
                        expected = expected + delta
                    torch.testing.assert_close(output.double(), expected, atol=5e-5, rtol=1e-4)
        for handle in tap.handles:
            handle.remove()


SETTINGS: dict[str, dict[str, Any]] = {
    "released": {},
    "four states": {"num_state_heads": 4},
    "lambda outside": {"state_update_mode": "lambda_outside"},
    "no lambda": {"state_update_mode": "no_lambda", "num_state_heads": 2},
    "free lambda": {"couple_lambda": False},
    "free lambda outside": {"couple_lambda": False, "state_update_mode": "lambda_outside", "num_state_heads": 2},
    "free lambda that is not used": {"couple_lambda": False, "state_update_mode": "no_lambda"},
    "one gate a head": {"rankwise_gates": False, "num_state_heads": 3},
    "one free gate a head": {"rankwise_gates": False, "couple_lambda": False},
    "raw keys": {"normalize_qk": False, "beta_bias_init": -4.0},
    "all heads": {"delta_heads": HEADS},
    "k and v alone": {"delta_heads": ("k", "v")},
    "chosen layers": {"target_layers": (0, 2)},
    "learnt scale": {"trainable_delta_scale": True},
    "learnt scale a head": {"trainable_delta_scale": True, "delta_scale_granularity": "head", "delta_heads": HEADS},
    "norm on o": {"delta_o_rmsnorm": True, "delta_o_rmsnorm_eps": 1e-3},
    "another alpha and rank": {"alpha": 3.0, "rank": 5},
    "messages": {"memory_write_granularity": "message_mean", "num_state_heads": 2},
    "sentences": {"memory_write_granularity": "sentence_mean", "couple_lambda": False},
}
IDS = torch.tensor([[-1, 0, 0, 1, 1, 1, 4], [3, 3, -1, 3, 2, 2, -1]])


@pytest.mark.parametrize(
    ("name", "padded"), [*((name, True) for name in SETTINGS), ("released", False), ("messages", False)]
)
def test_every_published_setting_follows_the_reference(name: str, padded: bool, model: Any, tmp_path: Path) -> None:
    config = AdapterConfig(**{"rank": 4, **SETTINGS[name]})
    real = None
    if padded:
        real = torch.ones(2, 7, dtype=torch.bool)
        real[0, :3] = real[1, 5:] = False  # on the left, and on the right
    random_adapter(model, tmp_path, **{"rank": 4, **SETTINGS[name]})
    check_against_reference(model, tmp_path, config, real=real, ids=IDS)


@pytest.mark.parametrize("kind", MODELS)
def test_every_architecture_follows_the_reference(kind: str, tmp_path: Path) -> None:
    model = build(kind)
    random_adapter(model, tmp_path, delta_heads=HEADS)
    check_against_reference(model, tmp_path, AdapterConfig(rank=4, delta_heads=HEADS))


def test_the_reference_notices_a_wrong_rule(model: Any, tmp_path: Path) -> None:
    random_adapter(model, tmp_path)
    for wrong in ({"state_update_mode": "no_lambda"}, {"alpha": 15.0}, {"normalize_qk": False}):
        with pytest.raises(AssertionError):
            check_against_reference(model, tmp_path, AdapterConfig(rank=4, **wrong))


# Attaching and detaching.


@pytest.mark.parametrize("kind", MODELS)
def test_detach_restores_the_model_bit_for_bit(kind: str, tmp_path: Path) -> None:
    model = build(kind)
    adapter, x = random_adapter(model, tmp_path), tokens(2, 9)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    flags = [parameter.requires_grad for parameter in model.parameters()]
    hooked = [(len(module._forward_hooks), len(module._forward_pre_hooks)) for module in model.modules()]
    before = model(x).logits
    with attached(model, adapter, 2):
        assert not torch.equal(model(x).logits, before)
        assert model.state_dict().keys() == weights.keys()
    assert torch.equal(model(x).logits, before)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    assert [parameter.requires_grad for parameter in model.parameters()] == flags
    assert [(len(module._forward_hooks), len(module._forward_pre_hooks)) for module in model.modules()] == hooked
    attach(model, adapter).detach()  # it can be attached again


def test_leaving_by_an_error_detaches_too(model: Any, adapter: Path) -> None:
    x = tokens(1, 4)
    before = model(x).logits
    with pytest.raises(RuntimeError, match="on purpose"), attach(model, adapter):
        raise RuntimeError("on purpose")
    assert torch.equal(model(x).logits, before)


@pytest.mark.parametrize("norm", [False, True])
def test_at_scale_0_the_logits_are_the_frozen_models_and_the_states_go_on(norm: bool, tmp_path: Path) -> None:
    model = build()
    adapter, x = random_adapter(model, tmp_path, delta_o_rmsnorm=norm), tokens(2, 6)
    frozen, short = model(x).logits, model(x[:, :2]).logits
    with attached(model, adapter, 2) as memory:
        memory.scale = 0
        assert torch.equal(model(x).logits, frozen)
        assert all(bool(state.any()) for state in memory.states.values())
        memory.scale = 1.0
        assert not torch.equal(model(x).logits, frozen)
        memory.scale = 0
        memory.stacked_states = torch.full_like(memory.stacked_states, torch.inf)
        assert torch.equal(model(x).logits, frozen)  # a sick state too
        assert torch.equal(model(x[:, :2]).logits, short)


def test_scale_is_a_factor_on_the_corrections(model: Any, tmp_path: Path) -> None:
    x = tokens(1, 12)
    logits = []
    for alpha, scale in ((8.0, 1.0), (16.0, 0.5)):
        random_adapter(model, tmp_path, alpha=alpha)
        with attached(model, tmp_path, 1) as memory:
            memory.scale = scale
            logits.append(model(x).logits)
    torch.testing.assert_close(*logits, atol=1e-5, rtol=1e-5)


def test_two_attachments_in_one_process_do_not_see_each_other(tmp_path: Path) -> None:
    models, adapters = (
        [build(seed=7), build(seed=7)],
        [random_adapter(build(), tmp_path / str(n), seed=n) for n in (0, 1)],
    )
    inputs = [[tokens(2, 5, seed), tokens(2, 1, seed + 10), tokens(2, 3, seed + 20)] for seed in (1, 2)]

    def steps(which: int) -> Iterator[Tensor]:
        with attach(models[which], adapters[which]) as memory:
            memory.reset(2)
            for x in inputs[which]:
                yield models[which](x).logits.detach()
            yield memory.stacked_states

    alone = [list(steps(0)), list(steps(1))]
    together = list(zip(*(steps(which) for which in (0, 1)), strict=True))
    for turn, pair in enumerate(together):
        for which in (0, 1):
            assert torch.equal(pair[which], alone[which][turn])


def test_a_copy_of_an_attached_model_is_not_attached(model: Any, adapter: Path) -> None:
    x = tokens(1, 4)
    frozen = model(x).logits
    with attached(model, adapter, 1) as memory:
        twin = copy.deepcopy(model)
        assert torch.equal(twin(x).logits, frozen)
        assert not memory.stacked_states.any()


# Streams in a batch.


def run_streams(model: Any, adapter: Path, rows: Tensor, cuts: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Run a batch through one cache in pieces; return all logits and the states."""
    with attached(model, adapter, len(rows)) as memory:
        logits, cache = [], None
        for first, last in pairwise((0, *cuts, rows.shape[1])):
            output = model(rows[:, first:last], past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            logits.append(output.logits)
        return torch.cat(logits, 1), memory.stacked_states


@pytest.mark.parametrize("heads", [1, 3])
def test_a_batch_of_streams_equals_each_alone_and_its_order_does_not_matter(
    heads: int, model: Any, tmp_path: Path
) -> None:
    adapter, rows = random_adapter(model, tmp_path, num_state_heads=heads), tokens(5, 11)
    order = torch.tensor([3, 0, 4, 1, 2])
    for cuts in ((), (8, 9, 10)):
        logits, states = run_streams(model, adapter, rows, cuts)
        for row in range(5):
            alone = run_streams(model, adapter, rows[row : row + 1], cuts)
            torch.testing.assert_close(alone[0][0], logits[row], atol=2e-5, rtol=1e-5)
            torch.testing.assert_close(alone[1][0], states[row], atol=1e-5, rtol=1e-5)
        permuted = run_streams(model, adapter, rows[order], cuts)
        torch.testing.assert_close(permuted[0], logits[order], atol=2e-5, rtol=1e-5)
        torch.testing.assert_close(permuted[1], states[order], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", MODELS)
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
@given(cuts=st.sets(st.integers(1, 15), max_size=5))
def test_prefill_in_pieces_equals_one_prefill(
    kind: str, tmp_path_factory: pytest.TempPathFactory, cuts: set[int]
) -> None:
    model = build(kind)
    adapter, rows = random_adapter(model, tmp_path_factory.mktemp("adapter"), num_state_heads=2), tokens(2, 16)
    whole, pieces = (run_streams(model, adapter, rows, tuple(sorted(where))) for where in (set(), cuts))
    torch.testing.assert_close(pieces[0], whole[0], atol=5e-5, rtol=1e-4)
    torch.testing.assert_close(pieces[1], whole[1], atol=2e-5, rtol=1e-4)


def test_a_wrong_order_of_pieces_is_noticed(model: Any, adapter: Path) -> None:
    rows = tokens(2, 16)
    turned = torch.cat([rows[:, 8:], rows[:, :8]], 1)
    assert (run_streams(model, adapter, rows, ())[1] - run_streams(model, adapter, turned, ())[1]).abs().max() > 1e-2


def test_writes_off_leaves_the_states_bit_identical_and_reads_them(model: Any, adapter: Path) -> None:
    x, y = tokens(2, 9, 1), tokens(2, 6, 2)
    frozen = model(y).logits
    with attached(model, adapter, 2) as memory:
        model(x)
        before = memory.states
        memory.write_enabled = False
        first = model(y).logits
        one_by_one = [model(y[:, :1]).logits, model(y[:, :3]).logits]
        after = memory.states
        assert all(torch.equal(before[name], after[name]) for name in before)
        assert torch.equal(model(y).logits, first)
        assert (first - frozen).abs().max() > 1e-2
        torch.testing.assert_close(one_by_one[0], first[:, :1], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(one_by_one[1], first[:, :3], atol=1e-5, rtol=1e-5)
        memory.write_enabled = True
        model(y)
        assert not torch.equal(memory.states[memory.module_names[0]], before[memory.module_names[0]])


def test_save_load_and_go_on_equals_going_on(tmp_path: Path) -> None:
    model = build()
    adapter = random_adapter(
        model, tmp_path / "adapter", couple_lambda=False, trainable_delta_scale=True, delta_o_rmsnorm=True
    )
    first, second = tokens(2, 9, 1), tokens(2, 7, 2)
    with attached(model, adapter, 2) as memory:
        model(first)
        save_adapter(memory, tmp_path / "saved")
        save_file(memory.states, tmp_path / "states.safetensors")
        logits, states = model(second).logits, memory.stacked_states
    other = build()
    for files in (SAFETENSORS_FILE, PUBLISHED_FILE):
        with attached(other, tmp_path / "saved") as memory:
            memory.states = load_file(tmp_path / "states.safetensors")
            assert torch.equal(other(second).logits, logits)
            assert torch.equal(memory.stacked_states, states)
        (tmp_path / "saved" / files).unlink()
        if files == SAFETENSORS_FILE:
            assert (tmp_path / "saved" / PUBLISHED_FILE).exists()


def test_streams_of_a_pool_are_advanced_where_they_are(model: Any, adapter: Path) -> None:
    pool, x = StatePool(layers=3, heads=1, rank=4, capacity=6), tokens(2, 8)
    slots = torch.from_numpy(pool.acquire(["a", "b", "c", "d"]))
    pool.states.normal_(generator=torch.Generator().manual_seed(0))
    before = pool.states.clone()
    chosen = slots[[3, 1]]
    with attached(model, adapter) as memory:
        memory.bind(pool.states, chosen)
        logits = [model(x).logits, model(x[:, :1]).logits]
        after = memory.stacked_states
        assert torch.equal(pool.states[chosen], after)
        untouched = torch.ones(len(pool.states), dtype=torch.bool)
        untouched[chosen] = False
        assert torch.equal(pool.states[untouched], before[untouched])
        memory.reset(2)
        memory.stacked_states = before[chosen]
        assert torch.equal(model(x).logits, logits[0])
        assert torch.equal(model(x[:, :1]).logits, logits[1])
        assert torch.equal(memory.stacked_states, after)
        for row in range(2):
            memory.reset(1)
            memory.stacked_states = before[chosen[row : row + 1]]
            torch.testing.assert_close(model(x[row : row + 1]).logits[0], logits[0][row], atol=2e-5, rtol=1e-4)


def test_states_keep_on_across_inference_mode(model: Any, adapter: Path) -> None:
    x = tokens(2, 6)
    with attached(model, adapter, 2) as memory:
        for length in (6, 1):
            model(x[:, :length])
        expected = memory.stacked_states
        with torch.inference_mode():
            memory.reset(2)
            model(x)
        model(x[:, :1])
        with torch.inference_mode():
            assert torch.equal(memory.stacked_states, expected)


# Masks and padding.


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_neither_reads_nor_writes(attention: str, side: str, tmp_path: Path) -> None:
    model = build(attn_implementation=attention)
    adapter, rows = random_adapter(model, tmp_path), tokens(2, 9)
    short = rows[0, 3:].clone()
    real = torch.ones(2, 9, dtype=torch.long)
    if side == "left":
        real[0, :3] = 0
        positions = torch.stack([torch.arange(9) - 3, torch.arange(9)]).clamp_min(0)
        here = slice(3, 9)
    else:
        rows[0] = torch.cat([short, rows[0, :3]])
        real[0, 6:] = 0
        positions = torch.arange(9).expand(2, 9)
        here = slice(0, 6)
    with attached(model, adapter, 1) as memory:
        alone, state = model(short[None]).logits[0], memory.stacked_states[0]
    for cuts in ((9,), (4, 9), (8, 9), (1, 2, 3, 4, 5, 9)):
        with attached(model, adapter, 2) as memory:
            cache, first, logits, reads = None, 0, [], []
            for last in cuts:
                output = model(
                    rows[:, first:last],
                    attention_mask=real[:, :last],
                    position_ids=positions[:, first:last],
                    past_key_values=cache,
                    use_cache=True,
                )
                cache, first = output.past_key_values, last
                logits.append(output.logits[0])
                reads.append(memory.record(memory.module_names[1]).reads.view(2, -1, 4)[0].clone())
            torch.testing.assert_close(torch.cat(logits)[here], alone, atol=2e-5, rtol=1e-4)
            torch.testing.assert_close(memory.stacked_states[0], state, atol=1e-5, rtol=1e-4)
            assert not torch.cat(reads)[real[0] == 0].any()


def test_a_fully_padded_stream_is_left_bit_identical(model: Any, adapter: Path) -> None:
    real = torch.tensor([[0] * 8, [1] * 8])
    with attached(model, adapter, 2) as memory:
        model(tokens(2, 8))
        before = memory.stacked_states
        for length in (8, 1):
            model(tokens(2, length, 3), attention_mask=real[:, :length])
        assert torch.equal(memory.stacked_states[0], before[0])
        assert not torch.equal(memory.stacked_states[1], before[1])


def test_the_two_conventions_of_4d_masks_mean_the_same(tmp_path: Path) -> None:
    model = build(attn_implementation="sdpa")
    adapter, x = random_adapter(model, tmp_path), tokens(2, 10)
    real = torch.ones(2, 10, dtype=torch.bool)
    real[0, :4] = False
    seen = torch.ones(10, 10, dtype=torch.bool).tril() & real[:, None, None, :]
    additive = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)
    results = []
    for mask in (real.long(), seen, additive, torch.zeros(seen.shape).masked_fill(~seen, -torch.inf)):
        for length in (10, 3):  # more and fewer tokens than the compiled step takes
            with attached(model, adapter, 2) as memory:
                model(x[:, :length], attention_mask=mask[..., :length, :length] if mask.ndim == 4 else mask[:, :length])
                results.append(memory.stacked_states)
    assert bool(results[0][0].any())
    assert bool(results[0][1].any())
    for number, states in enumerate(results):
        torch.testing.assert_close(states, results[number % 2], atol=1e-6, rtol=1e-5)
    assert not results[1][0].any()  # three tokens, all padding


def test_an_integer_4d_mask_is_refused(model: Any, adapter: Path) -> None:
    with attached(model, adapter, 1), pytest.raises(TypeError, match=r"boolean .* or additive"):
        model(tokens(1, 3), attention_mask=torch.ones(1, 1, 3, 3, dtype=torch.long))


# generate().


def greedy(model: Any, x: Tensor, new: int) -> Tensor:
    cache, given = None, x
    for _ in range(new):
        output = model(given, past_key_values=cache, use_cache=True)
        cache, given = output.past_key_values, output.logits[:, -1:].argmax(-1)
        x = torch.cat([x, given], 1)
    return x


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("cache", [None, "static"])
def test_generate_writes_and_reads_like_a_loop(kind: str, cache: str | None, tmp_path: Path) -> None:
    model = build(kind)
    adapter, x = random_adapter(model, tmp_path), tokens(2, 6)
    options = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None}
    frozen = model.generate(x, **options)
    with attached(model, adapter, 2) as memory:
        expected, states = greedy(model, x, 8), memory.stacked_states
        memory.reset(2)
        got = model.generate(x, cache_implementation=cache, **options)
        assert torch.equal(got, expected)
        torch.testing.assert_close(memory.stacked_states, states, atol=1e-5, rtol=1e-4)
        assert not torch.equal(got, frozen)


@pytest.mark.parametrize("cache", [None, "static"])
def test_generate_with_left_padding_equals_the_stream_alone(cache: str | None, tmp_path: Path) -> None:
    model = build()
    adapter, rows = random_adapter(model, tmp_path), tokens(2, 7)
    real = torch.ones_like(rows)
    real[0, :3] = 0
    options = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "cache_implementation": cache}
    with attached(model, adapter, 1) as memory:
        alone, state = model.generate(rows[:1, 3:], **options), memory.stacked_states
    with attached(model, adapter, 2) as memory:
        both = model.generate(rows, attention_mask=real, **options)
        assert torch.equal(both[0, 3:], alone[0])
        torch.testing.assert_close(memory.stacked_states[:1], state, atol=1e-5, rtol=1e-4)


# Segment writes.


def segment_adapter(model: Any, folder: Path, unit: str = "message") -> Path:
    return random_adapter(model, folder, memory_write_granularity=f"{unit}_mean")


@pytest.mark.parametrize("unit", ["message", "sentence"])
def test_segment_adapters_ask_for_ids_before_anything_is_written(unit: str, model: Any, tmp_path: Path) -> None:
    x, ids = tokens(2, 4), torch.zeros(2, 4, dtype=torch.int64)
    with attached(model, segment_adapter(model, tmp_path, unit), 2) as memory:
        with pytest.raises(ValueError, match=rf"set_segments\({unit}_ids"):
            model(x)
        assert not memory.stacked_states.any()
        memory.set_segments(**{f"{unit}_ids": ids})
        model(x)
        before = memory.stacked_states
        assert before.any()
        with pytest.raises(ValueError, match="set_segments"):  # they were for one pass
            model(x)
        memory.set_segments(**{f"{unit}_ids": ids[:, :3]})
        with pytest.raises(ValueError, match="as the input"):
            model(x)
        assert torch.equal(memory.stacked_states, before)
        memory.write_enabled = False
        model(x)  # nothing is written, so nothing is asked
        assert torch.equal(memory.stacked_states, before)


def test_a_token_of_no_segment_is_not_written(model: Any, tmp_path: Path) -> None:
    """Where the published code falls back to a write for each token."""
    with attached(model, segment_adapter(model, tmp_path), 2) as memory:
        memory.set_segments(torch.full((2, 6), -1))
        model(tokens(2, 6))
        assert not memory.stacked_states.any()
        ids = torch.full((2, 6), -1)
        ids[1, 2:4] = 5
        memory.set_segments(ids)
        model(tokens(2, 6))
        assert not memory.stacked_states[0].any()
        assert memory.stacked_states[1].any()


def test_sentences_may_be_limited_by_messages(model: Any, tmp_path: Path) -> None:
    x = tokens(1, 6)
    sentences, messages = torch.tensor([[0, 0, 1, 1, 2, 2]]), torch.tensor([[-1, -1, 0, 0, 1, 1]])
    with attached(model, segment_adapter(model, tmp_path, "sentence"), 1) as memory:
        memory.set_segments(messages, sentences)
        model(x)
        both = memory.stacked_states
        memory.reset(1)
        memory.set_segments(sentence_ids=sentences.masked_fill(messages < 0, -1))
        model(x)
        assert torch.equal(memory.stacked_states, both)


def test_a_segment_is_read_only_by_later_passes(model: Any, tmp_path: Path) -> None:
    x, ids = tokens(1, 6), torch.tensor([[0, 0, 0, 1, 1, 1]])
    frozen = model(x).logits
    with attached(model, segment_adapter(model, tmp_path), 1) as memory:
        memory.set_segments(ids)
        assert (model(x).logits - frozen).abs().max() < 1e-5
        memory.set_segments(ids)
        assert (model(x).logits - frozen).abs().max() > 1e-3


# Half precision.


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_models_keep_float32_states(dtype: torch.dtype, tmp_path: Path) -> None:
    model = build()
    adapter, x = random_adapter(model, tmp_path, delta_heads=HEADS, delta_o_rmsnorm=True), tokens(2, 12)
    logits, states = run_streams(model, adapter, x, (10, 11))
    half, half_states = run_streams(model.to(dtype), adapter, x, (10, 11))
    assert half.dtype == dtype
    assert half_states.dtype == torch.float32
    assert (half_states - half_states.to(dtype).float()).abs().max() > 0  # not rounded on the way
    assert (half.float() - logits).abs().mean() < 0.1 * logits.std()
    assert (half_states - states).norm() < 0.2 * states.norm()


def test_autocast_leaves_the_memory_in_float32(model: Any, adapter: Path) -> None:
    x = tokens(1, 9)
    with attached(model, adapter, 1) as memory:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            for length in (9, 1):
                model(x[:, :length])
                assert memory.record(memory.module_names[0]).q.dtype == torch.float32
        assert memory.stacked_states.dtype == torch.float32


# The forms of one step.


@pytest.mark.parametrize(
    "config", ["released", "four states", "free lambda outside", "no lambda", "one free gate a head", "raw keys"]
)
@pytest.mark.parametrize("write", [True, False])
def test_all_forms_of_a_step_agree(config: str, write: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build()
    adapter = random_adapter(model, tmp_path, **{"delta_heads": HEADS, **SETTINGS[config]})
    for length in (1, 3):
        x, real = tokens(3, length, 5), torch.ones(3, length, dtype=torch.long)
        real[1, -1] = 0
        for mask in (None, real):
            results = []
            for few in (4, 0):  # compiled; torch step (one token) or scan (three)
                monkeypatch.setattr(hooks, "FEW", few)
                with attached(model, adapter, 3) as memory:
                    memory.stacked_states = torch.randn(
                        memory.stacked_states.shape, generator=torch.Generator().manual_seed(1)
                    )
                    memory.write_enabled = write
                    logits = model(x, attention_mask=mask).logits
                    records = [memory.record(name) for name in memory.module_names]
                    shown = [
                        part
                        for record in records
                        for part in (record.q, record.k, record.v, record.beta, record.lam, record.reads)
                    ]
                    for record in records:
                        assert (record.write_error is None) != write
                        if record.write_error is not None:
                            error = record.write_error
                            shown.append(error if record.written is None else error[record.written])
                    shown = [part.clone() for part in shown]
                    results.append((logits if mask is None else logits[mask.bool()], memory.stacked_states, *shown))
            for compiled, plain in zip(*results, strict=True):
                torch.testing.assert_close(compiled, plain, atol=3e-5, rtol=1e-4)


def test_a_compiled_model_decodes_in_one_graph(model: Any, adapter: Path) -> None:
    """No form of the step talks to the host behind the compiler's back; what it computes is the same."""
    x, y = tokens(2, 7), tokens(2, 1, 3)
    expected = run_streams(model, adapter, torch.cat([x, y], 1), (7,))
    with attached(model, adapter, 2) as memory:
        output = model(x, use_cache=True)
        graphs: list[int] = []

        def count(graph: torch.fx.GraphModule, _inputs: list[Tensor]) -> Callable[..., Any]:
            graphs.append(len(graph.graph.nodes))
            return graph.forward

        logits = torch.compile(model, backend=count)(y, past_key_values=output.past_key_values).logits
        assert len(graphs) == 1
        torch.testing.assert_close(logits, expected[0][:, 7:], atol=2e-5, rtol=1e-4)
        torch.testing.assert_close(memory.stacked_states, expected[1], atol=1e-5, rtol=1e-4)


# What is measured.


def test_stats_are_those_of_the_records(model: Any, tmp_path: Path) -> None:
    adapter = random_adapter(model, tmp_path, num_state_heads=2)
    for length in (12, 2):
        with attached(model, adapter, 2) as memory:
            tap = Tap(model, list(memory.module_names))
            model(tokens(2, 12, 4))
            real = torch.ones(2, length, dtype=torch.long)
            real[0, 0] = 0
            model(tokens(2, length), attention_mask=real)
            stats = memory.stats()
            assert list(stats) == list(memory.module_names)
            for name, numbers in stats.items():
                record, on = memory.record(name), real.bool().flatten()
                layer_input, corrected = tap.seen[f"{name}.o"]
                base = F.linear(layer_input, model.get_submodule(f"{name}.o_proj").weight)
                ratio = ((corrected - base).norm(dim=-1) / base.norm(dim=-1))[real.bool()].mean()
                assert numbers.delta_ratio == pytest.approx(float(ratio), rel=1e-3)
                assert numbers.beta == pytest.approx(float(record.beta[on].mean()), rel=1e-5)
                assert numbers.lam == pytest.approx(1 - float(record.beta[on].mean()), rel=1e-5)
                assert numbers.state_norm == pytest.approx(
                    float(memory.states[name].flatten(2).norm(dim=-1).mean()), rel=1e-6
                )
                assert record.write_error is not None
                assert numbers.write_error == pytest.approx(float(record.write_error[on].mean()), rel=1e-5)
            memory.write_enabled, memory.scale = False, 0
            model(tokens(2, length))
            last = memory.stats()[memory.module_names[0]]
            assert (last.write_error, last.delta_ratio) == (None, None)
            for handle in tap.handles:
                handle.remove()


def test_nothing_is_kept_when_nobody_observes(model: Any, adapter: Path) -> None:
    x = tokens(1, 6)
    with attached(model, adapter, 1) as memory:
        watched = [model(x).logits, model(x[:, :1]).logits]
        memory.reset(1)
        memory.observe = False
        assert torch.equal(model(x).logits, watched[0])
        assert torch.equal(model(x[:, :1]).logits, watched[1])
        with pytest.raises(RuntimeError, match="observe"):
            memory.stats()


# Training.


@pytest.mark.parametrize(
    "config", ["released", "free lambda outside", "learnt scale a head", "norm on o", "messages", "all heads"]
)
def test_gradients_reach_reads_and_the_writes_of_earlier_passes(config: str, tmp_path: Path) -> None:
    """Against central differences along the gradient, of a loss that follows the context only through the states."""
    model = build()
    adapter = random_adapter(model, tmp_path, **SETTINGS[config])
    context, question = tokens(2, 7, 1), tokens(2, 6, 2)

    def loss(memory: Attachment) -> Tensor:
        memory.reset(2)
        memory.write_enabled = True
        memory.set_segments(IDS)
        model(context)
        memory.write_enabled = False
        logits = model(question).logits[:, :-1]
        return F.cross_entropy(logits.flatten(0, 1), question[:, 1:].flatten())

    with attach(model, adapter) as memory:
        memory.trainable()
        torch.autograd.backward(loss(memory))
        parameters = [parameter for parameter in memory.parameters() if parameter.requires_grad]
        assert all(parameter.grad is not None and bool(parameter.grad.any()) for parameter in parameters)
        assert all(parameter.grad is None for parameter in model.parameters())
        direction = [parameter.grad / parameter.grad.norm() for parameter in parameters if parameter.grad is not None]
        length = sum(float(parameter.grad.norm()) for parameter in parameters if parameter.grad is not None)
        ends, step = [], 5e-3
        memory.trainable(False)
        with torch.no_grad():
            for sign in (1, -2, 1):
                for parameter, part in zip(parameters, direction, strict=True):
                    parameter.add_(part, alpha=sign * step)
                ends.append(float(loss(memory)))
        assert (ends[0] - ends[1]) / (2 * step) == pytest.approx(length, rel=0.03)
        assert torch.equal(memory.stacked_states, memory.stacked_states.detach())


def test_recorded_and_unrecorded_passes_agree(model: Any, adapter: Path) -> None:
    x = tokens(2, 9)
    plain = run_streams(model, adapter, x, (6, 7))
    with attach(model, adapter) as memory:
        memory.trainable()
        memory.reset(2)
        logits = torch.cat([model(part).logits for part in torch.split(x, 9, 1)], 1)
        assert memory.stacked_states.requires_grad
        torch.testing.assert_close(memory.stacked_states, plain[1], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(logits, plain[0], atol=2e-5, rtol=1e-4)
        with torch.no_grad():  # what is written without recording replaces what was recorded
            model(x)
        assert not memory.stacked_states.requires_grad
        memory.trainable(False)
        assert not model(x).logits.requires_grad


def test_gradient_checkpointing_would_write_twice(model: Any, adapter: Path) -> None:
    model.activation_checkpointing_enable()
    model.train()
    with attach(model, adapter) as memory:
        memory.trainable()
        with pytest.raises(RuntimeError, match="write twice"):
            model(tokens(1, 4))


# A new adapter, and the format.


def test_a_new_adapter_has_the_published_initialisation(model: Any, tmp_path: Path) -> None:
    config = {
        "num_state_heads": 2,
        "rank": 10,
        "delta_heads": ["q", "o"],
        "couple_lambda": False,
        "trainable_delta_scale": True,
        "delta_scale_init": 0.5,
        "delta_o_rmsnorm": True,
    }
    before = torch.get_rng_state()
    tensors = read_tensors(new_adapter(model, config, tmp_path))
    assert torch.equal(torch.get_rng_state(), before)
    name = "model.layers.1.self_attn"
    own = {key.removeprefix(f"{name}."): value for key, value in tensors.items() if key.startswith(name)}
    weight = model.get_submodule(name).q_proj.weight.detach()
    assert own["delta_q_proj"].shape == (48, 20)
    torch.testing.assert_close(own["delta_q_proj"][:, :8], 0.05 * weight[:, :8] / weight[:, :8].norm(dim=0))
    assert not own["delta_q_proj"][:, 8:].any()
    assert own["delta_o_proj"][:, :8].any()
    assert not own["delta_k_proj"].any()
    assert not own["beta_proj"].any()
    assert own["beta_bias"].tolist() == [-1.5] * 20
    assert own["lambda_bias"].tolist() == [1.5] * 20
    assert float(torch.sigmoid(own["delta_scale_raw"]) * 2) == pytest.approx(0.5)
    assert own["delta_o_rmsnorm_weight"].tolist() == [1] * 32
    bound = 1 / 32**0.5
    assert 0.9 * bound < float(own["memory_k_proj"].abs().max()) <= bound
    again = read_tensors(new_adapter(model, config, tmp_path / "again"))
    assert all(torch.equal(tensors[key], again[key]) for key in tensors)
    other = read_tensors(new_adapter(model, config, tmp_path / "other", seed=1))
    assert not torch.equal(tensors[f"{name}.memory_k_proj"], other[f"{name}.memory_k_proj"])


@pytest.mark.parametrize("init", ["zero", "random", "base_slice"])
def test_the_other_initialisations(init: str, model: Any, tmp_path: Path) -> None:
    tensors = read_tensors(new_adapter(model, {"rank": 10, "output_init": init}, tmp_path))
    head = tensors["model.layers.0.self_attn.delta_o_proj"]
    used = head.abs().sum(0) > 0
    assert used.tolist() == [init != "zero"] * 10
    if init == "base_slice":
        torch.testing.assert_close(head.norm(dim=0), torch.full((10,), 0.05))
    if init == "random":
        assert float(head.abs().max()) <= 0.05 / 10**0.5


def test_the_files_are_the_published_ones(model: Any, tmp_path: Path) -> None:
    new_adapter(model, {"rank": 4, "target_layers": [1]}, tmp_path)
    fields = json.loads((tmp_path / CONFIG_FILE).read_text())
    assert len(fields) == 49
    assert fields["target_layers"] == [1]
    assert fields["latent_gate_init"] == 0.01
    tensors = torch.load(tmp_path / PUBLISHED_FILE, weights_only=True)
    assert {key.removeprefix("model.layers.1.self_attn.") for key in tensors} == {
        "memory_q_proj", "memory_k_proj", "memory_v_proj", "beta_proj", "beta_bias",
        "delta_q_proj", "delta_k_proj", "delta_v_proj", "delta_o_proj",
    }  # fmt: skip
    with attached(model, tmp_path) as memory:
        save_adapter(memory, tmp_path / "one", files="safetensors")
        save_adapter(memory, tmp_path / "two", files="pt")
    assert [(tmp_path / "one" / name).exists() for name in (SAFETENSORS_FILE, PUBLISHED_FILE)] == [True, False]
    assert [(tmp_path / "two" / name).exists() for name in (SAFETENSORS_FILE, PUBLISHED_FILE)] == [False, True]
    one, two = read_tensors(tmp_path / "one"), read_tensors(tmp_path / "two")
    assert one.keys() == two.keys() == tensors.keys()
    assert all(torch.equal(one[key], tensors[key]) and torch.equal(two[key], tensors[key]) for key in tensors)


@pytest.mark.parametrize("field", ARCHIVED)
def test_archived_fields_are_accepted_at_their_defaults_and_refused_by_name_otherwise(
    field: str, model: Any, tmp_path: Path
) -> None:
    new_adapter(model, {}, tmp_path)
    path = tmp_path / CONFIG_FILE
    fields = json.loads(path.read_text())
    attach(model, tmp_path).detach()
    default = fields[field]
    others: dict[type, Any] = {bool: default is False, str: "other", list: [1]}
    fields[field] = others[type(default)] if type(default) in others else default + 1
    path.write_text(json.dumps(fields))
    with pytest.raises(ConfigurationError, match=f"{field} is archived"):
        attach(model, tmp_path)


def test_what_a_file_leaves_out_is_taken_as_the_published_reader_takes_it(model: Any, tmp_path: Path) -> None:
    random_adapter(model, tmp_path, delta_heads=HEADS)
    (tmp_path / CONFIG_FILE).write_text(json.dumps({"rank": 4}))
    with attached(model, tmp_path) as memory:
        assert memory.config.delta_heads == HEADS


# Slips, each with its message.


def test_models_it_cannot_attach_to_say_what_was_looked_for(model: Any, adapter: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel, Phi3Config, Phi3ForCausalLM

    sizes = {key: value for key, value in SIZES.items() if key != "max_position_embeddings"}
    with pytest.raises(
        ConfigurationError, match=r"looked for modules named self_attn .* q_proj, k_proj, v_proj, o_proj.*has no q_proj"
    ):
        attach(Phi3ForCausalLM(Phi3Config(**sizes)), adapter)
    with pytest.raises(
        ConfigurationError, match=r"cannot attach to GPT2LMHeadModel: looked for modules named self_attn"
    ):
        attach(GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=8)), adapter)
    with pytest.raises(ConfigurationError, match=r"model.layers.0.self_attn.*another model's adapter|has no"):
        attach(model.model, adapter)
    with pytest.raises(ConfigurationError, match="detach that one first"), attach(model, adapter):
        attach(model, adapter)


def test_adapters_that_do_not_fit_are_refused(model: Any, adapter: Path, tmp_path: Path) -> None:
    tensors, config = read_tensors(adapter), AdapterConfig(rank=4)
    name = "model.layers.2.self_attn.beta_bias"

    def refuse(message: str, changed: dict[str, Tensor], **fields: Any) -> None:
        write_adapter(tmp_path / "changed", config.model_copy(update=fields), changed)
        with pytest.raises(ConfigurationError, match=message):
            attach(model, tmp_path / "changed")

    refuse(f"has no {name}", {key: value for key, value in tensors.items() if key != name})
    refuse(rf"{name} must be \[4\], got \[3\]", {**tensors, name: torch.zeros(3)})
    refuse("has model.layers.7.self_attn.beta_bias", {**tensors, "model.layers.7.self_attn.beta_bias": torch.zeros(4)})
    refuse("which its configuration does not use", {**tensors, "model.layers.0.self_attn.lambda_bias": torch.zeros(4)})
    refuse("target_layers too few", tensors, target_layers=(0, 1))
    refuse(r"target_layers has \[3\], but the model's layers are 0..2", tensors, target_layers=(0, 3))
    with pytest.raises(ConfigurationError, match=r"expected delta_mem_config\.json there"):
        attach(model, tmp_path / "nowhere")
    (adapter / CONFIG_FILE).write_text('{"rank": 4, "delta_head": ["q"]}')
    with pytest.raises(ConfigurationError, match="delta_head"):
        attach(model, adapter)


def test_two_tensor_files_that_disagree_are_refused(model: Any, adapter: Path) -> None:
    tensors = torch.load(adapter / PUBLISHED_FILE, weights_only=True)
    tensors["model.layers.0.self_attn.beta_bias"][0] += 1
    torch.save(tensors, adapter / PUBLISHED_FILE)
    with pytest.raises(ConfigurationError, match=r"disagree on model\.layers\.0\.self_attn\.beta_bias"):
        attach(model, adapter)


class Payload:
    """Would touch a file if it were unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_a_file_with_code_in_it_is_not_run(model: Any, adapter: Path, tmp_path: Path) -> None:
    (adapter / SAFETENSORS_FILE).unlink()
    torch.save({"model.layers.0.self_attn.beta_bias": Payload(tmp_path / "ran")}, adapter / PUBLISHED_FILE)
    with pytest.raises(ConfigurationError, match="as tensors alone"):
        attach(model, adapter)
    assert not (tmp_path / "ran").exists()


def test_a_batch_of_another_size_is_an_error_and_loses_nothing(model: Any, adapter: Path) -> None:
    """Where the published code silently begins again from zero."""
    with attached(model, adapter) as memory:
        model(tokens(2, 5))  # the first pass begins from zero by itself
        before = memory.stacked_states
        for length in (5, 1):
            with pytest.raises(ValueError, match=r"has 3 streams, the memory holds 2: call reset\(3\)"):
                model(tokens(3, length))
        assert torch.equal(memory.stacked_states, before)


def test_states_that_do_not_fit_are_refused_whole(model: Any, adapter: Path) -> None:
    with attached(model, adapter, 2) as memory:
        model(tokens(2, 5))
        before = memory.states
        first = memory.module_names[0]

        def refuse(error: type[Exception], message: str, states: dict[str, Tensor]) -> None:
            with pytest.raises(error, match=message):
                memory.states = states
            assert all(torch.equal(memory.states[name], before[name]) for name in before)

        zeros = {name: torch.zeros_like(state) for name, state in before.items()}
        refuse(
            ValueError,
            r"must be \[B, H, R, R\] = \[2, 1, 4, 4\], got \[2, 4, 4\]",
            {**zeros, first: torch.zeros(2, 4, 4)},
        )
        refuse(ValueError, "for another batch call reset", {name: torch.zeros(3, 1, 4, 4) for name in zeros})
        refuse(ValueError, "missing", {first: zeros[first]})
        refuse(ValueError, "unknown", {**zeros, "layers": zeros[first]})
        refuse(TypeError, "float32", {name: state.bfloat16() for name, state in zeros.items()})
        with pytest.raises(ValueError, match="reset"):
            memory.stacked_states = torch.zeros(3, 3, 1, 4, 4)
        with pytest.raises(ValueError, match="different rows"):
            memory.bind(torch.zeros(4, 3, 1, 4, 4), torch.tensor([1, 1]))
        with pytest.raises(ValueError, match="store must be"):
            memory.bind(torch.zeros(4, 2, 1, 4, 4), torch.tensor([1]))
        memory.states = zeros
        assert not memory.stacked_states.any()
    with attached(model, adapter) as memory:
        with pytest.raises(RuntimeError, match="no states yet"):
            _ = memory.states
        memory.states = {name: torch.ones(5, 1, 4, 4) for name in zeros}  # a fresh memory takes any batch
        assert memory.batch_size == 5


def test_states_handed_out_are_copies(model: Any, adapter: Path) -> None:
    with attached(model, adapter, 1) as memory:
        model(tokens(1, 5))
        snapshot = memory.states
        copies = {name: state.clone() for name, state in snapshot.items()}
        model(tokens(1, 5, 1))
        assert all(torch.equal(snapshot[name], copies[name]) for name in copies)
        snapshot[memory.module_names[0]].zero_()
        assert memory.stacked_states[:, 0].any()
