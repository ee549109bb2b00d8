"""Small CLIPs with random weights, written in the formats that encoders are published in."""

import copy
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from torch import nn

TEXT = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 2}
VIT: dict[str, Any] = {
    "embed_dim": 48,
    "vision_cfg": {"image_size": 64, "layers": 2, "width": 128, "patch_size": 16},
    "text_cfg": TEXT,
}
RESNET: dict[str, Any] = {
    "embed_dim": 48,
    "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 16, "patch_size": None},
    "text_cfg": TEXT,
}
MOBILE: dict[str, Any] = {  # as MobileCLIP: a timm tower that is no transformer, text without a causal mask
    "embed_dim": 48,
    "vision_cfg": {"timm_model_name": "test_convnext", "timm_pool": "avg", "timm_proj": "linear", "image_size": 64},
    "text_cfg": {**TEXT, "no_causal_mask": True},
    "custom_text": True,
}
SIGLIP: dict[str, Any] = {
    "embed_dim": 64,
    "init_logit_bias": -10,
    "custom_text": True,
    "vision_cfg": {"image_size": 64, "timm_model_name": "test_vit", "timm_pool": "map", "timm_proj": "none"},
    "text_cfg": {
        "context_length": 16, "vocab_size": 300, "hf_tokenizer_name": "nobody/nothing",
        "tokenizer_kwargs": {"clean": "canonicalize"}, "width": 64, "heads": 2, "layers": 2, "no_causal_mask": True,
        "proj_bias": True, "pool_type": "last", "norm_kwargs": {"eps": 1e-6},
    },
}  # fmt: skip
COCA: dict[str, Any] = {
    "embed_dim": 48,
    "multimodal_cfg": {"context_length": 76, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 1},
    "vision_cfg": {"image_size": 64, "layers": 1, "width": 64, "patch_size": 16, "attentional_pool": True,
                   "attn_pooler_heads": 1, "output_tokens": True},
    "text_cfg": {**TEXT, "context_length": 76, "embed_cls": True, "output_tokens": True},
    "custom_text": True,
}  # fmt: skip
PREPROCESS = {
    "mean": [0.5, 0.4, 0.3], "std": [0.3, 0.2, 0.25], "interpolation": "bilinear", "resize_mode": "squash",
}  # fmt: skip


def model(config: dict[str, Any], seed: int = 1) -> nn.Module:
    """Of random weights, none of which is left at a constant it began with."""
    import open_clip
    from open_clip.coca_model import CoCa

    given = copy.deepcopy(config)
    custom = given.pop("custom_text", False)
    kind: Any = open_clip.CustomTextCLIP if custom else open_clip.CLIP
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made: nn.Module = (CoCa if "multimodal_cfg" in given else kind)(**given).eval()
        for name, tensor in made.named_parameters():
            if "logit" not in name:
                tensor.data += 0.02 * torch.randn_like(tensor)
    return made


def plain_state(made: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.contiguous().clone() for name, tensor in made.state_dict().items()}


def open_clip_folder(folder: Path, config: dict[str, Any], made: nn.Module, suffix: str = ".safetensors") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    if suffix == ".safetensors":
        save_file(plain_state(made), folder / "open_clip_model.safetensors")
    else:
        torch.save(plain_state(made), folder / f"open_clip_pytorch_model{suffix}")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": PREPROCESS}))
    return folder


def openai_archive(path: Path, config: dict[str, Any], made: nn.Module) -> Path:
    """As OpenAI's: a traced model whose weights are fp16."""
    for tensor in made.parameters():  # numbers that fp16 holds, so that nothing is lost
        tensor.data = tensor.data.half().float()
    object.__setattr__(made, "attn_mask", made._buffers.pop("attn_mask"))  # OpenAI's is no buffer
    size = config["vision_cfg"]["image_size"]
    shown: Any = {"encode_image": torch.ones(2, 3, size, size), "encode_text": torch.zeros(2, 77, dtype=torch.int)}
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace_module(made, shown, check_trace=False)
        copy.deepcopy(traced).half().save(str(path))
    return path


def hugging_face_clip(folder: Path, config: dict[str, Any], made: nn.Module) -> Path:
    """The same weights under CLIPModel's names."""
    from transformers import CLIPConfig, CLIPModel

    vision, text, dim = config["vision_cfg"], config["text_cfg"], config["embed_dim"]
    act = "quick_gelu" if config.get("quick_gelu") else "gelu"
    given = CLIPConfig(
        vision_config={
            "hidden_size": vision["width"], "intermediate_size": vision["width"] * 4, "projection_dim": dim,
            "num_hidden_layers": vision["layers"], "num_attention_heads": vision["width"] // 64,
            "image_size": vision["image_size"], "patch_size": vision["patch_size"], "hidden_act": act,
        },
        text_config={
            "hidden_size": text["width"], "intermediate_size": text["width"] * 4, "projection_dim": dim,
            "num_hidden_layers": text["layers"], "num_attention_heads": text["heads"], "hidden_act": act,
            "vocab_size": text["vocab_size"], "max_position_embeddings": text["context_length"],
            "bos_token_id": 49406, "eos_token_id": 49407, "pad_token_id": 49407,
        },
        projection_dim=dim,
    )  # fmt: skip
    state = plain_state(made)
    named = {
        "logit_scale": state["logit_scale"],
        "visual_projection.weight": state["visual.proj"].T,
        "text_projection.weight": state["text_projection"].T,
        "vision_model.embeddings.class_embedding": state["visual.class_embedding"],
        "vision_model.embeddings.patch_embedding.weight": state["visual.conv1.weight"],
        "vision_model.embeddings.position_embedding.weight": state["visual.positional_embedding"],
        "text_model.embeddings.token_embedding.weight": state["token_embedding.weight"],
        "text_model.embeddings.position_embedding.weight": state["positional_embedding"],
    }
    norms = {"visual.ln_pre": "vision_model.pre_layrnorm", "visual.ln_post": "vision_model.post_layernorm",
             "ln_final": "text_model.final_layer_norm"}  # fmt: skip
    inner = {"ln_1": "layer_norm1", "ln_2": "layer_norm2", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2",
             "attn.out_proj": "self_attn.out_proj"}  # fmt: skip
    for ours, tower, layers in (("visual.", "vision_model", vision["layers"]), ("", "text_model", text["layers"])):
        for layer in range(layers):
            block, other = f"{ours}transformer.resblocks.{layer}", f"{tower}.encoder.layers.{layer}"
            norms |= {f"{block}.{one}": f"{other}.{two}" for one, two in inner.items()}
            for kind in ("weight", "bias"):
                parts = state[f"{block}.attn.in_proj_{kind}"].chunk(3)
                named |= {
                    f"{other}.self_attn.{name}_proj.{kind}": part for name, part in zip("qkv", parts, strict=True)
                }
    for one, two in norms.items():
        named |= {f"{two}.{kind}": state[f"{one}.{kind}"] for kind in ("weight", "bias")}
    written = CLIPModel(given)
    written.load_state_dict(named)
    written.save_pretrained(folder)
    size = vision["image_size"]
    write_json(folder / "preprocessor_config.json", {
        "do_resize": True, "size": {"shortest_edge": size}, "do_center_crop": True, "resample": 3,
        "crop_size": {"height": size, "width": size}, "image_mean": [0.48, 0.46, 0.41], "image_std": [0.27, 0.26, 0.28],
    })  # fmt: skip
    clip_tokenizer(folder)
    return folder


def hugging_face_siglip(folder: Path, seed: int = 1) -> Path:
    from transformers import SiglipConfig, SiglipModel

    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = SiglipConfig(
        vision_config={**sizes, "image_size": 64, "patch_size": 16},
        text_config={**sizes, "vocab_size": 300, "max_position_embeddings": 16, "projection_size": 64,
                     "bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 1},
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        SiglipModel(config).save_pretrained(folder)
    write_json(folder / "preprocessor_config.json", {
        "do_resize": True, "size": {"height": 64, "width": 64}, "resample": 3, "rescale_factor": 1 / 255,
        "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5],
    })  # fmt: skip
    sentence_pieces(folder)
    write_json(folder / "tokenizer_config.json", {
        "tokenizer_class": "SiglipTokenizer", "eos_token": "</s>", "pad_token": "</s>", "unk_token": "<unk>",
    })  # fmt: skip
    return folder


def big_vision(path: Path, config: dict[str, Any], made: nn.Module) -> Path:
    """The same weights under the names of Google's SigLIP .npz, kernels the way round that JAX has them."""
    state = {name: tensor.numpy() for name, tensor in made.state_dict().items()}
    named: dict[str, Any] = {"t": state["logit_scale"].reshape(1), "b": state["logit_bias"].reshape(1)}

    def norm(there: str, ours: str) -> None:
        named[f"{there}/scale"], named[f"{there}/bias"] = state[f"{ours}.weight"], state[f"{ours}.bias"]

    def dense(there: str, ours: str) -> None:
        named[f"{there}/kernel"], named[f"{there}/bias"] = state[f"{ours}.weight"].T, state[f"{ours}.bias"]

    def attention(there: str, parts: dict[str, tuple[Any, Any]], out: str, heads: int) -> None:
        for name, (weight, bias) in parts.items():
            named[f"{there}/{name}/kernel"] = weight.T.reshape(weight.shape[1], heads, -1)
            named[f"{there}/{name}/bias"] = bias.reshape(heads, -1)
        weight = state[f"{out}.weight"]
        named[f"{there}/out/kernel"] = weight.reshape(weight.shape[0], heads, -1).transpose(1, 2, 0)
        named[f"{there}/out/bias"] = state[f"{out}.bias"]

    def split(weight: str, bias: str, names: tuple[str, ...]) -> dict[str, tuple[Any, Any]]:
        pairs = zip(np.split(state[weight], len(names)), np.split(state[bias], len(names)), strict=True)
        return dict(zip(names, pairs, strict=True))

    every = ("query", "key", "value")
    trunk, heads = made.visual.trunk, config["text_cfg"]["heads"]
    named["img/embedding/kernel"] = state["visual.trunk.patch_embed.proj.weight"].transpose(2, 3, 1, 0)
    named["img/embedding/bias"] = state["visual.trunk.patch_embed.proj.bias"]
    named["img/pos_embedding"] = state["visual.trunk.pos_embed"]
    if trunk.cls_token is not None:
        named["img/cls"] = state["visual.trunk.cls_token"]
    for layer, block in enumerate(trunk.blocks):
        there, ours = f"img/Transformer/encoderblock_{layer}", f"visual.trunk.blocks.{layer}"
        norm(f"{there}/LayerNorm_0", f"{ours}.norm1")
        norm(f"{there}/LayerNorm_1", f"{ours}.norm2")
        parts = split(f"{ours}.attn.qkv.weight", f"{ours}.attn.qkv.bias", every)
        attention(f"{there}/MultiHeadDotProductAttention_0", parts, f"{ours}.attn.proj", block.attn.num_heads)
        for number in (0, 1):
            dense(f"{there}/MlpBlock_0/Dense_{number}", f"{ours}.mlp.fc{number + 1}")
    norm("img/Transformer/encoder_norm", "visual.trunk.norm")
    there, ours, pool = "img/MAPHead_0", "visual.trunk.attn_pool", trunk.attn_pool
    named[f"{there}/probe"] = state[f"{ours}.latent"]
    parts = {"query": (state[f"{ours}.q.weight"], state[f"{ours}.q.bias"])}
    parts |= split(f"{ours}.kv.weight", f"{ours}.kv.bias", every[1:])
    attention(f"{there}/MultiHeadDotProductAttention_0", parts, f"{ours}.proj", pool.num_heads)
    norm(f"{there}/LayerNorm_0", f"{ours}.norm")
    for number in (0, 1):
        dense(f"{there}/MlpBlock_0/Dense_{number}", f"{ours}.mlp.fc{number + 1}")
    named["txt/Embed_0/embedding"] = state["text.token_embedding.weight"]
    named["txt/pos_embedding"] = state["text.positional_embedding"][None]
    for layer in range(config["text_cfg"]["layers"]):
        there, ours = f"txt/Encoder_0/encoderblock_{layer}", f"text.transformer.resblocks.{layer}"
        norm(f"{there}/LayerNorm_0", f"{ours}.ln_1")
        norm(f"{there}/LayerNorm_1", f"{ours}.ln_2")
        parts = split(f"{ours}.attn.in_proj_weight", f"{ours}.attn.in_proj_bias", every)
        attention(f"{there}/MultiHeadDotProductAttention_0", parts, f"{ours}.attn.out_proj", heads)
        dense(f"{there}/MlpBlock_0/Dense_0", f"{ours}.mlp.c_fc")
        dense(f"{there}/MlpBlock_0/Dense_1", f"{ours}.mlp.c_proj")
    norm("txt/Encoder_0/encoder_norm", "text.ln_final")
    dense("txt/head", "text.text_projection")
    np.savez(path, **{f"params/{name}": value for name, value in named.items()})
    return path


def gemma_tokenizer(folder: Path) -> None:
    """A small tokenizer as SigLIP 2's: bytes where a piece is unknown, <eos> behind the text, lower case."""
    from transformers import Siglip2Tokenizer

    made = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    made.normalizer = normalizers.Replace(" ", "▁")
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *(f"<0x{byte:02X}>" for byte in range(256))]
    lines = Path(__file__).with_name("data").joinpath("alt_texts.tsv").read_text("utf-8").lower().splitlines()
    made.train_from_iterator(lines[:200], trainers.BpeTrainer(vocab_size=600, special_tokens=special))
    said = json.loads(made.to_str())["model"]
    Siglip2Tokenizer(
        vocab=said["vocab"], merges=[tuple(pair) for pair in said["merges"]], padding_side="right",
        add_bos_token=False, add_eos_token=True,
    ).save_pretrained(folder)  # fmt: skip


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value))


def clip_tokenizer(folder: Path) -> None:
    """CLIP's published vocabulary, as Hugging Face's tokenizer.json of it is built."""
    from pipeline.encoders.bpe import _vocabulary

    ids, places = _vocabulary()
    ids = {**ids, "<|startoftext|>": 49406, "<|endoftext|>": 49407}
    made = Tokenizer(models.BPE(vocab=ids, merges=list(places), end_of_word_suffix="</w>", unk_token="<|endoftext|>",
                                continuing_subword_prefix=""))  # fmt: skip
    made.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    words = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
    made.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(words), behavior="removed", invert=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False),
    ])  # fmt: skip
    made.add_special_tokens(["<|startoftext|>", "<|endoftext|>"])
    made.post_processor = processors.RobertaProcessing(
        ("<|endoftext|>", 49407), ("<|startoftext|>", 49406), trim_offsets=False, add_prefix_space=False
    )
    made.save(str(folder / "tokenizer.json"))
    names = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
    write_json(folder / "tokenizer_config.json", {
        **names, "pad_token": "<|endoftext|>", "tokenizer_class": "CLIPTokenizer", "model_max_length": 77,
    })  # fmt: skip


def sentence_pieces(folder: Path) -> None:
    """A small unigram vocabulary as T5's and SigLIP's: </s> is id 1 and a piece like any other."""
    lines = Path(__file__).with_name("data").joinpath("alt_texts.tsv").read_text("utf-8").lower().splitlines()
    made = Tokenizer(models.Unigram())
    made.normalizer = normalizers.Sequence([normalizers.NFKC()])
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    pieces = trainers.UnigramTrainer(vocab_size=300, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>")
    made.train_from_iterator(lines[:200], pieces)
    made.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    made.save(str(folder / "tokenizer.json"))
