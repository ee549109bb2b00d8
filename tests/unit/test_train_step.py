"""A step's gradients against the full batch's by plain autograd, in float64; decay groups and learning rates."""

import re

import pytest
import torch
import torch.nn.functional as F

from pipeline.errors import InputError
from pipeline.train.model import make_towers
from pipeline.train.optimiser import decay_groups, learning_rate, make_optimiser
from pipeline.train.settings import PRESETS, TrainSettings, parse_settings
from pipeline.train.step import Rows, clip, gradients, hold_temperature
from pipeline.train.world import World
from tests.ranks import ranks
from tests.train_fixture import RESNET, TOWERS, settings_of, towers_file

BATCH = 12


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def _rows(count: int = BATCH, first: int = 0) -> Rows:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (BATCH, 32, 32, 3), generator=generator, dtype=torch.uint8)
    tokens = torch.zeros(BATCH, 12, dtype=torch.int64)
    tokens[:, 0], tokens[:, 1:4] = 49406, torch.randint(1, 40_000, (BATCH, 3), generator=generator)
    tokens[:, 4] = 49407
    mine = slice(first, first + count)
    return Rows(images[mine], tokens[mine], torch.ones(count), torch.ones(count, dtype=torch.bool))


def _towers(folder, **changes):
    towers = make_towers(settings_of(folder, **changes))
    towers.model.double()
    towers.train()
    return towers


def _by_autograd(towers, rows, loss):
    """Gradients of the loss as the papers write it, over the whole batch at once."""
    towers.model.zero_grad()
    images, texts = towers.features(rows.images, rows.tokens, False)
    logits = towers.model.logit_scale.exp() * images @ texts.T
    labels = torch.arange(len(logits))
    if loss == "clip":
        value = (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2
    else:
        signs = 2 * torch.eye(len(logits)) - 1
        value = -F.logsigmoid(signs * (logits + towers.model.logit_bias)).sum() / len(logits)
    value.backward()
    return value.item(), {name: p.grad.clone() for name, p in towers.model.named_parameters() if p.grad is not None}


def _ours(towers, rows, loss, parts, world=World()):  # noqa: B008 - frozen
    value, _ = gradients(towers, rows, loss, parts, False, world)
    return value.item(), {name: p.grad.clone() for name, p in towers.model.named_parameters() if p.requires_grad}


def _same(ours, expected):
    assert ours.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(ours[name], expected[name], rtol=1e-9, atol=1e-12, msg=name)


@pytest.mark.parametrize("loss", ["clip", "siglip"])
@pytest.mark.parametrize("parts", [1, 2, 3, 5, 12])
def test_accumulated_gradients_are_the_full_batches_the_temperatures_too(tmp_path, loss, parts):
    towers = _towers(tmp_path, loss=loss)
    value, expected = _by_autograd(towers, _rows(), loss)
    ours, found = _ours(towers, _rows(), loss, parts)
    assert ours == pytest.approx(value, rel=1e-12)
    _same(found, expected)
    assert "logit_scale" in found
    assert ("logit_bias" in found) == (loss == "siglip")


def test_a_part_repeats_the_dropout_of_its_first_pass(tmp_path):
    config = {**TOWERS, "vision_cfg": {**TOWERS["vision_cfg"], "patch_dropout": 0.5}}
    towers = make_towers(settings_of(tmp_path).model_copy(update={"arch": towers_file(tmp_path, config)}))
    towers.model.double()
    towers.train()
    torch.manual_seed(1)
    _, whole = _ours(towers, _rows(), "clip", 3)
    torch.manual_seed(1)
    features = [
        towers.features(images, tokens, False)
        for images, tokens in zip(_rows().images.chunk(3), _rows().tokens.chunk(3), strict=True)
    ]
    towers.model.zero_grad()
    images, texts = (torch.cat(one) for one in zip(*features, strict=True))
    logits, labels = towers.model.logit_scale.exp() * images @ texts.T, torch.arange(BATCH)
    ((F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2).backward()
    _same(whole, {name: parameter.grad for name, parameter in towers.model.named_parameters()})


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradient_checkpointing_changes_no_gradient(tmp_path, checkpointing):
    _, expected = _by_autograd(_towers(tmp_path), _rows(), "clip")
    _, found = _ours(_towers(tmp_path, checkpointing=checkpointing), _rows(), "clip", 1)
    _same(found, expected)


def _a_rank(arch: str, loss: str, parts: int):
    import torch.distributed as dist

    world = World(dist.get_rank(), dist.get_world_size())
    towers = make_towers(TrainSettings(arch=arch, loss=loss))
    towers.model.double()
    towers.train()
    each = BATCH // world.size
    value, found = _ours(towers, _rows(each, world.rank * each), loss, parts, world)
    return value, {name: grad.numpy() for name, grad in found.items() if "token_embedding" not in name}


@pytest.mark.parametrize("loss", ["clip", "siglip"])
@pytest.mark.parametrize(("size", "parts"), [(2, 1), (3, 2)])
def test_several_workers_have_the_gradients_of_one(tmp_path, loss, size, parts):
    value, expected = _by_autograd(_towers(tmp_path, loss=loss), _rows(), loss)
    answers = ranks(size, _a_rank, towers_file(tmp_path), loss, parts)
    assert sum(part for part, _ in answers) == pytest.approx(value, rel=1e-12)
    for _, found in answers:
        _same(
            {name: torch.from_numpy(grad) for name, grad in found.items()},
            {name: grad for name, grad in expected.items() if name in found},
        )


@pytest.mark.parametrize("tower", ["image", "text"])
def test_a_frozen_tower_stays_and_the_other_learns(tmp_path, tower):
    settings = settings_of(tmp_path, freeze=tower)
    towers = make_towers(settings)
    towers.train()
    before = {name: value.clone() for name, value in towers.model.state_dict().items()}
    optimiser = make_optimiser(towers.model, settings)
    gradients(towers, _rows(), "clip", 2, False, World())
    optimiser.step()
    changed = {name for name, value in towers.model.state_dict().items() if not torch.equal(value, before[name])}
    in_image = {name for name in changed if name.startswith("visual.")}
    in_text = {name for name in changed if not name.startswith("visual.") and name != "logit_scale"}
    assert (bool(in_image), bool(in_text)) == ((False, True) if tower == "image" else (True, False))


def test_a_long_gradient_is_cut_to_the_norm_that_is_asked_for(tmp_path):
    towers = _towers(tmp_path)
    _, before = _ours(towers, _rows(), "clip", 1)
    norm = torch.stack([grad.norm() for grad in before.values()]).norm().item()
    assert clip(towers.model, norm / 4) == pytest.approx(norm)
    after = {name: parameter.grad for name, parameter in towers.model.named_parameters()}
    for name, grad in before.items():
        torch.testing.assert_close(after[name], grad / 4, rtol=1e-5, atol=1e-12)


def test_the_temperature_stays_between_1_and_100(tmp_path):
    model = make_towers(settings_of(tmp_path)).model
    assert model.logit_scale.exp().item() == pytest.approx(1 / 0.07)
    for value, held in ((9.0, 100.0), (-1.0, 1.0)):
        model.logit_scale.data.fill_(value)
        hold_temperature(model)
        assert model.logit_scale.exp().item() == pytest.approx(held)


def test_siglip_starts_at_ten_with_a_bias_of_minus_ten(tmp_path):
    model = make_towers(settings_of(tmp_path, loss="siglip")).model
    assert model.logit_scale.exp().item() == pytest.approx(10)
    assert model.logit_bias.item() == -10


def test_decay_groups_are_open_clips_by_name(tmp_path):
    for config in (TOWERS, RESNET):
        model = make_towers(settings_of(tmp_path).model_copy(update={"arch": towers_file(tmp_path, config)})).model
        groups = decay_groups(model)

        def exclude(n, p):  # open_clip_train 3.3, main.py
            return p.ndim < 2 or "bn" in n or "ln" in n or "bias" in n or "logit_scale" in n

        named = dict(model.named_parameters())
        assert groups.without == [name for name, p in named.items() if exclude(name, p)]
        assert groups.decayed == [name for name, p in named.items() if not exclude(name, p)]


def test_what_decays_in_a_vit_is_its_matrices_and_embeddings(tmp_path):
    groups = decay_groups(make_towers(settings_of(tmp_path)).model)
    blocks = r"transformer\.resblocks\.\d\."
    decayed = (
        rf"(visual\.)?({blocks}(attn\.in_proj_weight|attn\.out_proj\.weight|mlp\.c_(fc|proj)\.weight)|"
        r"positional_embedding|proj|conv1\.weight)|token_embedding\.weight|text_projection"
    )
    bare = (
        rf"(visual\.)?({blocks}(ln_[12]\.(weight|bias)|attn\.(in_proj_bias|out_proj\.bias)|mlp\.c_(fc|proj)\.bias)|"
        r"ln_(pre|post|final)\.(weight|bias)|class_embedding)|logit_scale"
    )
    assert [name for name in groups.decayed if not re.fullmatch(decayed, name)] == []
    assert [name for name in groups.without if not re.fullmatch(bare, name)] == []


def test_learning_rates_are_open_clips(tmp_path):
    from open_clip_train.scheduler import cosine_lr

    settings = settings_of(tmp_path, samples=16 * 40, warmup=7)
    optimiser = make_optimiser(make_towers(settings).model, settings)
    theirs = cosine_lr(optimiser, settings.lr, settings.warmup, settings.steps)
    for step in range(settings.steps):
        theirs(step)
        assert learning_rate(settings, step) == pytest.approx(optimiser.param_groups[0]["lr"], rel=1e-12)


@pytest.mark.parametrize(("config", "beta2", "eps"), [(TOWERS, 0.98, 1e-6), (RESNET, 0.999, 1e-8)])
def test_adam_is_the_papers_for_each_kind_of_tower(tmp_path, config, beta2, eps):
    settings = settings_of(tmp_path).model_copy(update={"arch": towers_file(tmp_path, config)})
    defaults = make_optimiser(make_towers(settings).model, settings).defaults
    assert (defaults["betas"], defaults["eps"]) == ((0.9, beta2), eps)


def test_accumulation_over_batch_statistics_is_refused(tmp_path):
    settings = settings_of(tmp_path, accumulate=2).model_copy(update={"arch": towers_file(tmp_path, RESNET)})
    with pytest.raises(InputError, match="has batch statistics"):
        make_towers(settings)


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_every_preset_names_an_architecture_there_is(name):
    from pipeline.encoders.source import architectures

    settings = parse_settings(name, [])
    assert settings.arch in architectures()
    assert settings.steps * settings.batch_size >= settings.samples > (settings.steps - 1) * settings.batch_size


@pytest.mark.parametrize(
    ("preset", "changes", "said"),
    [
        ("tinny", [], "--preset tinny: there is none; did you mean tiny"),
        (None, ["batchsize=3"], "--set batchsize: there is no such setting; did you mean batch_size"),
        (None, ["lr=fast"], "--set lr=fast: "),
        (None, ["lr"], "--set lr: expected key=value"),
        (None, ["loss=triplet"], "--set loss=triplet: "),
    ],
)
def test_a_wrong_setting_is_one_line_with_a_way_out(preset, changes, said):
    with pytest.raises(InputError, match=re.escape(said)):
        parse_settings(preset, changes)


def test_settings_that_only_say_how_are_not_the_runs_identity():
    one, other = TrainSettings(), TrainSettings(workers=3, decoders=2, accumulate=4, checkpoint_steps=1)
    assert one.fingerprint() == other.fingerprint() != TrainSettings(batch_size=128).fingerprint()
